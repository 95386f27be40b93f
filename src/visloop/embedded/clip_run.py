"""Run the embedded CLIP's recipe: train, write the folder that is shipped, measure what was written, write the card."""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from transformers import CLIPModel, CLIPProcessor

from visloop.embedded.card import CardFacts, Table, write_card
from visloop.embedded.checkpoints import save_shipped
from visloop.embedded.clip import ClipRecipe, train_clip
from visloop.embedded.clip_build import ClipSizes, build_clip, build_clip_processor
from visloop.embedded.clip_crops import GROUPS, CropSet, draw_box_crops, draw_extra_crops, draw_scene_crops, join_crops
from visloop.embedded.clip_exam import HELD_OUT, WORDS, ClipExam, make_anchors, make_exemplars
from visloop.embedded.clip_extras import Extras, draw_extras
from visloop.embedded.schedule import Report
from visloop.errors import TrainingError
from visloop.ids import hash_json, seed_for
from visloop.scenes.workshop import BOXES_BASE, WORKSHOP, WORKSHOP_BASE
from visloop.tools.anchors import save_anchors
from visloop.tools.clip_model import ClipEncoder
from visloop.tools.exemplars import save_exemplars
from visloop.tools.vocabulary import VOCABULARY_NAME

VOCABULARY = Path(__file__).parent / "clip_vocabulary.json"
"""Everything of the shipped vocabulary but the groups, which are the world's base words."""
EXEMPLAR_SAMPLES, ANCHORS = 40, 600


class ClipRun:
    """Trains, writes and measures one CLIP.

    Args:
        folder: receives the shipped model; ``stages`` the trained weights in full precision.
    """

    def __init__(self, folder: Path, *, stages: Path, recipe: ClipRecipe, sizes: ClipSizes, seed: int, report: Report) -> None:
        self.folder, self.stages, self.recipe, self.sizes, self.seed, self.report = folder, stages, recipe, sizes, seed, report
        self.extras = self._draw_extras()
        words = [word for group in GROUPS for word in WORKSHOP.values(group)]
        words += [*self.extras.tiles, *self.extras.colors, *self.extras.outlines]
        self.processor: CLIPProcessor = build_clip_processor(words, sizes=sizes)
        self.model: CLIPModel = build_clip(self.processor, sizes=sizes, seed=seed)
        self.minutes = 0.0

    def _draw_extras(self) -> Extras:
        recipe = self.recipe
        return draw_extras(
            shapes=recipe.extra_shapes,
            patterns=recipe.extra_patterns,
            colors=recipe.extra_colors,
            known=WORKSHOP_BASE,
            novel=WORKSHOP,
            seed=seed_for(self.seed, "extras"),
        )

    def draw_crops(self) -> CropSet:
        """What the recipe trains on: base words, NLVR's objects, extras."""
        recipe = self.recipe
        return join_crops(
            [
                draw_scene_crops(recipe.scene_crops, world=WORKSHOP_BASE, seed=self.seed),
                draw_box_crops(recipe.box_crops, world=BOXES_BASE, seed=self.seed),
                draw_extra_crops(recipe.extra_crops, world=WORKSHOP_BASE, extras=self.extras, seed=self.seed),
            ]
        )

    def run(self) -> None:
        """Train, or take up the weights of a finished training of the same recipe, sizes and seed."""
        values = {name: value for name, value in asdict(self.recipe).items() if name not in ("examined", "least_accuracy")}
        key = hash_json([values, asdict(self.sizes), self.seed])
        mark = self.stages / "stage.json"
        if mark.is_file() and (found := json.loads(mark.read_text()))["key"] == key:
            self.model, self.minutes = CLIPModel.from_pretrained(self.stages).eval(), found["minutes"]
            self.report(f"clip: weights taken from {self.stages}")
            return
        started = time.process_time()
        crops = self.draw_crops()
        self.report(f"clip: {len(crops)} crops drawn in {time.process_time() - started:.0f} CPU-s")
        train_clip(self.model, self.processor, crops, recipe=self.recipe, seed=self.seed, report=self.report)
        self.minutes = (time.process_time() - started) / 60
        self.model.save_pretrained(self.stages)
        mark.write_text(json.dumps({"key": key, "minutes": self.minutes}))

    def ship(self, *, examined_seed: int) -> Mapping[str, Table]:
        """Write the fp16 weights with what the tools need beside them, load that again, measure it and write the card."""
        change = save_shipped(self.model, self.processor, self.folder)
        groups = {group: list(WORKSHOP_BASE.values(group)) for group in GROUPS}
        vocabulary = json.loads(VOCABULARY.read_text())
        (self.folder / VOCABULARY_NAME).write_text(json.dumps({"groups": groups} | vocabulary, indent=1) + "\n")
        save_exemplars(make_exemplars(EXEMPLAR_SAMPLES, world=WORKSHOP_BASE, seed=self.seed), self.folder)
        encoder = ClipEncoder(self.model, self.processor)
        save_anchors(make_anchors(encoder, ANCHORS, world=WORKSHOP_BASE, seed=self.seed), self.folder)
        exam = ClipExam(self.folder, crops=self.recipe.examined, seed=examined_seed, report=self.report)
        tables = exam.measure_all()
        accuracies = [row[HELD_OUT] for row in tables[WORDS].values()]
        if min(accuracies) < self.recipe.least_accuracy:
            raise TrainingError(f"clip: accuracy {min(accuracies):.3f} in a group; at least {self.recipe.least_accuracy} is needed to ship")
        write_card(self.folder, facts=self._describe(change), tables=tables)
        return tables

    def _describe(self, change: float) -> CardFacts:
        return CardFacts(
            title="visloop embedded CLIP",
            purpose=(
                "A `CLIPModel` that names regions of drawn pictures word by word: 10 shapes, 7 colours, 3 patterns. The tools LOC, SEG, "
                "SELECT, FILTER, CLASSIFY, VQA and REPLACE stand on it. The novel words of its world are in the tokenizer, and no caption "
                "that it was trained on had one: soft prompts teach them on frozen weights."
            ),
            recipe=(
                *self.recipe.describe(),
                f"rounding to fp16 changed no weight by more than {change:.2%}",
                "rebuild: `python -m visloop.embedded.train_clip --out DIR`",
            ),
            seed=self.seed,
            parameters=sum(parameter.numel() for parameter in self.model.parameters()),
            bytes_on_disk=(self.folder / "model.safetensors").stat().st_size,
            minutes=self.minutes,
            device="a CPU",
            limits=(
                "knows objects of 10 to 30 pixels on an even or noisy grey ground, nothing of photographs",
                "before it is learned a novel word competes with the known words of all groups (`validation before`); "
                "in no list of candidates is it then, so `test before` is 0",
                "one seed; the order in which novel concepts are learned was not varied",
                "`vocabulary.json` says which words compete; a word in no group competes with all words and mostly loses",
                "code-named extras (`s0x`, `t0x`, `c0x`) are in the tokenizer and in no vocabulary",
            ),
            pipeline_tag="zero-shot-image-classification",
        )
