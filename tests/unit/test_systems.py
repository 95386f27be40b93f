"""Every row of the ablation table asks the models that it should, and only those; chains are measured exactly."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from visloop.chat.base import ChatReply
from visloop.config import AnswerConfig, Combine, GenerateConfig, Sampling
from visloop.datasets.benchmarks import BenchmarkItem
from visloop.errors import ConfigError, DataError
from visloop.evaluation.benchmarks.scores import score_benchmark
from visloop.evaluation.chains import build_chain_matrix, check_path
from visloop.evaluation.metrics import measure_outcomes, read_outcomes
from visloop.evaluation.systems import (
    Exam,
    System,
    answer_majority,
    answer_system,
    is_chain_right,
    list_systems,
    measure_reasoner,
    run_system,
    score_answers,
    write_chains,
)
from visloop.prompts.render import PromptSet
from visloop.reasoning.score_paths import PathScore, VerifierScorer
from visloop.records.chains import format_chain
from visloop.records.reasoning import AgentAnswer, ReasoningPath, ReasoningStep, Sample
from visloop.scenes.export import export_dataset

STEPS = (
    ReasoningStep(summary="find red", reasoning="x1 y1", action="continue"),
    ReasoningStep(summary="count", reasoning="1", action="summary"),
)


class Script:
    """A model of fixed replies: the last user turn's first word picks one; every request is kept."""

    def __init__(self, name: str, **replies: str) -> None:
        self.name, self.replies, self.requests, self.samplings = name, replies, [], []

    def reply(self, requests, *, sampling):
        self.requests += requests
        self.samplings.append(sampling)
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        text = request.messages[-1].text
        found = self.replies.get(re.match(r"\w+", text).group())
        assert found is not None, f"{self.name} was not to be asked {text!r}"
        return ChatReply(text=found, finish="stop", new_tokens=7)

    def close(self):
        pass


def make_sample(number: int = 0, **values) -> Sample:
    sample = Sample(
        id=f"q{number}",
        images=("a.png",),
        question=f"how many red things {number} ?",
        answer="1",
        answer_type="number",
        family="count",
        split="test",
        source="scenes",
        group=f"g{number}",
    )
    return replace(sample, **values)


def make_exam(samples=None, **answer) -> Exam:
    return Exam(
        samples=samples or [make_sample(0), make_sample(1, answer="2")],
        prompts=PromptSet("compact"),
        answer=AnswerConfig(**answer),
        sampled=Sampling(temperature=1.0, max_new_tokens=99),
        seed=3,
        image_root=Path("images"),
    )


def make_path(sample: Sample, *, steps=STEPS, answer: str | None = "1", status="finished", index: int = 0) -> ReasoningPath:
    return ReasoningPath(
        id=f"{sample.id}-{index}",
        sample_id=sample.id,
        index=index,
        steps=steps,
        answer=answer,
        status=status,
        replies=("raw",),
        repairs=0,
        seed=0,
        model="m",
        prompts_hash="p",
        new_tokens=10 * (index + 1),
    )


def test_rows_are_those_of_the_papers_tables():
    names = [system.name for system in list_systems(rounds=["M_1", "M_2", "M_3"])]
    assert names == [
        "base direct",
        "base step-by-step",
        "direct SFT",
        "multi-turn",
        "summary only",
        "two agents",
        "two agents + 1 round",
        "two agents + 3 rounds",
    ]
    assert [system.name for system in list_systems(rounds=["M_1"])][5:] == ["two agents", "two agents + 1 round"]


def test_without_an_accepted_round_the_votes_are_by_the_first_reasoner():
    votes = list_systems(vote_chains=4, votes_by=[Combine.self_consistency, Combine.best_of_n])[6:]
    assert [(vote.model, vote.chains, vote.combine) for vote in votes] == [
        ("M_0", 4, Combine.self_consistency),
        ("M_0", 4, Combine.best_of_n),
    ]
    assert votes[0].name == "two agents, self-consistency (4 chains)"


def test_system_names_are_unique():
    names = [system.name for system in list_systems(rounds=["M_1", "M_2"], vote_chains=4, votes_by=list(Combine))]
    assert len(set(names)) == len(names)


