"""The planner over symbols against a scripted LM: what it is shown, which of its programs is proposed, and who wins in the hybrid."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import pytest

from tests.unit.test_slot_filling import COUNT, RELATION, ask, fail
from visloop.assistant.demonstrations import DemonstrationPool
from visloop.assistant.lexicon import FUNCTION_WORDS
from visloop.assistant.planner import HybridPlanner
from visloop.assistant.retrieval import WordEncoder, draw_entries
from visloop.assistant.slot_filling import SlotFillingPlanner
from visloop.assistant.symbol_planner import SymbolPlanner
from visloop.assistant.symbols import CLOSE, OPEN
from visloop.chat.symbol_rows import PROGRAM_START, SymbolPrompt, WrittenRow, code_entries
from visloop.config_assistant import PlannerConfig, RetrievalChoice

POOL = DemonstrationPool((RELATION, COUNT))
COUNTS = f"1: LOC IMAGE {OPEN} <p0> {CLOSE} 2: COUNT v0 3: RESULT v1"
ASKS = f"1: VQA IMAGE {OPEN} how many <p0> ? {CLOSE} 2: RESULT v0"
FORGETS = f"1: LOC IMAGE {OPEN} object {CLOSE} 2: COUNT v0 3: RESULT v1"
Script = Callable[[SymbolPrompt], tuple[str, float]]


@dataclass
class ScriptedWriter:
    """Writes what ``script`` says, with its log-probability."""

    script: Script
    prompts: list[SymbolPrompt] = field(default_factory=list)
    name: str = "scripted"
    words: frozenset[str] = FUNCTION_WORDS | {"count"}
    vocabulary: tuple[str, ...] = ("LOC", "CROP_LEFTOF", "COUNT", "EVAL", "VQA", "RESULT")

    def write(self, prompts: Sequence[SymbolPrompt]) -> list[WrittenRow]:
        self.prompts += prompts
        rows = [self.script(prompt) for prompt in prompts]
        return [WrittenRow(symbols=tuple(text.split()), log_probability=chance, finished=True) for text, chance in rows]


def open_writer(script: Script, **changes: object) -> tuple[SymbolPlanner, ScriptedWriter]:
    writer = ScriptedWriter(script)
    config = PlannerConfig(**({"demonstrations": {"vqa": 4}} | changes))  # type: ignore[arg-type]
    return SymbolPlanner(writer=writer, config=config, encoder=WordEncoder(), vocabulary=frozenset({"red", "star", "circle"})), writer


def test_every_wording_that_is_near_gives_a_prompt_and_one_has_no_demonstration():
    twin = replace(COUNT, id="twin", instruction="How many stars are there?", program=COUNT.program.replace("red circle", "star"))
    planner, writer = open_writer(lambda prompt: (COUNTS, -0.1))
    [proposal] = planner.propose([ask("How many red circles are there?")], pool=DemonstrationPool((RELATION, COUNT, twin)), seed=0)
    assert [len(prompt.shown) for prompt in writer.prompts] == [1, 1, 0], "the twin says the same of other things"
    assert writer.prompts[0].shown[0] == (writer.prompts[0].asked, tuple(COUNTS.split())), "the nearest first"
    assert proposal.program == "BOX0=LOC(image=IMAGE,object='red circle')\nANSWER0=COUNT(box=BOX0)\nFINAL_RESULT=RESULT(var=ANSWER0)"
    assert (proposal.author, proposal.confidence, proposal.plan, proposal.replies) == ("lm:scripted", 0.9048, (), (COUNTS,))
    assert proposal.demonstrations == ("twin",)


def test_demonstrations_may_be_drawn_at_random():
    seen = set()
    for seed in range(12):
        planner, writer = open_writer(lambda prompt: (COUNTS, -0.1), retrieval=RetrievalChoice.random, demonstrations={"vqa": 1})
        task = ask("How many red circles are there?")
        planner.propose([task], pool=POOL, seed=seed)
        [first] = draw_entries(task, POOL.entries, most=1, seed=seed)
        seen.add(first.id)
        assert (writer.prompts[0].shown[0][0] == writer.prompts[0].asked) == (first == COUNT)
    assert seen == {COUNT.id, RELATION.id}, "the nearest one is not always shown"


def test_the_likeliest_program_that_can_be_run_and_speaks_of_every_known_concept_is_proposed():
    rows = iter([("1: LOC IMAGE", -0.1), (FORGETS, -0.2), (ASKS, -0.3)])
    planner, _ = open_writer(lambda prompt: next(rows))
    [proposal] = planner.propose([ask("How many red stars are there?")], pool=POOL, seed=0)
    assert proposal.program.startswith("ANSWER0=VQA") and proposal.demonstrations == ()


def test_demonstrations_that_the_lm_cannot_read_are_not_shown():
    unread, plugin = replace(COUNT, id="u", program="no program"), replace(COUNT, id="p", program=COUNT.program.replace("LOC", "MINE"))
    unknown = replace(COUNT, id="k", program="OBJ0=SEG(image=IMAGE)\nFINAL_RESULT=RESULT(var=OBJ0)")
    planner, writer = open_writer(lambda prompt: (COUNTS, -0.1))
    [proposal] = planner.propose([ask("How many red circles are there?")], pool=DemonstrationPool((unread, plugin, unknown)), seed=0)
    assert [len(prompt.shown) for prompt in writer.prompts] == [0] and proposal.demonstrations == ()


def test_a_program_that_failed_is_not_proposed_again():
    task = ask("How many red stars are there?")
    planner, _ = open_writer(lambda prompt: (COUNTS, -0.1) if prompt.shown else (ASKS, -3.0))
    [first] = planner.propose([task], pool=POOL, seed=0)
    [second] = planner.propose([task], pool=POOL, attempts=[fail(first)], seed=0)
    assert (first.program[:8], second.program[:11]) == ("BOX0=LOC", "ANSWER0=VQA")
    planner, _ = open_writer(lambda prompt: (COUNTS, -0.1))
    [none] = planner.propose([task], pool=POOL, attempts=[fail(first)], seed=0)
    assert (none.status, none.error) == ("failed", "this program was tried before and is wrong")


@pytest.mark.parametrize(("chance", "author"), [(-0.05, "lm:scripted"), (-5.0, "slot_filling")])
def test_in_the_hybrid_the_lm_writes_where_it_is_sure(chance, author):
    planner, _ = open_writer(lambda prompt: (ASKS, chance))
    filling = SlotFillingPlanner(config=planner.config, encoder=planner.encoder, vocabulary=planner.vocabulary)
    hybrid = HybridPlanner(first=filling, second=planner, min_confidence=1.0, min_second=0.9)
    task = ask("How many red stars are there, please?")
    [proposal] = hybrid.propose([task], pool=POOL, seed=0)
    assert proposal.author == author and proposal.status == "ok"
    assert (proposal.error == "lm:scripted: not sure") == (author == "slot_filling")


def test_positions_begin_anew_so_that_programs_lie_on_each_other():
    ids = {symbol: number for number, symbol in enumerate(("<pad>", "=>", "<end>", "<unknown>", "<kind:vqa>", "a", "b", "X", "Y"))}
    coded = code_entries("vqa", [(("a",), ("X", "Y")), (("a", "b", "strange"), None)], ids=ids)
    assert coded.ids == [4, 5, 1, 7, 8, 2, 5, 6, 3, 1]
    start = PROGRAM_START
    assert coded.positions == [0, start - 2, start - 1, start, start + 1, start + 2, start - 4, start - 3, start - 2, start - 1]
