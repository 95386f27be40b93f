"""The demonstrations that the assistant starts with: the base families in their base wordings, about base words only, and some failures."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Final

from visloop.ids import make_id, seed_for
from visloop.records.assistant import Demonstration, DemonstrationKind, DemonstrationOutcome, TaskKind
from visloop.scenes.workshop_families import Case, TaskFamily, fill_slots
from visloop.scenes.workshop_tasks import FAMILIES, draw_case, find_family

SEED: Final = 20240617
PER_FAMILY: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedFailure:
    """A wrong plan or program of a family: the lines that are other than the right ones (by step, from 1), and why they are wrong."""

    task_kind: TaskKind
    family: str
    kind: DemonstrationKind
    lines: Mapping[int, str] = field(default_factory=dict)
    reason: str


SEED_FAILURES: Final[tuple[SeedFailure, ...]] = (
    SeedFailure(
        task_kind="vqa",
        family="same_color",
        kind="plan",
        lines={3: "Count the objects of Step2's picture.", 6: "Count the objects of Step5's picture."},
        reason="Step3 and Step6 count objects: they should ask the pictures of Step2 and Step5 for the color.",
    ),
    SeedFailure(
        task_kind="vqa",
        family="compare_counts",
        kind="program",
        lines={5: "ANSWER2=EVAL(expr=\"'yes' if {ANSWER0} >= {ANSWER1} else 'no'\")"},
        reason="The expression of Step5 is also true for equal counts: more means above, so it should use > instead of >=.",
    ),
    SeedFailure(
        task_kind="vqa",
        family="exist_relation",
        kind="program",
        lines={2: "IMAGE0=CROP(image=IMAGE,box=BOX0)"},
        reason="CROP in Step2 keeps the box of Step1 itself; the part of the picture <direction> it is given by <crop>.",
    ),
    SeedFailure(
        task_kind="multi_image",
        family="total_count",
        kind="plan",
        lines={7: "Check that one of the counts of Step4, Step5 and Step6 is <digit>."},
        reason="Step7 looks at each picture alone, but the statement is about the total: the three counts should be added first.",
    ),
    SeedFailure(
        task_kind="multi_image",
        family="any_picture",
        kind="program",
        lines={7: "ANSWER3=EVAL(expr='{ANSWER0} > 0 xor {ANSWER1} > 0 xor {ANSWER2} > 0')"},
        reason="The expression of Step7 is false where two pictures show it: at least one means or, not xor.",
    ),
    SeedFailure(
        task_kind="multi_image",
        family="touching",
        kind="program",
        lines={3: "OBJ2=TOUCHING(image=LEFT,object=OBJ0,target='<target>')"},
        reason="TOUCHING in Step3 takes all objects of Step1 instead of those that Step2 kept, so others that touch are counted too.",
    ),
    SeedFailure(
        task_kind="editing",
        family="color_pop",
        kind="plan",
        lines={2: "Select every object from Step1's objects."},
        reason="Step2 selects all objects, so nothing turns gray but the ground: it should select the <a> only.",
    ),
    SeedFailure(
        task_kind="editing",
        family="replace",
        kind="program",
        lines={2: "OBJ1=SELECT(image=IMAGE,object=OBJ0,query='<b>',category=None)"},
        reason="SELECT in Step2 looks for the new object, which is not in the picture yet: its query should be the <a> that is replaced.",
    ),
    SeedFailure(
        task_kind="tagging",
        family="shape_set",
        kind="plan",
        lines={2: "List the names of all shapes."},
        reason="Step2 lists every shape there is; only those of the <set> set were asked for.",
    ),
    SeedFailure(
        task_kind="tagging",
        family="shape_set",
        kind="program",
        lines={3: "OBJ1=CLASSIFY(image=IMAGE,object=OBJ0,categories='<set>')"},
        reason="CLASSIFY in Step3 is given the name of the set, which is no shape: its categories should be the names of LIST0.",
    ),
)


def _make_entry(
    family: TaskFamily,
    instruction: str,
    *,
    kind: DemonstrationKind,
    plan: tuple[str, ...],
    program: tuple[str, ...],
    reason: str = "",
) -> Demonstration:
    outcome: DemonstrationOutcome = "failure" if reason else "success"
    return Demonstration(
        id=make_id("seed", kind, outcome, family.kind, instruction),
        kind=kind,
        outcome=outcome,
        task_kind=family.kind,
        instruction=instruction,
        plan=plan,
        program="\n".join(program) if kind == "program" else "",
        reason=reason,
    )


def _draw_cases(family: TaskFamily) -> list[tuple[str, Case]]:
    """Different instructions of one family with their cases: base wordings in turn, base words only."""
    found: dict[str, Case] = {}
    place = 0
    while len(found) < PER_FAMILY:
        # Statements come in pairs with the same words: every second place has new ones.
        case = draw_case(family, seed=SEED, place=2 * place, novel=False, wanted=place % 2 / 2)
        found.setdefault(fill_slots(family.base[place % len(family.base)], case.slots), case)
        place += 1
    return list(found.items())


def _fill(lines: tuple[str, ...], case: Case) -> tuple[str, ...]:
    return tuple(fill_slots(line, case.slots) for line in lines)


def _change(lines: tuple[str, ...], changes: Mapping[int, str]) -> tuple[str, ...]:
    return tuple(changes.get(step, line) for step, line in enumerate(lines, start=1))


@cache
def seed_demonstrations() -> tuple[Demonstration, ...]:
    """The four pools' first entries: for every family that is not held out some right plans and programs, and for every kind a wrong
    plan and wrong programs with the reason (CLOVA's pools have one to seven failures)."""
    entries = []
    for families in FAMILIES.values():
        for family in families:
            for instruction, case in [] if family.held_out else _draw_cases(family):
                plan, program = _fill(family.plan, case), _fill(family.program, case)
                entries.append(_make_entry(family, instruction, kind="plan", plan=plan, program=program))
                entries.append(_make_entry(family, instruction, kind="program", plan=plan, program=program))
    for failure in SEED_FAILURES:
        family = find_family(failure.task_kind, failure.family)
        case = draw_case(family, seed=seed_for(SEED, failure.reason), place=0, novel=False, wanted=0.0)
        in_plan = failure.kind == "plan"
        plan = _fill(_change(family.plan, failure.lines if in_plan else {}), case)
        program = _fill(_change(family.program, {} if in_plan else failure.lines), case)
        reason = fill_slots(failure.reason, case.slots)
        instruction = fill_slots(family.base[0], case.slots)
        entries.append(_make_entry(family, instruction, kind=failure.kind, plan=plan, program=program, reason=reason))
    return tuple(entries)
