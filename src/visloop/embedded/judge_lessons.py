"""Training data of the judge: paths to score, with the verifier's scores, and pairs of answers to compare.

A reply is a JSON array with one entry per path: its id, its score (a multiple of five between 1 and 100) and its first
wrong step (from 1; 0 for none), as ``prompts/*/score_paths.j2`` asks.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from visloop.embedded.dialogues import Dialogue
from visloop.embedded.pictures import Gallery
from visloop.prompts.render import PromptSet
from visloop.records.chains import format_chain
from visloop.records.reasoning import ReasoningStep
from visloop.scenes.faults import inject_fault
from visloop.scenes.questions import SceneQuestion, draw_questions
from visloop.scenes.verify import verify_steps
from visloop.scenes.wordings import NOUNS, NUMBER_WORDS
from visloop.scenes.world import ATTRIBUTES, Scene, WorldSpec

SCORE_STEP = 5
MOST_PATHS = 8


@dataclass(frozen=True, slots=True)
class ScoredPath:
    """A chain with the verdict of the exact verifier: score on the judge's coarse scale, first wrong step (0: none), each step's."""

    steps: tuple[ReasoningStep, ...]
    answer: str | None
    score: int
    error: int
    right: tuple[bool, ...] = ()


def coarsen_score(score: float) -> int:
    """The nearest multiple of five in 5 to 100; a word each, few enough to be learned."""
    return max(SCORE_STEP, min(100, SCORE_STEP * round(score / SCORE_STEP)))


def score_path(scene: Scene, question: SceneQuestion, steps: Sequence[ReasoningStep], answer: str | None, *, spec: WorldSpec) -> ScoredPath:
    """The verifier's verdict on a chain, in the judge's units."""
    check = verify_steps(scene, gold_steps=question.steps, gold_answer=question.answer, steps=tuple(steps), answer=answer, spec=spec)
    return ScoredPath(tuple(steps), answer, coarsen_score(check.score), check.first_error_step or 0, check.steps_right)


def format_scores(paths: Sequence[ScoredPath]) -> str:
    """The judge's reply: paths numbered from 1 in the order given."""
    entries = ",".join(f'{{"id":{number},"score":{path.score},"error":{path.error}}}' for number, path in enumerate(paths, start=1))
    return f"[{entries}]"


def render_scoring(question: SceneQuestion, paths: Sequence[ScoredPath], *, prompts: PromptSet, show_answer: bool = True) -> str:
    """The prompt that shows all paths of one question, each with the answer it came to."""
    shown = [{"id": number, "chain": format_chain(path.steps, path.answer or "")} for number, path in enumerate(paths, start=1)]
    return prompts.render("score_paths", question=question.question, answer=question.answer if show_answer else "", paths=shown)


def draw_paths(rng: random.Random, scene: Scene, question: SceneQuestion, *, spec: WorldSpec, count: int, exact: float) -> list[ScoredPath]:
    """One to ``count`` different chains of one question: the exact one with probability ``exact``, the others with one fault.

    Of the faulty ones, those that keep the right answer come twice as often as they are drawn: a judge is mostly asked
    about paths whose answer is right.
    """
    told = score_path(scene, question, question.steps, question.answer, spec=spec)
    paths = [told] if rng.random() < exact else []
    for _ in range(3 * count):
        if len(paths) >= count:
            break
        fault = inject_fault(scene, question, seed=rng.getrandbits(32), spec=spec)
        if not fault.lucky and rng.random() < 0.5:
            continue
        path = score_path(scene, question, fault.steps, fault.answer, spec=spec)
        if path not in paths:
            paths.append(path)
    return paths or [told]


def list_rivals(answer: str, *, spec: WorldSpec) -> tuple[str, ...]:
    """Other answers of the same kind: numbers for a number, values of the attribute for a value, the other truth value."""
    if answer.isdigit():
        return tuple(str(number) for number in range(spec.objects[1] + 1) if number != int(answer))
    kinds: list[tuple[str, ...]] = [("yes", "no"), ("true", "false"), *(spec.values(attribute) for attribute in ATTRIBUTES)]
    return tuple(word for kind in kinds if answer in kind for word in kind if word != answer)