def test_base_direct_asks_the_base_alone():
    base = Script("base", answer="1")
    predictions = run_system(list_systems()[0], make_exam(), models={"base": base})
    assert [prediction.correct for prediction in predictions] == [True, False]
    assert [prediction.system for prediction in predictions] == ["base direct"] * 2
    assert [message.images for message in base.requests[0].messages] == [(Path("images/a.png"),)]


def test_base_step_by_step_runs_the_state_machine_greedily_once():
    go_on = '{"summary":"s","reasoning":"r","action":"continue"}'
    stop = '{"summary":"s2","reasoning":"r","action":"summary"}'
    base = Script("base", step=go_on, next=stop, final="1")
    generate = GenerateConfig(samples_per_question=5, sampling=Sampling(temperature=1.0, max_new_tokens=48))
    predictions = run_system(list_systems()[1], make_exam(), models={"base": base}, generate=generate)
    assert [prediction.correct for prediction in predictions] == [True, False]
    assert {sampling.temperature for sampling in base.samplings} == {0.0}
    assert len(base.requests) == 2 * 3  # two steps and the answer, one chain per question


def test_direct_sft_answers_by_its_own_chain():
    model = Script("sft", reason=format_chain(STEPS, "1"))
    predictions = run_system(list_systems()[2], make_exam(), models={"direct_sft": model})
    assert [prediction.correct for prediction in predictions] == [True, False]


def test_an_unfinished_chain_is_no_answer_and_keeps_its_state():
    model = Script("sft", reason="<thoughts>\nfind red: x1 y1")
    predictions = run_system(list_systems()[2], make_exam(), models={"direct_sft": model})
    assert [(prediction.answer, prediction.correct, prediction.status) for prediction in predictions] == [
        (None, False, "chain_missing")
    ] * 2


def test_summary_only_never_sees_a_chain():
    model = Script("summary", answer="2")
    predictions = run_system(list_systems()[4], make_exam(), models={"summarizer": model})
    assert [prediction.correct for prediction in predictions] == [False, True]


def test_two_agents_pass_the_thoughts_on_and_the_summarizer_decides():
    reasoner = Script("M_0", reason=format_chain(STEPS, "7"))
    summarizer = Script("summary", summarize="1")
    predictions = run_system(list_systems()[5], make_exam(), models={"M_0": reasoner, "summarizer": summarizer})
    assert [prediction.correct for prediction in predictions] == [True, False]
    asked = summarizer.requests[0].messages[-1]
    assert "find red: x1 y1" in asked.text
    assert asked.images == (Path("images/a.png"),)
    assert "7" not in asked.text.split("<thoughts>")[1]


def test_chains_that_were_written_before_are_not_written_again():
    exam = make_exam()
    reasoner, summarizer = Script("M_0", reason=format_chain(STEPS, "1")), Script("summary", summarize="1")
    models = {"M_0": reasoner, "summarizer": summarizer}
    chains = write_chains(exam, model=reasoner)
    assert reasoner.samplings == [exam.answer.reason_sampling]
    again = answer_system(list_systems()[5], exam, models=models, chains=chains)
    assert len(reasoner.requests) == 2
    assert again == answer_system(list_systems()[5], exam, models=models)


def test_several_chains_are_sampled_and_voted_on():
    exam = make_exam()
    reasoner, summarizer = Script("M_0", reason=format_chain(STEPS, "1")), Script("summary", summarize="1")
    system = list_systems(vote_chains=3)[-1]
    run_system(system, exam, models={"M_0": reasoner, "summarizer": summarizer})
    assert len(reasoner.requests) == len(summarizer.requests) == 6
    assert reasoner.samplings == [exam.sampled]


