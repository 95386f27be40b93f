"""Retrieval by the instruction alone, and which words of it are masked."""

import numpy as np
import pytest

from tests.unit.test_demonstrations import make
from tests.unit.test_slot_filling import ask
from visloop.assistant.demonstrations import DemonstrationPool
from visloop.assistant.lexicon import build_lexicon, normalize_word, pluralize_word, split_words
from visloop.assistant.retrieval import MaskedEncoder, WordEncoder, choose_entries, draw_entries, retrieve
from visloop.config_assistant import RetrievalChoice
from visloop.errors import ConfigError
from visloop.records.assistant import Demonstration


def show(instruction: str, program: str = "FINAL_RESULT=RESULT(var=IMAGE)", **changes: object) -> Demonstration:
    return make(instruction, program=program, **changes)


REPLACE = show(
    "Replace the red circle with a star.",
    "OBJ0=SEG(image=IMAGE)\nOBJ1=SELECT(image=IMAGE,object=OBJ0,query='red circle')\nIMAGE0=REPLACE(image=IMAGE,object=OBJ1,prompt='star')",
)
BLUR = show("Blur everything but the red circle and the star.")
COUNT = show("How many red circles are there?", "BOX0=LOC(image=IMAGE,object='red circle')")


def test_the_most_similar_stands_last_and_no_more_than_wanted() -> None:
    found = retrieve("Replace the dog with a cat.", [REPLACE, BLUR, COUNT], encoder=WordEncoder(), most=2)
    assert [entry for entry, _ in found][-1] == REPLACE
    assert len(found) == 2 and found[0][1] < found[1][1] <= 1.0
    assert len(retrieve("x", [REPLACE], encoder=WordEncoder(), most=5)) == 1
    assert retrieve("x", [], encoder=WordEncoder(), most=5) == [] == retrieve("x", [REPLACE], encoder=WordEncoder(), most=0)
    with pytest.raises(ConfigError, match="-1 demonstrations"):
        retrieve("x", [REPLACE], encoder=WordEncoder(), most=-1)


def test_of_equally_similar_ones_the_later_counts_as_nearer() -> None:
    twins = [show("Blur the star."), show("Blur the star!", provenance="repaired")]
    assert [entry for entry, _ in retrieve("Blur the star", twins, encoder=WordEncoder(), most=1)] == [twins[1]]


def test_a_random_draw_depends_on_seed_task_and_entry_alone() -> None:
    entries = [show(f"Blur thing {number}.") for number in range(30)]
    task, other = ask("Blur thing 7."), ask("Blur thing 8.")
    drawn = draw_entries(task, entries, most=4, seed=0)
    assert (
        len(set(drawn)) == 4
        and drawn == draw_entries(task, entries[::-1], most=4, seed=0) == draw_entries(task, entries, most=9, seed=0)[:4]
    )
    assert drawn != draw_entries(other, entries, most=4, seed=0) and drawn != draw_entries(task, entries, most=4, seed=1)
    grown = draw_entries(task, [*entries, show("Blur another.")], most=4, seed=0)
    assert len(set(grown) & set(drawn)) >= 3, "one more entry exchanges at most one"
    first = [draw_entries(task, entries, most=1, seed=seed)[0].instruction for seed in range(300)]
    assert len(set(first)) == 30 and max(first.count(name) for name in set(first)) < 30, "no entry is preferred"
    assert len(draw_entries(task, entries[:2], most=4, seed=0)) == 2 and draw_entries(task, entries, most=0, seed=0) == []
    with pytest.raises(ConfigError, match="-1 demonstrations"):
        draw_entries(task, entries, most=-1, seed=0)


def test_planner_retrieval_says_which_entries_are_chosen() -> None:
    entries, task = [BLUR, COUNT, REPLACE], ask("Replace the dog with a cat.", "editing")
    options = {"encoder": WordEncoder(), "most": 2, "seed": 3}
    similar = choose_entries(task, entries, choice=RetrievalChoice.similar, **options)  # type: ignore[arg-type]
    assert similar == [entry for entry, _ in retrieve(task.instruction, entries, encoder=WordEncoder(), most=2)]
    drawn = choose_entries(task, entries, choice=RetrievalChoice.random, **options)  # type: ignore[arg-type]
    assert drawn == draw_entries(task, entries, most=2, seed=3)[::-1], "what comes first stands last, as the most similar does"


