"""Measuring the program search on items in NLVR's layout (drawn here): parts, errors by kind, learning curve, words by lexicon."""

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from tests.fixtures.block_pictures import Block, BlockTools, draw_blocks, draw_towers, judge, stack
from visloop.assistant.search import make_scorer
from visloop.assistant.search_learning import TrainingSettings, learn
from visloop.assistant.search_meanings import Atom, Filter, Meaning
from visloop.assistant.search_perception import look_at_tasks
from visloop.assistant.search_scenes import Executor
from visloop.assistant.search_space import load_pack
from visloop.config_assistant import WordsChoice
from visloop.datasets.nlvr import BOX_SIDE, BOX_STARTS, PERMUTATIONS
from visloop.errors import ConfigError, DataError
from visloop.evaluation.nlvr_search import (
    Item,
    answer_items,
    explain_errors,
    measure_curve,
    measure_search,
    read_drawn_items,
    read_items,
)

PACK = load_pack("nlvr")
TOOLS = BlockTools()
QUICK = TrainingSettings(steps=40, rate=0.05, reference=8)
TWO_BLUE = Meaning("boxes", (Atom("count", Filter(words=(("blue",),))),), "==", 2)
CODES = {"black": "Black", "yellow": "Yellow", "blue": "#0099ff"}


def make_items(instruction: str, meaning: Meaning, *, count: int = 4, seed: int = 0, group: str | None = None) -> list[Item]:
    draw = random.Random(f"{instruction}{seed}")
    found = judge(f"{instruction}{seed}", instruction, [draw_towers(draw) for _ in range(count)], [False] * count, space=PACK.space)
    truths = [bool(Executor(item.scene, PACK.space).judge(meaning)[0]) for item in found]
    return [Item(replace(item, answer=truth), group or instruction) for item, truth in zip(found, truths, strict=True)]


@pytest.fixture(scope="module")
def train() -> list[Item]:
    numbers = {1: "one", 2: "two", 3: "three"}
    return [
        item
        for number, word in numbers.items()
        for color in ("blue", "black", "yellow")
        for item in make_items(
            f"exactly {word} towers show a {color} block",
            Meaning("boxes", (Atom("count", Filter(words=((color,),))),), "==", number),
            count=6,
        )
    ]


def test_accuracy_is_told_apart_for_repeated_sentences_and_known_forms(train: list[Item]) -> None:
    repeated = make_items("Exactly two towers show a blue block.", TWO_BLUE, seed=5)
    new = make_items("there is a tower of blue blocks", Meaning("boxes", (Atom("every", Filter(), Filter(words=(("blue",),))),)))
    report = measure_search(PACK, train, [*repeated, *new], tools=TOOLS, settings=QUICK)
    found = {(row.name, row.metric): row for row in report.rows}
    assert found["search/full", "accuracy"].n == 8 and found["search/full", "consistency"].n == 2
    assert found["search/full/repeated", "accuracy"].n == found["search/full/known_form", "accuracy"].n == 4
    assert found["search/full/repeated", "accuracy"].value == 1.0
    assert found["search/full/not_repeated", "accuracy"].n == found["search/full/new_form", "accuracy"].n == 4
    with pytest.raises(ConfigError, match="0 to measure on"):
        measure_search(PACK, train, [], tools=TOOLS)


def test_errors_are_of_four_kinds(train: list[Item]) -> None:
    scorer = learn(make_scorer(PACK, WordsChoice.full), [item.judgement for item in train], settings=QUICK)
    good = make_items("exactly two towers show a blue block", TWO_BLUE, count=8, seed=1)

    def kinds(items: Sequence[Item], drawn: Sequence[Item] = ()) -> tuple[float, dict[str, int]]:
        return explain_errors(scorer, items, answer_items(scorer, items), drawn=drawn)

    assert kinds(good) == (1.0, {})
    other = Meaning("total", TWO_BLUE.atoms[:1])
    assert kinds(make_items("exactly two towers show a blue block", other, count=12, seed=1)) == (1.0, {"ranking": 1})
    twin = Item(replace(good[0].judgement, id="twin", answer=not good[0].judgement.answer), good[0].group)
    assert kinds([*good, twin]) == (0.0, {"labels": 1})
    nothing = make_items("purple prose", TWO_BLUE, count=8)
    assert kinds(nothing)[1] == {"not_covered": 1}
    blind = [Item(replace(item.judgement, scene=replace(item.judgement.scene, masks=_forget(item, "blue"))), item.group) for item in good]
    assert any(item.judgement.answer for item in good)
    assert kinds(blind, drawn=good)[1] == {"perception": 1}


