"""The assistant's task packs: their truth agrees with their scenes, their splits are apart, their words are what they are said to be."""

import json
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.fixtures.workshop_executor import Edited, Executor
from visloop.errors import ConfigError
from visloop.records.assistant import Task, TaskKind, TaskTruth
from visloop.records.reasoning import Split
from visloop.scenes.edits import EditStep, apply_edits
from visloop.scenes.export import assign_split, parse_scene
from visloop.scenes.filters import Filter
from visloop.scenes.tasks_tagging import load_facts
from visloop.scenes.workshop import NOVEL_CONCEPTS, WORKSHOP, find_attribute
from visloop.scenes.workshop_families import WORLDS, TaskFamily
from visloop.scenes.workshop_seeds import SEED_FAILURES, seed_demonstrations
from visloop.scenes.workshop_tasks import FAMILIES, find_family, list_families, make_tasks
from visloop.scenes.world import hash_content
from visloop.tools.signatures import find_signature

KINDS: tuple[TaskKind, ...] = ("vqa", "multi_image", "editing", "tagging")
ALL_FAMILIES: list[TaskFamily] = [family for families in FAMILIES.values() for family in families]
WORDS = re.compile(r"[a-z]+")


def draw(
    out: Path, kind: TaskKind, *, seed: int = 0, count: int = 40, split: Split = "train", **changes: object
) -> list[tuple[Task, TaskTruth]]:
    settings = {"novel_share": 0.5, "new_wording_share": 0.5} | changes
    tasks, truths = make_tasks(out, seed=seed, kind=kind, count=count, split=split, **settings)  # type: ignore[arg-type]
    return list(zip(tasks, truths, strict=True))


def spoken_words(task: Task, truth: TaskTruth) -> set[str]:
    """Every word that a task is about: of its instruction, program, answer and labels, plurals as singulars."""
    texts = [task.instruction.lower(), truth.program, truth.answer or "", *(tag.label for tag in truth.boxes + truth.region)]
    for line in re.findall(r"LIST\(query='([^']*)'", truth.program):
        texts += load_facts()[line]
    words = {word for text in texts for word in WORDS.findall(text)}
    return words | {word.removesuffix("s") for word in words}


@settings(deadline=None, max_examples=20)
@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 2**40), split=st.sampled_from(["train", "validation", "test"]))
def test_gold_programs_give_the_truth_with_perfect_tools(
    kind: TaskKind, seed: int, split: Split, tmp_path_factory: pytest.TempPathFactory
) -> None:
    out = tmp_path_factory.mktemp("tasks")
    for task, truth in draw(out, kind, seed=seed, count=len(FAMILIES[kind]) * 2, split=split):
        scene, spec = parse_scene(truth.scene), WORLDS[kind]
        assert assign_split(scene) == split == task.split
        value = Executor(task, scene, spec).run(truth.program)
        if kind in ("vqa", "multi_image"):
            assert str(value).lower() == truth.answer, task
        elif kind == "tagging":
            assert sorted((tag.label, tag.box) for tag in value) == sorted((tag.label, tag.box) for tag in truth.boxes)
            assert len({tag.box for tag in value}) == len(value)
        else:
            assert isinstance(value, Edited) and truth.target is not None
            steps = [
                EditStep(operation=operation, objects=places, words=read_phrase(text), emoji=text if operation == "hide" else "")  # type: ignore[arg-type]
                for operation, places, text in value.edits
            ]
            target = Image.open(out / truth.target)
            assert apply_edits(scene, steps, spec=spec).tobytes() == target.tobytes() != Image.open(out / task.images[0]).tobytes()
            boxes = Executor(task, scene, spec).located[0]
            for region, place in zip(truth.region, [place for _, places, _ in value.edits for place in places], strict=True):
                assert region.box[0] <= boxes[place].box[0] and region.box[3] >= boxes[place].box[3]


def read_phrase(text: str) -> Filter:
    return Filter(**{str(name): word for word in text.split() if (name := find_attribute(word)) is not None})


