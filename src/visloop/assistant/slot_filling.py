"""Planning without an LLM: the most fitting demonstration, with its slots filled from the new instruction.

Retrieval gives a few demonstrations; each is aligned with the instruction in several ways; what fits best and can be run is proposed.
A wording that no demonstration has gives a poor alignment; one stored demonstration of it (CLOVA 3.4) gives a perfect one.
"""

from collections import Counter
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, field, replace
from itertools import product

from visloop.assistant.alignment import Alignment, align_words, fit_phrases
from visloop.assistant.composition import asks_yes_no, compose_programs, split_instruction
from visloop.assistant.demonstrations import DemonstrationPool
from visloop.assistant.filling import fill_template
from visloop.assistant.grammar import parse_program
from visloop.assistant.lexicon import Lexicon, Word, build_lexicon, split_words
from visloop.assistant.proposals import (
    FailedAttempt,
    find_problems,
    find_unused,
    list_failed_programs,
    normalize_program,
    pair_attempts,
)
from visloop.assistant.relations import find_relations, relate_program
from visloop.assistant.retrieval import Encoder, MaskedEncoder, choose_entries
from visloop.assistant.templates import Template, build_template
from visloop.config_assistant import PlannerConfig
from visloop.errors import ProgramError
from visloop.records.assistant import Demonstration, Proposal, Task
from visloop.tools.base import FindSignature
from visloop.tools.signatures import find_signature

