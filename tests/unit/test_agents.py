"""The two agents and how several chains become one answer."""

from pathlib import Path

import pytest

from tests.fixtures.scripted_chat import ScriptedChat, broken, cut, make_path, make_sample, stop
from visloop.chat.base import ChatReply, ChatRequest
from visloop.config import AnswerConfig, Combine, Sampling
from visloop.errors import ConfigError, DataError
from visloop.prompts.render import PromptSet
from visloop.reasoning.agents import answer_directly, answer_multi_turn, read_thoughts, sample_chains, summarize_chains
from visloop.reasoning.combine import combine_chains, group_chains, pick_best_chains, vote, vote_chain_answers
from visloop.reasoning.score_paths import ChatScorer, PathScore
from visloop.records.reasoning import ReasoningPath

ROOT = Path("data")
PROMPTS = PromptSet("full")
GOOD = "<thoughts>\nlook: a red circle\n</thoughts>\n<output>yes</output>"
NO_ANSWER = "<thoughts>\nlook: a red circle\n</thoughts>\n"
OPEN = "<thoughts>\nlook: a red circle\n"
SAMPLE = make_sample()


def chains(script, *, count: int = 1, samples=(SAMPLE,), seed: int = 0) -> tuple[list[ReasoningPath], ScriptedChat]:
    model = ScriptedChat(script)
    paths = sample_chains(
        list(samples), model=model, prompts=PROMPTS, samples_per_question=count, sampling=Sampling(), seed=seed, image_root=ROOT
    )
    return paths, model


def summarize(path: ReasoningPath, script, *, samples=(SAMPLE,)):
    model = ScriptedChat(script)
    answers = summarize_chains(
        list(samples), {SAMPLE.id: [path]}, model=model, prompts=PROMPTS, sampling=Sampling(), seed=0, image_root=ROOT
    )
    return answers[0], model


@pytest.mark.parametrize(
    ("reply", "status", "answer", "steps"),
    [
        (stop(GOOD), "finished", "yes", 1),
        (cut(GOOD), "finished", "yes", 1),  # whole although the budget ended there
        (cut(NO_ANSWER + "<output>ye"), "truncated", None, 1),  # cut inside the answer
        (cut(OPEN), "truncated", None, 1),  # cut inside the thoughts
        (cut("<thoughts>"), "truncated", None, 0),
        (stop(OPEN), "unparsable", None, 1),  # stopped without closing
        (stop(NO_ANSWER), "unparsable", None, 1),  # no answer of its own
        (stop("The circle is red. yes"), "unparsable", None, 0),  # no tags at all
        (stop(""), "unparsable", None, 0),
        (broken("timeout"), "failed", None, 0),
    ],
)
def test_states_of_a_chain(reply: ChatReply, status: str, answer: str | None, steps: int) -> None:
    [path], _ = chains(lambda request: reply)
    assert (path.status, path.answer, len(path.steps)) == (status, answer, steps)
    assert (path.error is None) == (status == "finished")
    assert path.replies == (() if status == "failed" else (reply.text,))


def test_chains_are_one_batch_with_ids_and_seeds_of_their_own() -> None:
    samples = [make_sample("q0"), make_sample("q1")]
    paths, model = chains(lambda request: GOOD, count=3, samples=samples)
    assert [len(batch) for batch in model.batches] == [6]
    assert len({path.id for path in paths}) == len({request.seed for request in model.requests}) == 6
    assert all(
        request.messages[0].images == (ROOT / f"images/{path.sample_id}.png",) for path, request in zip(paths, model.requests, strict=True)
    )
    alone = [path for sample in samples for path in chains(lambda request: GOOD, count=3, samples=[sample])[0]]
    assert alone == paths, "the same chains whatever the batch"
    assert {path.id for path in chains(lambda request: GOOD, seed=1)[0]}.isdisjoint(path.id for path in paths)
    with pytest.raises(ConfigError):
        chains(lambda request: GOOD, count=0)


@pytest.mark.parametrize(
    ("reply", "whole"),
    [
        (stop(GOOD), True),
        (stop(NO_ANSWER), True),
        (cut(NO_ANSWER), True),
        (stop(OPEN), False),
        (cut(OPEN), False),
        (stop("yes"), False),
        (broken(), False),
    ],
)
def test_only_closed_thoughts_are_passed_on(reply: ChatReply, whole: bool) -> None:
    [path], _ = chains(lambda request: reply)
    assert read_thoughts(path) == ("<thoughts>\nlook: a red circle\n</thoughts>" if whole else None)


def test_the_turns_of_a_generator_are_no_thoughts() -> None:
    path = make_path("p", status="step_limit", answer=None, replies=(GOOD, GOOD))
    assert read_thoughts(path) is None


