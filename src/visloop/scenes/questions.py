"""Questions about a scene in English, with their answers and exact reasoning."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from visloop.errors import ConfigError
from visloop.ids import seed_for
from visloop.records.reasoning import AnswerType, ReasoningStep
from visloop.scenes.filters import phrase_filter
from visloop.scenes.programs import DRAW_PROGRAM, FAMILIES, Family, Program
from visloop.scenes.steps import Operation, answer_of, execute_operations
from visloop.scenes.wordings import DIRECTION_PHRASES, NOUNS, QUESTIONS, Wording, add_article
from visloop.scenes.world import DEFAULT_WORLD, Scene, WorldSpec

STATEMENT_BOXES = 3


@dataclass(frozen=True, slots=True)
class SceneQuestion:
    """A question with its answer and the exact chain that leads to it; ``form`` names its wordings."""

    family: Family
    form: str
    question: str
    answer: str
    answer_type: AnswerType
    steps: tuple[ReasoningStep, ...]


def families_of(boxes: int) -> tuple[Family, ...]:
    """The families that scenes of this many boxes can have: statements need three, all others one."""
    return ("statement",) if boxes == STATEMENT_BOXES else tuple(family for family in FAMILIES if family != "statement")


def word_program(program: Program, *, rng: random.Random, spec: WorldSpec = DEFAULT_WORLD, wording: Wording = "train") -> str:
    """One English wording of a program, chosen at random from the named part of the wordings."""
    noun = rng.choice(NOUNS)
    slots: dict[str, str] = {}
    for name, wanted in (("a", program.first), ("b", program.second)):
        if wanted is not None:
            slots[name] = phrase_filter(wanted, spec=spec, noun=noun)
            slots[f"{name}s"] = phrase_filter(wanted, spec=spec, noun=noun, plural=True)
            slots[f"an_{name}"] = add_article(slots[name])
    if program.attribute:
        slots["attribute"] = program.attribute
        slots["choice"] = " or ".join(rng.sample(spec.values(program.attribute), len(spec.values(program.attribute))))
    if program.direction:
        slots["direction"] = rng.choice(DIRECTION_PHRASES[program.direction])
    if program.condition:
        slots["what"] = rng.choice(QUESTIONS[program.condition].choose(wording)).format(**slots)
    return rng.choice(QUESTIONS[program.form].choose(wording)).format(**slots)


def draw_questions(
    scene: Scene,
    *,
    seed: int,
    spec: WorldSpec = DEFAULT_WORLD,
    families: Sequence[Family] | None = None,
    count: int = 1,
    wording: Wording = "train",
) -> tuple[SceneQuestion, ...]:
    """Up to ``count`` different questions about one scene; fewer only where the scene allows no more.

    The families are gone through in random order, again and again; one that the scene does not allow is passed over.

    Args:
        families: those to draw from; by default all that fit the scene's number of boxes.

    Raises:
        ConfigError: no family, or one that does not fit the scene's number of boxes.
    """
    possible = families_of(len(scene.boxes))
    chosen = tuple(possible if families is None else families)
    if not chosen or not set(chosen) <= set(possible):
        raise ConfigError(f"families {chosen} do not fit a scene of {len(scene.boxes)} boxes; possible are {possible}")
    rng = random.Random(seed_for(seed, "questions", scene.id))
    drawn: dict[tuple[Operation, ...], SceneQuestion] = {}
    for _ in range(4 * (1 + count // len(chosen))):
        for family in rng.sample(chosen, len(chosen)):
            if len(drawn) == count:
                return tuple(drawn.values())
            program = None
            for _ in range(4):
                program = DRAW_PROGRAM[family](rng, scene.boxes, spec)
                if program is not None and program.operations not in drawn:
                    break
                program = None
            if program is None:
                continue
            steps = execute_operations(program.operations, scene.boxes)
            answer = answer_of(steps[-1].reasoning)
            if answer is None:
                raise ValueError(f"the last step of {program} concludes nothing")
            text = word_program(program, rng=rng, spec=spec, wording=wording)
            drawn[program.operations] = SceneQuestion(family, program.form, text, answer, program.answer_type, steps)
    return tuple(drawn.values())
