"""Open the planner that the configuration names, and the hybrid of two of them (CLOVA 3.2)."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from visloop.assistant.demonstrations import DemonstrationPool
from visloop.assistant.llm_planner import LlmPlanner
from visloop.assistant.proposals import FailedAttempt, Planner, judge_runs, pair_attempts, teach
from visloop.assistant.retrieval import Encoder, WordEncoder
from visloop.assistant.search import open_search_planner
from visloop.assistant.search_judgements import JudgedRun, Judgement, JudgementPool
from visloop.assistant.slot_filling import SlotFillingPlanner
from visloop.assistant.symbol_planner import SymbolPlanner
from visloop.chat.base import ChatModel
from visloop.config_assistant import EncoderChoice, PlannerChoice, PlannerConfig, WriterChoice
from visloop.errors import ConfigError
from visloop.prompts.render import PromptSet
from visloop.records.assistant import Proposal, Task
from visloop.tools.base import ToolCatalogue, ToolRunner
from visloop.tools.signatures import SHIPPED

__all__ = ["FailedAttempt", "HybridPlanner", "Planner", "open_encoder", "open_planner"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HybridPlanner:
    """``first``'s proposals where it is sure of them (``min_confidence``, 0-1), else ``second``'s; where that gives no program, or says
    that it is less sure of it than ``min_second`` (0-1), ``first``'s after all. Each proposal's ``author`` says who wrote it; its tokens
    are those of both."""

    first: Planner
    second: Planner
    min_confidence: float
    min_second: float = 0.0
    name: str = "hybrid"

    def propose(
        self, tasks: Sequence[Task], *, pool: DemonstrationPool, attempts: Sequence[FailedAttempt | None] | None = None, seed: int
    ) -> list[Proposal]:
        """One proposal per task, in order; ``second`` is asked once, for all tasks that ``first`` leaves open."""
        paired = pair_attempts(tasks, attempts)
        proposals = self.first.propose(tasks, pool=pool, attempts=paired, seed=seed)
        unsure = [index for index, proposal in enumerate(proposals) if not self._is_sure(proposal)]
        if unsure:
            others = self.second.propose(
                [tasks[index] for index in unsure], pool=pool, attempts=[paired[index] for index in unsure], seed=seed
            )
            for index, other in zip(unsure, others, strict=True):
                known = proposals[index]
                if known.status != "ok" or (other.status == "ok" and not self._is_unsure(other)):
                    chosen = other
                else:
                    chosen = replace(known, replies=other.replies, error=f"{other.author}: {other.error or 'not sure'}")
                proposals[index] = replace(
                    chosen,
                    prompt_tokens=known.prompt_tokens + other.prompt_tokens,
                    new_tokens=known.new_tokens + other.new_tokens,
                )
        return proposals

    def judge(self, runs: Sequence[JudgedRun], *, tools: ToolRunner) -> list[Judgement]:
        """What ``first`` can learn from feedback on runs, where it learns at all."""
        return judge_runs(self.first, runs, tools=tools)

    def with_judgements(self, pool: JudgementPool) -> "HybridPlanner":
        """The hybrid whose ``first`` has learned from a pool."""
        return replace(self, first=teach(self.first, pool))

    def _is_unsure(self, second: Proposal) -> bool:
        return second.confidence is not None and second.confidence < self.min_second

    def _is_sure(self, proposal: Proposal) -> bool:
        return proposal.status == "ok" and proposal.confidence is not None and proposal.confidence >= self.min_confidence


def open_encoder(config: PlannerConfig) -> Encoder:
    """The encoder of instructions that the configuration names.

    Raises:
        ModelError: the sentence encoder cannot be loaded.
    """
    if config.encoder is EncoderChoice.words:
        return WordEncoder()
    from visloop.tools.encoders import SentenceEncoder

    return SentenceEncoder(config.encoder_model)


def open_planner(
    config: PlannerConfig,
    *,
    chat: ChatModel | None = None,
    prompts: PromptSet | None = None,
    vocabulary: Collection[str] = (),
    encoder: Encoder | None = None,
    tools: ToolCatalogue = SHIPPED,
) -> Planner:
    """The planner that the configuration names.

    Args:
        chat: the LLM of ``llm`` and ``hybrid`` where the writer is ``chat``; the caller closes it.
        prompts: the templates of its prompts; None: the style for general models.
        vocabulary: words that the tools know by name: masked for retrieval, and to be used by every program whose instruction has them.
        encoder: in place of the configured one.
        tools: what is known of tools and plugins; a toolbox knows its own. The embedded LM writes no plugin's tool.

    Raises:
        ConfigError: a planner with an LLM was asked for without ``chat``; there is no such task pack; a value is out of range.
        DataError: the scorer of ``search`` cannot be read.
        ModelError: the sentence encoder or the embedded LM cannot be loaded.
    """
    if config.candidates < 1 or not (0 <= config.min_confidence <= 1 and 0 <= config.min_lm_confidence <= 1):
        raise ConfigError(
            f"planner: candidates is {config.candidates}, at least 1 is needed; min_confidence is {config.min_confidence} and "
            f"min_lm_confidence {config.min_lm_confidence}, use 0 to 1"
        )
    encoder = encoder or open_encoder(config)
    words = frozenset(vocabulary)
    filling = SlotFillingPlanner(config=config, encoder=encoder, vocabulary=words, find_signature=tools.find_signature)
    if config.choice is PlannerChoice.slot_filling:
        return filling
    if config.choice is PlannerChoice.search:
        scorer = Path(config.scorer) if config.scorer else None
        search = open_search_planner(config.pack, scorer=scorer, words=config.words, find_tool=tools.find_signature)
        return HybridPlanner(first=search, second=filling, min_confidence=0.0, name=search.name)
    llm: Planner
    if config.writer is WriterChoice.embedded:
        from visloop.chat.symbol_model import load_symbol_model

        writer = load_symbol_model(config.lm)
        llm = SymbolPlanner(writer=writer, config=config, encoder=encoder, vocabulary=words, find_signature=tools.find_signature)
    elif chat is None:
        raise ConfigError(
            f"planner.choice={config.choice.value} needs a chat model; give one, or use slot_filling, or planner.writer=embedded"
        )
    else:
        llm = LlmPlanner(
            chat=chat,
            prompts=prompts or PromptSet("full"),
            config=config,
            encoder=encoder,
            vocabulary=words,
            tools=tools,
        )
    if config.choice is PlannerChoice.llm:
        return llm
    return HybridPlanner(first=filling, second=llm, min_confidence=config.min_confidence, min_second=config.min_lm_confidence)