def test_plan_and_program_say_nothing_to_retrieval() -> None:
    decoy = show(
        "Tag the faces.", "BOX0=LOC(image=IMAGE,object='How many red circles are there')", plan=("How many red circles are there?",)
    )
    found = retrieve("How many red circles are there?", [COUNT, decoy], encoder=WordEncoder(), most=2)
    assert found[-1][0] == COUNT and found[0][1] < 0.2


def test_masking_lets_the_template_decide_not_the_objects() -> None:
    query = "Replace the striped bar with a teal kite and all that."
    decoy = show("How many striped bars and teal kites are there?")
    lexicon = build_lexicon(
        DemonstrationPool(
            (
                REPLACE,
                decoy,
            )
        ),
        vocabulary=["striped", "bar", "teal", "kite", "red", "circle", "star"],
    )
    plain = retrieve(query, [REPLACE, decoy], encoder=WordEncoder(), most=2)
    masked = retrieve(query, [REPLACE, decoy], encoder=MaskedEncoder(WordEncoder(), lexicon), most=2)
    assert plain[-1][0] == decoy, "raw words are drawn to the same objects"
    assert masked[-1][0] == REPLACE


def test_concept_words_come_from_vocabulary_and_concept_arguments_never_from_questions() -> None:
    ask = show("What color is the bench?", "ANSWER0=VQA(image=IMAGE,question='What color is the bench?')")
    lexicon = build_lexicon(
        DemonstrationPool(
            (
                REPLACE,
                COUNT,
                ask,
            )
        )
    )
    assert {norm for norm in ("red", "circle", "star", "replace", "color", "bench") if lexicon.is_sure(norm)} == {"red", "circle", "star"}
    assert lexicon.mask("Replace the red circles with two hexagons") == "replace the things with number things"
    assert build_lexicon(DemonstrationPool((ask,)), vocabulary=["a bench"]).mask("What color is the bench?") == "what color is the things"


def test_a_learned_question_does_not_turn_its_concept_into_a_template_word() -> None:
    program = "ANSWER0=VQA(image=IMAGE,question='What color is the hexagon?')"
    seed = show("What color is the bar?", program.replace("hexagon", "bar"))
    learned = show("Kindly name the color of the hexagon", program, provenance="repaired")
    lexicon = build_lexicon(
        DemonstrationPool(
            (
                seed,
                learned,
            )
        ),
        vocabulary=["bar"],
    )
    assert lexicon.mask("Kindly name the color of the hexagon") == "kindly name the color of the things"


@pytest.mark.parametrize(
    ("word", "norm"),
    [
        ("Circles", "circle"),
        ("crosses", "cross"),
        ("boxes", "box"),
        ("Berries", "berry"),
        ("Three", "3"),
        ("glass", "glass"),
        ("bus", "bus"),
        ("dog's", "dog"),
        ("this", "this"),
        ("teal", "teal"),
    ],
)
def test_normal_forms(word: str, norm: str) -> None:
    assert normalize_word(word) == norm
    assert normalize_word(norm) == norm


def test_plurals_are_undone_by_the_normal_form() -> None:
    for noun in ("circle", "cross", "box", "berry", "star", "key", "patch"):
        assert normalize_word(pluralize_word(noun)) == noun
    assert [word.surface for word in split_words("Rosa's smiling_face, x-ray!")] == ["Rosa's", "smiling", "face", "x-ray"]


def test_embeddings_are_unit_rows_and_remembered() -> None:
    calls: list[list[str]] = []

    class Counting(WordEncoder):
        def encode(self, texts):  # type: ignore[no-untyped-def]
            calls.append(list(texts))
            return super().encode(texts)

    encoder = MaskedEncoder(
        Counting(),
        build_lexicon(
            DemonstrationPool(
                (
                    REPLACE,
                    COUNT,
                )
            )
        ),
    )
    rows = encoder.encode(["How many stars are there?", "How many red circles are there?", "?!"])
    assert rows.dtype == np.float32
    assert np.allclose(np.linalg.norm(rows, axis=1), [1, 1, 0], atol=1e-5)
    assert np.array_equal(rows[0], rows[1])
    encoder.encode(["How many circles are there?"])
    assert calls == [["how many things are there", ""]]
    assert encoder.encode([]).shape == (0, WordEncoder().width)
