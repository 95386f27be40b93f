"""Questions: the answer read from the English text by brute force agrees with the exact chain's, for every wording."""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.test_scenes_world import BOXES, SEEDS, WIDE_WORLD
from visloop.errors import ConfigError
from visloop.records.chains import format_chain, parse_chain
from visloop.scenes.questions import SceneQuestion, draw_questions, families_of
from visloop.scenes.vocabulary import list_words, split_words
from visloop.scenes.wordings import QUESTIONS
from visloop.scenes.world import DEFAULT_WORLD, Scene, SceneObject, WorldSpec, draw_scene, make_scene

WORLDS = st.sampled_from([DEFAULT_WORLD, replace(WIDE_WORLD, objects=(3, 6))])
NUMBERS = {"one": 1, "two": 2, "three": 3}
Objects = list[SceneObject]


class Reader:
    """A second, independent reading of the questions: keywords and noun phrases of the text against the list of objects."""

    def __init__(self, spec: WorldSpec) -> None:
        self.values = {name: spec.values(name) for name in ("size", "pattern", "color", "shape")}
        self.nouns = {name: shape.name for shape in spec.shapes for name in (shape.name, shape.plural)}
        general = ["thing", "object", "item"]
        self.nouns |= {noun + end: "" for noun in general for end in ("", "s")}
        adjectives = "|".join(word for name in ("size", "pattern", "color") for word in self.values[name])
        nouns = "|".join(sorted(self.nouns, key=len, reverse=True))
        self.phrase = re.compile(rf"\b((?:(?:{adjectives}) )*)({nouns})\b")

    def pick(self, objects: Objects, phrase: tuple[str, str]) -> Objects:
        words = [*phrase[0].split(), self.nouns[phrase[1]]]
        return [entry for entry in objects if all(word in ("", entry.size, entry.pattern, entry.color, entry.shape) for word in words)]

    def answer(self, question: SceneQuestion, scene: Scene) -> str:
        text = question.question.lower().rstrip(".?")
        phrases = [(match[1], match[2]) for match in self.phrase.finditer(text)]
        if question.family == "statement":
            return self.judge_statement(text, phrases, scene)
        found = [self.pick(list(scene.boxes[0]), phrase) for phrase in phrases]
        reader: Callable[[str, list[Objects]], str] = getattr(self, f"read_{question.family}")
        return reader(text, found)

    def read_exist(self, text: str, found: list[Objects]) -> str:
        (only,) = found
        return "yes" if only else "no"

    def read_count(self, text: str, found: list[Objects]) -> str:
        (only,) = found
        return str(len(only))

    def read_compare(self, text: str, found: list[Objects]) -> str:
        first, second = map(len, found)
        if "outnumbered" in text or "fewer" in text or "lower" in text:
            return "yes" if first < second else "no"
        if "same" in text or "as many" in text:
            return "yes" if first == second else "no"
        assert re.search("more|greater|outnumber", text)
        return "yes" if first > second else "no"

    def asked_value(self, text: str, entry: SceneObject) -> str:
        for name, values in self.values.items():
            listed = re.search(r"(\w+) or (\w+)$", text)
            if name in text.split() or (listed and set(listed.groups()) == set(values)):
                return str(getattr(entry, name))
        raise AssertionError(f"no attribute is asked for in {text!r}")

    def read_query(self, text: str, found: list[Objects]) -> str:
        ((entry,),) = found
        return self.asked_value(text, entry)

    def beyond(self, text: str, entry: SceneObject, reference: SceneObject) -> bool:
        tests = {
            "left": entry.column < reference.column,
            "right": entry.column > reference.column,
            "above|higher": entry.row < reference.row,
            "below|lower": entry.row > reference.row,
        }
        (holds,) = [value for words, value in tests.items() if re.search(rf"\b({words})\b", text)]
        return holds

    def read_relation(self, text: str, found: list[Objects]) -> str:
        (first,), (second,) = found
        return "yes" if self.beyond(text, first, second) else "no"

    def read_hop(self, text: str, found: list[Objects]) -> str:
        targets, (reference,) = found
        targets = [entry for entry in targets if self.beyond(text, entry, reference)]
        if re.search("how many|count|number", text):
            return str(len(targets))
        (entry,) = targets
        return self.asked_value(text, entry)

    def read_range(self, text: str) -> tuple[int, int] | None:
        number = "(one|two|three)"
        rules: list[tuple[str, Callable[[int], tuple[int, int]]]] = [
            (f"no fewer than {number}|at least {number}|{number} or more", lambda n: (n, 99)),
            (f"no more than {number}|at most {number}", lambda n: (0, n)),
            (f"fewer than {number}", lambda n: (0, n - 1)),
            (f"(?:exactly|only|just) {number}", lambda n: (n, n)),
        ]
        for pattern, make in rules:
            if match := re.search(pattern, text):
                return make(NUMBERS[next(group for group in match.groups() if group)])
        return None

    def judge_statement(self, text: str, phrases: list[tuple[str, str]], scene: Scene) -> str:
        (phrase,) = phrases
        boxes, condition = re.split(r"\b(?:has|have|contains?|with)\b", text)
        wanted = self.read_range(condition)
        if wanted is None and re.search("only|just|nothing but", condition):
            passing = [self.pick(list(box), phrase) == list(box) for box in scene.boxes]
        else:
            least, most = wanted or (1, 99)
            passing = [least <= len(self.pick(list(box), phrase)) <= most for box in scene.boxes]
        total = self.read_range(boxes)
        if total is None:
            words = boxes.split()
            every, never = {"every", "all", "each"} & set(words), {"no", "none"} & set(words)
            total = (3, 3) if every else (0, 0) if never else (1, 99)
        return "true" if total[0] <= sum(passing) <= total[1] else "false"