def _forget(item: Item, word: str) -> dict[str, object]:
    masks = dict(item.judgement.scene.masks)
    return masks | {word: masks[word] & False}  # type: ignore[dict-item]


def test_the_curve_takes_whole_sentences_and_rises(train: list[Item]) -> None:
    test = make_items(
        "exactly one towers show a black block", Meaning("boxes", (Atom("count", Filter(words=(("black",),))),), "==", 1), seed=3
    )
    points = measure_curve(make_scorer(PACK, WordsChoice.full), train, test, sizes=(1, 99), seeds=(0, 1), settings=QUICK)
    assert [(point.sentences, point.judgements) for point in points] == [(1, 6), (1, 6), (9, 54), (9, 54)]
    assert points[-1].accuracy == 1.0 and points[2].accuracy == points[3].accuracy


def test_the_four_lexicons_know_more_and_less() -> None:
    scorers = {words.value: make_scorer(PACK, words) for words in WordsChoice}
    counts = {words: sum(map(len, scorer.lexicon.values())) for words, scorer in scorers.items()}
    assert counts["full"] > counts["reduced"] == counts["learned"] > counts["none"] == len(PACK.space.words)
    assert {words for words, scorer in scorers.items() if scorer.open_parts} == {"none"}


def describe(block: Block) -> dict[str, object]:
    color, shape, left, top, side = block
    return {"x_loc": left, "y_loc": top, "size": side, "type": shape, "color": CODES[color]}


def write_nlvr(root: Path, part: str, rows: Sequence[tuple[str, str, list[list[Block]], bool]]) -> None:
    (root / part / "images" / "1").mkdir(parents=True)
    lines = []
    for identifier, sentence, scene, label in rows:
        pictures = [[describe(block) for block in blocks] for blocks in scene]
        lines.append(
            json.dumps(
                {"sentence": sentence, "label": str(label).lower(), "identifier": identifier, "directory": "1", "structured_rep": pictures}
            )
        )
        for number in PERMUTATIONS:
            whole = Image.new("RGB", (400, 100), (128, 128, 128))
            for start, blocks in zip(BOX_STARTS, scene, strict=True):
                whole.paste(draw_blocks(blocks).resize((BOX_SIDE, BOX_SIDE)), (start, 0))
            whole.save(root / part / "images" / "1" / f"{part}-{identifier}-{number}.png")
    (root / part / f"{part}.json").write_text("\n".join(lines), encoding="utf-8")


def test_items_are_read_from_pictures_and_as_they_were_drawn(tmp_path: Path) -> None:
    scenes = [[stack("blue", "black"), stack("yellow"), stack("black", "black", "blue")], [stack("black"), stack("blue"), stack("yellow")]]
    write_nlvr(tmp_path, "dev", [("7-0", "two towers show a blue block", scenes[0], True)])
    write_nlvr(
        tmp_path,
        "test",
        [("9-0", "two towers show a blue block", scenes[0], True), ("9-1", "two towers show a blue block", scenes[1], False)],
    )
    train, test = read_items(tmp_path, out=tmp_path / "cut", space=PACK.space, tools=TOOLS)
    drawn = read_drawn_items(tmp_path, "test", space=PACK.space, tools=TOOLS)
    assert [len(train), len(test)] == [1, 2]
    key = lambda item: (item.judgement.id, item.group, item.judgement.instruction, item.judgement.answer)  # noqa: E731
    assert [key(item) for item in test] == [key(item) for item in drawn]
    for item, other, scene in zip(test, drawn, scenes, strict=True):
        [seen] = look_at_tasks([[draw_blocks(blocks) for blocks in scene]], space=PACK.space, tools=TOOLS)
        for found in (item, other):
            assert bool(Executor(found.judgement.scene, PACK.space).judge(TWO_BLUE)[0]) is found.judgement.answer
            assert found.judgement.scene.size == seen.size
    (tmp_path / "test" / "test.json").write_text('{"sentence": "x"}', encoding="utf-8")
    with pytest.raises(DataError, match=r"test\.json"):
        read_drawn_items(tmp_path, "test", space=PACK.space, tools=TOOLS)
