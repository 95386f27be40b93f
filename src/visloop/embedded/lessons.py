"""Conversations that teach answering: at once, step by step in JSON, as one chain, and from a given chain.

The texts are the prompt templates' and the chain formats of ``records.chains``. A share of the chains holds
one fault: the base's greedy chains stay good while its sampled chains leave something to win for training on verified paths.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from visloop.embedded.dialogues import Dialogue
from visloop.embedded.perception import describe_scene
from visloop.embedded.pictures import Gallery
from visloop.prompts.render import PromptSet
from visloop.records.chains import format_chain, format_step, format_thoughts
from visloop.records.reasoning import ReasoningStep
from visloop.scenes.faults import FaultKind, inject_fault
from visloop.scenes.programs import Family
from visloop.scenes.questions import SceneQuestion, draw_questions, families_of
from visloop.scenes.world import Scene, WorldSpec

Turns = tuple[tuple[str, str], ...]
LESSON_FAULTS: tuple[FaultKind, ...] = ("attribute", "moved", "dropped", "added", "number", "sign")
FAMILY_WEIGHTS: dict[Family, float] = {
    "exist": 1.0,
    "count": 1.3,
    "compare": 1.0,
    "query": 3.0,
    "relation": 2.2,
    "hop": 2.5,
    "statement": 1.0,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LessonMix:
    """What a conversation about one scene holds. ``stepwise``: share of chains told one JSON step per turn.

    ``damage``: probability that a chain has one fault. ``summarized``, ``described``,
    ``repaired``: probability of a summary turn, of a description, of the reminder in a step's prompt.
    """

    chains: int = 2
    direct: int = 2
    stepwise: float = 0.45
    damage: float = 0.18
    summarized: float = 0.06
    described: float = 0.04
    repaired: float = 0.03
    weights: Mapping[Family, float] = field(default_factory=lambda: FAMILY_WEIGHTS)


def draw_lesson_questions(
    rng: random.Random, scene: Scene, *, spec: WorldSpec, weights: Mapping[Family, float], count: int
) -> list[SceneQuestion]:
    """Up to ``count`` questions about a scene, families drawn by weight; a family the scene does not allow is drawn anew."""
    families = families_of(len(scene.boxes))
    chances = [weights.get(family, 1.0) for family in families]
    questions: list[SceneQuestion] = []
    for _ in range(4 * count):
        if len(questions) == count:
            break
        family = rng.choices(families, chances)[0]
        questions += draw_questions(scene, seed=rng.getrandbits(32), spec=spec, families=(family,), wording="train")
    return questions


@dataclass(frozen=True, slots=True)
class Told:
    """A chain as it is told in a lesson, right or damaged, with the answer it ends in."""

    steps: tuple[ReasoningStep, ...]
    answer: str


def tell_chain(rng: random.Random, scene: Scene, question: SceneQuestion, *, spec: WorldSpec, damage: float) -> Told:
    """The exact chain, or with probability ``damage`` a copy with one fault."""
    if rng.random() >= damage:
        return Told(question.steps, question.answer)
    fault = inject_fault(scene, question, seed=rng.getrandbits(32), spec=spec, kinds=LESSON_FAULTS)
    return Told(fault.steps, fault.answer)


def write_direct(question: SceneQuestion, *, prompts: PromptSet) -> Turns:
    """``answer ...`` and the answer."""
    return ((prompts.render("direct", question=question.question), question.answer),)


def write_chain(question: SceneQuestion, told: Told, *, prompts: PromptSet) -> Turns:
    """``reason ...`` and the whole chain with its answer."""
    return ((prompts.render("reason", question=question.question), format_chain(told.steps, told.answer)),)


def write_stepwise(rng: random.Random, question: SceneQuestion, told: Told, *, prompts: PromptSet, repaired: float) -> Turns:
    """One JSON step per turn and a last turn for the answer; now and then with the reminder that follows a malformed step."""
    turns = []
    for index, step in enumerate(told.steps):
        prompt = prompts.render("generate_continue") if index else prompts.render("generate_start", question=question.question)
        if rng.random() < repaired:
            prompt = f"{prompt}\n{prompts.render('generate_repair')}"
        turns.append((prompt, format_step(step)))
    return (*turns, (prompts.render("generate_final"), told.answer))


def write_summary(rng: random.Random, question: SceneQuestion, told: Told, *, prompts: PromptSet) -> Turns:
    """``summarize ...`` over a chain, and the right answer whatever the chain says."""
    chain = format_thoughts(told.steps) if rng.random() < 0.7 else format_chain(told.steps, told.answer)
    return ((prompts.render("summarize", question=question.question, chain=chain), question.answer),)


def draw_lesson(rng: random.Random, scene: Scene, *, spec: WorldSpec, mix: LessonMix, prompts: PromptSet) -> Turns:
    """One conversation: ``mix.chains`` chains and ``mix.direct`` direct answers in random order, and the rarer turns."""
    questions = draw_lesson_questions(rng, scene, spec=spec, weights=mix.weights, count=mix.chains + mix.direct)
    parts: list[Turns] = []
    for number, question in enumerate(questions):
        if number >= mix.chains:
            parts.append(write_direct(question, prompts=prompts))
            continue
        told = tell_chain(rng, scene, question, spec=spec, damage=mix.damage)
        if rng.random() < mix.summarized:
            parts.append(write_summary(rng, question, told, prompts=prompts))
        elif rng.random() < mix.stepwise:
            parts.append(write_stepwise(rng, question, told, prompts=prompts, repaired=mix.repaired))
        else:
            parts.append(write_chain(question, told, prompts=prompts))
    if rng.random() < mix.described:
        parts.append(((prompts.render("describe"), describe_scene(scene)),))
    rng.shuffle(parts)
    return tuple(turn for part in parts for turn in part)


def make_lessons(
    gallery: Gallery, *, scenes: Sequence[int], spec: WorldSpec, mix: LessonMix, prompts: PromptSet
) -> Callable[[random.Random], Dialogue]:
    """A source of such conversations about the given scenes."""

    def draw(rng: random.Random) -> Dialogue:
        index = rng.choice(scenes)
        return Dialogue(index, draw_lesson(rng, gallery.scenes[index], spec=spec, mix=mix, prompts=prompts))

    return draw
