"""Golden snapshots of every prompt of both styles. After a wanted change: ``UPDATE_GOLDEN=1 pytest tests/prompts``."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from jinja2 import Environment, meta

from visloop.assistant.critique_replies import read_critique, read_inferred_answer, read_names, read_step_check
from visloop.assistant.proposals import FailedAttempt
from visloop.errors import ConfigError
from visloop.prompts.render import PromptSet
from visloop.records.assistant import Critique, Demonstration, Proposal
from visloop.records.chains import format_chain, format_thoughts, parse_step
from visloop.records.reasoning import ReasoningStep
from visloop.tools.signatures import list_signatures

GOLDEN = Path(__file__).parent / "golden"
STYLES = ("compact", "full")
_PROMPT = {"task_kind", "inputs", "demonstrations", "failures", "attempt", "instruction"}
CONTRACT: dict[str, set[str]] = {
    "direct": {"question"},
    "reason": {"question"},
    "summarize": {"question", "chain"},
    "multi_turn_answer": {"question"},
    "generate_start": {"question", "min_steps", "max_steps"},
    "generate_continue": set(),
    "generate_repair": set(),
    "generate_final": {"question"},
    "judge_answer": {"question", "answer", "candidate"},
    "score_paths": {"question", "answer", "paths"},
}
"""What the callers pass to each template. A style may leave a value unused, but uses none that is not passed."""
ONLY_COMPACT = {"describe": set(), "ground": {"step"}}
"""Templates for training the embedded base, which general models have no use for."""
_CASE = {"instruction", "pictures", "feedback", "result", "plan", "program", "steps", "checked", "error", "error_step", "tools", "earlier"}
ONLY_FULL = {
    "reflect_interrupt": _CASE,
    "reflect_global": _CASE,
    "reflect_local": _CASE,
    "infer_answer": {"instruction", "pictures", "feedback", "steps", "wrong_step", "reason"},
    "negatives": {"concept", "group", "most"},
    "list": {"query", "most"},
    "plan": _PROMPT,
    "program": _PROMPT | {"tools", "plan", "use_plan"},
    "plan_repair": {"problems"},
    "program_repair": {"problems"},
}
"""Templates for general models alone: the LLM planner's and the critic's, which the embedded default does without, and LIST's."""

STEPS = (
    ReasoningStep(summary="find red circle", reasoning="x1 y2", action="continue"),
    ReasoningStep(summary="conclude exist", reasoning="answer yes", action="summary"),
)
SHOWN = Demonstration(
    id="d",
    kind="program",
    outcome="success",
    task_kind="vqa",
    instruction="How many circles are there?",
    plan=("Locate the circle.", "Count the boxes of Step 1."),
    program="BOX0=LOC(image=IMAGE,object='circle')\nANSWER0=COUNT(box=BOX0)\nFINAL_RESULT=RESULT(var=ANSWER0)",
)
VALUES = {
    "question": "is there a red circle ?",
    "answer": "yes",
    "candidate": "yes, at the top",
    "chain": format_thoughts(STEPS),
    "paths": [{"id": 1, "chain": format_chain(STEPS, "yes")}, {"id": 2, "chain": format_chain(STEPS[:1], "no")}],
    "min_steps": 2,
    "max_steps": 16,
    "step": "find red circle",
    "query": "founders of Apple",
    "most": 3,
    "task_kind": "vqa",
    "inputs": ("IMAGE",),
    "demonstrations": [SHOWN],
    "failures": [replace(SHOWN, outcome="failure", reason="Step 2 counts squares.")],
    "attempt": FailedAttempt(
        proposal=Proposal(task_id="t", plan=SHOWN.plan[:1], program="FINAL_RESULT=RESULT(var=IMAGE)", author="llm:m"),
        critique=Critique(id="c", trace_id="r", grain="global", culprit="program", reason="nothing is counted"),
    ),
    "instruction": "How many stars are there?",
    "tools": [signature.describe() for signature in list_signatures("vqa")[:2]],
    "plan": ("Locate the star.", "Count the boxes of Step 1."),
    "use_plan": True,
    "pictures": [{"name": "IMAGE", "caption": "three stars"}],
    "feedback": "The correct answer should be 3.",
    "result": "2",
    "program": SHOWN.program,
    "steps": [
        {"number": 1, "plan": "Locate the star.", "line": "BOX0=LOC(image=IMAGE,object='star')", "result": "The coordinate of BOX0: [...]"},
        {"number": 2, "plan": "", "line": "ANSWER0=COUNT(box=BOX0)", "result": "2"},
    ],
    "checked": 2,
    "error": "step 2 (COUNT): BOX1 is not defined",
    "error_step": 2,
    "earlier": ["Step1 should ask VQA."],
    "wrong_step": 1,
    "reason": "one star is missing",
    "concept": "star",
    "group": "shape",
    "problems": ("line 1: no tool BOX; use one of LOC, COUNT", "line 2: BOX0 is not defined"),
}


def contract_of(style: str) -> dict[str, set[str]]:
    return CONTRACT | (ONLY_COMPACT if style == "compact" else ONLY_FULL)


