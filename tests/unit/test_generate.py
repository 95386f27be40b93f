"""Progressive generation: the state machine, its repairs, its independence of shards, its report."""

import json
import random
from pathlib import Path

import pytest

from tests.fixtures.scripted_chat import ScriptedChat, broken, cut, make_path, make_sample, make_steps
from visloop.chat.base import ChatReply, ChatRequest
from visloop.config import GenerateConfig, Sampling
from visloop.errors import ConfigError, ModelError
from visloop.prompts.render import PromptSet
from visloop.reasoning.generate import generate_paths
from visloop.reasoning.generation_report import count_duplicate_steps, report_generation
from visloop.records.reasoning import ReasoningPath, Sample

ROOT = Path("data")
PROMPTS = PromptSet("full")
WARM, COLD = Sampling(temperature=1.0), Sampling()


def step(text: str, action: str = "continue") -> str:
    return json.dumps({"summary": "look", "reasoning": text, "action": action})


def run(script, *, samples: list[Sample] | None = None, seed: int = 0, **changes: object) -> tuple[list[ReasoningPath], ScriptedChat]:
    values: dict[str, object] = {"samples_per_question": 1, "sampling": WARM, "min_steps": 2, "max_steps": 4, "max_repairs": 2}
    model = ScriptedChat(script)
    config = GenerateConfig(**(values | changes))  # type: ignore[arg-type]
    paths = generate_paths(samples or [make_sample()], model=model, prompts=PROMPTS, config=config, seed=seed, image_root=ROOT)
    return paths, model


def play(*turns: str | ChatReply):
    """A script that plays ``turns`` in order, whatever is asked."""
    left = list(turns)
    return lambda request: left.pop(0)


def talk(request: ChatRequest) -> str:
    """A model that behaves: three steps, then the answer."""
    turn = sum(message.role == "assistant" for message in request.messages)
    return step(f"fact {turn} {request.seed}", "summary" if turn == 2 else "continue") if turn < 3 else '{"answer": "yes"}'


def wander(request: ChatRequest) -> str | ChatReply:
    """A model whose behaviour is random but decided by the request's seed alone: good, bad, cut and failing replies."""
    rng = random.Random(request.seed)
    if "final answer" in request.messages[-1].text and "JSON object {" in request.messages[-1].text:
        return rng.choice(["yes", "no", "", '{"answer": "yes"}'])
    fate = rng.random()
    if fate < 0.35:
        return "not JSON"
    if fate < 0.45:
        return cut('{"summary": "loo')
    if fate < 0.48:
        return broken()
    return step(f"fact {rng.randrange(100)}", "summary" if fate > 0.8 else "continue")


def test_a_chain_goes_step_by_step_to_its_answer() -> None:
    [path], model = run(talk)
    assert (path.status, path.answer, len(path.steps), path.error) == ("finished", "yes", 3, None)
    assert [entry.action for entry in path.steps] == ["continue", "continue", "summary"]
    assert path.replies[:3] == tuple(request.messages[-2].text for request in model.requests[1:]), (
        "replies stay in the dialogue word for word"
    )
    assert path.replies[3] == '{"answer": "yes"}'
    assert path.new_tokens == sum(len(reply.split()) for reply in path.replies)
    assert {request.id for request in model.requests} == {path.id}


def test_pictures_are_in_the_first_user_turn_only_and_in_order() -> None:
    sample = make_sample(images=("a.png", "b.png"))
    _, model = run(talk, samples=[sample])
    for request in model.requests:
        assert [message.role for message in request.messages] == (["user", "assistant"] * 4)[: len(request.messages)]
        assert request.messages[0].images == (ROOT / "a.png", ROOT / "b.png")
        assert not any(message.images for message in request.messages[1:])


def test_every_turn_is_one_batch_and_the_answers_are_one_batch_with_their_own_sampling() -> None:
    samples = [make_sample(f"q{index}") for index in range(3)]
    paths, model = run(talk, samples=samples, samples_per_question=2, final_sampling=Sampling(max_new_tokens=7))
    assert [len(batch) for batch in model.batches] == [6, 6, 6, 6]
    assert [sampling.max_new_tokens for sampling in model.samplings] == [512, 512, 512, 7]
    assert [(path.sample_id, path.index) for path in paths] == [(f"q{sample}", index) for sample in range(3) for index in range(2)]
    assert len({path.id for path in paths}) == 6


def test_a_batch_of_eight_equals_eight_batches_of_one() -> None:
    samples = [make_sample(f"q{index}") for index in range(8)]
    together, _ = run(wander, samples=samples, samples_per_question=6)
    alone = [path for sample in samples for path in run(wander, samples=[sample], samples_per_question=6)[0]]
    backwards, _ = run(wander, samples=samples[::-1], samples_per_question=6)
    assert together == alone
    assert sorted(together, key=lambda path: path.id) == sorted(backwards, key=lambda path: path.id)
    assert {path.status for path in together} == {"finished", "step_limit", "unparsable", "truncated", "failed"}, (
        "the run must meet every state"
    )


def test_another_seed_gives_other_chains_and_ids_and_more_samples_keep_the_first() -> None:
    few, _ = run(wander, samples_per_question=3)
    more, _ = run(wander, samples_per_question=6)
    other, _ = run(wander, samples_per_question=3, seed=1)
    assert more[:3] == few
    assert {path.id for path in few}.isdisjoint(path.id for path in other)


def test_an_early_summary_is_turned_into_continue_and_counted() -> None:
    [path], model = run(play(step("one", "summary"), step("two", "summary"), "yes"))
    assert [entry.action for entry in path.steps] == ["continue", "summary"]
    assert model.requests[1].messages[-1].text == PROMPTS.render("generate_continue")
    assert report_generation([path], max_duplicate_ratio=0.95).early_summaries == 1