@settings(deadline=None, max_examples=200)
@given(seed=SEEDS, boxes=BOXES, spec=WORLDS, wording=st.sampled_from(["train", "held_out"]))
def test_answer_agrees_with_an_independent_reading(seed: int, boxes: int, spec: WorldSpec, wording: str) -> None:
    scene = draw_scene(seed, spec=spec, boxes=boxes)
    for question in draw_questions(scene, seed=seed, spec=spec, count=8, wording=wording):
        assert Reader(spec).answer(question, scene) == question.answer, (question, scene)


@settings(deadline=None, max_examples=100)
@given(seed=SEEDS, boxes=BOXES, spec=WORLDS)
def test_text_stays_in_the_vocabulary_and_the_chain_is_readable(seed: int, boxes: int, spec: WorldSpec) -> None:
    scene = draw_scene(seed, spec=spec, boxes=boxes)
    words = set(list_words(spec))
    for question in draw_questions(scene, seed=seed, spec=spec, count=8, wording="all"):
        steps_text = " ".join(f"{step.summary} {step.reasoning}" for step in question.steps)
        assert set(split_words(f"{question.question} {question.answer} {steps_text}")) <= words
        assert not set(steps_text) & set(":\n\"'")
        assert steps_text == steps_text.lower()
        assert "  " not in steps_text
        assert [step.action for step in question.steps] == ["continue"] * (len(question.steps) - 1) + ["summary"]
        parsed = parse_chain(format_chain(question.steps, question.answer))
        assert (parsed.steps, parsed.answer) == (question.steps, question.answer)


def test_known_scene_gives_the_chains_of_the_grammar() -> None:
    scene = make_scene(
        (
            (
                SceneObject("circle", "red", "small", "plain", 3, 1),
                SceneObject("square", "blue", "large", "striped", 1, 2),
                SceneObject("circle", "red", "large", "plain", 2, 2),
            ),
        ),
        seed=0,
    )
    chains = {
        tuple((step.summary, step.reasoning) for step in question.steps)
        for seed in range(12)
        for question in draw_questions(scene, seed=seed, count=400)
    }
    assert (("find red circle", "x3 y1 , x2 y2"), ("count", "2 answer 2")) in chains
    assert (("find square", "x1 y2"), ("conclude color", "answer blue")) in chains
    assert (("find square", "x1 y2"), ("find small thing", "x3 y1"), ("compare left of", "x1 x3 < answer yes")) in chains
    assert (("find striped thing", "x1 y2"), ("find small circle right of x1", "x3 y1"), ("conclude color", "answer red")) in chains
    assert (("find circle", "x3 y1 , x2 y2"), ("find square", "x1 y2"), ("compare more", "2 1 > answer yes")) in chains


def test_families_and_yes_no_answers_are_balanced() -> None:
    questions = [
        question for seed in range(1500) for question in draw_questions(draw_scene(seed, boxes=1 if seed % 7 else 3), seed=seed, count=1)
    ]
    families = Counter(question.family for question in questions)
    for family in families_of(1):
        assert 150 < families[family] < 280, families
    for family in ("exist", "compare", "relation", "statement"):
        answers = Counter(question.answer for question in questions if question.family == family)
        assert max(answers.values()) / families[family] < 0.6, (family, answers)
    for family, limit in (("count", 0.35), ("query", 0.25), ("hop", 0.3)):
        answers = Counter(question.answer for question in questions if question.family == family)
        assert max(answers.values()) / families[family] < limit, (family, answers)


def test_questions_of_a_scene_differ_and_repeat_with_the_seed() -> None:
    scene = draw_scene(5)
    questions = draw_questions(scene, seed=1, count=20)
    assert len({question.steps for question in questions}) == len(questions) == 20
    assert questions == draw_questions(scene, seed=1, count=20)
    assert questions != draw_questions(scene, seed=2, count=20)


def test_single_object_scene_allows_no_relation() -> None:
    scene = make_scene(((SceneObject("circle", "red", "small", "plain", 3, 1),),), seed=0)
    assert draw_questions(scene, seed=1, families=("relation",), count=2) == ()
    assert {question.family for question in draw_questions(scene, seed=1, count=6)} == {"exist", "count", "compare", "query"}


@pytest.mark.parametrize(("boxes", "families"), [(1, ("statement",)), (3, ("count",)), (3, ("statement", "exist")), (1, ())])
def test_family_that_does_not_fit_the_boxes_is_refused(boxes: int, families: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="do not fit"):
        draw_questions(draw_scene(1, boxes=boxes), seed=1, families=families)


def test_every_form_has_varied_wordings_and_held_out_ones_are_apart() -> None:
    for form, wordings in QUESTIONS.items():
        assert len(wordings.train) >= (2 if form.startswith("has ") else 4), form
        assert wordings.held_out, form
        assert len(set(wordings.choose("all"))) == len(wordings.train) + len(wordings.held_out), form
