"""The assistant's tasks: all families of the four kinds, and tasks drawn from them with their pictures and ground truth."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from visloop.errors import ConfigError, DataError
from visloop.ids import make_id, seed_for
from visloop.records.assistant import LabelledBox, Task, TaskKind, TaskTruth, Wording
from visloop.records.reasoning import Split
from visloop.scenes.edits import EditStep, apply_edits, replace_object
from visloop.scenes.export import LICENCE, SPLIT_SHARES, assign_split, format_scene, save_picture, save_pictures
from visloop.scenes.regions import locate_objects
from visloop.scenes.statement_draws import INPUTS
from visloop.scenes.tasks_editing import EDITING_FAMILIES
from visloop.scenes.tasks_multi_image import MULTI_IMAGE_FAMILIES
from visloop.scenes.tasks_tagging import TAGGING_FAMILIES
from visloop.scenes.tasks_vqa import VQA_FAMILIES
from visloop.scenes.workshop import NOVEL_CONCEPTS
from visloop.scenes.workshop_families import WORLDS, Case, Draw, TaskFamily, fill_slots
from visloop.scenes.world import Scene, hash_content

SOURCE: Final = "workshop"
FAMILIES: Final[dict[TaskKind, tuple[TaskFamily, ...]]] = {
    "vqa": VQA_FAMILIES,
    "multi_image": MULTI_IMAGE_FAMILIES,
    "editing": EDITING_FAMILIES,
    "tagging": TAGGING_FAMILIES,
}
TASK_INPUTS: Final[dict[TaskKind, tuple[str, ...]]] = {
    "vqa": ("IMAGE",),
    "multi_image": INPUTS,
    "editing": ("IMAGE",),
    "tagging": ("IMAGE",),
}
"""The program variables that hold a task's pictures."""
_STEPS: Final = (0.8191725134, 0.6710436067, 0.5497004779)
"""Of an additive sequence that spreads points evenly over a cube (one turn each): any number of tasks has close to the wanted shares."""
_TRIES: Final = 2000


def list_families(kind: TaskKind, *, held_out: bool | None = None) -> tuple[str, ...]:
    """Names of the families of a kind; only those that are (not) held out, where ``held_out`` is given."""
    return tuple(family.name for family in FAMILIES[kind] if held_out is None or family.held_out == held_out)


def find_family(kind: TaskKind, name: str) -> TaskFamily:
    """A family by name.

    Raises:
        ConfigError: the kind has no such family.
    """
    found = next((family for family in FAMILIES[kind] if family.name == name), None)
    if found is None:
        raise ConfigError(f"{kind} tasks have no family {name!r}; they have {list_families(kind)}")
    return found


def _spread(start: float, step: float, place: int) -> float:
    return (start + step * place) % 1.0


