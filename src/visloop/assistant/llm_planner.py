"""The LLM as planner: a plan from similar plans, then a program from similar programs (CLOVA 3.2).

Two prompts per task, all tasks of a call in one batch per turn. A reply that cannot be read, or whose program breaks a rule that is
known before it runs, is asked for again with what is wrong with it, at most ``max_tries`` times in all. A program that parses but still
breaks a rule is proposed as it is: running it says where it fails, and interrupt reflection is about that.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from visloop.assistant.demonstrations import DemonstrationPool
from visloop.assistant.grammar import parse_program
from visloop.assistant.lexicon import build_lexicon
from visloop.assistant.planner_prompts import choose_demonstrations, write_prompt
from visloop.assistant.proposals import FailedAttempt, find_problems, list_failed_programs, normalize_program, pair_attempts
from visloop.assistant.retrieval import Encoder, MaskedEncoder
from visloop.chat.base import ChatModel, ChatReply, ChatRequest, Message, Sampling
from visloop.config_assistant import PlannerConfig
from visloop.errors import ConfigError, ModelError, ProgramError
from visloop.ids import seed_for
from visloop.prompts.render import PromptSet
from visloop.records.assistant import DemonstrationKind, Proposal, ProposalStatus, Task
from visloop.tools.base import ToolCatalogue
from visloop.tools.signatures import SHIPPED

_STEP = re.compile(r"^\W*(?:step\s*)?\d+\s*[:.,)*]*\s*(?P<text>\S.*?)\s*$", re.IGNORECASE)
_LINE = re.compile(r"^\s*[A-Za-z_]\w*\s*=\s*[A-Za-z_]\w*\s*\(")


@dataclass(slots=True)
class _Draft:
    """A proposal in the making. ``shown`` are the ids of all demonstrations in its prompts."""

    task: Task
    attempt: FailedAttempt | None
    failed: frozenset[str]
    plan: tuple[str, ...] = ()
    program: str = ""
    shown: list[str] = field(default_factory=list)
    replies: list[str] = field(default_factory=list)
    prompt_tokens: int = 0
    new_tokens: int = 0
    messages: list[Message] = field(default_factory=list)
    tries: int = 0
    waiting: bool = False
    status: ProposalStatus = "ok"
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmPlanner:
    """A planner over any chat model. ``vocabulary`` are words that the tools know by name; they are masked when similar
    demonstrations are looked for; ``tools`` are those that its prompts list and its programs may call."""

    chat: ChatModel
    prompts: PromptSet
    config: PlannerConfig
    encoder: Encoder
    vocabulary: frozenset[str] = frozenset()
    tools: ToolCatalogue = SHIPPED

    @property
    def name(self) -> str:
        """The author that its proposals carry."""
        return f"llm:{self.chat.name}"

    def propose(
        self, tasks: Sequence[Task], *, pool: DemonstrationPool, attempts: Sequence[FailedAttempt | None] | None = None, seed: int
    ) -> list[Proposal]:
        """One proposal per task, in order. Every random draw is keyed by task, prompt and try.

        After a failed attempt the prompt that is to blame shows it with the reason. A plan that was not blamed is kept, and only the
        program is written again; CLOVA's code asks for a new plan there as well.

        Raises:
            ModelError: the backend did not give one reply per request.
            ConfigError: no number of demonstrations for a task's kind, or attempts that belong to other tasks.
        """
        if self.config.max_tries < 1:
            raise ConfigError(f"planner.max_tries: {self.config.max_tries}; the first try is one of them, use 1 or more")
        encoder = MaskedEncoder(self.encoder, build_lexicon(pool, vocabulary=self.vocabulary))
        drafts = [
            _Draft(task=task, attempt=attempt, failed=list_failed_programs(task, pool=pool, attempt=attempt))
            for task, attempt in zip(tasks, pair_attempts(tasks, attempts), strict=True)
        ]
        if self.config.use_plan:
            for draft in drafts:
                if draft.attempt and draft.attempt.critique.culprit == "program" and draft.attempt.proposal.plan:
                    draft.plan = draft.attempt.proposal.plan
                else:
                    self._open(draft, "plan", pool=pool, encoder=encoder, seed=seed)
            self._converse(drafts, "plan", seed=seed)
        for draft in drafts:
            if draft.status == "ok":
                self._open(draft, "program", pool=pool, encoder=encoder, seed=seed)
        self._converse(drafts, "program", seed=seed)
        return [self._close(draft) for draft in drafts]

    def _open(self, draft: _Draft, kind: DemonstrationKind, *, pool: DemonstrationPool, encoder: Encoder, seed: int) -> None:
        """Write the first turn of a plan's or a program's dialogue."""
        shown = choose_demonstrations(draft.task, kind, pool=pool, encoder=encoder, config=self.config, seed=seed)
        text = write_prompt(
            draft.task,
            kind,
            shown=shown,
            prompts=self.prompts,
            tools=self.tools,
            use_plan=self.config.use_plan,
            plan=draft.plan,
            attempt=self._show_attempt(draft, kind),
        )
        draft.messages = [Message(role="user", text=text)]
        draft.shown += [entry.id for entries in shown for entry in entries if entry.id not in draft.shown]
        draft.tries, draft.waiting = 0, True

    def _show_attempt(self, draft: _Draft, kind: DemonstrationKind) -> FailedAttempt | None:
        """The failed attempt, in the prompt of what is to blame; without plans a program takes all blame."""
        attempt = draft.attempt
        if attempt is None or (kind == "plan") != (self.config.use_plan and attempt.critique.culprit == "plan"):
            return None
        return attempt

    def _converse(self, drafts: Sequence[_Draft], kind: DemonstrationKind, *, seed: int) -> None:
        """Ask until every waiting draft has its plan or program, or has used up its tries."""
        sampling = Sampling(temperature=self.config.temperature, top_p=self.config.top_p, max_new_tokens=self.config.max_new_tokens)
        while live := [draft for draft in drafts if draft.waiting]:
            requests = [
                ChatRequest(
                    id=f"{draft.task.id}/{kind}/{draft.tries}",
                    messages=tuple(draft.messages),
                    seed=seed_for(seed, draft.task.id, kind, draft.tries, len(draft.failed)),
                )
                for draft in live
            ]
            replies = self.chat.reply(requests, sampling=sampling)
            if len(replies) != len(requests):
                raise ModelError(
                    f"model {self.chat.name}: {len(replies)} replies to {len(requests)} requests; a backend must give one each"
                )
            for draft, reply in zip(live, replies, strict=True):
                draft.tries += 1
                draft.prompt_tokens += reply.prompt_tokens
                draft.new_tokens += reply.new_tokens
                if reply.finish == "error":
                    draft.waiting, draft.status, draft.error = False, "failed", reply.error or "the backend gave no reply and no reason"
                else:
                    draft.replies.append(reply.text)
                    self._take(draft, kind, reply)

    def _take(self, draft: _Draft, kind: DemonstrationKind, reply: ChatReply) -> None:
        """Read one reply; ask again if something is wrong with it and a try is left."""
        if kind == "plan":
            draft.plan = read_plan(reply)
            problems: tuple[str, ...] = () if draft.plan else ("no numbered steps",)
        else:
            draft.program = read_program(reply.text)
            problems = find_problems(draft.program, task=draft.task, find_signature=self.tools.find_signature)
            if not problems and normalize_program(draft.program) in draft.failed:
                problems = ("this program was tried before and is wrong; write another",)
        if problems and draft.tries < self.config.max_tries:
            reminder = self.prompts.render(f"{kind}_repair", problems=problems)
            draft.messages += [Message(role="assistant", text=reply.text), Message(role="user", text=reminder)]
            return
        draft.waiting = False
        if problems:
            draft.error = f"{kind}: {problems[0]}"
            if kind == "plan" or not _can_be_read(draft.program):
                draft.status, draft.program = "unreadable", ""
            elif normalize_program(draft.program) in draft.failed:
                draft.status, draft.program = "failed", ""

    def _close(self, draft: _Draft) -> Proposal:
        return Proposal(
            task_id=draft.task.id,
            plan=draft.plan,
            program=draft.program,
            author=self.name,
            status=draft.status,
            demonstrations=tuple(draft.shown),
            replies=tuple(draft.replies),
            error=draft.error,
            prompt_tokens=draft.prompt_tokens,
            new_tokens=draft.new_tokens,
        )


def read_plan(reply: ChatReply) -> tuple[str, ...]:
    """The numbered steps of a reply, without their numbers: the first unbroken run of such lines. Empty if there is none, or if the
    token budget cut the last of them."""
    steps: list[str] = []
    for line in reply.text.splitlines():
        found = _STEP.match(line)
        if found:
            steps.append(found["text"])
        elif steps:
            return tuple(steps)
    return () if reply.finish == "length" else tuple(steps)


def read_program(text: str) -> str:
    """The program in a reply: from its first line of the form ``NAME=TOOL(`` to the first blank line (CLOVA) or closing fence. A reply
    without such a line is given back whole, for the parser to say what is wrong."""
    lines = text.splitlines()
    start = next((index for index, line in enumerate(lines) if _LINE.match(line)), None)
    if start is None:
        return text.strip()
    kept: list[str] = []
    for line in lines[start:]:
        if not line.strip() or line.lstrip().startswith("```"):
            break
        kept.append(line.strip())
    return "\n".join(kept)


def _can_be_read(program: str) -> bool:
    try:
        parse_program(program)
    except ProgramError:
        return False
    return True
