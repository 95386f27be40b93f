"""Measures the program search on NLVR: accuracy, consistency, learning curve, known and new wordings, words by hand or learned, errors.

Two warnings belong to every figure. The space of programs (and the full lexicon) were written by hand after reading the development
sentences; and some test sentences occur word for word in the development set, so accuracy is always given for the rest too.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from visloop.assistant.search import make_scorer
from visloop.assistant.search_judgements import Judgement
from visloop.assistant.search_learning import TrainingSettings, group_judgements, learn, make_lesson
from visloop.assistant.search_lexicon import LearnedWord, LexiconSettings, learn_lexicon
from visloop.assistant.search_perception import SeenObject, look_at_tasks, scene_from_objects
from visloop.assistant.search_scenes import Executor, SceneTable
from visloop.assistant.search_scorer import Scorer
from visloop.assistant.search_space import Pack, Space
from visloop.assistant.search_words import repair_words
from visloop.chat.images import load_image
from visloop.config_assistant import WordsChoice
from visloop.datasets.nlvr import SOURCE, read_nlvr
from visloop.errors import ConfigError, DataError
from visloop.evaluation.metrics import Row, measure_accuracy, measure_consistency
from visloop.ids import make_id, seed_for
from visloop.records.reasoning import Prediction
from visloop.tools.base import ToolRunner
from visloop.tools.values import Box

ErrorKind = Literal["not_covered", "ranking", "perception", "labels"]
"""Why a sentence is not right throughout. ``labels``: two equal scenes have different labels. ``perception``: the program is right on the
scenes as they were drawn. ``not_covered``: no candidate agrees with all labels. ``ranking``: one does, but another was chosen."""
_COLORS = {"#0099ff": "blue", "black": "black", "yellow": "yellow"}
_SIZES = {10: "small", 20: "medium", 30: "big"}
_BATCH, _MOST_PIXELS = 64, 10_000


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """A labelled sentence and scene; ``group`` is the sentence's presentation: the unit of consistency."""

    judgement: Judgement
    group: str


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """Accuracy on the test items after learning from the feedback on ``sentences`` sentences, drawn with ``seed``."""

    sentences: int
    judgements: int
    seed: int
    accuracy: float
    consistency: float


@dataclass(frozen=True, slots=True)
class SearchReport:
    """``rows``: accuracy of all, of sentences that are (not) word for word among those learned from, of known and new forms (words with
    colours, shapes, sizes and numbers masked), and consistency. ``covered``: share of the test sentences with a candidate that agrees
    with all labels. ``errors``: sentences by kind. ``scorer``: what was learned."""

    words: WordsChoice
    rows: tuple[Row, ...]
    covered: float
    errors: dict[str, int]
    learned_words: tuple[LearnedWord, ...]
    scorer: Scorer


def read_items(
    root: Path, *, out: Path, space: Space, tools: ToolRunner, permutations: Sequence[int] = (0,)
) -> tuple[list[Item], list[Item]]:
    """The development and test items, with the pictures as the tools see them. ``out``: folder for the cut pictures.

    Raises:
        DataError: the data cannot be read.
        ToolError: a tool failed.
    """
    samples = read_nlvr(root, out=out, permutations=permutations).samples
    tables: list[SceneTable] = []
    for start in range(0, len(samples), _BATCH):
        tasks = [[load_image(out / name, max_pixels=_MOST_PIXELS) for name in sample.images] for sample in samples[start : start + _BATCH]]
        tables += look_at_tasks(tasks, space=space, tools=tools)
    items = [
        Item(Judgement(sample.id, sample.question, table, sample.answer == "true"), sample.group)
        for sample, table in zip(samples, tables, strict=True)
    ]
    tested = {sample.id for sample in samples if sample.split == "test"}
    return [item for item in items if item.judgement.id not in tested], [item for item in items if item.judgement.id in tested]


def read_drawn_items(root: Path, part: Literal["dev", "test"], *, space: Space, tools: ToolRunner) -> list[Item]:
    """The items of a part with the scenes as they were drawn (``structured_rep``); ``tools`` tell only where the objects lie. To develop
    with, and to tell errors of perception.

    Raises:
        DataError: the file is missing or malformed.
    """
    path = root / part / f"{part}.json"
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        return [_make_drawn_item(line, part, space=space, tools=tools) for line in lines]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path}: no NLVR scenes can be read here: {error}") from error


def _make_drawn_item(line: Mapping[str, Any], part: str, *, space: Space, tools: ToolRunner) -> Item:
    pictures = [[_read_object(entry) for entry in picture] for picture in line["structured_rep"]]
    table = scene_from_objects(pictures, space=space, tools=tools)
    identifier = make_id(SOURCE, part, line["identifier"], 0)
    group = f"nlvr-{part}-{line['identifier'].split('-', 1)[0]}"
    return Item(Judgement(identifier, " ".join(line["sentence"].split()), table, line["label"] == "true"), group)


def _read_object(entry: Mapping[str, Any]) -> SeenObject:
    left, top, size = float(entry["x_loc"]), float(entry["y_loc"]), int(entry["size"])
    words = {_COLORS[str(entry["color"]).lower()], str(entry["type"]), _SIZES[size]}
    return SeenObject(words, Box(left=left, top=top, right=left + size, bottom=top + size))