def draw_case(
    family: TaskFamily,
    *,
    seed: int,
    place: int,
    novel: bool,
    wanted: float,
    split: Split | None = None,
    seen: Sequence[str] | set[str] = (),
) -> Case:
    """The case number ``place`` of a family: about a novel word or about base words only, its scene in ``split`` and not in ``seen``
    (content hashes). Statements come in pairs with the same words and opposite truth.

    Raises:
        DataError: no case was found, which means that the family asks for something impossible.
    """
    keys = (family.kind, family.name, split, novel)
    paired = family.kind == "multi_image"
    subject = seed_for(seed, *keys, place // 2 if paired else place, "words")
    focuses = family.list_concepts()
    focus = focuses[subject % len(focuses)] if novel else None
    for attempt in range(_TRIES):
        words = random.Random(subject if paired else seed_for(subject, attempt))
        rng = random.Random(seed_for(seed, *keys, place, "scene", attempt))
        case = family.draw(Draw(words=words, rng=rng, focus=focus, wanted=wanted))
        if case is None or (split is not None and assign_split(case.scene) != split) or hash_content(case.scene.boxes) in seen:
            continue
        return case
    raise DataError(
        f"family {family.name!r} ({family.kind}) gave no scene of split {split!r} for {focus or 'base words'} in {_TRIES} tries"
    )


def mark_region(scene: Scene, steps: Sequence[EditStep], kind: TaskKind = "editing") -> tuple[LabelledBox, ...]:
    """The boxes of the objects that edits are about, with what they are to be: the words of the new object, the emoji's name, or
    ``kept`` for the objects that a color pop or a blur leaves as they are."""
    spec = WORLDS[kind]
    marked = []
    for step in steps:
        after = replace_object(scene, step.objects[0], step.words) if step.operation == "replace" else scene
        (before_objects,), (after_objects,) = locate_objects(scene, spec=spec), locate_objects(after, spec=spec)
        for place in step.objects:
            first, second = before_objects[place].box, after_objects[place].box
            box = (min(first[0], second[0]), min(first[1], second[1]), max(first[2], second[2]), max(first[3], second[3]))
            words = " ".join(word for word in (step.words.pattern, step.words.color, step.words.shape) if word)
            marked.append(LabelledBox(box=box, label=words or step.emoji or "kept"))
    return tuple(marked)


def make_task(
    family: TaskFamily, case: Case, *, wording: Wording, choice: int, split: Split, out: Path, image_prefix: str = ""
) -> tuple[Task, TaskTruth]:
    """The records of one case; its pictures (and the right picture of an edit) are written under ``out``. ``choice`` picks one of the
    wordings."""
    spec, prefix = WORLDS[family.kind], f"{image_prefix.rstrip('/')}/" if image_prefix else ""
    wordings = family.base if wording == "base" else family.new
    instruction = fill_slots(wordings[choice % len(wordings)], case.slots)
    names, hashes = save_pictures(case.scene, out=out, spec=spec)
    target = save_picture(apply_edits(case.scene, case.edits, spec=spec), out=out)[0] if case.edits else None
    task_id = make_id(SOURCE, family.kind, family.name, case.scene.id, instruction)
    program = "\n".join(fill_slots(line, case.slots) for line in family.program)
    shown = {*case.concepts, case.answer}
    task = Task(
        id=task_id,
        kind=family.kind,
        instruction=instruction,
        images=tuple(prefix + name for name in names),
        inputs=TASK_INPUTS[family.kind],
        family=family.name,
        wording=wording,
        split=split,
        group=make_id("statement", split, instruction) if family.kind == "multi_image" else case.scene.id,
        source=SOURCE,
        concepts=case.concepts,
        novel=any(word in shown for word in NOVEL_CONCEPTS),
        image_hashes=hashes,
        licence=LICENCE,
    )
    truth = TaskTruth(
        task_id=task_id,
        program=program,
        plan=tuple(fill_slots(line, case.slots) for line in family.plan),
        answer=case.answer,
        boxes=case.boxes,
        target=prefix + target if target is not None else None,
        region=mark_region(case.scene, case.edits),
        scene=format_scene(case.scene),
    )
    return task, truth


def make_tasks(
    out: Path,
    *,
    seed: int,
    kind: TaskKind,
    count: int,
    split: Split,
    novel_share: float,
    new_wording_share: float,
    families: Sequence[str] | None = None,
    image_prefix: str = "",
) -> tuple[list[Task], list[TaskTruth]]:
    """Draw tasks of one kind and write their pictures under ``out``; the caller writes the records, which come in the same order.

    The families take turns, so that they are equally many; novel words, new wordings and answers are spread evenly within each family.
    A smaller ``count`` gives the first tasks of a larger one. No scene is in two splits, and none twice in one call.

    Args:
        novel_share: share of tasks about a word that the shipped tools do not know, 0-1.
        new_wording_share: share of instructions worded as no seed demonstration is, 0-1.
        families: names of the families to draw from; None means all of the kind, held-out ones too.
        image_prefix: what to put before the pictures' names in the records: the path of ``out`` relative to the data folder.

    Raises:
        ConfigError: an unknown split or family, a negative count, or a share outside 0-1.
    """
    if split not in SPLIT_SHARES or count < 0 or not (0 <= novel_share <= 1 and 0 <= new_wording_share <= 1):
        raise ConfigError(
            f"expected a split of {sorted(SPLIT_SHARES)}, a count from 0 and shares of 0-1, got {split!r}, {count}, "
            f"{novel_share}, {new_wording_share}"
        )
    chosen = [find_family(kind, name) for name in (list_families(kind) if families is None else families)]
    if not chosen or len({family.name for family in chosen}) != len(chosen):
        raise ConfigError(f"families must be different ones of {list_families(kind)}, got {families}")
    tasks: list[Task] = []
    truths: list[TaskTruth] = []
    seen: set[str] = set()
    pair = 2 if kind == "multi_image" else 1
    for index in range(count):
        family = chosen[index // pair % len(chosen)]
        place = index // pair // len(chosen) * pair + index % pair
        start = random.Random(seed_for(seed, kind, split, family.name))
        first, second, third = (start.random() for _ in range(3))
        novel = _spread(first, _STEPS[0], place // pair) < novel_share
        wording: Wording = "new" if _spread(second, _STEPS[1], place // pair) < new_wording_share else "base"
        wanted = index % 2 / 2 if pair == 2 else _spread(third, _STEPS[2], place)
        case = draw_case(family, seed=seed, place=place, novel=novel, wanted=wanted, split=split, seen=seen)
        seen.add(hash_content(case.scene.boxes))
        choice = seed_for(seed, kind, split, family.name, place // pair, "wording")
        task, truth = make_task(family, case, wording=wording, choice=choice, split=split, out=out, image_prefix=image_prefix)
        tasks.append(task)
        truths.append(truth)
    return tasks, truths