@pytest.mark.parametrize("kind", KINDS)
def test_novel_tasks_speak_of_a_novel_word_and_base_tasks_and_scenes_of_none(kind: TaskKind, tmp_path: Path) -> None:
    found = draw(tmp_path, kind, count=120)
    for task, truth in found:
        novel = spoken_words(task, truth) & set(NOVEL_CONCEPTS)
        assert bool(novel) == task.novel, (task, truth)
        if not task.novel:
            assert not any(f'"{word}"' in truth.scene for word in NOVEL_CONCEPTS)
        assert set(task.concepts) <= spoken_words(task, truth)
    assert abs(sum(task.novel for task, _ in found) / 120 - 0.5) < 0.1
    assert abs(sum(task.wording == "new" for task, _ in found) / 120 - 0.5) < 0.1
    assert {word for task, truth in found for word in spoken_words(task, truth)} >= {"pink", "teal", "brown"}


@pytest.mark.parametrize(("share", "expected"), [(0.0, {False}), (1.0, {True})])
def test_shares_at_their_ends(share: float, expected: set[bool], tmp_path: Path) -> None:
    for kind in KINDS:
        found = draw(tmp_path, kind, count=20, novel_share=share, new_wording_share=share)
        assert {task.novel for task, _ in found} == expected == {task.wording == "new" for task, _ in found}


def test_no_scene_is_in_two_splits_and_none_twice(tmp_path: Path) -> None:
    splits: tuple[Split, ...] = ("train", "validation", "test")
    for kind in KINDS:
        scenes = {
            split: [hash_content(parse_scene(truth.scene).boxes) for _, truth in draw(tmp_path, kind, count=24, split=split)]
            for split in splits
        }
        assert all(len(set(hashes)) == len(hashes) == 24 for hashes in scenes.values())
        assert not any(set(scenes[first]) & set(scenes[second]) for first, second in pairwise((*splits, splits[0])))


def test_a_smaller_count_is_the_beginning_of_a_larger_one_and_seeds_matter(tmp_path: Path) -> None:
    for kind in KINDS:
        few, many, other = draw(tmp_path, kind, count=9), draw(tmp_path, kind, count=14), draw(tmp_path, kind, count=9, seed=1)
        assert many[:9] == few
        assert not {task.id for task, _ in few} & {task.id for task, _ in other}


@pytest.mark.parametrize("kind", ["vqa", "multi_image"])
def test_no_constant_answer_is_good(kind: TaskKind, tmp_path: Path) -> None:
    found = draw(tmp_path, kind, count=180 if kind == "vqa" else 96)
    for family in list_families(kind):
        answers = Counter(truth.answer for task, truth in found if task.family == family)
        total = sum(answers.values())
        most = 0.55 if set(answers) <= {"yes", "no", "true", "false"} else 0.5
        assert answers.most_common(1)[0][1] / total <= most, (family, answers)
        assert len(answers) > 1


def test_statements_come_in_pairs_with_opposite_truth(tmp_path: Path) -> None:
    found = draw(tmp_path, "multi_image", count=64)
    for first, second in zip(found[::2], found[1::2], strict=True):
        assert first[0].instruction == second[0].instruction and first[0].group == second[0].group
        assert {first[1].answer, second[1].answer} == {"true", "false"}
        assert first[0].image_hashes != second[0].image_hashes and len(first[0].images) == 3


def test_pictures_lie_where_the_records_say(tmp_path: Path) -> None:
    for task, truth in draw(tmp_path / "pictures", "editing", count=6, image_prefix="pictures/"):
        assert truth.target is not None and (tmp_path / truth.target).is_file()
        assert all((tmp_path / name).is_file() for name in task.images)
        assert [Path(name).stem for name in task.images] == list(task.image_hashes)


