"""Planning without an LLM: the most fitting demonstration, with its slots filled from the new instruction.

Retrieval gives a few demonstrations; each is aligned with the instruction in several ways; what fits best and can be run is proposed.
A wording that no demonstration has gives a poor alignment; one stored demonstration of it (CLOVA 3.4) gives a perfect one.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from visloop.assistant.alignment import align_words
from visloop.assistant.demonstrations import DemonstrationPool
from visloop.assistant.filling import fill_template
from visloop.assistant.lexicon import Lexicon, build_lexicon, split_words
from visloop.assistant.proposals import (
    FailedAttempt,
    FindSignature,
    find_problems,
    find_unused,
    list_failed_programs,
    normalize_program,
    pair_attempts,
)
from visloop.assistant.retrieval import Encoder, MaskedEncoder, retrieve
from visloop.assistant.templates import Template, build_template
from visloop.config_assistant import PlannerConfig
from visloop.errors import ProgramError
from visloop.records.assistant import Demonstration, Proposal, Task
from visloop.tools.signatures import find_signature

AUTHOR = "slot_filling"


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One way to read an instruction. ``score`` 0-1 is how well it fits the demonstration (alignment ratio)."""

    plan: tuple[str, ...]
    program: str
    demonstration: str
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotFillingPlanner:
    """``vocabulary`` are words that the tools know by name: surely concepts. ``candidates`` of the config says how many demonstrations
    are tried per task."""

    config: PlannerConfig
    encoder: Encoder
    vocabulary: frozenset[str] = frozenset()
    find_signature: FindSignature = find_signature
    name: str = AUTHOR
    _encoders: dict[str, MaskedEncoder] = field(default_factory=dict, init=False, repr=False, compare=False)
    _templates: dict[str, dict[str, Template | None]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def propose(
        self, tasks: Sequence[Task], *, pool: DemonstrationPool, attempts: Sequence[FailedAttempt | None] | None = None, seed: int = 0
    ) -> list[Proposal]:
        """One proposal per task, in order; no random draw. Without a candidate that can be run, and that uses every known concept of the
        instruction, the status is ``failed``."""
        return [
            self._propose(task, pool=pool, attempt=attempt) for task, attempt in zip(tasks, pair_attempts(tasks, attempts), strict=True)
        ]

    def list_candidates(self, task: Task, *, pool: DemonstrationPool) -> list[Candidate]:
        """All readings of a task's instruction that can be run and use every known concept, best first; programs differ."""
        lexicon, encoder, templates = self._prepare(pool)
        words = split_words(task.instruction)
        found: dict[str, Candidate] = {}
        entries = pool.find("program", "success", task.kind)
        nearest = retrieve(task.instruction, entries, encoder=encoder, most=len(entries))
        forms: set[Hashable] = set()
        for entry, _ in reversed(nearest):
            template = self._template_of(entry, lexicon, templates)
            if template is None or template.form in forms:
                continue
            forms.add(template.form)
            if len(forms) > self.config.candidates:
                break
            for alignment in align_words(template, words, lexicon=lexicon):
                try:
                    plan, program = fill_template(template, [words[start:stop] for start, stop in alignment.fills])
                except ProgramError:
                    continue
                form = normalize_program(program)
                if form in found and found[form].score >= alignment.score:
                    continue
                if find_unused(task.instruction, program, lexicon=lexicon):
                    continue
                if find_problems(program, task=task, find_signature=self.find_signature):
                    continue
                found[form] = Candidate(plan=plan, program=program, demonstration=entry.id, score=alignment.score)
        return sorted(found.values(), key=lambda candidate: -candidate.score)

    def _propose(self, task: Task, *, pool: DemonstrationPool, attempt: FailedAttempt | None) -> Proposal:
        failed = list_failed_programs(task, pool=pool, attempt=attempt)
        candidates = self.list_candidates(task, pool=pool)
        best = next((candidate for candidate in candidates if normalize_program(candidate.program) not in failed), None)
        if best is None:
            reason = (
                f"all {len(candidates)} readings of {task.instruction!r} were tried before"
                if candidates
                else f"no {task.kind} demonstration can be filled from {task.instruction!r}; store one of that wording"
            )
            return Proposal(task_id=task.id, plan=(), program="", author=self.name, status="failed", error=reason)
        return Proposal(
            task_id=task.id,
            plan=best.plan if self.config.use_plan else (),
            program=best.program,
            author=self.name,
            demonstrations=(best.demonstration,),
            confidence=round(min(1.0, best.score), 4),
        )

    def _prepare(self, pool: DemonstrationPool) -> tuple[Lexicon, MaskedEncoder, dict[str, Template | None]]:
        """Lexicon, encoder and templates of a pool; those of the last pool are kept, as tasks come one after the other."""
        if pool.hash not in self._encoders:
            self._encoders.clear()
            self._templates.clear()
            lexicon = build_lexicon(pool, vocabulary=self.vocabulary)
            self._encoders[pool.hash] = MaskedEncoder(self.encoder, lexicon)
            self._templates[pool.hash] = {}
        encoder = self._encoders[pool.hash]
        return encoder.lexicon, encoder, self._templates[pool.hash]

    def _template_of(self, entry: Demonstration, lexicon: Lexicon, templates: dict[str, Template | None]) -> Template | None:
        """The template of a demonstration; None for one whose program cannot be read."""
        if entry.id not in templates:
            try:
                templates[entry.id] = build_template(entry, lexicon=lexicon)
            except ProgramError:
                templates[entry.id] = None
        return templates[entry.id]
