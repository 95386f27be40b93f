"""What a base model can do, on scenes it has not seen: answers per family in every mode, exactness of grounding, parse rates."""

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import LlavaForConditionalGeneration, LlavaProcessor

from visloop.embedded.dialogues import DialogueEncoder
from visloop.embedded.perception import GroundingMix, draw_find
from visloop.embedded.pictures import render_pixels
from visloop.embedded.replies import generate_replies
from visloop.errors import ReplyError
from visloop.ids import seed_for
from visloop.prompts.render import PromptSet
from visloop.records.chains import parse_chain, parse_step
from visloop.records.reasoning import ReasoningStep
from visloop.scenes.questions import SceneQuestion, draw_questions
from visloop.scenes.steps import execute_find, read_positions, summarize_operation
from visloop.scenes.verify import verify_steps
from visloop.scenes.world import Scene, WorldSpec

MOST_STEPS = 8


@dataclass(frozen=True, slots=True)
class Outcome:
    """One reply: the family of its question, whether its answer is right and readable, its exact path score (1-100)."""

    family: str
    right: bool
    parsed: bool
    score: float = 0.0


class Examination:
    """A fixed set of scenes with one question each, and a model to be measured on it.

    Args:
        scenes: one question is drawn from each, the families in turn.
    """

    def __init__(
        self,
        model: LlavaForConditionalGeneration,
        processor: LlavaProcessor,
        scenes: Sequence[Scene],
        *,
        spec: WorldSpec,
        prompts: PromptSet,
        seed: int,
    ) -> None:
        self.model, self.spec, self.prompts, self.seed = model, spec, prompts, seed
        self.encoder = DialogueEncoder(processor, patches=model.config.image_seq_length)
        self._decode: Callable[[list[int]], str] = lambda ids: processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
        drawn = [(scene, draw_questions(scene, seed=seed_for(seed, index), spec=spec, count=1)) for index, scene in enumerate(scenes)]
        self.items: list[tuple[Scene, SceneQuestion]] = [(scene, questions[0]) for scene, questions in drawn if questions]
        self.pixels, self.rows = render_pixels(processor, [scene for scene, _ in self.items], spec=spec)

    def ask(self, conversations: Sequence[Sequence[str]], items: Sequence[int], *, new_tokens: int, sampled: bool = False) -> list[str]:
        """Replies to conversations (texts that alternate user and assistant) about the pictures of ``items``."""
        prompts = [self.encoder.encode_prompt(texts, len(self.rows[item])) for texts, item in zip(conversations, items, strict=True)]
        return generate_replies(
            self.model,
            prompts,
            [self.rows[item] for item in items],
            pixels=self.pixels,
            encoder=self.encoder,
            decode=self._decode,
            max_new_tokens=new_tokens,
            sampled=sampled,
            seed=self.seed,
        )

    def judge_path(self, item: int, steps: Sequence[ReasoningStep], answer: str | None) -> Outcome:
        """Verify a chain against the scene."""
        scene, question = self.items[item]
        check = verify_steps(
            scene, gold_steps=question.steps, gold_answer=question.answer, steps=tuple(steps), answer=answer, spec=self.spec
        )
        return Outcome(question.family, check.answer_right, answer is not None, check.score)

    def measure_direct(self) -> list[Outcome]:
        """Greedy answers without reasoning."""
        everything = range(len(self.items))
        texts = [[self.prompts.render("direct", question=question.question)] for _, question in self.items]
        replies = self.ask(texts, everything, new_tokens=4)
        return [
            Outcome(question.family, reply == question.answer, bool(reply))
            for (_, question), reply in zip(self.items, replies, strict=True)
        ]

    def measure_chains(self, *, sampled: bool) -> list[Outcome]:
        """Whole chains in one reply, greedy or drawn at temperature 1."""
        everything = range(len(self.items))
        texts = [[self.prompts.render("reason", question=question.question)] for _, question in self.items]
        outcomes = []
        for item, reply in enumerate(self.ask(texts, everything, new_tokens=110, sampled=sampled)):
            try:
                chain = parse_chain(reply)
            except ReplyError:
                outcomes.append(Outcome(self.items[item][1].family, False, False))
                continue
            outcomes.append(self.judge_path(item, chain.steps, chain.answer))
        return outcomes

    def measure_stepwise(self, *, sampled: bool) -> list[Outcome]:
        """Chains as the generator tells them: one JSON step per turn, then the answer."""
        texts = {item: [self.prompts.render("generate_start", question=question.question)] for item, (_, question) in enumerate(self.items)}
        steps: dict[int, list[ReasoningStep]] = defaultdict(list)
        outcomes: dict[int, Outcome] = {}
        open_items = list(texts)
        for _ in range(MOST_STEPS):
            if not open_items:
                break
            replies = self.ask([texts[item] for item in open_items], open_items, new_tokens=40, sampled=sampled)
            waiting = []
            for item, reply in zip(open_items, replies, strict=True):
                try:
                    step = parse_step(reply)
                except ReplyError:
                    outcomes[item] = Outcome(self.items[item][1].family, False, False)
                    continue
                steps[item].append(step)
                texts[item] += [reply, self.prompts.render("generate_final" if step.action == "summary" else "generate_continue")]
                if step.action == "continue":
                    waiting.append(item)
            open_items = waiting
        for item in open_items:
            outcomes[item] = Outcome(self.items[item][1].family, False, False)
        done = [item for item in texts if item not in outcomes]
        for item, reply in zip(done, self.ask([texts[item] for item in done], done, new_tokens=4, sampled=sampled), strict=True):
            outcomes[item] = self.judge_path(item, steps[item], reply or None)
        return [outcomes[item] for item in range(len(self.items))]

    def measure_grounding(self, *, mix: GroundingMix) -> float:
        """Share of single find turns whose set of positions is exactly right."""
        rng = random.Random(self.seed)
        finds = [draw_find(rng, scene, spec=self.spec, mix=mix) for scene, _ in self.items]
        replies = self.ask([[summarize_operation(step)] for step in finds], range(len(finds)), new_tokens=40)
        right = 0
        for (scene, _), step, reply in zip(self.items, finds, replies, strict=True):
            positions = read_positions(reply)
            right += positions is not None and set(positions) == set(execute_find(step, scene.boxes))
        return right / len(finds)

    def count_questions(self) -> dict[str, float]:
        """Questions of each family and in all."""
        return dict(Counter(question.family for _, question in self.items)) | {"all": len(self.items)}

    def majority(self) -> dict[str, float]:
        """Share of the commonest answer within each family, and over all with the family known."""
        answers: dict[str, Counter[str]] = defaultdict(Counter)
        for _, question in self.items:
            answers[question.family][question.answer] += 1
        shares = {family: max(counts.values()) / counts.total() for family, counts in answers.items()}
        return shares | {"all": sum(max(counts.values()) for counts in answers.values()) / len(self.items)}


def summarize_outcomes(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Accuracy per family and over ``all``, ``parsed`` (share of readable replies) and ``score`` (mean path score)."""
    by_family: dict[str, list[bool]] = defaultdict(list)
    for outcome in outcomes:
        by_family[outcome.family].append(outcome.right)
    table = {family: sum(right) / len(right) for family, right in sorted(by_family.items())}
    return table | {
        "all": sum(outcome.right for outcome in outcomes) / len(outcomes),
        "parsed": sum(outcome.parsed for outcome in outcomes) / len(outcomes),
        "score": sum(outcome.score for outcome in outcomes) / len(outcomes),
    }