def answer_items(scorer: Scorer, items: Sequence[Item], *, system: str = "search") -> list[Prediction]:
    """The answer of the likeliest program to each item. An instruction without a candidate has no answer, which is wrong."""
    chosen = {text: scorer.rank(text)[:1] for text in dict.fromkeys(item.judgement.instruction for item in items)}
    predictions = []
    for item in items:
        found = chosen[item.judgement.instruction]
        answer = bool(Executor(item.judgement.scene, scorer.space).judge(found[0][0].meaning)[0]) if found else None
        predictions.append(
            Prediction(
                sample_id=item.judgement.id,
                system=system,
                family="statement",
                group=item.group,
                answer=None if answer is None else str(answer).lower(),
                correct=answer is item.judgement.answer,
                status="ok" if found else "failed",
            )
        )
    return predictions


def measure_curve(
    scorer: Scorer,
    train: Sequence[Item],
    test: Sequence[Item],
    *,
    sizes: Sequence[int] = (10, 25, 50, 100, 200, 249),
    seeds: Sequence[int] = (0, 1, 2),
    settings: TrainingSettings | None = None,
) -> list[CurvePoint]:
    """The learning curve: feedback on more sentences, a better planner. A size above the number of sentences takes all of them."""
    groups = group_judgements([item.judgement for item in train])
    points = []
    for size in sizes:
        for seed in seeds:
            drawn = sorted(groups, key=lambda group: seed_for(seed, "curve", group[0].id))[:size]
            judgements = [judgement for group in drawn for judgement in group]
            predictions = answer_items(learn(scorer, judgements, settings=settings), test)
            accuracy, consistency = measure_accuracy(predictions).value, measure_consistency(predictions).value
            points.append(CurvePoint(len(drawn), len(judgements), seed, accuracy, consistency))
    return points


def measure_search(
    pack: Pack,
    train: Sequence[Item],
    test: Sequence[Item],
    *,
    words: WordsChoice = WordsChoice.full,
    tools: ToolRunner,
    drawn: Sequence[Item] = (),
    settings: TrainingSettings | None = None,
    lexicon_settings: LexiconSettings | None = None,
) -> SearchReport:
    """Learn from ``train``, measure on ``test``. ``drawn``: the test items with the scenes as drawn, to tell errors of perception.

    Raises:
        ConfigError: nothing to learn from or to measure on.
    """
    if not train or not test:
        raise ConfigError(f"NLVR search: {len(train)} items to learn from and {len(test)} to measure on; both are needed")
    judgements = [item.judgement for item in train]
    scorer, learned = make_scorer(pack, words, find_tool=tools.find_signature), ()
    if words is WordsChoice.learned:
        scorer, learned = learn_lexicon(scorer, judgements, settings=lexicon_settings, training=settings)  # type: ignore[assignment]
    scorer = learn(scorer, judgements, settings=settings)
    predictions = answer_items(scorer, test, system=f"search/{words.value}")
    seen = {repair_words(judgement.instruction, ()) for judgement in judgements}
    forms = {scorer.read(judgement.instruction).shapes for judgement in judgements}
    parts: dict[str, list[Prediction]] = defaultdict(list)
    for item, prediction in zip(test, predictions, strict=True):
        text = item.judgement.instruction
        parts["repeated" if repair_words(text, ()) in seen else "not_repeated"].append(prediction)
        parts["known_form" if scorer.read(text).shapes in forms else "new_form"].append(prediction)
    rows = [measure_accuracy(predictions), measure_consistency(predictions)]
    for part, found in sorted(parts.items()):
        rows += [
            measure_accuracy(found, name=f"search/{words.value}/{part}"),
            measure_consistency(found, name=f"search/{words.value}/{part}"),
        ]
    covered, errors = explain_errors(scorer, test, predictions, drawn=drawn)
    return SearchReport(words, tuple(rows), covered, errors, learned, scorer)


def explain_errors(
    scorer: Scorer, items: Sequence[Item], predictions: Sequence[Prediction], *, drawn: Sequence[Item] = ()
) -> tuple[float, dict[str, int]]:
    """The share of sentences that some candidate agrees with throughout, and the sentences that are not all right by ``ErrorKind``."""
    right = {prediction.sample_id: prediction.correct for prediction in predictions}
    truth = {item.judgement.id: item for item in drawn}
    kinds: Counter[str] = Counter()
    groups = group_judgements([item.judgement for item in items])
    covered = 0
    for group in groups:
        lesson = make_lesson(scorer, group)
        covers = bool(lesson.agrees.any())
        covered += covers
        if all(right[judgement.id] for judgement in group):
            continue
        known = [truth[judgement.id] for judgement in group if judgement.id in truth]
        if _contradict(group if not known else [item.judgement for item in known]):
            kinds["labels"] += 1
        elif len(known) == len(group) and all(prediction.correct for prediction in answer_items(scorer, known)):
            kinds["perception"] += 1
        else:
            kinds["ranking" if covers else "not_covered"] += 1
    return covered / len(groups), dict(sorted(kinds.items()))


def _contradict(group: Sequence[Judgement]) -> bool:
    """Whether two equal scenes have different labels; the order of pictures and of objects does not matter."""
    answers: dict[tuple[Any, ...], bool] = {}
    for judgement in group:
        scene = judgement.scene
        columns = [scene.masks[name] for name in sorted(scene.masks)]
        rows = sorted(zip(scene.box.tolist(), *(column.tolist() for column in columns), strict=True))
        pictures = tuple(sorted(tuple(row[1:] for row in rows if row[0] == picture) for picture in range(scene.pictures)))
        if answers.setdefault(pictures, judgement.answer) != judgement.answer:
            return True
    return False