@pytest.mark.parametrize(
    "changes",
    [
        {"split": "dev"},
        {"count": -1},
        {"novel_share": 1.5},
        {"new_wording_share": -0.1},
        {"families": ["nothing"]},
        {"families": []},
        {"families": ["count", "count"]},
    ],
)
def test_impossible_packs_are_refused(changes: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        draw(tmp_path, "vqa", **changes)  # type: ignore[arg-type]


def test_families_are_as_wanted(tmp_path: Path) -> None:
    found = draw(tmp_path, "vqa", count=12, families=["count", "exist_both"])
    assert Counter(task.family for task, _ in found) == {"count": 6, "exist_both": 6}
    for kind in KINDS:
        assert len(list_families(kind, held_out=False)) >= 4 and list_families(kind, held_out=True)
        assert set(list_families(kind)) == set(list_families(kind, held_out=True)) | set(list_families(kind, held_out=False))


def test_every_wording_is_distinct() -> None:
    wordings = [wording for family in ALL_FAMILIES for wording in family.base + family.new]
    assert len(set(wordings)) == len(wordings)
    assert all(len(family.base) >= 2 and len(family.new) >= 2 for family in ALL_FAMILIES)
    # A family's wordings have the same slots, apart from forms of one phrase and words of grammar.
    names = [(family.kind, family.name) for family in ALL_FAMILIES]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("family", ALL_FAMILIES, ids=lambda family: f"{family.kind}-{family.name}")
def test_plans_and_programs_go_line_by_line(family: TaskFamily) -> None:
    assert len(family.plan) == len(family.program)
    assert family.plan[-1] in ("Visualize results.", "Show the result.")
    assert re.fullmatch(r"FINAL_(RESULT|ANSWER)=RESULT\(var=\w+\)", family.program[-1])
    assert all(re.match(r"[A-Z][a-z]+ ", line) and line.endswith(".") for line in family.plan)
    for place, line in enumerate(family.plan, start=1):
        assert all(int(step) < place for step in re.findall(r"Step(\d+)", line)), line
    for line in family.program:
        names = re.findall(r"=([A-Z_]+|<\w+>)\(", line)
        for name in names:
            signature = find_signature({"<crop>": "CROP_ABOVE", "<END>": "TOP"}.get(name, name))
            assert signature is not None and family.kind in signature.kinds, line
            given = re.findall(r"(?<=[(,])(\w+)=", line)
            assert all(signature.find_parameter(argument) is not None for argument in given), line
            assert all(parameter.name in given for parameter in signature.parameters if parameter.required), line


def test_seed_demonstrations_are_of_base_families_wordings_and_words() -> None:
    entries = seed_demonstrations()
    assert len({entry.id for entry in entries}) == len(entries)
    families: Counter[tuple[str, str]] = Counter()
    for entry in entries:
        words = set(WORDS.findall(f"{entry.instruction} {entry.program}".lower()))
        assert not {word.removesuffix("s") for word in words} & set(NOVEL_CONCEPTS)
        assert entry.score == 0 and entry.provenance == "seed"
        assert bool(entry.reason) == (entry.outcome == "failure")
        assert (entry.kind == "program") == bool(entry.program)
        if entry.program:
            assert len(entry.plan) == len(entry.program.split("\n"))
        families[entry.task_kind, find_by_wording(entry.instruction, entry.task_kind).name] += entry.outcome == "success"
    assert families == {(family.kind, family.name): 8 for family in ALL_FAMILIES if not family.held_out}


def find_by_wording(instruction: str, kind: str) -> TaskFamily:
    """The only family that an instruction can come from by its base wordings."""
    found = []
    for family in ALL_FAMILIES:
        patterns = [re.sub(r"<\w+>", "[a-z_ ]+", re.escape(wording).replace(r"\<", "<").replace(r"\>", ">")) for wording in family.base]
        if family.kind == kind and not family.held_out and any(re.fullmatch(pattern, instruction) for pattern in patterns):
            found.append(family)
    # "Tag the yellow shapes of the harbor set." also reads as "Tag the <a>.": the more special wording is meant.
    return max(found, key=lambda family: max(map(len, family.base)))


def test_each_kind_has_a_failed_plan_and_a_failed_program_that_differ_from_the_right_ones() -> None:
    failures = [entry for entry in seed_demonstrations() if entry.outcome == "failure"]
    assert {(entry.task_kind, entry.kind) for entry in failures} == {(kind, level) for kind in KINDS for level in ("plan", "program")}
    for failure in SEED_FAILURES:
        family = find_family(failure.task_kind, failure.family)
        right = family.plan if failure.kind == "plan" else family.program
        assert not family.held_out
        for step, line in failure.lines.items():
            assert line != right[step - 1] and f"Step{step}" in failure.reason


def test_facts_are_known_words_and_cover_every_novel_shape_and_color() -> None:
    facts = load_facts()
    assert json.loads((Path(__file__).parents[2] / "src/visloop/scenes/facts.json").read_text()) == {
        name: list(words) for name, words in facts.items()
    }
    for question, words in facts.items():
        attribute = question.split("s of ")[0]
        assert len(set(words)) == len(words) >= 2 and all(find_attribute(word) == attribute for word in words)
    shown = {word for words in facts.values() for word in words}
    assert shown >= {word for word in NOVEL_CONCEPTS if find_attribute(word) in ("shape", "color")}
    assert WORKSHOP.objects[1] >= max(map(len, facts.values())) + 2
