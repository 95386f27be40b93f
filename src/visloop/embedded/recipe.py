"""The recipe of the shipped models: stages with fixed step counts, their data, and the figures each must reach.

Order matters more than size: tower, captions, grounding, questions; each language stage ends with a decay of the learning
rate, without which it does not tip. ``train`` runs it; the same seed gives the same weights on the same machine.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from visloop.embedded.dialogues import Dialogue
from visloop.embedded.judge_lessons import JudgeMix
from visloop.embedded.language import DrawDialogue, Stage
from visloop.embedded.lessons import LessonMix, make_lessons
from visloop.embedded.perception import GroundingMix, make_captions, make_grounding
from visloop.embedded.pictures import Gallery
from visloop.prompts.render import PromptSet
from visloop.scenes.world import WorldSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class TowerStage:
    """Stage 0. ``held_out`` pictures are kept for its accuracy, of which every head must reach ``accepted``."""

    steps: int = 1200
    learning_rate: float = 2e-3
    batch_size: int = 64
    held_out: int = 1000
    accepted: float = 0.98


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeRecipe:
    """How the judge is made from the base: two stages, and the chains sampled from the base that they show.

    ``layers`` are put on top of the base's: they collect what the layers below find wrong in each line, where a probe is
    trained to see it. Without probe and checks, scoring was not learned from the replies.
    """

    layers: int = 2
    checking: Stage = field(default_factory=lambda: Stage(name="checking", steps=1200, learning_rate=1e-3, batch_size=16, down=0.0))
    judging: Stage = field(default_factory=lambda: Stage(name="judging", steps=2600, learning_rate=1e-3, batch_size=16, down=0.5))
    check: JudgeMix = field(default_factory=lambda: JudgeMix(checked=0.4))
    judge: JudgeMix = field(default_factory=JudgeMix)
    sampled_questions: int = 2500
    sampled_paths: int = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that decides the base's weights, besides the seed, and how both models are measured.

    ``scenes`` single pictures and ``statements`` scenes of three boxes make the pool; ``boxed`` is the share of
    conversations about the latter (``statements_boxed`` in the last stage). ``grounded`` is the share of grounding
    conversations among the lessons.
    """

    scenes: int = 14000
    statements: int = 2500
    boxed: float = 0.14
    grounded: float = 0.2
    statements_boxed: float = 0.6
    tower: TowerStage = field(default_factory=TowerStage)
    captions: Stage = field(default_factory=lambda: Stage(name="captions", steps=480, learning_rate=1.5e-3, batch_size=32, down=0.25))
    matching: Stage = field(default_factory=lambda: Stage(name="matching", steps=4000, learning_rate=1.2e-3, batch_size=16, down=0.0))
    grounding: Stage = field(default_factory=lambda: Stage(name="grounding", steps=2000, learning_rate=1.2e-3, batch_size=16, down=0.3))
    lessons: Stage = field(default_factory=lambda: Stage(name="lessons", steps=3000, learning_rate=1.1e-3, batch_size=16, down=0.4))
    statements_stage: Stage = field(
        default_factory=lambda: Stage(name="statements", steps=700, learning_rate=9e-4, batch_size=16, down=0.6)
    )
    plain: GroundingMix = field(default_factory=GroundingMix)
    spatial: GroundingMix = field(default_factory=lambda: GroundingMix(spatial=0.2, negated=0.05))
    boxes: GroundingMix = field(default_factory=lambda: GroundingMix(turns=8, negated=0.1, described=0.3))
    mix: LessonMix = field(default_factory=LessonMix)
    examined: int = 600
    examined_statements: int = 120
    grounding_accepted: float = 0.5
    accepted: float = 0.7

    def list_stages(self) -> tuple[Stage, ...]:
        """The base's language stages in order."""
        return self.captions, self.matching, self.grounding, self.lessons, self.statements_stage


@dataclass(frozen=True, slots=True)
class Pools:
    """Indices of a gallery's single-picture scenes and of its three-box scenes."""

    single: Sequence[int]
    boxed: Sequence[int]


def split_pools(gallery: Gallery) -> Pools:
    """Scenes of one box and scenes of several."""
    single = [index for index, scene in enumerate(gallery.scenes) if len(scene.boxes) == 1]
    chosen = set(single)
    return Pools(single, [index for index in range(len(gallery.scenes)) if index not in chosen])


def mix_sources(first: DrawDialogue, second: DrawDialogue, share: float) -> DrawDialogue:
    """Draws from ``second`` with probability ``share``, else from ``first``."""

    def draw(rng: random.Random) -> Dialogue:
        return second(rng) if rng.random() < share else first(rng)

    return draw


def plan_captions(gallery: Gallery, *, pools: Pools, prompts: PromptSet) -> DrawDialogue:
    """Descriptions of single pictures."""
    return make_captions(gallery, scenes=pools.single, prompts=prompts)


def plan_grounding(gallery: Gallery, *, pools: Pools, recipe: Recipe, spec: WorldSpec, prompts: PromptSet, spatial: bool) -> DrawDialogue:
    """Find turns; directions, negations and boxes only with ``spatial``: plain matching must be learned first."""
    plain = make_grounding(gallery, scenes=pools.single, spec=spec, mix=recipe.plain, prompts=prompts)
    if not spatial:
        return plain
    single = make_grounding(gallery, scenes=pools.single, spec=spec, mix=recipe.spatial, prompts=prompts)
    return mix_sources(single, make_grounding(gallery, scenes=pools.boxed, spec=spec, mix=recipe.boxes, prompts=prompts), recipe.boxed)


def plan_lessons(gallery: Gallery, *, pools: Pools, recipe: Recipe, spec: WorldSpec, prompts: PromptSet) -> DrawDialogue:
    """Questions in every mode, with a share of grounding so that it is not forgotten."""
    single = make_lessons(gallery, scenes=pools.single, spec=spec, mix=recipe.mix, prompts=prompts)
    boxed = make_lessons(gallery, scenes=pools.boxed, spec=spec, mix=recipe.mix, prompts=prompts)
    grounding = plan_grounding(gallery, pools=pools, recipe=recipe, spec=spec, prompts=prompts, spatial=True)
    return mix_sources(mix_sources(single, boxed, recipe.boxed), grounding, recipe.grounded)