CASES = [(style, name) for style in STYLES for name in contract_of(style)]


@pytest.mark.parametrize(("style", "name"), CASES)
def test_prompt_is_as_recorded(style: str, name: str) -> None:
    values = {key: VALUES[key] for key in contract_of(style)[name]}
    text = PromptSet(style).render(name, **values) + "\n"
    golden = GOLDEN / f"{style}__{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(text)
    assert golden.read_text() == text, f"prompt {style}/{name} changed; if that is wanted, run with UPDATE_GOLDEN=1 and commit"


def test_every_snapshot_belongs_to_a_prompt() -> None:
    assert {path.stem for path in GOLDEN.glob("*.txt")} == {f"{style}__{name}" for style, name in CASES}
    assert len(CASES) == 32


@pytest.mark.parametrize("style", STYLES)
def test_styles_hold_the_same_templates_and_values(style: str) -> None:
    folder = PromptSet(style).folder
    used = {path.stem: meta.find_undeclared_variables(Environment().parse(path.read_text())) for path in folder.glob("*.j2")}
    assert set(used) == set(contract_of(style))
    for name, variables in used.items():
        assert variables <= contract_of(style)[name], f"{style}/{name}.j2 uses a value that nobody passes"


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", ["direct", "reason", "summarize", "generate_start", "judge_answer", "score_paths"])
def test_a_prompt_that_opens_a_dialogue_holds_the_question(style: str, name: str) -> None:
    assert VALUES["question"] in PromptSet(style).render(name, **VALUES)


def test_no_prompt_for_answering_shows_the_true_answer() -> None:
    secret = VALUES | {"answer": "SECRET"}
    for style in STYLES:
        for name in set(CONTRACT) - {"judge_answer", "score_paths"}:
            assert "SECRET" not in PromptSet(style).render(name, **secret), f"{style}/{name}"
        assert "SECRET" in PromptSet(style).render("score_paths", **secret)
        assert "SECRET" not in PromptSet(style).render("score_paths", **secret | {"answer": ""})


@pytest.mark.parametrize("name", ["plan", "program"])
def test_the_planners_prompts_end_with_the_case_after_the_most_similar_demonstration(name: str) -> None:
    other = replace(SHOWN, instruction="How many squares are there?")
    text = PromptSet("full").render(name, **VALUES | {"demonstrations": [other, SHOWN]})
    places = [text.rindex(shown) for shown in (other.instruction, SHOWN.instruction, "nothing is counted", VALUES["instruction"])]
    assert places == sorted(places)
    bare = PromptSet("full").render(name, **VALUES | {"demonstrations": [], "failures": [], "attempt": None, "use_plan": False, "plan": ()})
    assert "Reason" not in bare and "wrong" not in bare and "circles" not in bare


def test_examples_inside_the_full_prompts_can_be_read_by_the_parsers() -> None:
    prompts = PromptSet("full")
    start = prompts.render("generate_start", **VALUES)
    example = start.split("Example of one reply:\n")[1].split("\n")[0]
    assert parse_step(example).action == "continue"
    scores = prompts.render("score_paths", **VALUES).rsplit("\n", 1)[1]
    assert [entry["id"] for entry in json.loads(scores)] == [1, 2]
    assert "Correct answer:" not in prompts.render("score_paths", **VALUES | {"answer": ""})


def test_examples_inside_the_critics_prompts_can_be_read_by_its_parsers() -> None:
    prompts = PromptSet("full")
    objects = {name: re.findall(r"\{\"c.*\}", prompts.render(name, **VALUES)) for name in ONLY_FULL}
    read = [read_critique(text, steps=3) for name in ("reflect_interrupt", "reflect_global") for text in objects[name]]
    assert [(entry.culprit, entry.step) if entry else None for entry in read] == [("program", 2), ("tool", 1), ("program", 3)]
    checks = [read_step_check(text, step=2) for text in objects["reflect_local"]]
    assert [entry.culprit if entry else None for entry in checks] == ["nothing", "tool"]
    assert read_inferred_answer(prompts.render("infer_answer", **VALUES).split("Now the task.")[0]) == "white"
    examples = re.findall(r"\[.*\]", prompts.render("negatives", **VALUES))
    assert [len(read_names(text, most=9)) for text in examples] == [3, 3]


def test_hash_follows_the_texts(tmp_path: Path) -> None:
    (tmp_path / "direct.j2").write_text("say {{ question }}")
    before = PromptSet(str(tmp_path)).hash
    assert PromptSet(str(tmp_path)).hash == before
    (tmp_path / "direct.j2").write_text("say it {{ question }}")
    assert PromptSet(str(tmp_path)).hash != before


def test_missing_value_template_and_style_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"compact/direct\.j2: 'question'"):
        PromptSet("compact").render("direct")
    with pytest.raises(ConfigError, match=r"no template nothing\.j2"):
        PromptSet("full").render("nothing")
    with pytest.raises(ConfigError, match="shipped styles: compact, full"):
        PromptSet("cmpact")
