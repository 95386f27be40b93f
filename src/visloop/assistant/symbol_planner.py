"""The embedded LM as planner: a small Llama that reads a demonstration and an instruction as symbols, and writes the program.

Each of the nearest demonstrations gives a prompt of its own, and one prompt has none: what the LM knows by heart. All prompts of all
tasks are one batch; of the programs that can be run and speak of every known concept the likeliest is proposed, its probability
as the confidence. The LM writes programs alone: the proposal has no plan.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from visloop.assistant.demonstrations import DemonstrationPool
from visloop.assistant.grammar import parse_program
from visloop.assistant.lexicon import Lexicon, build_lexicon
from visloop.assistant.proposals import (
    FailedAttempt,
    find_problems,
    find_unused,
    list_failed_programs,
    normalize_program,
    pair_attempts,
)
from visloop.assistant.retrieval import Encoder, MaskedEncoder, choose_entries
from visloop.assistant.symbol_grammar import SymbolGrammar
from visloop.assistant.symbols import SymbolRow, decode_program, encode_instruction, encode_program
from visloop.chat.symbol_rows import SymbolPrompt, WrittenRow
from visloop.config_assistant import PlannerConfig
from visloop.errors import ProgramError
from visloop.records.assistant import Proposal, Task
from visloop.tools.base import FindSignature
from visloop.tools.signatures import find_signature, list_signatures


class SymbolWriter(Protocol):
    """An LM over symbols, such as ``chat.symbol_model.SymbolModel``."""

    @property
    def name(self) -> str: ...

    @property
    def words(self) -> frozenset[str]: ...

    @property
    def vocabulary(self) -> tuple[str, ...]: ...

    def write(self, prompts: Sequence[SymbolPrompt]) -> list[WrittenRow]: ...


@dataclass(frozen=True, slots=True)
class _Shown:
    """A demonstration as symbols."""

    id: str
    instruction: tuple[str, ...]
    program: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SymbolPlanner:
    """``vocabulary`` are words that the tools know by name. As many demonstrations are tried per task as the configuration shows to an
    LLM; those with a plugin's tools, which the LM does not know, are left to slot filling."""

    writer: SymbolWriter
    config: PlannerConfig
    encoder: Encoder
    vocabulary: frozenset[str] = frozenset()
    find_signature: FindSignature = find_signature

    @property
    def name(self) -> str:
        """The author that its proposals carry."""
        return f"lm:{self.writer.name}"

    def propose(
        self, tasks: Sequence[Task], *, pool: DemonstrationPool, attempts: Sequence[FailedAttempt | None] | None = None, seed: int = 0
    ) -> list[Proposal]:
        """One proposal per task, in order; no random draw but that of demonstrations (``planner.retrieval``). A program that failed is not
        proposed again: the next likely one is.

        Raises:
            ConfigError: no number of demonstrations for a task's kind, or attempts that belong to other tasks.
        """
        lexicon = build_lexicon(pool, vocabulary=self.vocabulary)
        encoder = MaskedEncoder(self.encoder, lexicon)
        paired = pair_attempts(tasks, attempts)
        encode = partial(encode_instruction, words=self.writer.words - lexicon.concepts, is_sure=lexicon.is_sure)
        rows = [encode(task.instruction) for task in tasks]
        options = [[*self._choose(task, pool=pool, encoder=encoder, encode=encode, seed=seed), None] for task in tasks]
        prompts = [
            self._make_prompt(task, row, shown) for task, row, choices in zip(tasks, rows, options, strict=True) for shown in choices
        ]
        written = iter(self.writer.write(prompts))
        proposals = []
        for task, row, choices, attempt in zip(tasks, rows, options, paired, strict=True):
            drafts = [(shown, next(written)) for shown in choices]
            failed = list_failed_programs(task, pool=pool, attempt=attempt)
            proposals.append(self._pick(task, row, drafts, lexicon=lexicon, failed=failed))
        return proposals

    def _choose(
        self, task: Task, *, pool: DemonstrationPool, encoder: MaskedEncoder, encode: Callable[[str], SymbolRow], seed: int
    ) -> list[_Shown]:
        """The nearest demonstrations, or the first that are drawn, of different wordings that the LM can read; the nearest first."""
        entries = pool.find("program", "success", task.kind)
        most = self.config.count_shown(task.kind)
        known = set(self.writer.vocabulary)
        found: dict[tuple[str, ...], _Shown] = {}
        ordered = choose_entries(task, entries, choice=self.config.retrieval, encoder=encoder, most=len(entries), seed=seed)
        for entry in reversed(ordered):
            if len(found) == most:
                break
            row = encode(entry.instruction)
            try:
                program = parse_program(entry.program)
                symbols = encode_program(program, row, find_signature=self.find_signature)
            except ProgramError:
                continue
            # a plugin's tool cannot be followed
            if all(statement.tool in known for statement in program.statements):
                found.setdefault(row.symbols, _Shown(entry.id, row.symbols, symbols))
        return list(found.values())

    def _make_prompt(self, task: Task, row: SymbolRow, shown: _Shown | None) -> SymbolPrompt:
        signatures = [entry for entry in list_signatures(task.kind) if self.find_signature(entry.name) is not None]
        grammar = SymbolGrammar(task.kind, row, signatures=signatures, vocabulary=self.writer.vocabulary, inputs=task.inputs)
        demonstrations = () if shown is None else ((shown.instruction, shown.program),)
        return SymbolPrompt(kind=task.kind, shown=demonstrations, asked=row.symbols, grammar=grammar)

    def _pick(
        self,
        task: Task,
        row: SymbolRow,
        drafts: Sequence[tuple[_Shown | None, WrittenRow]],
        *,
        lexicon: Lexicon,
        failed: frozenset[str],
    ) -> Proposal:
        problem = "no program was finished"
        for shown, draft in sorted(drafts, key=lambda entry: -entry[1].log_probability):
            try:
                program = decode_program(draft.symbols, row, kind=task.kind, find_signature=self.find_signature)
            except ProgramError as error:
                problem = str(error)
                continue
            if normalize_program(program) in failed:
                problem = "this program was tried before and is wrong"
                continue
            problems = find_problems(program, task=task, find_signature=self.find_signature)
            unused = find_unused(task.instruction, program, lexicon=lexicon)
            if problems or unused:
                problem = problems[0] if problems else f"the program says nothing of {', '.join(unused)}"
                continue
            return Proposal(
                task_id=task.id,
                plan=(),
                program=program,
                author=self.name,
                demonstrations=() if shown is None else (shown.id,),
                replies=(" ".join(draft.symbols),),
                confidence=round(math.exp(draft.log_probability), 4),
            )
        return Proposal(task_id=task.id, plan=(), program="", author=self.name, status="failed", error=problem)
