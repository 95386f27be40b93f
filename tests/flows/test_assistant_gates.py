"""The gates on the assistant's records: every rule refuses exactly the rows that break it, and what a real cycle makes passes."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flows._assistant_context import ASSISTANT_SUITE_NAMES, MAY_BE_EMPTY, AssistantContext
from flows._checks import run_assistant_gate
from flows._gates import GateContext, GateResult, check_records
from flows._layout import Layout
from flows._suites import SUITES
from flows._summary import stage_rows
from tests.fixtures.scripted_assistant import NEW_WORDING, World, draw_row, make_seed_pools
from visloop.assistant.blame import BlameCritic
from visloop.assistant.cycle import run_cycle
from visloop.assistant.demonstrations import DemonstrationPool, save_demonstrations
from visloop.config import Config, PathsConfig
from visloop.config_assistant import AssistantConfig, LearningConfig, PromptTuning, ReflectionConfig, ToolsConfig
from visloop.errors import ConfigError, DataError, GateError
from visloop.ids import hash_file
from visloop.records.assistant import Critique, Demonstration, Instance, LabelledBox, PromptEntry, Proposal, StepTrace, Task, Trace
from visloop.records.shards import write_shard
from visloop.scenes.workshop_seeds import seed_demonstrations
from visloop.tools.prompt_pool import ANCHORS, TENSORS_NAME, LearnedPrompt, PromptPool, save_pool

SIDE = 16
TRAIN, HELD_OUT = 6, 2
PROGRAM = "BOX0=LOC(image=IMAGE,object='teal star')\nANSWER0=COUNT(box=BOX0)\nFINAL_RESULT=RESULT(var=ANSWER0)"
CONFIG = AssistantConfig(
    tools=ToolsConfig(tuning=PromptTuning(min_validation=0.7, max_base_drop=0.05, max_prompts=3)),
    reflection=ReflectionConfig(max_unreadable_rate=0.25),
)
Record = Any
Case = tuple[str, set[str], Callable[[Record], Sequence[Record]]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder: pictures of tasks (the last two held out) and of instances, a truncated one, tensors of prompts."""
    root = tmp_path_factory.mktemp("data")
    (root / "pictures").mkdir()
    for index in range(12):
        Image.new("RGB", (SIDE, SIDE + 4), (index * 20, 90, 10)).save(root / f"pictures/t{index}.png")
        Image.new("RGB", (SIDE, SIDE + 4), (10, 90, index * 20)).save(root / f"pictures/i{index}.png")
    Image.new("L", (SIDE, SIDE + 4)).save(root / "pictures/mask.png")
    Image.new("L", (SIDE, SIDE)).save(root / "pictures/small_mask.png")
    whole = (root / "pictures/t0.png").read_bytes()
    (root / "pictures/cut.png").write_bytes(whole[: len(whole) // 2])
    (root / "pictures/held_out_copy.png").write_bytes((root / f"pictures/t{TRAIN}.png").read_bytes())
    (root / "pictures/i1_copy.png").write_bytes((root / "pictures/i1.png").read_bytes())
    ids = [*(f"p{index}" for index in range(10)), *(f"bad{index}" for index in range(20)), "nan", "infinite", "flat", "empty"]
    save_pool(PromptPool(tuple(make_learned(make_prompt(0, id=name)) for name in ids)), root)
    return root


def make_task(data: Path, index: int, **changes: Any) -> Task:
    name = f"pictures/t{index}.png"
    task = Task(
        id=f"t{index}",
        kind="vqa",
        instruction=f"How many teal stars are there in {index}?",
        images=(name,),
        inputs=("IMAGE",),
        family="count",
        wording="base",
        split="train" if index < TRAIN else "test" if index == TRAIN else "validation",
        group=f"g{index}",
        source="workshop",
        image_hashes=(hash_file(data / name),),
        licence="Apache-2.0",
    )
    return replace(task, **changes)


def make_trace(index: int, **changes: Any) -> Trace:
    task = f"t{index % TRAIN}"
    lines, tools = PROGRAM.splitlines(), ("LOC", "COUNT", "RESULT")
    steps = tuple(
        StepTrace(
            step=number,
            line=line,
            variable=line.split("=")[0],
            tool=tool,
            arguments={},
            output="1",
            output_type="Number",
            seconds=0.1,
            confidence=0.9,
        )
        for number, (line, tool) in enumerate(zip(lines, tools, strict=True), start=1)
    )
    proposal = Proposal(task_id=task, plan=(), program=PROGRAM, author="slot_filling")
    return replace(Trace(id=f"r{index}", task_id=task, proposal=proposal, steps=steps, status="finished", result="1"), **changes)


def stop_trace(trace: Trace, step: int, **changes: Any) -> Trace:
    """The run as it would be had the tool of a step failed."""
    failed = replace(trace.steps[step - 1], output="", error="no box")
    stopped = replace(
        trace, status="tool_error", steps=(*trace.steps[: step - 1], failed), result=None, error=f"step {step}: no box", error_step=step
    )
    return replace(stopped, **changes)


def rewrite(trace: Trace, program: str, **changes: Any) -> Trace:
    """A program that cannot be read: nothing was run."""
    unread = replace(trace, proposal=replace(trace.proposal, program=program), steps=(), status="program_error", result=None)
    return replace(replace(unread, error="line 1: malformed", error_step=1), **changes)


def make_critique(index: int, **changes: Any) -> Critique:
    critique = Critique(
        id=f"c{index}", trace_id=f"r{index}", grain="global", culprit="tool", step=1, tool="LOC", concept="star", reason="r"
    )
    return replace(critique, **changes)


def make_instance(index: int, **changes: Any) -> Instance:
    instance = Instance(
        id=f"i{index}",
        tool="LOC",
        concept="star",
        image=f"pictures/i{index}.png",
        positive=True,
        split="train" if index % 2 else "validation",
        source="open_vocabulary",
        box=(0.0, 2.5, float(SIDE), float(SIDE + 4)),
        label="star",
    )
    return replace(instance, **changes)


def make_demonstration(index: int, **changes: Any) -> Demonstration:
    entry = Demonstration(
        id=f"d{index}",
        kind="program",
        outcome="success",
        task_kind="vqa",
        instruction=f"How many teal stars are there in {index % TRAIN}?",
        plan=("Find the teal stars.",),
        program=PROGRAM,
        provenance="accepted",
    )
    return replace(entry, **changes)


def make_prompt(index: int, **changes: Any) -> PromptEntry:
    entry = PromptEntry(
        id=f"p{index}",
        tool="CLIP",
        concept=f"word{index}",
        backend="clip",
        placement="word",
        instance_ids=("i1",),
        train_accuracy=1.0,
        validation_accuracy=0.9,
        base_accuracy=0.95,
        base_accuracy_before=0.97,
    )
    return replace(entry, **changes)


def make_learned(entry: PromptEntry) -> LearnedPrompt:
    """Its tensors; those of some ids are spoiled."""
    feature, prompt = np.ones(4, np.float32), np.ones((2, 8), np.float32)
    spoiled: dict[str, tuple[Any, Any]] = {
        "nan": (np.array([1, np.nan], np.float32), prompt),
        "infinite": (feature, np.full((2, 8), np.inf, np.float32)),
        "flat": (feature, np.ones(8, np.float32)),
        "empty": (feature, np.ones((0, 8), np.float32)),
    }
    feature, prompt = spoiled.get(entry.id, (feature, prompt))
    return LearnedPrompt(entry=entry, feature=feature, prompt=prompt)


MAKERS: dict[str, tuple[Callable[[Path, int], Record], int]] = {
    "tasks": (make_task, TRAIN + HELD_OUT),
    "traces": (lambda data, index: make_trace(index), 4),
    "critiques": (lambda data, index: make_critique(index), 8),
    "instances": (lambda data, index: make_instance(index), 4),
    "demonstrations": (lambda data, index: make_demonstration(index), 4),
    "prompts": (lambda data, index: make_prompt(index), 1),
}


def make_good(suite: str, data: Path) -> list[Record]:
    make, count = MAKERS[suite]
    return [make(data, index) for index in range(count)]


@pytest.fixture(scope="module")
def context(data: Path) -> AssistantContext:
    traces = [make_trace(index) for index in range(40)]
    traces[8] = rewrite(traces[8], "BOX0=LOC(\n\nANSWER0=")
    traces[9] = replace(traces[9], proposal=replace(traces[9].proposal, program=PROGRAM.replace("LOC", "CROP_BEHIND")))
    tasks = [make_task(data, index) for index in range(TRAIN + HELD_OUT)]
    tasks.append(make_task(data, 11, instruction=tasks[0].instruction.upper(), split="test"))  # worded as a train task's, by chance
    return AssistantContext.from_tasks(tasks, data=data, traces=traces, config=CONFIG, tensors=data / TENSORS_NAME)


def check(records: Any, suite: str, context: AssistantContext, out: Path) -> GateResult:
    return check_records(records, suite=suite, out=out / "gate", context=context)


def change(**changes: Any) -> Callable[[Record], list[Record]]:
    return lambda record: [replace(record, **changes)]


def change_steps(number: int, **changes: Any) -> Callable[[Trace], list[Trace]]:
    return lambda trace: [replace(trace, steps=tuple(replace(step, **changes) if step.step == number else step for step in trace.steps))]


BOX = LabelledBox(box=(0, 0, 1, 1), label="star")
BROKEN: list[Case] = [
    ("tasks", {"contract"}, change(instruction=7)),
    ("tasks", {"kind_known", "contract"}, change(kind="singing")),
    ("tasks", {"wording_known", "contract"}, change(wording="old")),
    ("tasks", {"split_known", "contract"}, change(split="dev")),
    ("tasks", {"instruction_given"}, change(instruction=" ")),
    ("tasks", {"pictures_open", "inputs_match"}, change(images=(), image_hashes=())),
    ("tasks", {"pictures_open"}, change(images=("pictures/none.png",))),
    ("tasks", {"pictures_open"}, change(images=("pictures/cut.png",))),
    ("tasks", {"pictures_open"}, change(images=("../t0.png",))),
    ("tasks", {"pictures_open"}, change(image_hashes=("0" * 64,))),
    ("tasks", {"pictures_open"}, change(image_hashes=())),
    ("tasks", {"inputs_match"}, change(inputs=())),
    ("tasks", {"inputs_match"}, change(inputs=("LEFT",))),
    ("tasks", {"inputs_match"}, change(kind="multi_image", inputs=("LEFT", "RIGHT"))),
    (
        "tasks",
        {"inputs_match"},
        lambda task: [replace(task, kind="multi_image", inputs=("LEFT",) * 2, images=task.images * 2, image_hashes=task.image_hashes * 2)],
    ),
    ("tasks", {"group_in_one_split"}, lambda task: [replace(task, group="g"), replace(task, id=task.id + "'", group="g", split="test")]),
    ("tasks", {"ids_unique"}, lambda task: [task, task]),
    ("traces", {"contract"}, change(steps=None)),
    ("traces", {"status_known", "contract"}, change(status="done")),
    ("traces", {"task_known"}, lambda trace: [replace(trace, task_id="nobody", proposal=replace(trace.proposal, task_id="nobody"))]),
    ("traces", {"task_known"}, lambda trace: [replace(trace, proposal=replace(trace.proposal, task_id="t5"))]),
    ("traces", {"steps_numbered"}, change_steps(2, step=3)),
    ("traces", {"steps_numbered"}, change_steps(1, step=0)),
    ("traces", {"status_fits"}, change(error="step 2: no box")),
    ("traces", {"status_fits"}, change(error_step=2)),
    ("traces", {"status_fits"}, change(result=None)),
    ("traces", {"status_fits", "program_parses"}, change(steps=())),
    ("traces", {"status_fits"}, change_steps(2, error="no box")),
    ("traces", {"status_fits"}, lambda trace: [stop_trace(trace, 2, result="1")]),
    ("traces", {"status_fits"}, lambda trace: [stop_trace(trace, 2, result_boxes=(BOX,))]),
    ("traces", {"status_fits"}, lambda trace: [stop_trace(trace, 2, error=None)]),
    ("traces", {"status_fits"}, lambda trace: [stop_trace(trace, 2, error_step=None)]),
    ("traces", {"status_fits"}, lambda trace: [stop_trace(trace, 2, error_step=1)]),
    ("traces", {"status_fits"}, lambda trace: [stop_trace(trace, 2, steps=trace.steps[:2])]),
    ("traces", {"status_fits"}, lambda trace: [stop_trace(trace, 2, steps=(*stop_trace(trace, 2).steps, trace.steps[2]))]),
    ("traces", {"status_fits"}, lambda trace: [rewrite(trace, "X", status="tool_error")]),
    ("traces", {"status_fits"}, lambda trace: [rewrite(trace, "X", error_step=0)]),
    ("traces", {"status_fits"}, lambda trace: [rewrite(trace, "", status="no_program")]),
    ("traces", {"program_parses"}, lambda trace: [replace(trace, proposal=replace(trace.proposal, program="BOX0=LOC("))]),
    ("traces", {"program_parses"}, lambda trace: [replace(trace, steps=trace.steps[:2])]),
    ("traces", {"tools_known"}, change_steps(2, tool="COUNTS")),
    ("traces", {"measures_valid"}, change_steps(1, confidence=1.5)),
    ("traces", {"measures_valid"}, change_steps(1, confidence=float("nan"))),
    ("traces", {"measures_valid"}, change_steps(3, seconds=-0.1)),
    ("traces", {"measures_valid"}, change_steps(3, seconds=float("inf"))),
    ("traces", {"measures_valid"}, lambda trace: [replace(trace, proposal=replace(trace.proposal, new_tokens=-1))]),
    ("traces", {"result_opens"}, change(result_image="pictures/cut.png")),
    ("traces", {"ids_unique"}, lambda trace: [trace, trace]),
    ("critiques", {"contract"}, change(reason=7)),
    ("critiques", {"grain_known", "contract"}, change(grain="close")),
    ("critiques", {"culprit_known", "contract"}, change(culprit="user")),
    ("critiques", {"status_known", "contract"}, change(status="fine")),
    ("critiques", {"trace_known"}, change(trace_id="nobody")),
    ("critiques", {"step_in_program", "tool_of_step"}, change(step=4)),
    ("critiques", {"step_in_program", "tool_of_step"}, change(step=0)),
    ("critiques", {"step_in_program"}, change(trace_id="r8", culprit="program", step=3, tool=None, concept=None)),
    ("critiques", {"tool_of_step"}, change(step=2)),
    ("critiques", {"tool_of_step"}, change(culprit="program", tool=None, concept=None)),
    ("critiques", {"tool_of_step", "blame_fits"}, change(step=None)),
    ("critiques", {"tool_of_step"}, change(trace_id="r8", culprit="program", step=1, concept=None)),
    ("critiques", {"blame_fits"}, change(step=None, tool=None)),
    ("critiques", {"blame_fits"}, change(culprit="program")),
    ("critiques", {"blame_fits"}, change(culprit="nothing", step=None, tool=None)),
    ("critiques", {"ids_unique"}, lambda critique: [critique, critique]),
    ("instances", {"contract"}, change(box=(1.0, 2.0))),
    ("instances", {"split_known", "contract"}, change(split="test")),
    ("instances", {"source_known", "contract"}, change(source="memory")),
    ("instances", {"pictures_open"}, change(image="pictures/none.png")),
    ("instances", {"pictures_open"}, change(image="pictures/cut.png")),
    ("instances", {"pictures_open"}, change(mask="pictures/none.png")),
    ("instances", {"box_inside"}, change(mask="pictures/small_mask.png")),
    ("instances", {"box_inside"}, change(box=(0.0, 0.0, SIDE + 0.5, 4.0))),
    ("instances", {"box_inside"}, change(box=(0.0, 0.0, 4.0, SIDE + 4.5))),
    ("instances", {"box_inside"}, change(box=(-0.5, 0.0, 4.0, 4.0))),
    ("instances", {"box_inside"}, change(box=(4.0, 0.0, 4.0, 4.0))),
    ("instances", {"box_inside"}, change(box=(0.0, float("nan"), 4.0, 4.0))),
    ("instances", {"label_fits"}, change(label="hexagon")),
    ("instances", {"label_fits"}, change(label="")),
    ("instances", {"label_fits"}, change(positive=False)),
    ("instances", {"label_fits"}, change(source="inference", label="no")),
    ("instances", {"label_fits"}, change(source="inference", label="pink", positive=False)),
    ("instances", {"no_evaluation_picture"}, change(image=f"pictures/t{TRAIN}.png")),
    ("instances", {"no_evaluation_picture"}, change(image="pictures/held_out_copy.png", concept="teal", label="teal")),
    ("instances", {"no_evaluation_picture"}, change(image=f"pictures/t{TRAIN + 1}.png")),
    ("instances", {"provenance_given"}, change(source="image_search", origin="https://example.org/1")),
    ("instances", {"provenance_given"}, change(source="image_search", licence="by 4.0", origin=" ")),
    (
        "instances",
        {"picture_in_one_split"},
        lambda entry: [
            replace(entry, concept="grid", label="grid", image="pictures/i1.png", split="train"),
            replace(entry, id=entry.id + "'", concept="grid", label="grid", image="pictures/i1_copy.png", split="validation"),
        ],
    ),
    ("instances", {"ids_unique"}, lambda entry: [entry, entry]),
    ("demonstrations", {"contract"}, change(score="high")),
    ("demonstrations", {"kind_known", "contract"}, change(kind="poem")),
    ("demonstrations", {"outcome_known", "contract"}, change(outcome="draw")),
    ("demonstrations", {"task_kind_known", "contract"}, change(task_kind="singing")),
    ("demonstrations", {"provenance_known", "contract"}, change(provenance="found")),
    ("demonstrations", {"content_given"}, change(instruction=" ")),
    ("demonstrations", {"content_given"}, change(program="\n")),
    ("demonstrations", {"content_given"}, change(kind="plan", plan=())),
    ("demonstrations", {"program_checks"}, change(program="BOX0=LOC(image=IMAGE")),
    ("demonstrations", {"program_checks"}, change(program=PROGRAM.replace("COUNT", "COUNTS"))),
    ("demonstrations", {"program_checks"}, change(program=PROGRAM.replace("box=BOX0", "box=BOX1"))),
    ("demonstrations", {"program_checks"}, change(program=PROGRAM.rsplit("\n", 1)[0])),
    ("demonstrations", {"program_checks"}, change(task_kind="editing")),
    ("demonstrations", {"program_checks"}, change(task_kind="multi_image")),
    ("demonstrations", {"reason_given"}, change(outcome="failure", reason=" ")),
    ("demonstrations", {"no_evaluation_instruction"}, change(instruction=f"How many  teal stars are there in {TRAIN}?")),
    ("demonstrations", {"no_evaluation_instruction"}, change(instruction=f"how many teal stars are there in {TRAIN + 1}?", kind="plan")),
    ("demonstrations", {"ids_unique"}, lambda entry: [entry, entry]),
    ("prompts", {"contract"}, change(cycle="first")),
    ("prompts", {"figures_valid"}, change(train_accuracy=1.5)),
    ("prompts", {"figures_valid", "validated"}, change(validation_accuracy=float("nan"))),
    ("prompts", {"figures_valid", "harmless"}, change(base_accuracy=float("nan"))),
    ("prompts", {"validated"}, change(validation_accuracy=0.69)),
    ("prompts", {"harmless"}, change(base_accuracy=0.91)),
    ("prompts", {"tensors_finite"}, change(id="unknown")),
    ("prompts", {"tensors_finite"}, change(id="nan")),
    ("prompts", {"tensors_finite"}, change(id="infinite")),
    ("prompts", {"tensors_finite"}, change(id="flat")),
    ("prompts", {"tensors_finite"}, change(id="empty")),
    ("prompts", {"cap_kept"}, lambda entry: [replace(entry, id=f"p{index}", concept="grid") for index in range(1, 5)]),
    ("prompts", {"ids_unique"}, lambda entry: [entry, entry]),
]
"""Suite, the rules that the data breaks, and what is done to a good record; each case is a row, or several, beside good ones."""


@pytest.mark.parametrize("suite", ASSISTANT_SUITE_NAMES)
def test_every_broken_row_is_refused_by_its_rules_alone(suite: str, data: Path, context: AssistantContext, tmp_path: Path) -> None:
    """All broken rows lie in one shard with good ones; each is set aside under exactly the rules that it breaks, no good one is."""
    good = make_good(suite, data)
    assert check(good, suite, context, tmp_path / "good").passed
    records, expected = list(good), dict[int, set[str]]()
    for case, (_, rules, mutate) in enumerate(entry for entry in BROKEN if entry[0] == suite):
        own = {"tasks": {"group": f"bad{case}"}, "prompts": {"concept": f"bad{case}"}}.get(suite, {})
        fresh = replace(MAKERS[suite][0](data, 1), id=f"bad{case}", **own)
        for broken in mutate(fresh):
            expected[len(records)] = rules
            records.append(broken)
    with pytest.raises(GateError) as caught:
        check(records, suite, context, tmp_path / "bad")
    rows = [json.loads(line) for line in (tmp_path / f"bad/quarantine/{suite}.jsonl").read_text().splitlines()]
    found = {int(row["where"].split()[1]): set(row["rules"]) for row in rows}
    differing = {row: (found.get(row), expected.get(row), records[row]) for row in found | expected if found.get(row) != expected.get(row)}
    assert not differing
    assert all(rule in str(caught.value) for rules in expected.values() for rule in rules)
    result = json.loads((tmp_path / "bad/gate/result.json").read_text())
    assert all(rule["examples"] for rule in result["rules"] if not rule["passed"])
    page = (tmp_path / "bad/gate/index.html").read_text()
    assert all(rule["description"] in page for rule in result["rules"])


def test_every_rule_has_data_that_breaks_it(context: AssistantContext) -> None:
    """The list above is complete; what it cannot hold has a test of its own below."""
    tested = {(suite, rule) for suite, rules, _ in BROKEN for rule in rules}
    critical = {
        (suite, rule.meta["rule"]) for suite in ASSISTANT_SUITE_NAMES for rule in SUITES[suite](context) if rule.severity == "critical"
    }
    assert critical - tested == {("critiques", "unreadable_rate")}


@pytest.mark.parametrize("suite", ASSISTANT_SUITE_NAMES)
def test_only_learning_may_leave_nothing(suite: str, context: AssistantContext, tmp_path: Path) -> None:
    if suite in MAY_BE_EMPTY:
        assert check([], suite, context, tmp_path).passed
    else:
        with pytest.raises(GateError, match="not_empty"):
            check([], suite, context, tmp_path)


def test_unreadable_critiques_are_let_through_up_to_the_limit(context: AssistantContext, tmp_path: Path) -> None:
    silent = {"culprit": "nothing", "step": None, "tool": None, "concept": None}
    critiques = [make_critique(index) for index in range(8)]
    critiques[0] = replace(critiques[0], status="unreadable", **silent)
    critiques[1] = replace(critiques[1], status="failed", **silent)
    assert check(critiques, "critiques", context, tmp_path).passed  # 2 of 8 are the limit
    critiques[2] = replace(critiques[2], status="unreadable", **silent)
    with pytest.raises(GateError, match="unreadable_rate"):
        check(critiques, "critiques", context, tmp_path)
    loud = [replace(make_critique(0), status="unreadable"), *(make_critique(index) for index in range(1, 8))]
    with pytest.raises(GateError, match="blame_fits"):
        check(loud, "critiques", context, tmp_path)


def test_what_is_right_in_an_unusual_way_passes(data: Path, context: AssistantContext, tmp_path: Path) -> None:
    traces = [
        make_trace(0, result=""),  # an empty answer is a result
        stop_trace(make_trace(1), 2),
        stop_trace(make_trace(2), 3, status="program_error"),
        rewrite(make_trace(3), "BOX0=LOC("),
        rewrite(make_trace(4), "", status="no_program", error="no reply", error_step=None),
        make_trace(5, result_image="pictures/t0.png", result_boxes=(BOX,)),
    ]
    critiques = [
        make_critique(0, culprit="program", concept=None),  # critics name the tool of a line that is written wrongly, too
        make_critique(8, culprit="program", step=2, tool=None, concept=None),  # of a program that cannot be read
        make_critique(9, tool="CROP_BEHIND"),
        make_critique(10, id="c9'", trace_id="r9", tool="CROP_ABOVE"),
        make_critique(11, culprit="plan", step=None, tool=None, concept=None),
    ]
    instances = [
        make_instance(1),
        make_instance(1, id="a", concept="teal", label="Teal ", split="validation"),  # another concept draws its own splits
        make_instance(1, id="b", tool="SEG", split="validation", mask="pictures/mask.png"),
        make_instance(2, positive=False, label="hexagon"),
        make_instance(3, id="c", source="inference", concept="teal", label="yes", box=None),
        make_instance(3, id="d", source="inference", concept="grid", label="no", positive=False),
        make_instance(3, id="e", source="inference", concept="no", label="no", box=None),
        make_instance(3, id="f", source="accepted", concept="no", label="no", box=None),
        make_instance(4, source="image_search", licence="by 4.0", origin="https://example.org/1"),
        make_instance(5, image="pictures/t0.png"),  # a train task's picture
    ]
    demonstrations = [
        make_demonstration(0, kind="plan", program=""),
        make_demonstration(1, outcome="failure", program="BOX0=LOC(", reason="it is not closed", provenance="failed"),
        make_demonstration(2, instruction=f"How many teal stars are there in {TRAIN}?", provenance="seed"),
    ]
    prompts = [
        make_prompt(0, validation_accuracy=0.7, base_accuracy=0.92),
        *(make_prompt(index, concept="grid") for index in range(2, 5)),
        *(make_prompt(index, concept=ANCHORS) for index in range(5, 10)),
    ]
    for suite, records in [
        ("traces", traces),
        ("critiques", critiques),
        ("instances", instances),
        ("demonstrations", demonstrations),
        ("prompts", prompts),
    ]:
        assert check(records, suite, context, tmp_path / suite).passed


def test_keep_rule_follows_the_ablations(data: Path, tmp_path: Path) -> None:
    """Without validation all prompts are kept; a tool may have settings of its own."""
    tasks, prompts = [make_task(data, 0)], [make_prompt(0, validation_accuracy=0.0, base_accuracy=0.1)]

    def look(config: AssistantConfig) -> GateResult:
        context = AssistantContext.from_tasks(tasks, data=data, config=config, tensors=data / TENSORS_NAME)
        return check(prompts, "prompts", context, tmp_path)

    assert look(replace(CONFIG, learning=LearningConfig(validate=False))).passed
    with pytest.raises(GateError, match=r"validated.*harmless"):
        look(CONFIG)
    own = replace(CONFIG.tools, tunings={"CLIP": PromptTuning(min_validation=0.0, max_base_drop=0.05)})
    with pytest.raises(GateError, match=r"costs 0\.87 of the replay set, allowed 0\.05") as caught:
        look(replace(CONFIG, tools=own))
    assert "validated" not in str(caught.value)


def test_prompts_that_tools_share_pass_by_the_settings_of_one_of_them(data: Path, tmp_path: Path) -> None:
    """Which tool learned a prompt is not in its record, and ablations hold for settings of single tools too."""
    tasks, prompts = [make_task(data, 0)], [make_prompt(0, validation_accuracy=0.5), *(make_prompt(i, concept="grid") for i in range(2, 6))]

    def look(learning: LearningConfig | None = None, **tunings: PromptTuning) -> GateResult:
        config = replace(CONFIG, tools=replace(CONFIG.tools, tunings=tunings), learning=learning or LearningConfig())
        context = AssistantContext.from_tasks(tasks, data=data, config=config, tensors=data / TENSORS_NAME)
        return check(prompts, "prompts", context, tmp_path)

    with pytest.raises(GateError, match=r"wanted 0\.7"):
        look()
    assert look(CLASSIFY=PromptTuning(min_validation=0.5, max_prompts=4)).passed
    with pytest.raises(GateError, match=r"wanted 0\.6"):
        look(CLASSIFY=PromptTuning(min_validation=0.6, max_prompts=4), SELECT=PromptTuning(min_validation=1.0))
    with pytest.raises(GateError, match=r"wanted 0\.9"):
        look(CLIP=PromptTuning(min_validation=0.9, max_prompts=4))
    assert look(LearningConfig(validate=False), CLIP=PromptTuning(min_validation=0.9, max_prompts=4)).passed


def test_picture_shared_by_splits_is_a_warning(data: Path, context: AssistantContext, tmp_path: Path) -> None:
    held_out = make_task(data, TRAIN)
    tasks = [make_task(data, 0), held_out, make_task(data, 1, images=held_out.images, image_hashes=held_out.image_hashes)]
    result = check(tasks, "tasks", context, tmp_path)
    (warned,) = [rule for rule in result.rules if not rule.passed]
    assert result.passed and (warned.rule, warned.severity, warned.refused) == ("picture_in_one_split", "warning", 2)


def test_unusable_requests_are_named(data: Path, context: AssistantContext, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs a AssistantContext, got a GateContext"):
        check_records([], suite="traces", out=tmp_path, context=GateContext(data=data))
    with pytest.raises(ConfigError, match="needs a GateContext"):
        check([], "paths", context, tmp_path)
    for suite, lacking in (("traces", {"tasks": {}}), ("critiques", {"traces": None}), ("prompts", {"tensors": None})):
        with pytest.raises(ConfigError, match=f"suite '{suite}' needs context.{next(iter(lacking))}"):
            check([], suite, replace(context, **lacking), tmp_path)
    with pytest.raises(GateError, match=r"none.safetensors cannot be read"):
        check([make_prompt(0)], "prompts", replace(context, tensors=data / "none.safetensors"), tmp_path)


def test_what_a_cycle_makes_passes(tmp_path: Path) -> None:
    """The records of a real cycle over a small world: right and wrong runs, taught tools, repaired programs. And the shipped seeds."""
    world = World(tmp_path / "pictures")
    tasks = [
        world.add("How many red cells are there?", "red", "red", "blue"),
        world.add("How many teal cells are there?", "teal", "red", "teal"),
        world.add("What color is the cell?", "red", "pink", "blue"),
        world.add(NEW_WORDING.format(word="blue"), "blue", "blue", "red"),
        world.add("Is there a teal cell?", "teal", "red"),
    ]
    start = make_seed_pools("How many red cells are there?")
    result = run_cycle(tasks, parts=world.parts(BlameCritic()), pools=start, cycle=1)
    assert {critique.culprit for critique in result.records.critiques} >= {"tool", "program"} and result.records.instances
    assert result.pools.prompts.prompts and len(result.pools.demonstrations.entries) > 2

    data, known = tmp_path / "data", []
    for task in tasks:
        picture = data / "tasks" / f"{task.id}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        draw_row(*world.rows[task.id]).save(picture)
        known.append(replace(task, images=(f"tasks/{task.id}.png",), image_hashes=(hash_file(picture),)))
    write_shard(data / "tasks/stream.jsonl", known)
    (data / "tasks/truth.jsonl").write_text('{"task_id":"t00"}\n')
    (tmp_path / "pictures").rename(data / "cycle")
    for name in ("traces", "critiques", "instances"):
        write_shard(data / f"cycle/{name}.jsonl", getattr(result.records, name))
    moved = [replace(entry, image=f"cycle/{entry.image}") for entry in result.records.instances]
    write_shard(data / "cycle/instances.jsonl", moved)
    save_pool(result.pools.prompts, data / "cycle/prompts")
    save_demonstrations(DemonstrationPool(result.pools.demonstrations.entries).add(seed_demonstrations()), data / "cycle/demonstrations")

    config, layout = Config(paths=PathsConfig(data=str(data), mlruns=str(tmp_path / "mlruns"))), Layout(data, "scenes")
    for suite, records in (
        ("tasks", data / "tasks"),
        ("traces", data / "cycle"),
        ("critiques", data / "cycle"),
        ("instances", data / "cycle"),
        ("demonstrations", data / "cycle/demonstrations"),
        ("prompts", data / "cycle/prompts"),
    ):
        run_assistant_gate(
            f"cycle 1 {suite}",
            suite=suite,
            records=records,
            files=[f"{suite}.jsonl"] if records.name == "cycle" else None,
            config=config,
            layout=layout,
            tasks=data / "tasks",
            traces=data / "cycle" if suite == "critiques" else None,
        )
        rows = json.loads((layout.gate(f"cycle 1 {suite}") / "result.json").read_text())["rows"]
        assert rows == sum(len(file.read_text().splitlines()) for file in records.glob("*.jsonl") if file.stem in (suite, "stream"))
        assert (tmp_path / f"mlruns/gates/cycle 1 {suite}/index.html").is_file()


def test_gate_is_a_stage(data: Path, tmp_path: Path) -> None:
    """Skipped while nothing has changed; run again when records, tasks or a limit change; a refused one is no finished stage."""
    tasks, cycle = tmp_path / "tasks", tmp_path / "cycle"
    write_shard(tasks / "stream.jsonl", [make_task(data, index) for index in range(TRAIN)])
    write_shard(cycle / "traces.jsonl", [make_trace(index) for index in range(8)])
    silent = [make_critique(7, status="failed", culprit="nothing", step=None, tool=None, concept=None)]
    write_shard(cycle / "critiques.jsonl", [*(make_critique(index) for index in range(7)), *silent])
    layout = Layout(data, "scenes")

    def run(limit: float = 0.25) -> str:
        config = Config(paths=PathsConfig(mlruns=str(tmp_path / "mlruns")))
        config = replace(config, assistant=replace(CONFIG, reflection=ReflectionConfig(max_unreadable_rate=limit)))
        run_assistant_gate(
            "critiques",
            suite="critiques",
            records=cycle,
            files=["critiques.jsonl"],
            config=config,
            layout=layout,
            tasks=tasks,
            traces=cycle / "traces.jsonl",
            folder=tmp_path / "gate",
        )
        return stage_rows()[-1].state

    assert [run(), run()] == ["ran", "skipped"]
    write_shard(tasks / "test.jsonl", [make_task(data, TRAIN)])
    assert [run(), run()] == ["ran", "skipped"]
    with pytest.raises(GateError, match=r"stage gate critiques: .*unreadable_rate"):
        run(limit=0.1)
    assert run() == "skipped"  # what passed before under the old limit still counts for it
    write_shard(cycle / "traces.jsonl", [make_trace(index) for index in range(7)])
    with pytest.raises(GateError, match=r"trace_known.*no trace r7"):
        run()
    (cycle / "traces.jsonl").unlink()
    with pytest.raises(DataError, match=r"traces\.jsonl is missing"):
        run()
    for file in tasks.glob("*.jsonl"):
        file.rename(tasks / "truth.jsonl")
    write_shard(cycle / "traces.jsonl", [make_trace(0)])
    with pytest.raises(DataError, match=r"no .* shard with tasks"):
        run()