def _reword_answer(rng: random.Random, answer: str, *, spec: WorldSpec) -> str:
    """The same answer as a model might put it."""
    forms = [answer, answer, f"answer {answer}", f"the answer is {answer}"]
    if answer.isdigit() and 0 < int(answer) < len(NUMBER_WORDS):
        forms.append(NUMBER_WORDS[int(answer)])
    if answer in (*spec.values("color"), *spec.values("size"), *spec.values("pattern")):
        forms += [f"{answer} {noun}" for noun in NOUNS]
    if answer in spec.values("shape"):
        forms.append(f"a {answer}")
    return rng.choice(forms)


def draw_comparison(rng: random.Random, question: SceneQuestion, *, spec: WorldSpec, prompts: PromptSet) -> tuple[str, str]:
    """A ``judge_answer`` turn: half of the candidates mean the answer, the others another answer of its kind."""
    same = rng.random() < 0.5
    candidate = question.answer if same else rng.choice(list_rivals(question.answer, spec=spec))
    text = _reword_answer(rng, candidate, spec=spec)
    return prompts.render("judge_answer", question=question.question, answer=question.answer, candidate=text), "yes" if same else "no"


@dataclass(frozen=True, slots=True)
class JudgedQuestion:
    """A question of a gallery's scene with chains sampled from the base, scored by the verifier."""

    scene: int
    question: SceneQuestion
    paths: tuple[ScoredPath, ...]


PATH_COUNTS = (1, 1, 2, 2, 3, 4, 6, MOST_PATHS)
"""Numbers of paths shown together, each as likely as it stands here: few are learned first, many must be known too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeMix:
    """Shares of the judge's conversations: ``rehearsed`` lessons of the base, ``compared`` answers, ``checked`` chains told
    step by step, else scorings. Of the checked and scored chains a share ``sampled`` comes from the base, the others
    are exact (``exact``: probability that one is among them) or hold an injected fault. ``counts``: paths shown together.
    """

    rehearsed: float = 0.12
    compared: float = 0.1
    checked: float = 0.15
    sampled: float = 0.5
    exact: float = 0.6
    hidden_answer: float = 0.1
    counts: tuple[int, ...] = PATH_COUNTS


def write_checks(question: SceneQuestion, paths: Sequence[ScoredPath]) -> tuple[tuple[str, str], ...]:
    """Chains told line by line, each line answered with whether it is right: the dense lesson that scoring rests on."""
    turns = []
    for number, path in enumerate(paths, start=1):
        for index, (step, right) in enumerate(zip(path.steps, path.right, strict=True)):
            line = f"{step.summary}: {step.reasoning}"
            line = line if index else f"path {number}\n{line}"
            turns.append((line, "yes" if right else "no"))
    first, reply = turns[0]
    return ((f"check {question.question} : {question.answer}\n{first}", reply), *turns[1:])


def make_judging(
    gallery: Gallery,
    *,
    scenes: Sequence[int],
    pool: Sequence[JudgedQuestion],
    spec: WorldSpec,
    mix: JudgeMix,
    prompts: PromptSet,
) -> Callable[[random.Random], Dialogue]:
    """A source of judge conversations about the given scenes; ``pool`` holds the sampled chains (may be empty)."""

    def draw(rng: random.Random) -> Dialogue:
        if pool and rng.random() < mix.sampled:
            judged = rng.choice(pool)
            index, question, paths = judged.scene, judged.question, rng.sample(judged.paths, len(judged.paths))
        else:
            index = rng.choice(scenes)
            question = draw_questions(gallery.scenes[index], seed=rng.getrandbits(32), spec=spec, count=1)[0]
            paths = draw_paths(rng, gallery.scenes[index], question, spec=spec, count=rng.choice(mix.counts), exact=mix.exact)
            rng.shuffle(paths)
        kind = rng.random()
        if kind < mix.compared:
            return Dialogue(None, (draw_comparison(rng, question, spec=spec, prompts=prompts),))
        if kind < mix.compared + mix.checked:
            return Dialogue(index, write_checks(question, paths[:4]))
        paths = paths[: rng.choice(mix.counts)]
        shown = render_scoring(question, paths, prompts=prompts, show_answer=rng.random() >= mix.hidden_answer)
        return Dialogue(index, ((shown, format_scores(paths)),), lines=tuple(right for path in paths for right in path.right))

    return draw
