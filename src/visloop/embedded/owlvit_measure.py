"""How well a detector finds named objects in drawn pictures: average precision and F1, through the tool that runs it."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from visloop.embedded.owlvit import GROUPS, combine_words
from visloop.scenes.pictures import render_scene
from visloop.scenes.regions import locate_objects
from visloop.scenes.workshop import NOUN
from visloop.scenes.world import Scene, StyledWorld
from visloop.tools.base import ToolCall
from visloop.tools.detectors import Detector, list_boxes
from visloop.tools.values import Box, overlap_ratio

FOUND = 0.5
"""Intersection over union from which a box is right."""
PAIRS = 30
"""Queries of two words that a detector is measured with, at most."""
_LOWEST = 0.02


@dataclass(frozen=True, slots=True)
class Judged:
    """Boxes of one query in all pictures: scores, best first, whether each is right, and how many there were to find."""

    scores: tuple[float, ...]
    right: tuple[bool, ...]
    wanted: int


def judge_boxes(found: Sequence[Sequence[Box]], truth: Sequence[Sequence[Box]]) -> Judged:
    """Match boxes, best first, each to one that was to be found in its picture and is not taken yet."""
    taken = [set[int]() for _ in truth]
    ranked = sorted(((box.score, index, box) for index, boxes in enumerate(found) for box in boxes), key=lambda entry: -entry[0])
    right = []
    for _, index, box in ranked:
        free = [(overlap_ratio(box, other), at) for at, other in enumerate(truth[index]) if at not in taken[index]]
        best = max(free, default=(0.0, -1))
        right.append(best[0] >= FOUND)
        if right[-1]:
            taken[index].add(best[1])
    return Judged(tuple(entry[0] for entry in ranked), tuple(right), sum(map(len, truth)))


def average_precision(judged: Judged) -> float:
    """Area under the precision-recall curve, precision being made to fall."""
    if not judged.wanted:
        return 0.0
    hits = np.cumsum(judged.right) if judged.right else np.zeros(0)
    precision = hits / np.arange(1, len(hits) + 1)
    smooth = np.maximum.accumulate(precision[::-1])[::-1]
    return float(smooth[np.asarray(judged.right, dtype=bool)].sum() / judged.wanted) if len(hits) else 0.0


def score_f1(judged: Sequence[Judged], *, threshold: float) -> float:
    """F1 over all queries, counting boxes from ``threshold`` on."""
    kept = [sum(score >= threshold for score in entry.scores) for entry in judged]
    hits = sum(sum(entry.right[:count]) for entry, count in zip(judged, kept, strict=True))
    return 2 * hits / max(1, sum(kept) + sum(entry.wanted for entry in judged))


def draw_pairs(scenes: Sequence[tuple[Scene, StyledWorld]], *, seed: int) -> tuple[str, ...]:
    """Up to ``PAIRS`` queries of two words, each of which fits an object of the scenes."""
    rng = random.Random(seed)
    shown = [tuple(getattr(entry, group) for group in GROUPS) for scene, _ in scenes for entry in scene.boxes[0]]
    return tuple(dict.fromkeys(combine_words(words, rng) for words in rng.choices(shown, k=PAIRS)))


def judge_detector(detector: Detector, scenes: Sequence[tuple[Scene, StyledWorld]], queries: Sequence[str]) -> dict[str, Judged]:
    """Every query asked of every scene's picture."""
    config = replace(detector.config, detector=replace(detector.config.detector, threshold=_LOWEST))
    tool = Detector(detector.mounted, config=config, pool=detector.pool, root=detector.root)
    pictures = [render_scene(scene, spec=world)[0] for scene, world in scenes]
    located = [locate_objects(scene, spec=world)[0] for scene, world in scenes]
    judged = {}
    for query in queries:
        results = tool.run([ToolCall(tool="LOC", arguments={"image": picture, "object": query}) for picture in pictures])
        found = [list(list_boxes(result)) for result in results]
        truth = [
            [
                Box(left=entry.box[0], top=entry.box[1], right=entry.box[2], bottom=entry.box[3])
                for entry in objects
                if query == NOUN or set(query.split()) <= {entry.entry.shape, entry.entry.color, entry.entry.pattern}
            ]
            for objects in located
        ]
        judged[query] = judge_boxes(found, truth)
    return judged


def choose_threshold(judged: Mapping[str, Judged]) -> float:
    """The threshold with the highest F1."""
    return max((step / 100 for step in range(4, 80, 2)), key=lambda threshold: score_f1(list(judged.values()), threshold=threshold))