def test_the_summarizer_sees_pictures_question_and_chain() -> None:
    answer, model = summarize(chains(lambda request: GOOD)[0][0], lambda request: "no")
    [request] = model.requests
    assert request.messages[0].images == (ROOT / "images/q0.png",), "a summarizer without pictures is blind"
    assert SAMPLE.question in request.messages[0].text and "look: a red circle" in request.messages[0].text
    assert "<output>" not in request.messages[0].text, "the reasoner's own answer is not shown"
    assert (answer.answer, answer.status, answer.chain_answers, answer.chains) == ("no", "ok", ("yes",), (GOOD,))


@pytest.mark.parametrize(
    ("reply", "status"),
    [(cut(OPEN), "chain_truncated"), (stop(OPEN), "chain_missing"), (stop("yes"), "chain_missing"), (broken(), "chain_missing")],
)
def test_without_a_whole_chain_the_plain_question_is_answered_and_the_state_is_told(reply: ChatReply, status: str) -> None:
    answer, model = summarize(chains(lambda request: reply)[0][0], lambda request: "no")
    assert model.requests[0].messages[0].text == PROMPTS.render("direct", question=SAMPLE.question)
    assert (answer.answer, answer.status) == ("no", status)


@pytest.mark.parametrize(
    ("reply", "status"), [(stop(""), "answer_missing"), (cut("it is a re"), "answer_missing"), (broken("down"), "failed")]
)
def test_a_summarizer_without_an_answer(reply: ChatReply, status: str) -> None:
    for first in (stop(GOOD), cut(OPEN)):
        answer, _ = summarize(chains(lambda request, first=first: first)[0][0], lambda request: reply)
        assert (answer.answer, answer.status) == (None, status)


def test_a_sample_without_chains_is_an_error_not_a_silent_direct_answer() -> None:
    with pytest.raises(DataError, match="sample q1: no chain"):
        summarize(make_path("p"), lambda request: "yes", samples=(SAMPLE, make_sample("q1")))
    with pytest.raises(DataError, match="sample q0: no chain"):
        vote_chain_answers([SAMPLE], {"q0": []})


def test_direct_answers() -> None:
    script = {"q0": stop("yes"), "q1": cut("y"), "q2": broken("down")}
    samples = [make_sample(name) for name in script]
    model = ScriptedChat(lambda request: next(reply for name, reply in script.items() if f"in {name} ?" in request.messages[0].text))
    answers = answer_directly(samples, model=model, prompts=PROMPTS, sampling=Sampling(), seed=0, image_root=ROOT)
    assert [(answer.sample_id, answer.answer, answer.status) for answer in answers] == [
        ("q0", "yes", "ok"),
        ("q1", None, "answer_missing"),
        ("q2", None, "failed"),
    ]
    assert answers[2].raw == "error: down"
    assert len(model.batches) == 1


def test_multi_turn_keeps_the_first_turn_word_for_word() -> None:
    def script(request: ChatRequest) -> str:
        return "yes" if len(request.messages) == 3 else f"  {NO_ANSWER}"

    model = ScriptedChat(script)
    [answer] = answer_multi_turn(
        [SAMPLE], model=model, prompts=PROMPTS, reason_sampling=Sampling(), answer_sampling=Sampling(), seed=0, image_root=ROOT
    )
    assert (answer.answer, answer.status, answer.chains) == ("yes", "ok", (f"  {NO_ANSWER}",))
    second = model.requests[1].messages
    assert [message.role for message in second] == ["user", "assistant", "user"]
    assert second[1].text == f"  {NO_ANSWER}" and second[0].images and not second[2].images


@pytest.mark.parametrize(("first", "status"), [(cut(OPEN), "chain_truncated"), (stop("hm"), "chain_missing"), (broken(), "chain_missing")])
def test_multi_turn_without_thoughts_falls_back_to_the_plain_question(first: ChatReply, status: str) -> None:
    direct = PROMPTS.render("direct", question=SAMPLE.question)
    model = ScriptedChat(lambda request: "no" if request.messages[0].text == direct else first)
    [answer] = answer_multi_turn(
        [SAMPLE], model=model, prompts=PROMPTS, reason_sampling=Sampling(), answer_sampling=Sampling(), seed=0, image_root=ROOT
    )
    assert (answer.answer, answer.status) == ("no", status)


@pytest.mark.parametrize(
    ("answers", "winner"),
    [
        (["yes", "no", "Yes."], 0),
        (["no", "yes", "yes"], 1),
        (["no", "yes"], 0),  # a tie: said first
        ([None, "yes", None], 1),  # a missing answer is no vote
        (["two", "2", "3"], 0),
        ([None, None], None),
        ([], None),
    ],
)
def test_vote(answers: list[str | None], winner: int | None) -> None:
    assert vote(answers) == winner


def test_self_consistency_over_own_answers() -> None:
    paths = [
        make_path("p1", index=1, answer="no"),
        make_path("p0", index=0, answer="yes"),
        make_path("p2", index=2, answer="no"),
        make_path("p3", index=3, answer="yes", status="truncated"),
    ]
    [answer] = vote_chain_answers([SAMPLE], group_chains(paths))
    assert (answer.answer, answer.status) == ("no", "ok")
    assert answer.chain_answers == ("yes", "no", "no", None), "in the order of the chains; a cut chain has no vote"