def test_best_of_n_takes_the_chain_that_the_scorer_prefers():
    sample = make_sample()
    good = (ReasoningStep(summary="good", reasoning="r", action="summary"),)
    paths = [make_path(sample, index=0), make_path(sample, index=1, steps=good)]

    class Scorer:
        name = "scorer"
        sees_answer = False

        def score(self, tasks, *, seed, image_root):
            return {path.id: PathScore(by_pass=(90.0 if path.steps == good else 10.0,)) for task in tasks for path in task.paths}

    summarizer = Script("summary", summarize="1")
    system = System(name="x", kind="two_agents", model="M_0", summarizer="summarizer", combine=Combine.best_of_n, chains=2)
    models = {"M_0": Script("M_0"), "summarizer": summarizer}
    run_system(system, make_exam([sample]), models=models, chains=paths, scorer=Scorer())
    assert "good: r" in summarizer.requests[0].messages[-1].text
    with pytest.raises(ConfigError, match="scorer"):
        run_system(system, make_exam([sample]), models=models, chains=paths)


def test_a_missing_model_is_named():
    with pytest.raises(ConfigError, match=r"'summarizer'.*opened: M_0"):
        run_system(list_systems()[5], make_exam(), models={"M_0": Script("M_0", reason="x")})
    with pytest.raises(ConfigError, match="generate"):
        run_system(list_systems()[1], make_exam(), models={"base": Script("base")})


def test_answers_of_other_samples_are_refused():
    answers = [AgentAnswer(sample_id="q1", answer="1", status="ok"), AgentAnswer(sample_id="q0", answer="1", status="ok")]
    with pytest.raises(DataError, match="in order"):
        score_answers(answers, make_exam().samples, system="x")


@pytest.mark.parametrize(
    ("answer", "truth", "kind", "right"),
    [
        ("yes", "true", "boolean", True),
        ("red", "blue", "phrase", False),
        ("red or blue", "red", "phrase", False),
        ("The answer is two.", "2", "number", True),
        (None, "2", "number", False),
        ("", "2", "number", False),
    ],
)
def test_what_is_not_surely_right_is_wrong(answer, truth, kind, right):
    sample = make_sample(answer=truth, answer_type=kind)
    [prediction] = score_answers([AgentAnswer(sample_id="q0", answer=answer, status="ok")], [sample], system="x")
    assert prediction.correct is right


def test_a_reasoner_is_measured_by_hand_computed_values():
    sample = make_sample()
    greedy = [make_path(sample)]
    sampled = [
        make_path(sample, index=0),
        make_path(sample, index=1, answer="2"),
        make_path(sample, index=2, answer=None, status="truncated"),
        make_path(sample, index=3),
    ]

    class Scorer:
        name = "scorer"
        sees_answer = True

        def score(self, tasks, *, seed, image_root):
            assert [path.index for task in tasks for path in task.paths] == [0, 1, 3]  # nothing unfinished is asked
            return {"q0-0": PathScore(by_pass=(80.0, 60.0)), "q0-1": PathScore(by_pass=(40.0, None)), "q0-3": PathScore(by_pass=(None,))}

    [prediction] = measure_reasoner(make_exam([sample]), name="M_1", greedy=greedy, sampled=sampled, scorer=Scorer())
    assert prediction.correct
    assert prediction.metrics == {
        "greedy_accuracy": 1.0,
        "sampled_accuracy": 0.5,
        "malformed": 0.25,
        "chain_tokens": 25.0,
        "path_score": pytest.approx((70 + 40 + 1) / 3),  # the unjudged chain is left out, the cut one has the lowest score
    }


def test_a_reasoner_without_a_scorer_has_no_path_score():
    sample = make_sample()
    predictions = measure_reasoner(make_exam([sample]), name="M_0", greedy=[make_path(sample)], sampled=[make_path(sample)])
    assert "path_score" not in predictions[0].metrics
    assert measure_outcomes(read_outcomes(predictions, metric="sampled_accuracy")).value == 1.0
    with pytest.raises(DataError, match=r"1 samples have no greedy or no sampled chain, e\.g\. q0"):
        measure_reasoner(make_exam([sample]), name="M_0", greedy=[make_path(sample)], sampled=[])


def test_a_system_can_sit_a_public_benchmark():
    sample = make_sample(answer="B", answer_type="letter", source="ai2d")
    item = BenchmarkItem(sample=sample, benchmark="ai2d", answers=("B",), options=("x", "y"), details={"key": "0"})
    answers = answer_system(list_systems()[0], make_exam([sample]), models={"base": Script("base", answer="B.")})
    result = score_benchmark([item], {answer.sample_id: answer.answer for answer in answers}, system="base direct")
    assert (result.rows[0].name, result.rows[0].value) == ("base direct", 1.0)