AUTHOR = "slot_filling"
_GOOD = 0.6
"""From which score on a single program fits well enough to be tried before composed ones."""
_FAIR = 0.35
"""From which score on a composed program is tried before single ones that fit loosely."""
_COMPOSED = 0.9
"""What the score of the worse part counts: a composed reading is less sure than each of its parts."""
_MOST_FORMS = 3
"""Forms that are tried for each part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One way to read an instruction. ``score`` 0-1 is how well it fits its demonstrations (alignment ratio); ``parts``: of how many
    demonstrations it is made. ``clear``: its words alone say that two things are counted, whatever the score."""

    plan: tuple[str, ...]
    program: str
    demonstrations: tuple[str, ...]
    score: float
    parts: int = 1
    clear: bool = False


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
        """One proposal per task, in order; no random draw but that of demonstrations (``planner.retrieval``). Without a candidate that can
        be run, and that uses every known concept of the instruction, the status is ``failed``."""
        return [
            self._propose(task, pool=pool, attempt=attempt, seed=seed)
            for task, attempt in zip(tasks, pair_attempts(tasks, attempts), strict=True)
        ]

    def list_candidates(self, task: Task, *, pool: DemonstrationPool, repair: bool = False, seed: int = 0) -> list[Candidate]:
        """All readings of a task's instruction that can be run and use every known concept, best first; programs differ. In ``repair``
        every form is tried, and also with slots filled loosely. ``seed`` is that of the draw where ``planner.retrieval`` is random."""
        lexicon, _, _ = self._prepare(pool)
        found: dict[str, Candidate] = {}
        for reading in self._list_readings(task, pool=pool, repair=repair, seed=seed):
            if (candidate := reading.fill()) is not None:
                self._keep(candidate, found, task, lexicon)
        return sorted(found.values(), key=lambda candidate: -candidate.score)

    def _find_first(self, task: Task, *, pool: DemonstrationPool, failed: Collection[str], seed: int) -> Candidate | None:
        """The best of ``list_candidates`` that is none of the ``failed`` programs. Programs are written and checked only until then."""
        lexicon, _, _ = self._prepare(pool)
        for reading in sorted(self._list_readings(task, pool=pool, seed=seed), key=lambda reading: -reading.alignment.score):
            candidate = reading.fill()
            if candidate is None or find_unused(task.instruction, candidate.program, lexicon=lexicon):
                continue
            fresh = not failed or normalize_program(candidate.program) not in failed
            if fresh and not find_problems(candidate.program, task=task, find_signature=self.find_signature):
                return candidate
        return None

    def _list_readings(self, task: Task, *, pool: DemonstrationPool, repair: bool = False, seed: int) -> list["_Reading"]:
        """The instruction read as each form of the nearest demonstrations, or of the first that are drawn; the nearest form first."""
        lexicon, encoder, templates = self._prepare(pool)
        words = split_words(task.instruction)
        entries = pool.find("program", "success", task.kind)
        ordered = choose_entries(task, entries, choice=self.config.retrieval, encoder=encoder, most=len(entries), seed=seed)
        forms: set[Hashable] = set()
        readings: list[_Reading] = []
        for entry in reversed(ordered):
            template = self._template_of(entry, lexicon, templates)
            if template is None or template.form in forms:
                continue
            forms.add(template.form)
            if len(forms) > self.config.candidates and not repair:
                break
            loose = fit_phrases(template, words, lexicon=lexicon) if repair else []
            alignments = (*align_words(template, words, lexicon=lexicon), *loose)
            readings += [_Reading(entry, template, tuple(words), alignment) for alignment in alignments]
        return readings

    def list_composed(self, task: Task, *, pool: DemonstrationPool, seed: int = 0) -> list[Candidate]:
        """Readings of a task's instruction as two, each of which a demonstration fits; best first, programs differ. One that takes up an
        instruction about two things has the same form for both; one about things in a relation to others narrows the program for these
        things."""
        lexicon, _, _ = self._prepare(pool)
        found: dict[str, Candidate] = {}
        yes_no = asks_yes_no(task.instruction)
        for split in split_instruction(task.instruction, lexicon=lexicon):
            if split.kind == "pair" and not split.joined:
                continue
            read = [self.list_candidates(replace(task, instruction=text), pool=pool, seed=seed) for text in (split.first, split.second)]
            parts = [candidates[:_MOST_FORMS] for candidates in read]
            for first, second in product(*parts):
                if split.kind == "pair" and list_tools(first.program) != list_tools(second.program):
                    continue
                score = _COMPOSED * min(first.score, second.score)
                joined = compose_programs(
                    (first.plan, first.program),
                    (second.plan, second.program),
                    kind=task.kind,
                    find_signature=self.find_signature,
                    yes_no=yes_no,
                )
                for place, (plan, program) in enumerate(joined):
                    candidate = Candidate(
                        plan=plan,
                        program=program,
                        demonstrations=tuple(dict.fromkeys((*first.demonstrations, *second.demonstrations))),
                        score=score * _COMPOSED**place,
                        parts=2,
                        clear=yes_no and split.kind == "pair" and list_tools(first.program)[-2:-1] == ("COUNT",),
                    )
                    self._keep(candidate, found, task, lexicon)
        for relation in find_relations(task.instruction, lexicon=lexicon):
            for part in self.list_candidates(replace(task, instruction=relation.first), pool=pool, seed=seed)[:_MOST_FORMS]:
                related = relate_program(part.plan, part.program, relation=relation, find_signature=self.find_signature)
                if related is not None:
                    plan, program = related
                    score = _COMPOSED * part.score
                    candidate = Candidate(plan=plan, program=program, demonstrations=part.demonstrations, score=score, parts=2)
                    self._keep(candidate, found, task, lexicon)
        return sorted(found.values(), key=lambda candidate: -candidate.score)

    def _keep(self, candidate: Candidate, found: dict[str, Candidate], task: Task, lexicon: Lexicon) -> None:
        """Take up a candidate that is better than what is known of its program, uses every known concept and can be run."""
        form = normalize_program(candidate.program)
        if form in found and (found[form].clear, found[form].score) >= (candidate.clear, candidate.score):
            return
        if find_unused(task.instruction, candidate.program, lexicon=lexicon):
            return
        if not find_problems(candidate.program, task=task, find_signature=self.find_signature):
            found[form] = candidate

    def _propose(self, task: Task, *, pool: DemonstrationPool, attempt: FailedAttempt | None, seed: int) -> Proposal:
        failed = list_failed_programs(task, pool=pool, attempt=attempt)
        best = None if attempt is not None else self._find_first(task, pool=pool, failed=failed, seed=seed)
        if best is not None:
            return self._propose_candidate(task, best)
        candidates = self.list_candidates(task, pool=pool, repair=attempt is not None, seed=seed)
        if attempt is not None:
            known = {normalize_program(candidate.program) for candidate in candidates}
            composed = self.list_composed(task, pool=pool, seed=seed)
            candidates += [candidate for candidate in composed if normalize_program(candidate.program) not in known]
        if attempt is not None:
            tried = Counter(list_tools(program) for program in failed)
            candidates.sort(key=lambda candidate: (tried[list_tools(candidate.program)], _rank(candidate), -candidate.score))
        best = next((candidate for candidate in candidates if normalize_program(candidate.program) not in failed), None)
        if best is None:
            reason = (
                f"all {len(candidates)} readings of {task.instruction!r} were tried before"
                if candidates
                else f"no {task.kind} demonstration can be filled from {task.instruction!r}; store one of that wording"
            )
            return Proposal(task_id=task.id, plan=(), program="", author=self.name, status="failed", error=reason)
        return self._propose_candidate(task, best)

    def _propose_candidate(self, task: Task, best: Candidate) -> Proposal:
        return Proposal(
            task_id=task.id,
            plan=best.plan if self.config.use_plan else (),
            program=best.program,
            author=self.name,
            demonstrations=best.demonstrations,
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


@dataclass(frozen=True, slots=True)
class _Reading:
    """An instruction's words read as a demonstration's instruction."""

    entry: Demonstration
    template: Template
    words: tuple[Word, ...]
    alignment: Alignment

    def fill(self) -> Candidate | None:
        """The demonstration's plan and program with these words; None where a tool or a picture is missing for a place."""
        try:
            plan, program = fill_template(self.template, [self.words[start:stop] for start, stop in self.alignment.fills])
        except ProgramError:
            return None
        return Candidate(plan=plan, program=program, demonstrations=(self.entry.id,), score=self.alignment.score)


def list_tools(program: str) -> tuple[str, ...]:
    """The tools of a program in order: its form. Nothing for a text that is no program."""
    try:
        return tuple(statement.tool for statement in parse_program(program).statements)
    except ProgramError:
        return ()


def _rank(candidate: Candidate) -> int:
    """In repair: single programs that fit well, then composed ones of fitting parts, then all others."""
    if candidate.parts > 1:
        return 1 if candidate.clear or candidate.score >= _FAIR else 2
    return 0 if candidate.score >= _GOOD else 2
