"""Measure a shipped CLIP as the tools use it: words of held-out regions, LOC, and what learning the novel words gives and costs."""

import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from visloop.config_assistant import PromptTuning, ToolsConfig, VisionConfig
from visloop.embedded.card import Table, format_table
from visloop.embedded.clip_crops import GROUPS, NLVR_COLORS, NLVR_SHAPES, draw_box_scene
from visloop.embedded.schedule import Report
from visloop.ids import make_id, seed_for
from visloop.records.assistant import Instance, InstanceSplit
from visloop.scenes.pictures import render_scene
from visloop.scenes.regions import locate_objects
from visloop.scenes.workshop import BOXES_BASE, NOVEL_WORDS, WORKSHOP, WORKSHOP_BASE
from visloop.scenes.world import Attribute, Scene, SceneObject, StyledWorld, draw_scene
from visloop.tools.anchors import Anchors
from visloop.tools.base import ToolCall
from visloop.tools.clip_engine import load_engine
from visloop.tools.clip_model import ClipEncoder
from visloop.tools.clip_tools import LocTool
from visloop.tools.crops import cut_crop
from visloop.tools.exemplars import Exemplar, make_exemplar
from visloop.tools.instances import match_region
from visloop.tools.naming import Region, compare_words, list_words, open_views
from visloop.tools.prompt_pool import PromptPool
from visloop.tools.proposals import propose_regions
from visloop.tools.values import Box, overlap_ratio

WORDS, LOCATING, LEARNING, KEEPING = (
    "Words of held-out regions",
    "LOC on held-out scenes",
    "Novel words, learned one after the other, all in one list",
    "Base words while the novel ones are learned",
)
HELD_OUT = "accuracy"
EXAM_TUNING = PromptTuning(instances=40, validation=20, steps=150, learning_rate=1e-2, init_std=0.02)
"""As conf/tools/embedded.yaml."""
Propose = Callable[[Image.Image], Sequence[Region]]


@dataclass(frozen=True, slots=True, eq=False)
class ShownObject:
    """A region of a drawn picture that the tools propose, and what was drawn there."""

    picture: Image.Image
    region: Region
    entry: SceneObject
    corners: tuple[float, float, float, float]

    def word(self, group: str) -> str:
        """The word of a group that fits the object."""
        return str(getattr(self.entry, group))


def show_scenes(scenes: Iterator[Scene], *, world: StyledWorld, propose: Propose) -> Iterator[ShownObject]:
    """The objects of scenes, one after the other, each with the region that is proposed for it; without one, its bare box."""
    for scene in scenes:
        (picture,), (located,) = render_scene(scene, spec=world), locate_objects(scene, spec=world)
        proposed = propose(picture)
        for found in located:
            left, top, right, bottom = found.box
            region = match_region(Box(left=left, top=top, right=right, bottom=bottom), proposed)
            yield ShownObject(picture, region, found.entry, found.box)


def draw_scenes(world: StyledWorld, seed: int) -> Iterator[Scene]:
    """Random scenes without end."""
    index = 0
    while True:
        yield draw_scene(seed_for(seed, "exam", index), spec=world)
        index += 1


def make_exemplars(samples: int, *, world: StyledWorld, seed: int) -> dict[str, Exemplar]:
    """Exemplars of every word of a world, from regions of its scenes."""
    taken: dict[str, list[ShownObject]] = {f"{group}.{word}": [] for group in GROUPS for word in world.values(group)}
    shown = show_scenes(
        draw_scenes(world, seed_for(seed, "exemplars")),
        world=world,
        propose=lambda picture: [Region(*found) for found in propose_regions(picture)],
    )
    while any(len(found) < samples for found in taken.values()):
        entry = next(shown)
        for group in GROUPS:
            found = taken[f"{group}.{entry.word(group)}"]
            if len(found) < samples and entry.region.mask is not None:
                found.append(entry)
    return {
        name: make_exemplar(name.split(".")[0], [(np.asarray(entry.picture), entry.region) for entry in found])
        for name, found in taken.items()
    }


def make_anchors(encoder: ClipEncoder, count: int, *, world: StyledWorld, seed: int) -> Anchors:
    """Features of ``count`` regions of scenes with the base words that they show."""
    shown = show_scenes(
        draw_scenes(world, seed_for(seed, "anchors")),
        world=world,
        propose=lambda picture: [Region(*found) for found in propose_regions(picture)],
    )
    entries = [next(shown) for _ in range(count)]
    features = encoder.encode_images([cut_crop(np.asarray(entry.picture), entry.region.box, entry.region.mask) for entry in entries])
    return Anchors(features, {group: tuple(entry.word(group) for entry in entries) for group in GROUPS})