# chains against scenes


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    part = export_dataset(tmp_path_factory.mktemp("scenes"), seed=1, counts={"test": 12})["test"]
    return part.samples, {truth.sample_id: truth for truth in part.ground_truth}


def test_the_matrix_counts_chains_against_final_answers(world):
    samples, truths = world
    four = samples[:4]
    exact = [make_path(sample, steps=truths[sample.id].steps, answer=sample.answer) for sample in four]
    broken = ReasoningStep(summary="nonsense", reasoning="x", action="continue")
    paths = [
        exact[0],
        exact[1],
        replace(exact[2], steps=(broken, *exact[2].steps)),
        replace(exact[3], status="truncated", answer=None),
    ]
    answers = [four[0].answer, "no such answer", four[2].answer, None]
    given = [AgentAnswer(sample_id=s.id, answer=a, status="ok") for s, a in zip(four, answers, strict=True)]
    predictions = score_answers(given, four, system="x")
    matrix = build_chain_matrix(paths, predictions, samples=four, truths=truths)
    assert matrix.counts == ((1, 1), (1, 1))
    assert matrix.total == 4
    checks = [check_path(path, sample, truths[sample.id]) for path, sample in zip(paths, four, strict=True)]
    assert [check and check.first_error_step for check in checks] == [None, None, 1, None] and checks[3] is None


def test_a_right_chain_with_a_wrong_own_answer_is_still_a_right_chain(world):
    samples, truths = world
    path = make_path(samples[0], steps=truths[samples[0].id].steps, answer="no such answer")
    check = check_path(path, samples[0], truths[samples[0].id])
    assert (check.first_error_step, check.answer_right) == (None, False)
    assert not is_chain_right(path, samples[0])


def test_a_chain_that_stops_early_is_told_from_a_wrong_step(world):
    samples, truths = world
    sample = next(sample for sample in samples if len(truths[sample.id].steps) > 1)
    path = make_path(sample, steps=truths[sample.id].steps[:-1], answer=sample.answer)
    check = check_path(path, sample, truths[sample.id])
    assert check is not None and check.first_error_step == len(path.steps) + 1


def test_exact_chains_score_a_hundred_with_the_verifier(world):
    samples, truths = world
    paths = [make_path(sample, steps=truths[sample.id].steps, answer=sample.answer) for sample in samples]
    predictions = measure_reasoner(make_exam(samples), name="M_0", greedy=paths, sampled=paths, scorer=VerifierScorer(truths))
    assert {prediction.metrics["path_score"] for prediction in predictions} == {100.0}


def test_what_does_not_belong_together_is_refused(world):
    samples, truths = world
    path = make_path(samples[0], steps=truths[samples[0].id].steps)
    own = AgentAnswer(sample_id=samples[0].id, answer=samples[0].answer, status="ok")
    with pytest.raises(DataError, match="embedded world only"):
        build_chain_matrix([path], score_answers([own], samples[:1], system="x"), samples=samples[:1], truths={})
    with pytest.raises(DataError, match="one chain and one prediction per sample"):
        build_chain_matrix([path, path], [], samples=samples[:1], truths=truths)
    with pytest.raises(DataError, match="checked against"):
        check_path(path, samples[1], truths[samples[1].id])


def test_majority_answer_is_counted_per_family_on_training_samples() -> None:
    train = [make_sample(n, family="a", answer=answer, answer_type="boolean") for n, answer in enumerate(["yes", "no", "yes"])]
    train += [make_sample(9, family="b", answer="no", answer_type="boolean")]
    test = [make_sample(20 + n, family=family, answer="yes", answer_type="boolean") for n, family in enumerate("abc")]
    predictions = answer_majority(test, train=train)
    assert [item.answer for item in predictions] == ["yes", "no", "yes"], "family c: tie of all answers, the first seen"
    assert [item.correct for item in predictions] == [True, False, True]
    with pytest.raises(DataError, match="no training sample"):
        answer_majority(test, train=[])
