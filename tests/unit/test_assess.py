"""Assessment: the answer filter, the path scorers, bands, the limit on what stays unjudged."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fixtures.scripted_chat import ScriptedChat, broken, make_assessed, make_path, make_sample
from visloop.chat.base import ChatReply, ChatRequest
from visloop.config import AssessConfig, Sampling
from visloop.errors import ConfigError, DataError, GateError
from visloop.prompts.render import PromptSet
from visloop.reasoning.answer_filter import AnswerVerdict, Candidate, judge_answers, judge_by_rule
from visloop.reasoning.assess import assess_paths, check_unjudged_rate, measure_rank_stability, name_band, report_assessment
from visloop.reasoning.score_paths import ChatScorer, PathScore, ScoringTask, VerifierScorer
from visloop.records.reasoning import AssessedPath, GroundTruth, ReasoningPath, Sample
from visloop.scenes.export import make_records
from visloop.scenes.questions import draw_questions
from visloop.scenes.world import draw_scene

ROOT = Path("data")
PROMPTS = PromptSet("full")
COLOR = make_sample("q0", answer="red", answer_type="phrase")


def judge(answers: dict[str, str], *, sample: Sample = COLOR, script=None) -> tuple[dict[str, AnswerVerdict], ScriptedChat | None]:
    model = None if script is None else ScriptedChat(script)
    candidates = [Candidate(id=key, sample=sample, answer=answer) for key, answer in answers.items()]
    return judge_answers(candidates, text_judge=model, prompts=PROMPTS, sampling=Sampling(), seed=0), model


@pytest.mark.parametrize(
    ("candidate", "answer", "kind", "verdict"),
    [
        ("Red.", "red", "phrase", "correct"),
        ("blue", "red", "phrase", "wrong"),
        ("reddish", "red", "phrase", "wrong"),  # the truth only inside a longer word
        ("not red", "red", "phrase", "unjudged"),  # holds the truth, says the opposite
        ("red or blue", "red", "phrase", "unjudged"),
        ("maybe", "yes", "boolean", "wrong"),
        ("yes or no", "yes", "boolean", "unjudged"),
        ("4 or 5", "4", "number", "unjudged"),
        ("14 or 5", "4", "number", "wrong"),
    ],
)
def test_rule_alone(candidate: str, answer: str, kind: str, verdict: str) -> None:
    assert judge_by_rule(candidate, make_sample(answer=answer, answer_type=kind)) == verdict


def test_without_a_judge_both_verdicts_are_kept() -> None:
    found, _ = judge({"a": "red", "b": "blue", "c": "red or blue"})
    assert found["a"] == AnswerVerdict(verdict="correct", rule="correct")
    assert found["b"] == AnswerVerdict(verdict="wrong", rule="unjudged")
    assert found["c"] == AnswerVerdict(verdict="unjudged", rule="unjudged")


def test_the_judge_is_asked_only_where_the_rule_is_open_and_once_per_answer() -> None:
    found, model = judge(
        {"a": "red", "b": "crimson", "c": "Crimson.", "d": "blue"},
        script=lambda request: "yes" if "rimson" in request.messages[0].text else "no",
    )
    assert model is not None and [len(batch) for batch in model.batches] == [2]
    assert not any(message.images for request in model.requests for message in request.messages)
    assert {key: (verdict.verdict, verdict.rule, verdict.judge) for key, verdict in found.items()} == {
        "a": ("correct", "correct", None),
        "b": ("correct", "unjudged", "correct"),
        "c": ("correct", "unjudged", "correct"),
        "d": ("wrong", "unjudged", "wrong"),
    }


@pytest.mark.parametrize("reply", ["It depends.", "", broken("timeout")])
def test_an_unreadable_judge_gives_no_verdict_and_its_reply_is_kept(reply: str | ChatReply) -> None:
    found, _ = judge({"a": "crimson"}, script=lambda request: reply)
    assert (found["a"].verdict, found["a"].judge) == ("unjudged", "unjudged")
    assert found["a"].judge_reply == (reply if isinstance(reply, str) else "error: timeout")


def test_double_candidates_and_empty_truths_are_refused() -> None:
    with pytest.raises(DataError, match="twice"):
        judge_answers([Candidate(id="a", sample=COLOR, answer="red")] * 2, text_judge=None, prompts=PROMPTS, sampling=Sampling(), seed=0)
    with pytest.raises(DataError, match="empty after normalising"):
        judge({"a": "red"}, sample=replace(COLOR, answer="the"))


def read_ids(request: ChatRequest) -> dict[int, str]:
    """The numbered attempts in a scoring prompt: number -> chain text."""
    return {int(number): chain for number, chain in re.findall(r"Attempt (\d+):\n(.*?</output>)", request.messages[0].text, re.DOTALL)}


def grade(chain: str) -> int:
    """A judge's opinion that depends on the chain alone: the number in its first step."""
    found = re.search(r"step (\d+)", chain)
    assert found
    return int(found.group(1))