def test_a_chain_that_never_ends_is_not_asked_for_an_answer() -> None:
    [path], model = run(lambda request: step(f"fact {request.seed}"))
    assert (path.status, path.answer, len(path.steps)) == ("step_limit", None, 4)
    assert len(model.requests) == 4


def test_summary_at_the_last_allowed_step_still_finishes() -> None:
    [path], _ = run(play(step("a"), step("b"), step("c"), step("d", "summary"), "yes"))
    assert (path.status, len(path.steps)) == ("finished", 4)


def test_a_bad_reply_is_dropped_and_the_turn_sampled_again_with_another_seed() -> None:
    [path], model = run(play(step("one"), "no json", step("two", "summary"), "yes"))
    assert (path.status, path.repairs, len(path.steps)) == ("finished", 1, 2)
    bad, again = model.requests[1:3]
    assert again.messages == bad.messages, "the bad reply must leave no trace in the dialogue"
    assert again.seed != bad.seed
    assert "no json" in path.replies, "but the record keeps it"


def test_greedy_decoding_is_repaired_by_a_reminder_for_that_try_only() -> None:
    [path], model = run(play("no json", step("one"), step("two", "summary"), "yes"), sampling=COLD)
    reminder = PROMPTS.render("generate_repair")
    first, again, after = model.requests[:3]
    assert path.status == "finished"
    assert again.messages[0].text == f"{first.messages[0].text}\n{reminder}"
    assert again.messages[0].images == first.messages[0].images
    assert not any(reminder in message.text for message in after.messages)


@pytest.mark.parametrize(
    ("turns", "status"),
    [
        (["bad"] * 3, "unparsable"),  # never a JSON object
        ([step("one"), *["bad"] * 3], "unparsable"),  # in a later step
        ([cut('{"summary": "lo')] * 3, "truncated"),  # the budget is too small for a step
        (["bad", "bad", cut("{")], "truncated"),  # what the last try says counts
        ([step("one"), step("two", "summary"), "", "", ""], "unparsable"),  # no final answer
        ([step("one"), step("two", "summary"), *[cut("it is a re")] * 3], "truncated"),  # final answer cut
        ([step("one"), broken("timeout")], "failed"),  # the backend gave up after its own retries
        ([step("one"), step("two", "summary"), broken("timeout")], "failed"),
    ],
)
def test_chains_that_fail_end_in_a_typed_state_without_an_answer(turns: list[str | ChatReply], status: str) -> None:
    [path], model = run(play(*turns))
    assert (path.status, path.answer) == (status, None)
    assert path.error
    assert len(model.requests) == len(turns)
    assert path.repairs == (2 if status != "failed" else 0)


def test_one_failing_chain_does_not_stop_the_others() -> None:
    samples = [make_sample("good"), make_sample("bad")]
    paths, _ = run(lambda request: "?" if "in bad ?" in request.messages[0].text else talk(request), samples=samples)
    assert [path.status for path in paths] == ["finished", "unparsable"]


def test_progress_rises_to_all_chains() -> None:
    seen: list[tuple[int, int]] = []
    config = GenerateConfig(samples_per_question=3, sampling=WARM)
    generate_paths(
        [make_sample()],
        model=ScriptedChat(talk),
        prompts=PROMPTS,
        config=config,
        seed=0,
        image_root=ROOT,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == sorted(seen) and seen[-1] == (3, 3)


def test_a_backend_that_loses_replies_is_an_error() -> None:
    class Lossy(ScriptedChat):
        def reply(self, requests, *, sampling):
            return super().reply(requests, sampling=sampling)[1:]

    with pytest.raises(ModelError, match="0 replies to 1 requests"):
        generate_paths(
            [make_sample()], model=Lossy(talk), prompts=PROMPTS, config=GenerateConfig(samples_per_question=1), seed=0, image_root=ROOT
        )


@pytest.mark.parametrize("changes", [{"min_steps": 0}, {"min_steps": 5}, {"samples_per_question": 0}, {"max_repairs": -1}])
def test_contradicting_limits_are_refused(changes: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        run(talk, **changes)


def test_duplicate_steps_by_hand() -> None:
    steps = make_steps("the circle is red", "the square is blue", "The  circle is red", "the circle is red.", "something else entirely")
    assert count_duplicate_steps(steps, max_ratio=0.95) == 2
    assert count_duplicate_steps(steps, max_ratio=1.0) == 1
    assert count_duplicate_steps(steps[:1], max_ratio=0.0) == 0


def test_report_by_hand() -> None:
    paths = [
        make_path("p0", texts=("a b c", "a b c", "done"), new_tokens=10),
        make_path("p1", texts=("a b c", "a b c", "done"), new_tokens=20, repairs=2),
        make_path("p2", sample="q1", texts=("other",), status="step_limit", answer=None, new_tokens=30),
        make_path("p3", sample="q1", texts=(), status="failed", answer=None, new_tokens=0),
    ]
    report = report_generation(paths, max_duplicate_ratio=0.95)
    assert (report.paths, report.questions, report.steps) == (4, 2, 7)
    assert report.by_status == {"failed": 1, "finished": 2, "step_limit": 1}
    assert (report.finished_rate, report.steps_per_path, report.repairs) == (0.5, 1.75, 2)
    assert (report.duplicate_steps, report.duplicate_step_rate) == (2, 2 / 7)
    assert report.distinct_chain_rate == 0.5, "p0 and p1 say the same"
    assert (report.new_tokens, report.tokens_per_path) == (60, 15.0)
    assert report_generation([], max_duplicate_ratio=0.95).finished_rate == 0.0