class ClipExam:
    """Measures the CLIP in ``folder``.

    Args:
        crops: regions per measurement.
        seed: of scenes that training never draws.
    """

    def __init__(self, folder: Path, *, crops: int, seed: int, report: Report, tuning: PromptTuning | None = None) -> None:
        config = ToolsConfig(clip=VisionConfig(model=str(folder), threshold=0.5), tuning=tuning or EXAM_TUNING)
        self.engine = load_engine(config)
        self.crops, self.seed, self.report = crops, seed, report

    def measure_all(self) -> Mapping[str, Table]:
        """All tables of the card."""
        tables: dict[str, Table] = {WORDS: self.measure_words(), LOCATING: self.measure_locating(150)}
        with tempfile.TemporaryDirectory() as folder:
            tables |= self.measure_learning(Path(folder))
        for name, table in tables.items():
            self.report(f"{name}\n{format_table(table, corner='')}")
        return tables

    def _take(self, world: StyledWorld, count: int, seed: int) -> list[ShownObject]:
        shown = show_scenes(draw_scenes(world, seed_for(self.seed, seed)), world=world, propose=self.engine.propose)
        return [next(shown) for _ in range(count)]

    def _score(self, shown: Sequence[ShownObject], group: str, pool: PromptPool) -> list[str]:
        """The winning word of every region."""
        bank = self.engine.open_bank(pool)
        words = list_words(bank, group)
        views = open_views(bank, [(entry.picture, [entry.region]) for entry in shown])
        return [words[int(compare_words(bank, words, view.features).argmax())] for view in views]

    def measure_words(self) -> dict[str, dict[str, float]]:
        """Accuracy per group among the base words, on workshop scenes and on NLVR's objects."""
        table: dict[str, dict[str, float]] = {}
        shown = self._take(WORKSHOP_BASE, self.crops, 1)
        boxes = (draw_box_scene(seed_for(self.seed, "boxes", index), BOXES_BASE) for index in range(self.crops))
        nlvr_shown = show_scenes(boxes, world=BOXES_BASE, propose=self.engine.propose)
        nlvr = [next(nlvr_shown) for _ in range(self.crops // 4)]
        for title, entries, groups in (("", shown, GROUPS), ("NLVR's ", nlvr, GROUPS[1:])):
            for group in groups:
                right = [word == entry.word(group) for word, entry in zip(self._score(entries, group, PromptPool()), entries, strict=True)]
                count = len(WORKSHOP_BASE.values(group)) if not title else len(NLVR_COLORS if group == "color" else NLVR_SHAPES)
                table[f"{title}{group}"] = {"words": count, "regions": len(right), HELD_OUT: float(np.mean(right))}
        return table

    def measure_locating(self, scenes: int) -> dict[str, dict[str, float]]:
        """Precision and recall of LOC (intersection over union from .5) for phrases of one to three base words of each scene."""
        tool = LocTool("LOC", self.engine, PromptPool())
        rng = random.Random(self.seed)
        counts: dict[str, list[int]] = {}
        drawn = draw_scenes(WORKSHOP_BASE, seed_for(self.seed, "locating"))
        for _ in range(scenes):
            scene = next(drawn)
            (picture,), (located,) = render_scene(scene, spec=WORKSHOP_BASE), locate_objects(scene, spec=WORKSHOP_BASE)
            asked = []
            for length in (1, 2, 3):
                model = rng.choice(located).entry
                groups = sorted(rng.sample(GROUPS, length), key=GROUPS.index)
                words = {group: str(getattr(model, group)) for group in groups}
                asked.append((f"{length} word{'s' if length > 1 else ''}", words))
            calls = [ToolCall(tool="LOC", arguments={"image": picture, "object": " ".join(words.values())}) for _, words in asked]
            for (row, words), result in zip(asked, tool.run(calls), strict=True):
                truth = [
                    Box(left=a, top=b, right=c, bottom=d) for a, b, c, d in (found.box for found in located if _fits(found.entry, words))
                ]
                boxes = result.value if isinstance(result.value, tuple) else ()
                hits = sum(any(overlap_ratio(box, other) >= 0.5 for other in truth) for box in boxes if isinstance(box, Box))
                total = counts.setdefault(row, [0, 0, 0])
                for place, value in enumerate((hits, len(boxes), len(truth))):
                    total[place] += value
        return {
            row: {
                "phrases": scenes,
                "precision": hits / max(boxes, 1),
                "recall": hits / max(truth, 1),
                "F1": 2 * hits / max(boxes + truth, 1),
            }
            for row, (hits, boxes, truth) in counts.items()
        }

    def measure_learning(self, folder: Path, *, concepts: Mapping[Attribute, Sequence[str]] = NOVEL_WORDS) -> dict[str, Table]:
        """Learn every novel word after the other into one pool, and measure all of them and the base words at the end."""
        teacher = Teacher(self, folder)
        self.engine.root = folder
        base = self._take(WORKSHOP_BASE, self.crops // 2, 2)
        test = self._take(WORKSHOP, 2 * self.crops, 3)
        pool, rows = PromptPool(), {}
        for group in GROUPS[::-1]:
            for concept in concepts[group]:
                instances, replay = teacher.collect(concept, group)
                started = time.process_time()
                told = self.engine.tune_word(concept, pool=pool, instances=instances, replay=replay, group=group, seed=self.seed, cycle=1)
                pool = told.pool
                rows[concept] = {
                    "validation before": told.validation_before,
                    "validation after": told.validation_after,
                    "base before": told.base_before,
                    "base after": told.base_after,
                    "kept": len(told.kept),
                    "refused": told.refused,
                    "CPU seconds": time.process_time() - started,
                }
                self.report(f"clip: {concept}: {rows[concept]} {told.reason}")
        keeping: dict[str, dict[str, float]] = {}
        for group in GROUPS[::-1]:
            for concept in concepts[group]:
                shown = [entry for entry in test if entry.word(group) == concept]
                for name, stage in (("test before", PromptPool()), ("test after", pool)):
                    rows[concept][name] = float(np.mean([word == concept for word in self._score(shown, group, stage)]))
            before, after = (
                [word == entry.word(group) for word, entry in zip(self._score(base, group, stage), base, strict=True)]
                for stage in (PromptPool(), pool)
            )
            again = self._score(base, group, pool.drop_prompts(prompt.entry.id for prompt in pool.prompts))
            keeping[group] = {
                "regions": len(base),
                "before": float(np.mean(before)),
                "all learned words compete": float(np.mean(after)),
                "none competes": float(np.mean([word == entry.word(group) for word, entry in zip(again, base, strict=True)])),
            }
        return {LEARNING: rows, KEEPING: keeping}


class Teacher:
    """Instances of words from drawn pictures, as a provider collects them; pictures are written under ``folder``."""

    def __init__(self, exam: ClipExam, folder: Path) -> None:
        self.exam, self.folder, self.tuning = exam, folder, exam.engine.config.tuning
        self._sources: dict[str, Iterator[ShownObject]] = {}

    def collect(self, concept: str, group: Attribute) -> tuple[list[Instance], list[Instance]]:
        """(train and validation instances, replay instances) of one word; no picture is used twice."""
        tuning = self.tuning
        positives = self._gather(concept, group, WORKSHOP, tuning.instances + tuning.validation, word=concept)
        negatives = self._gather(concept, group, WORKSHOP_BASE, tuning.negatives)
        replay = self._gather(concept, group, WORKSHOP_BASE, 60, split="validation")
        held_out = [replace(entry, split="validation") for entry in positives[tuning.instances :]]
        return [*positives[: tuning.instances], *held_out, *negatives], replay

    def _gather(
        self, concept: str, group: Attribute, world: StyledWorld, count: int, *, word: str | None = None, split: InstanceSplit = "train"
    ) -> list[Instance]:
        """Instances of ``word``, or of all words of the group in turn."""
        words = [word] if word is not None else list(world.values(group))
        wanted = {name: count // len(words) + (place < count % len(words)) for place, name in enumerate(words)}
        source = self._sources.setdefault(
            world.name + str(len(world.shapes)),
            show_scenes(draw_scenes(world, seed_for(self.exam.seed, "teacher")), world=world, propose=self.exam.engine.propose),
        )
        found: list[Instance] = []
        while any(wanted.values()):
            entry = next(source)
            label = entry.word(group)
            if wanted.get(label, 0) > 0:
                wanted[label] -= 1
                found.append(self._write(entry, concept, group, label, split))
        return found

    def _write(self, entry: ShownObject, concept: str, group: str, label: str, split: InstanceSplit) -> Instance:
        name = f"{make_id(entry.picture.tobytes().hex())}.png"
        if not (self.folder / name).exists():
            entry.picture.save(self.folder / name)
        return Instance(
            id=make_id(name, entry.corners, concept),
            tool="CLASSIFY",
            concept=concept,
            image=name,
            positive=label == concept,
            split=split,
            source="open_vocabulary",
            box=entry.corners,
            label=label,
            group=group,
        )


def _fits(entry: SceneObject, words: Mapping[Attribute, str]) -> bool:
    return all(getattr(entry, group) == word for group, word in words.items())