def fair_judge(request: ChatRequest) -> str:
    return json.dumps([{"id": number, "score": grade(chain), "error": 0} for number, chain in read_ids(request).items()])


def chain(name: str, score: int, *, sample: str = "q0", **changes: object) -> ReasoningPath:
    return make_path(name, sample=sample, texts=(f"step {score}", "so it is"), **changes)


def score(tasks: list[ScoringTask], script, **settings: object) -> tuple[dict[str, PathScore], ScriptedChat]:
    model = ScriptedChat(script)
    scorer = ChatScorer(model, prompts=PROMPTS, sampling=Sampling(), **settings)  # type: ignore[arg-type]
    return scorer.score(tasks, seed=0, image_root=ROOT), model


def task(count: int, *, sample: str = "q0") -> ScoringTask:
    paths = tuple(chain(f"{sample}-{index}", 10 + index, sample=sample) for index in range(count))
    return ScoringTask(sample=make_sample(sample), paths=paths)


def test_all_chains_of_a_question_are_scored_in_one_call_and_all_questions_in_one_batch() -> None:
    found, model = score([task(4), task(3, sample="q1")], fair_judge)
    assert [len(batch) for batch in model.batches] == [2]
    assert {path_id: scored.by_pass for path_id, scored in found.items()} == {
        **{f"q0-{index}": (10.0 + index,) for index in range(4)},
        **{f"q1-{index}": (10.0 + index,) for index in range(3)},
    }
    assert model.requests[0].messages[0].images == (ROOT / "images/q0.png",)
    assert list(read_ids(model.requests[0])) == [1, 2, 3, 4], "numbered from 1"


@given(st.integers(1, 12), st.integers(1, 5), st.integers(1, 3))
def test_scores_reach_the_right_chain_whatever_the_chunks_and_orders(count: int, size: int, passes: int) -> None:
    found, model = score([task(count)], fair_judge, max_paths_per_call=size, passes=passes)
    assert {path_id: scored.by_pass for path_id, scored in found.items()} == {
        f"q0-{index}": (10.0 + index,) * passes for index in range(count)
    }
    sizes = [len(read_ids(request)) for request in model.requests]
    assert max(sizes) <= size and max(sizes) - min(sizes) <= 1, "calls of nearly equal size"


def test_order_is_shuffled_anew_in_every_pass_and_by_the_seed_only() -> None:
    _, model = score([task(8)], fair_judge, passes=3)
    orders = [tuple(read_ids(request).values()) for request in model.requests]
    assert len(set(orders)) == 3 and len({frozenset(order) for order in orders}) == 1
    _, again = score([task(8)], fair_judge, passes=3)
    assert [request.messages for request in again.requests] == [request.messages for request in model.requests]


def test_only_missing_chains_are_asked_again_renumbered() -> None:
    def forgetful(request: ChatRequest) -> str:
        """Scores the first two attempts of every call."""
        return json.dumps([{"id": number, "score": grade(text)} for number, text in read_ids(request).items() if number <= 2])

    found, model = score([task(5)], forgetful)
    assert [list(read_ids(request)) for request in model.requests] == [[1, 2, 3, 4, 5], [1, 2, 3], [1]]
    assert {path_id: scored.by_pass for path_id, scored in found.items()} == {f"q0-{index}": (10.0 + index,) for index in range(5)}
    assert sorted(len(scored.replies) for scored in found.values()) == [1, 1, 2, 2, 3]


@pytest.mark.parametrize(
    "reply", ["I like them all.", '[{"id": 1, "score": 0}, {"id": 2, "score": 500}]', '[{"id": 9, "score": 50}]', broken("down")]
)
def test_a_judge_that_returns_garbage_gives_no_score_after_bounded_asking(reply: str | ChatReply) -> None:
    found, model = score([task(2)], lambda request: reply, max_reasks=2)
    assert len(model.batches) == 3
    assert all(scored.by_pass == (None,) and len(scored.replies) == 3 for scored in found.values())


def test_chains_with_the_same_text_are_shown_once_and_share_the_score() -> None:
    twins = ScoringTask(sample=make_sample(), paths=(chain("a", 30), chain("b", 30), chain("c", 40)))
    found, model = score([twins], fair_judge)
    assert len(read_ids(model.requests[0])) == 2
    assert (found["a"].by_pass, found["b"].by_pass, found["c"].by_pass) == ((30.0,), (30.0,), (40.0,))