@pytest.mark.parametrize(("status", "told"), [("truncated", "chain_truncated"), ("unparsable", "chain_missing"), ("failed", "failed")])
def test_no_own_answer_tells_why(status: str, told: str) -> None:
    [answer] = vote_chain_answers([SAMPLE], {"q0": [make_path("p", status=status, answer=None)]})
    assert (answer.answer, answer.status) == (None, told)


def test_every_chain_has_one_text_on_the_answer() -> None:
    """A generator's chain has several replies, a failed one none; texts and own answers stay side by side."""
    paths = [make_path("p0", replies=("step", "final")), make_path("p1", index=1, replies=(), status="failed", answer=None)]
    [answer] = vote_chain_answers([SAMPLE], group_chains(paths))
    assert (answer.chains, answer.chain_answers) == (("step\nfinal", ""), ("yes", None))


class FixedScorer:
    """Scores by path id; None where it has no opinion."""

    name, sees_answer = "fixed", False

    def __init__(self, scores: dict[str, float | None]) -> None:
        self.scores, self.asked = scores, []

    def score(self, tasks, *, seed, image_root):
        self.asked += [path.id for task in tasks for path in task.paths]
        return {path.id: PathScore(by_pass=(self.scores[path.id],)) for task in tasks for path in task.paths}


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ({"p0": 10.0, "p1": 90.0, "p2": 50.0}, "p1"),
        ({"p0": 50.0, "p1": 50.0, "p2": 20.0}, "p0"),  # a tie: the lower index
        ({"p0": None, "p1": 5.0, "p2": None}, "p1"),  # unscored is below every score
        ({"p0": None, "p1": None, "p2": None}, "p0"),
    ],
)
def test_best_of_n(scores: dict[str, float | None], best: str) -> None:
    grouped = group_chains([make_path(name, index=index) for index, name in enumerate(scores)])
    assert pick_best_chains([SAMPLE], grouped, scorer=FixedScorer(scores), seed=0, image_root=ROOT)["q0"].id == best


def test_best_of_n_passes_over_chains_that_are_not_finished() -> None:
    grouped = {"q0": [make_path("p0", status="truncated", answer=None), make_path("p1"), make_path("p2")]}
    scorer = FixedScorer({"p1": 20.0, "p2": 30.0})
    assert pick_best_chains([SAMPLE], grouped, scorer=scorer, seed=0, image_root=ROOT)["q0"].id == "p2"
    assert scorer.asked == ["p1", "p2"]
    only_cut = {"q0": [make_path("p0", status="truncated", answer=None)]}
    assert pick_best_chains([SAMPLE], only_cut, scorer=scorer, seed=0, image_root=ROOT)["q0"].id == "p0"


def test_best_of_n_refuses_a_scorer_that_sees_the_answer() -> None:
    judge = ChatScorer(ScriptedChat(lambda request: ""), prompts=PROMPTS, sampling=Sampling(), show_answer=True)
    with pytest.raises(ConfigError, match="sees the true answers"):
        pick_best_chains([SAMPLE], {"q0": [make_path("p0")]}, scorer=judge, seed=0, image_root=ROOT)


def combine(mode: Combine, grouped: dict[str, list[ReasoningPath]], *, scorer=None, script=None):
    """The scripted summarizer repeats the first step of its chain as the answer."""

    def echo(request: ChatRequest) -> str:
        return request.messages[0].text.split("look: ")[1].split("\n")[0] if "look: " in request.messages[0].text else "plain"

    model = ScriptedChat(script or echo)
    answers = combine_chains(
        [SAMPLE],
        grouped,
        model=model,
        prompts=PROMPTS,
        combine=mode,
        sampling=AnswerConfig().summary_sampling,
        seed=0,
        image_root=ROOT,
        scorer=scorer,
    )
    return answers, model


CHAINS = {"q0": [make_path(f"p{index}", index=index, texts=(text, "so")) for index, text in enumerate(("red", "blue", "blue"))]}


def test_combine_modes() -> None:
    [single], model = combine(Combine.summary, CHAINS)
    assert single.answer == "red" and len(model.requests) == 1
    [voted], model = combine(Combine.self_consistency, CHAINS)
    assert voted.answer == "blue" and [len(batch) for batch in model.batches] == [3]
    assert (voted.sample_id, len(voted.chains), len(voted.chain_answers)) == ("q0", 3, 3)
    [best], model = combine(Combine.best_of_n, CHAINS, scorer=FixedScorer({"p0": 1.0, "p1": 2.0, "p2": 3.0}))
    assert best.answer == "blue" and len(model.requests) == 1
    with pytest.raises(ConfigError, match="needs a path scorer"):
        combine(Combine.best_of_n, CHAINS)


def test_vote_over_summaries_without_any_answer_keeps_the_state() -> None:
    [answer], _ = combine(Combine.self_consistency, CHAINS, script=lambda request: broken("down"))
    assert (answer.answer, answer.status, answer.sample_id) == (None, "failed", "q0")
