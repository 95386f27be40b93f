"""Run the embedded CLIP's recipe: train, write the folder that is shipped, measure what was written, write the card."""

import json
import time
from dataclasses import asdict
from pathlib import Path

from transformers import CLIPModel, CLIPProcessor

from visloop.embedded.clip import ClipRecipe, train_clip
from visloop.embedded.clip_build import ClipSizes, build_clip, build_clip_processor
from visloop.embedded.clip_crops import GROUPS, CropSet, draw_box_crops, draw_extra_crops, draw_scene_crops, join_crops
from visloop.embedded.clip_extras import Extras, draw_extras
from visloop.embedded.schedule import Report
from visloop.ids import hash_json, seed_for
from visloop.scenes.workshop import BOXES_BASE, WORKSHOP, WORKSHOP_BASE


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
        key = hash_json([asdict(self.recipe), asdict(self.sizes), self.seed])
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