def test_the_true_answer_is_shown_only_when_wanted() -> None:
    tasks = [ScoringTask(sample=make_sample(answer="SECRET"), paths=(chain("a", 30), chain("b", 31)))]
    for shown in (True, False):
        _, model = score(tasks, fair_judge, show_answer=shown)
        assert ("SECRET" in model.requests[0].messages[0].text) == shown


def test_bad_scorer_settings_are_refused() -> None:
    for settings in ({"passes": 0}, {"max_paths_per_call": 0}, {"max_reasks": -1}):
        with pytest.raises(ConfigError):
            score([], fair_judge, **settings)


def assess(
    paths: list[ReasoningPath],
    *,
    script=fair_judge,
    samples: list[Sample] | None = None,
    passes: int = 1,
    max_reasks: int = 2,
    **changes: object,
) -> tuple[list[AssessedPath], object]:
    scorer = ChatScorer(ScriptedChat(script), prompts=PROMPTS, sampling=Sampling(), passes=passes, max_reasks=max_reasks)
    return assess_paths(
        samples or [make_sample()],
        paths,
        scorer=scorer,
        text_judge=None,
        prompts=PROMPTS,
        config=AssessConfig(**changes),  # type: ignore[arg-type]
        seed=0,
        image_root=ROOT,
    )


def test_verdict_score_and_band_of_every_path_in_the_order_given() -> None:
    paths = [
        chain("good", 90),
        chain("mid", 60),
        chain("wrong", 70, answer="no"),
        chain("cut", 80, answer=None, status="truncated"),
    ]
    assessed, report = assess(paths)
    assert [(item.path.id, item.verdict, item.score_status, item.score, item.band) for item in assessed] == [
        ("good", "correct", "scored", 90.0, "high"),
        ("mid", "correct", "scored", 60.0, "mid"),
        ("wrong", "wrong", "not_asked", None, None),
        ("cut", "unjudged", "not_asked", None, None),
    ]
    assert report.by_verdict == {"correct": 2, "wrong": 1}
    assert report.unjudged_rate == 0.0, "a chain without an answer was never put to a judge"
    assert report.correct_rate == 0.5
    assert report.mixed_question_rate == 1.0


def test_wrong_chains_are_scored_on_request_beside_the_correct_ones() -> None:
    assessed, _ = assess([chain("good", 90), chain("wrong", 20, answer="no")], score_wrong=True)
    assert [(item.verdict, item.score, item.band) for item in assessed] == [("correct", 90.0, "high"), ("wrong", 20.0, "low")]


def test_passes_give_mean_spread_error_vote_and_rank_stability() -> None:
    calls: list[ChatRequest] = []

    def moody(request: ChatRequest) -> str:
        calls.append(request)
        shift, error = (0, 2) if len(calls) == 1 else (10, 1)
        return json.dumps([{"id": number, "score": grade(text) + shift, "error": error} for number, text in read_ids(request).items()])

    assessed, report = assess([chain(f"p{index}", 20 * (index + 1)) for index in range(4)], script=moody, passes=2)
    assert [(item.score, item.score_spread) for item in assessed] == [(25.0, 10.0), (45.0, 10.0), (65.0, 10.0), (85.0, 10.0)]
    assert {item.first_error_step for item in assessed} == {1}, "one vote each: the earlier step"
    assert report.rank_stability == pytest.approx(1.0)
    assert report.mean_spread == 10.0


def test_a_garbage_judge_leaves_unjudged_scores_and_the_gate_stops_the_stage() -> None:
    assessed, report = assess([chain("a", 90), chain("b", 80)], script=lambda request: "garbage", max_reasks=0)
    assert [(item.score_status, item.score, item.band, item.judge_replies) for item in assessed] == [
        ("unjudged", None, None, ("garbage",))
    ] * 2
    assert (report.unjudged_scores, report.unjudged_rate, report.mean_score) == (2, 1.0, None)
    with pytest.raises(GateError, match=r"2 scores of 2 paths stayed unjudged \(100\.0%, allowed 5\.0%\), e\.g\. paths a, b"):
        check_unjudged_rate(report, max_rate=0.05)
    check_unjudged_rate(report, max_rate=1.0)


def test_the_gate_counts_answers_and_scores_apart() -> None:
    """One open answer of ten is 10 %; it must not be thinned out by the scores."""
    items = [make_assessed(f"p{index}") for index in range(9)] + [make_assessed("open", verdict="unjudged", score=None)]
    report = report_assessment(items)
    assert (report.unjudged_answers, report.unjudged_scores, report.unjudged_rate) == (1, 0, 0.1)
    with pytest.raises(GateError):
        check_unjudged_rate(report, max_rate=0.09)


