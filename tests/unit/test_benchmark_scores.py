"""Golden cases of every official scoring rule, the traps first; totals and averages by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from visloop.chat.base import ChatReply
from visloop.config import Sampling
from visloop.datasets.benchmarks import BenchmarkItem
from visloop.errors import ConfigError, DataError
from visloop.evaluation.benchmarks.choices import infer_option, parse_mmmu_choice, read_ai2d_letter, read_mmstar_letter
from visloop.evaluation.benchmarks.extraction import extract_answers
from visloop.evaluation.benchmarks.open_answers import (
    extract_mathvista,
    match_chartqa,
    match_mathvista,
    match_mmmu_open,
    measure_edits,
    normalize_mathvista,
)
from visloop.evaluation.benchmarks.scores import average_benchmarks, list_averaged, score_benchmark
from visloop.evaluation.benchmarks.text_answers import match_ocrbench, normalize_vqa, read_mme_answer, score_anls, score_textvqa
from visloop.evaluation.benchmarks.totals import COGNITION, PERCEPTION
from visloop.records.reasoning import Sample

OPTIONS = ("a cat", "a dog", "two horses", "nothing")


def make_item(
    name: str, number: int, answer: str, *, group: str = "", family: str = "all", options=(), answers=None, **details
) -> BenchmarkItem:
    sample = Sample(
        id=f"{name}-{number}",
        images=("a.png",),
        question="?",
        answer=answer,
        answer_type="phrase",
        family=family,
        split="test",
        source=name,
        group=group or f"g{number}",
    )
    details = {"key": str(number), **details}
    return BenchmarkItem(sample=sample, benchmark=name, answers=answers or (answer,), options=options, details=details)


def score(items, replies, **settings):
    return score_benchmark(
        items, {item.sample.id: reply for item, reply in zip(items, replies, strict=True)}, system="s", bootstrap_samples=100, **settings
    )


# multiple choice


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("B", "B"),
        ("(B)", "B"),
        ("B.", "B"),
        ("The answer is B", "B"),
        ("First I thought (A), but it is (C).", "C"),  # the last bracketed letter
        ("A or B ? I say B and not A at all", "A"),  # the last free-standing one
        ("(D) although B would be nice", "D"),  # brackets come first
        ("In this picture there are clearly two horses", "C"),  # text, over five words
        ("There is a cat and later there is a dog", "B"),  # the last text
    ],
)
def test_mmmu_reads_letters_in_its_own_order(reply, letter):
    choice = parse_mmmu_choice(reply, options=OPTIONS, seed=0)
    assert (choice.letter, choice.guessed) == (letter, False)


def test_mmmu_guesses_by_seed_and_says_so():
    unreadable = "two horses"  # a bare option text of five words or fewer is not read by the official rule
    choices = [parse_mmmu_choice(unreadable, options=OPTIONS, seed=seed) for seed in range(200)]
    assert all(choice.guessed for choice in choices)
    assert choices == [parse_mmmu_choice(unreadable, options=OPTIONS, seed=seed) for seed in range(200)]
    shares = [sum(choice.letter == letter for choice in choices) / 200 for letter in "ABCD"]
    assert all(0.15 < share < 0.35 for share in shares)


def test_mmmu_conventions_differ_where_they_should():
    reply = "I pick option C.)"
    assert parse_mmmu_choice(reply, options=OPTIONS, seed=0).guessed
    assert not parse_mmmu_choice(reply, options=OPTIONS, seed=0, convention="lmms").guessed
    assert parse_mmmu_choice(reply, options=OPTIONS, seed=0, convention="lmms").letter == "C"


def test_mmmu_reads_ten_options():
    options = tuple(f"value {number}" for number in range(10))
    assert parse_mmmu_choice("(J)", options=options, seed=0).letter == "J"
    assert parse_mmmu_choice("(J)", options=options[:4], seed=0).guessed


@pytest.mark.parametrize(
    ("reply", "letter", "guessed"),
    [
        ("C", "C", False),
        ("C. two horses", "C", False),
        ("The right one is: (C)!", "C", False),
        ("a dog", "B", False),  # the only option text
        ("A dog, I would say", "B", False),  # the article far from the end is no letter
        ("C is what many people would say here, and yet", None, True),  # the letter is too far from the end
        ("B and C", None, True),
        ("no idea", None, True),
        ("", None, True),
    ],
)
def test_mmbench_reads_letters_then_texts(reply, letter, guessed):
    choice = infer_option(reply, options=OPTIONS, seed=1)
    assert choice.guessed is guessed
    if letter:
        assert choice.letter == letter


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("B", "B"),
        ("b: the dog", "B"),
        ("(b)", "B"),
        ("Option B", "B"),
        ("The answer is B.", "B"),
        ("the answer: b", "T"),  # the official rule takes the first character
        ("", None),
        ("(", None),
        ("42", None),
    ],
)
def test_mmstar_takes_the_first_letter_in_four_places(reply, letter):
    assert read_mmstar_letter(reply) == letter


@pytest.mark.parametrize(
    ("reply", "letter"),
    [("B", "B"), ("b.", "B"), ("B. the fox", "B"), ("(B)", "B"), ("fox", None), ("The answer is B", None), ("", None)],
)
def test_ai2d_takes_a_leading_letter_or_a_bare_one(reply, letter):
    assert read_ai2d_letter(reply) == letter


# free answers


@pytest.mark.parametrize(
    ("reply", "answers", "right"),
    [
        ("The answer is 24.5", ["24.5"], True),  # false where the parsed reply is read character by character
        ("24.5", ["24.5"], True),
        ("x = 24.50", ["24.5"], True),
        ("It costs $1,234.00 in all", ["1234"], True),
        ("The answer is 24.6", ["24.5"], False),
        ("The result is about 2.449", ["2.45"], True),  # two decimals
        ("so the capital is Paris", ["paris"], True),
        ("London", ["paris"], False),
        ("it is a dog", ["dog", "puppy"], True),
        ("The answer is b or c", ["b"], True),  # one character matches as a word with a space on one side
        ("The answer is bob", ["b"], False),
        ("24", ["2"], False),
        ("1e3", ["1000"], True),
        ("first it is 3\nthen it is 7", ["3"], True),
        ("", ["2"], False),
    ],
)
def test_mmmu_open_answers_are_compared_value_by_value(reply, answers, right):
    assert match_mmmu_open(reply, answers=answers) is right


@pytest.mark.parametrize(
    ("reply", "answer", "right"),
    [
        ("95.01", "100", True),
        ("105", "100", True),
        ("105.1", "100", False),
        ("-96", "-100", True),
        ("5%", "0.05", True),
        ("5", "5%", False),
        ("0", "0", True),
        ("0.0", "0", False),  # a gold 0 is compared as text
        ("Yes", "yes", True),
        ("yes, it is", "yes", False),
        ("nan", "100", False),
        (" Red ", "red", True),
    ],
)
def test_chartqa_is_relaxed_by_five_percent(reply, answer, right):
    assert match_chartqa(reply, answer=answer) is right


@pytest.mark.parametrize(
    ("reply", "kind", "choices", "extraction"),
    [
        ("14", "integer", (), "14"),
        ("The answer is 14 apples.", "integer", (), "14"),
        ("3 plus 4, so the answer is 7", "integer", (), "7"),
        ("1,250.5 dollars", "float", (), "1250.5"),
        ("no number at all", "integer", (), None),
        ("(B) 5", "text", ("4", "5"), "B"),
        ("B", "text", ("4", "5"), "B"),
        ("The answer is B.", "text", ("4", "5"), "B"),
        ("5", "text", ("4", "5"), "5"),
        ("it must be 5 cm", "text", ("4", "5"), "5"),
        ("4 or 5", "text", ("4", "5"), None),
        ("The answer is [1, 2].", "list", (), "[1, 2]"),
        ('the answer is "seven".', "text", (), "seven"),
        ("", "text", (), None),
    ],
)
def test_mathvista_reads_answers_by_rule(reply, kind, choices, extraction):
    assert extract_mathvista(reply, kind=kind, choices=choices) == extraction


@pytest.mark.parametrize(
    ("extraction", "kind", "choices", "precision", "normal"),
    [
        ("B", "text", ("four", "five"), None, "five"),
        ("(b) five", "text", ("four", "five"), None, "five"),
        ("fivee", "text", ("four", "five"), None, "five"),  # the nearest option
        ("14.0", "integer", (), None, "14"),
        ("3.14159", "float", (), 2, "3.14"),
        ("2", "float", (), 1, "2.0"),
        ("x", "integer", (), None, None),
        ("inf", "integer", (), None, None),
        ("nan", "float", (), 1, None),
        ("[1, 2]", "list", (), None, "[1, 2]"),
    ],
)
def test_mathvista_normal_forms(extraction, kind, choices, precision, normal):
    assert normalize_mathvista(extraction, kind=kind, choices=choices, precision=precision) == normal


def test_mathvista_compares_as_text_after_normalising():
    assert match_mathvista("1.249", answer="1.2", kind="float", choices=(), precision=1)
    assert not match_mathvista("1.26", answer="1.2", kind="float", choices=(), precision=1)


# text in pictures


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Cat!", "cat"),
        ("two dogs", "2 dogs"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("1,000", "1000"),
        ("st. 4.5", "st 4.5"),
        ("coca-cola", "coca cola"),
        ("coca - cola", "coca cola"),
        ("None", "0"),
        ("bob's", "bob 's"),
        ("im", "im"),  # the table's entry has a capital, which lower-case text never meets
        ("a/b", "b"),
    ],
)
def test_vqa_normal_form(text, normal):
    assert normalize_vqa(text) == normal


def test_textvqa_leaves_one_annotator_out():
    answers = ["stop"] * 2 + ["halt"] * 8
    # the two agreeing annotators leave one other, the eight others leave two
    assert score_textvqa("Stop", answers=answers) == pytest.approx((2 * 1 / 3 + 8 * 2 / 3) / 10)
    assert score_textvqa("halt.", answers=answers) == 1.0
    assert score_textvqa("go", answers=answers) == 0.0
    assert score_textvqa("stop", answers=["stop"] * 3 + ["x"] * 7) == pytest.approx((3 * 2 / 3 + 7) / 10)


@pytest.mark.parametrize(
    ("reply", "answers", "value"),
    [
        ("Invoice  12", ["invoice 12"], 1.0),
        ("invoice 13", ["invoice 12"], 0.9),
        ("abcd", ["abxy"], 0.5),
        ("abcde", ["abxyz"], 0.0),  # 0.4 is under the threshold
        ("", ["a"], 0.0),
        ("b", ["a", "b"], 1.0),
    ],
)
def test_anls(reply, answers, value):
    assert score_anls(reply, answers=answers) == pytest.approx(value)


@given(st.text(max_size=12), st.text(max_size=12), st.text(max_size=12))
def test_edit_distance_is_a_metric(a, b, c):
    assert measure_edits(a, b) == measure_edits(b, a)
    assert (measure_edits(a, b) == 0) == (a == b)
    assert abs(len(a) - len(b)) <= measure_edits(a, b) <= max(len(a), len(b))
    assert measure_edits(a, c) <= measure_edits(a, b) + measure_edits(b, c)


def test_edit_distance_by_hand():
    assert [measure_edits(*pair) for pair in [("kitten", "sitting"), ("flaw", "lawn"), ("", "abc")]] == [3, 2, 3]


@pytest.mark.parametrize(
    ("reply", "answers", "dataset", "right"),
    [
        ("The sign says STOP now", ["stop"], "IIIT5K", True),
        ("st op", ["stop"], "IIIT5K", False),
        ("\\frac { 1 } { 2 }", ["\\frac{1}{2}"], "HME100k", True),
        ("\\FRAC{1}{2}", ["\\frac{1}{2}"], "HME100k", False),  # case is kept
        ("line one\nline two", ["one line"], "x", True),
        ("anything", [""], "x", False),  # an empty gold text is contained in everything
    ],
)
def test_ocrbench_asks_whether_the_gold_is_contained(reply, answers, dataset, right):
    assert match_ocrbench(reply, answers=answers, dataset=dataset) is right


@pytest.mark.parametrize(
    ("reply", "official", "lmms"),
    [
        ("Yes", "yes", "yes"),
        ("no.", "no", "no"),
        ("Yes, there is", "yes", "yes"),
        ("y", None, "yes"),
        ("n.", None, "no"),
        ("not sure", "no", "no"),  # the first four characters hold "no"
        ("There is no cat", None, None),
        ("", None, None),
    ],
)
def test_mme_reads_the_first_four_characters(reply, official, lmms):
    assert read_mme_answer(reply) == official
    assert read_mme_answer(reply, convention="lmms") == lmms


# totals


def test_mmmu_counts_guesses_as_parse_failures_and_missing_apart():
    items = [make_item("mmmu", number, "A", options=OPTIONS, family="Art" if number < 2 else "Math") for number in range(4)]
    result = score(items, ["(A)", "(B)", "hm", None])
    assert (result.parse_failures, result.missing, result.parse_failure_rate) == (1, 1, 0.25)
    assert result.rows[0].metric == "mmmu"
    assert result.rows[0].n == 4
    assert [row.metric for row in result.rows[1:]] == ["mmmu/Art", "mmmu/Math"]
    assert result.rows[1].value == 0.5
    assert [prediction.status for prediction in result.predictions] == ["ok", "ok", "ok", "answer_missing"]
    assert result == score(items, ["(A)", "(B)", "hm", None])


def test_a_guess_does_not_depend_on_the_other_questions():
    items = [make_item("mmmu", number, "A", options=OPTIONS) for number in range(40)]
    together = [prediction.correct for prediction in score(items, ["?"] * 40).predictions]
    alone = [score([item], ["?"]).predictions[0].correct for item in items]
    assert together == alone
    assert 0 < sum(together) < 40


def test_mmbench_needs_every_rotation_right():
    items = []
    for question in range(2):
        for turn in range(4):
            items.append(make_item("mmbench", question + turn * 1_000_000, "ADCB"[turn], group=f"mmbench-{question}", options=OPTIONS))
    result = score(items, ["A", "D", "C", "B", "A", "D", "C", "C"])
    assert (result.rows[0].value, result.rows[0].n) == (0.5, 2)
    assert (result.rows[1].metric, result.rows[1].value) == ("mmbench/vanilla", 1.0)
    assert result.mode == "rules"


def test_a_judges_letters_replace_the_rules():
    items = [make_item("mmbench", number, "B", options=OPTIONS) for number in range(2)]
    result = score(items, ["the barking one", "the barking one"], extractions={"mmbench-0": "B"})
    assert result.mode == "judge"
    assert result.predictions[0].correct
    assert result.parse_failures == 1
    with pytest.raises(ConfigError, match="by rules alone"):
        score([make_item("ai2d", 0, "A")], ["A"], extractions={})


def test_mme_adds_acc_and_acc_plus_by_category():
    items, replies = [], []
    for category, pictures in (("count", ["yy", "yn"]), ("color", ["nn"]), ("code_reasoning", ["yy"])):
        for picture, marks in enumerate(pictures):
            for question, mark in enumerate(marks):
                items.append(make_item("mme", len(items), "yes", group=f"{category}/{picture}", family=category))
                replies.append("Yes." if mark == "y" else f"No {question}")
    rows = {row.metric: row.value for row in score(items, replies).rows}
    # count: acc 75 + acc+ 50; color: 0; code_reasoning: 100 + 100
    assert rows == {
        "mme": 325.0,
        "mme_perception": 125.0,
        "mme_cognition": 200.0,
        "mme/code_reasoning": 200.0,
        "mme/color": 0.0,
        "mme/count": 125.0,
    }


def test_a_perfect_mme_is_2000_and_800():
    items = [
        make_item("mme", 2 * index + question, "no", group=f"{category}/0", family=category)
        for index, category in enumerate(PERCEPTION + COGNITION)
        for question in range(2)
    ]
    result = score(items, ["no"] * len(items))
    assert [row.value for row in result.rows[:3]] == [2800.0, 2000.0, 800.0]


def test_mme_refuses_half_a_picture_and_unknown_categories():
    with pytest.raises(DataError, match="has 1 questions"):
        score([make_item("mme", 0, "yes", family="count")], ["yes"])
    with pytest.raises(DataError, match="unknown category 'taste'"):
        score([make_item("mme", number, "yes", family="taste", group="x") for number in range(2)], ["yes", "yes"])


def test_mmstar_averages_fine_categories_not_questions():
    items = [make_item("mmstar", number, "A", family="math", l2_category="geometry") for number in range(3)]
    items.append(make_item("mmstar", 3, "A", family="math", l2_category="statistics"))
    result = score(items, ["A", "A", "A", "B"])
    assert result.rows[0].value == pytest.approx(0.5)
    assert result.rows[1].value == 0.75


def test_ocrbench_is_out_of_a_thousand():
    items = [make_item("ocrbench", number, "stop", family="Scene", dataset="x") for number in range(4)]
    result = score(items, ["stop", "a stop sign", "go", None])
    assert result.rows[0].value == 500.0
    assert result.rows[1].value == 0.5


def test_chartqa_reports_human_and_augmented():
    items = [make_item("chartqa", number, "10", family="human" if number else "augmented") for number in range(3)]
    assert [(row.metric, row.value) for row in score(items, ["10", "10.5", "11"]).rows] == [
        ("chartqa", pytest.approx(2 / 3)),
        ("chartqa/augmented", 1.0),
        ("chartqa/human", 0.5),
    ]


def test_soft_scores_keep_their_fractions():
    item = make_item("docvqa", 0, "invoice 12")
    result = score([item], ["invoice 13"])
    assert result.rows[0].value == pytest.approx(0.9)
    assert not result.predictions[0].correct
    textvqa = make_item("textvqa", 0, "stop", answers=("stop",) * 2 + ("halt",) * 8)
    assert score([textvqa], ["stop"]).rows[0].value == pytest.approx(0.6)


def test_mathvista_and_ai2d_are_scored_through():
    mathvista = make_item("mathvista", 0, "7", answer_type="integer", precision="")
    assert score([mathvista], ["so the answer is 7"]).rows[0].value == 1.0
    assert score([mathvista], ["no number"]).parse_failures == 1
    assert score([mathvista], ["many words"], extractions={"mathvista-0": "7.0"}).rows[0].value == 1.0
    with pytest.raises(DataError, match="answer_type"):
        score([make_item("mathvista", 0, "7", answer_type="colour", precision="")], ["7"])
    ai2d = [make_item("ai2d", number, "C") for number in range(2)]
    result = score(ai2d, ["C. leaf", "leaf"])
    assert (result.rows[0].value, result.parse_failures) == (0.5, 1)


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(DataError, match="one benchmark"):
        score([make_item("ai2d", 0, "A"), make_item("mmstar", 0, "A")], ["A", "A"])
    with pytest.raises(DataError, match="one benchmark"):
        score([], [])
    with pytest.raises(ConfigError, match="no scorer"):
        score([make_item("gqa", 0, "A")], ["A"])
    with pytest.raises(DataError, match="not asked"):
        score_benchmark([make_item("ai2d", 0, "A")], {"other": "A"}, system="s")


def test_averages_say_whether_mme_is_in():
    mme = [make_item("mme", number, "yes", family="count", group="p") for number in range(2)]
    scores = [
        score(mme, ["yes", "yes"]),  # 200 of 2800
        score([make_item("ai2d", number, "A") for number in range(2)], ["A", "B"]),  # 50 %
        score([make_item("ocrbench", 0, "stop", dataset="x")], ["stop"]),  # 1000 of 1000
        score([make_item("mmmu_pro_standard", 0, "A", options=OPTIONS)], ["(A)"]),
        score([make_item("mmmu_pro_vision", 0, "A", options=OPTIONS)], ["(B)"]),
    ]
    averages = average_benchmarks(scores, benchmarks=["mme", "ai2d", "ocrbench", "mmmu_pro"])
    assert averages.percentages == pytest.approx({"mme": 100 * 200 / 2800, "ai2d": 50.0, "ocrbench": 100.0, "mmmu_pro": 50.0})
    assert averages.without_mme == pytest.approx(200 / 3)
    assert averages.with_mme == pytest.approx((100 * 200 / 2800 + 200) / 4)
    assert average_benchmarks(scores, benchmarks=["ai2d"]).with_mme is None
    with pytest.raises(DataError, match="no score of docvqa"):
        average_benchmarks(scores, benchmarks=["docvqa", "ai2d"])
    with pytest.raises(DataError, match="besides MME"):
        average_benchmarks(scores, benchmarks=["mme"])
    assert list_averaged(["mmmu_pro_standard", "mme", "mmmu_pro_vision"]) == ["mmmu_pro", "mme"]
    assert list_averaged(["ai2d", "mmmu_pro_vision"]) == ["ai2d", "mmmu_pro_vision"]


# the judge that reads answers


class Judge:
    """Gives the next of its replies to each request and keeps what it was asked."""

    name = "judge"

    def __init__(self, *replies: str) -> None:
        self.replies, self.asked = list(replies), []

    def reply(self, requests, *, sampling):
        self.asked += requests
        return [ChatReply(text=self.replies.pop(0), finish="stop") for _ in requests]

    def close(self):
        pass


def test_the_judge_reads_only_what_rules_cannot():
    items = [make_item("mmbench", number, "B", options=OPTIONS) for number in range(4)]
    judge = Judge("B. a dog", "none")
    replies = {"mmbench-0": "(C)", "mmbench-1": "the barking one", "mmbench-2": "hard to say", "mmbench-3": None}
    found = extract_answers(items, replies, judge=judge, sampling=Sampling())
    assert found == {"mmbench-1": "B"}
    assert len(judge.asked) == 2
    text = judge.asked[0].messages[0].text
    assert "Reply: the barking one" in text
    assert "B. a dog" in text
    result = score_benchmark(items, replies, system="s", extractions=found)
    assert [prediction.correct for prediction in result.predictions][:2] == [False, True]
    assert (result.parse_failures, result.missing, result.mode) == (1, 1, "judge")


def test_a_judge_that_returns_garbage_is_asked_again_a_bounded_number_of_times():
    items = [make_item("mmbench", 0, "B", options=OPTIONS)]
    judge = Judge("well, well", "Z", "B")
    assert extract_answers(items, {"mmbench-0": "hm"}, judge=judge, sampling=Sampling()) == {"mmbench-0": "B"}
    assert len({request.seed for request in judge.asked}) == 3
    judge = Judge("well, well", "Z", "Z", "B")
    assert extract_answers(items, {"mmbench-0": "hm"}, judge=judge, sampling=Sampling()) == {}
    assert len(judge.asked) == 3


def test_the_judge_never_sees_the_gold_answer():
    item = make_item("mathvista", 0, "SECRET", answer_type="integer", precision="")
    judge = Judge("7")
    assert extract_answers([item], {"mathvista-0": "seven, I think"}, judge=judge, sampling=Sampling()) == {"mathvista-0": "7"}
    assert "SECRET" not in judge.asked[0].messages[0].text
    assert "an integer" in judge.asked[0].messages[0].text
    with pytest.raises(ConfigError, match="by rules alone"):
        extract_answers([make_item("docvqa", 0, "x")], {}, judge=judge, sampling=Sampling())