def test_report_of_shards_together_equals_report_of_all() -> None:
    assessed, report = assess([chain(f"p{index}", 5 + 10 * index) for index in range(10)])
    assert report_assessment(assessed) == report
    assert report.histogram == (1,) * 10
    assert report.by_band == {"high": 2, "low": 5, "mid": 3}


@pytest.mark.parametrize(("value", "band"), [(100, "high"), (80, "high"), (79.9, "mid"), (50, "mid"), (49, "low"), (1, "low"), (0.5, None)])
def test_bands_are_lower_bounds(value: float, band: str | None) -> None:
    assert name_band(value, bands={"low": 1.0, "high": 80.0, "mid": 50.0}) == band


def test_histogram_edges_are_whole_tenths() -> None:
    report = report_assessment([make_assessed(f"p{value}", score=float(value)) for value in (1, 10, 11, 90, 91, 100)])
    assert report.histogram == (2, 1, 0, 0, 0, 0, 0, 0, 1, 2)


def test_paths_of_unknown_samples_and_bad_bands_are_refused() -> None:
    with pytest.raises(DataError, match=r"e\.g\. elsewhere"):
        assess([chain("a", 50, sample="elsewhere")])
    for bands in ({}, {"high": 120.0}):
        with pytest.raises(ConfigError, match=r"assess\.bands"):
            assess([chain("a", 50)], bands=bands)


def in_passes(**scores: tuple[float | None, ...]) -> list[AssessedPath]:
    """Assessed paths named <question>_<chain> with what each pass gave."""
    return [replace(make_assessed(name, sample=name.split("_")[0]), pass_scores=given) for name, given in scores.items()]


def test_rank_stability_by_hand() -> None:
    """Ranks 1 2 3 against 1 3 2: rho = 1 - 6 * 2 / (3 * 8) = 0.5; a second question in the same order: mean 0.75."""
    first = {"q0_a": (10.0, 20.0), "q0_b": (20.0, 90.0), "q0_c": (30.0, 40.0)}
    assert measure_rank_stability(in_passes(**first)) == pytest.approx(0.5)
    assert measure_rank_stability(in_passes(**first, q1_a=(1.0, 5.0), q1_b=(2.0, 6.0))) == pytest.approx(0.75)


def test_rank_stability_compares_inside_questions_only() -> None:
    """An easy and a hard question correlate perfectly over all chains although the passes disagree on both."""
    items = in_passes(q0_a=(10.0, 12.0), q0_b=(12.0, 10.0), q1_a=(90.0, 92.0), q1_b=(92.0, 90.0))
    assert measure_rank_stability(items) == pytest.approx(-1.0)


@pytest.mark.parametrize(
    "scores",
    [
        {},
        {"q0_a": (10.0,), "q0_b": (20.0,)},  # one pass
        {"q0_a": (10.0, 20.0), "q1_a": (20.0, 30.0)},  # one chain per question
        {"q0_a": (10.0, None), "q0_b": (20.0, 30.0)},  # one common score
        {"q0_a": (10.0, 20.0), "q0_b": (10.0, 30.0)},  # a pass that tells nothing apart
    ],
)
def test_rank_stability_is_not_made_up(scores: dict[str, tuple[float | None, ...]]) -> None:
    assert measure_rank_stability(in_passes(**scores)) is None


def exact_question() -> tuple[Sample, GroundTruth]:
    scene = draw_scene(5)
    question = draw_questions(scene, count=1, seed=5)[0]
    return make_records(scene, question, split="train", images=("a.png",), image_hashes=("h",))


def test_verifier_scores_the_exact_chain_100_and_finds_the_first_wrong_step() -> None:
    sample, truth = exact_question()
    spoilt = (*truth.steps[:-1], replace(truth.steps[-1], reasoning="nonsense"))
    paths = (
        make_path("exact", sample=sample.id, steps=truth.steps, answer=sample.answer),
        make_path("spoilt", sample=sample.id, steps=spoilt, answer=sample.answer),
    )
    found = VerifierScorer({sample.id: truth}).score([ScoringTask(sample=sample, paths=paths)], seed=0, image_root=ROOT)
    assert found["exact"] == PathScore(by_pass=(100.0,))
    assert found["spoilt"].by_pass[0] < 100.0
    assert found["spoilt"].errors == (len(truth.steps),)


def test_verifier_without_the_truth_says_what_to_choose() -> None:
    with pytest.raises(DataError, match=r"sample q0: no ground truth.*assess\.scorer=judge"):
        VerifierScorer({}).score([task(1)], seed=0, image_root=ROOT)
