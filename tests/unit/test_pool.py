"""The question pool and the prompt sets of the rounds."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fixtures.scripted_chat import make_sample
from visloop.config import PoolConfig
from visloop.errors import ConfigError, DataError
from visloop.reasoning.pool import build_pool, normalize_question, split_prompts
from visloop.records.reasoning import Sample, Verdict

FAMILIES = ("exist", "count", "compare")


def make_samples(count: int) -> list[Sample]:
    return [make_sample(f"q{index}", family=FAMILIES[index % 3]) for index in range(count)]


def verdicts(samples: list[Sample], *, wrong_every: int = 2) -> dict[str, Verdict]:
    return {sample.id: "wrong" if index % wrong_every == 0 else "correct" for index, sample in enumerate(samples)}


def build(
    samples: list[Sample], *, held_out: list[Sample] | None = None, base: dict[str, Verdict] | None = None, seed: int = 0, **changes: object
):
    config = PoolConfig(**({"size": 12, "hard_share": 0.5, "max_family_share": 0.5} | changes))  # type: ignore[arg-type]
    return build_pool(samples, base_verdicts=base or verdicts(samples), held_out=held_out or [], config=config, seed=seed)


def test_shares_quotas_and_account_of_every_candidate() -> None:
    samples = make_samples(60)
    pool, report = build(samples)
    base = verdicts(samples)
    assert Counter(base[sample.id] for sample in pool) == {"wrong": 6, "correct": 6}
    assert max(Counter(sample.family for sample in pool).values()) <= 6
    assert report.shortages == {"hard": 0, "rest": 0}
    assert report.kept + sum(report.drop_counts.values()) == report.candidates == 60
    assert sum(sum(row.values()) for row in report.composition.values()) == 12
    assert [sample.id for sample in pool] == [sample.id for sample in samples if sample in pool], "order of the input"


@given(st.integers(1, 30), st.floats(0, 1), st.floats(0.05, 1), st.integers(0, 5))
def test_limits_always_hold(size: int, hard_share: float, family_share: float, seed: int) -> None:
    samples = make_samples(40)
    pool, report = build(samples, size=size, hard_share=hard_share, max_family_share=family_share, seed=seed)
    base = verdicts(samples)
    hard = sum(base[sample.id] == "wrong" for sample in pool)
    assert hard <= report.quotas["hard"] and len(pool) - hard <= report.quotas["rest"]
    assert report.quotas["hard"] + report.quotas["rest"] == size
    assert sum(report.shortages.values()) == size - len(pool)
    assert max(Counter(sample.family for sample in pool).values(), default=0) <= max(1, int(size * family_share))
    assert report.kept + sum(report.drop_counts.values()) == 40


def test_too_few_hard_questions_are_a_reported_shortage_not_filled_from_the_rest() -> None:
    samples = make_samples(30)
    base: dict[str, Verdict] = dict.fromkeys((sample.id for sample in samples), "correct") | {"q0": "wrong", "q1": "wrong"}
    pool, report = build(samples, base=base)
    assert len(pool) == 8
    assert report.shortages == {"hard": 4, "rest": 0}


def test_duplicates_are_the_same_pictures_and_the_same_words() -> None:
    first = make_sample("q0")
    same = replace(first, id="q1", images=("copy.png",), question=first.question.upper() + " ")  # same bytes, other file and spelling
    other_picture = replace(first, id="q2", image_hashes=("other",))
    other_question = replace(first, id="q3", question="is it blue ?")
    _, report = build([first, same, other_picture, other_question], max_family_share=1.0)
    assert report.dropped["duplicate"] == ("q1",)


def test_decontamination_by_picture_and_by_group_but_not_by_text_alone() -> None:
    held = make_sample("held", images=("a.png", "b.png"), image_hashes=("ha", "hb"), group="g")
    samples = [
        replace(
            held, id="picture", images=("c.png", "d.png"), image_hashes=("hb", "ha"), question="another question", group="x"
        ),  # the same pictures, in another order
        replace(held, id="box", image_hashes=("ha", "h9"), question="a third question", group="x"),  # one shared box, another scene
        replace(held, id="rendered", image_hashes=("h1", "h2")),  # the same scene, drawn again
        replace(held, id="text", image_hashes=("h3", "h4"), group="x"),  # the same words on other pictures: fine
        replace(held, id="group", image_hashes=("h5", "h6"), question="another question"),  # another question on the scene
        replace(held, id="answer", image_hashes=("h7", "h8"), answer="no"),  # same words and group, another answer
    ]
    pool, report = build(
        samples, held_out=[held], base=dict.fromkeys((sample.id for sample in samples), "wrong"), hard_share=1.0, max_family_share=1.0
    )
    assert report.dropped == {"held_out_image": ("picture",), "held_out_group": ("rendered",)}
    assert [sample.id for sample in pool] == ["box", "text", "group", "answer"]
    assert report.same_text == 2, "kept questions whose words occur in the held-out set: text and answer"
    kept, report = build(
        samples,
        held_out=[held],
        base=dict.fromkeys((sample.id for sample in samples), "wrong"),
        hard_share=1.0,
        max_family_share=1.0,
        decontaminate=False,
    )
    assert len(kept) == 6 and "held_out_image" not in report.dropped


def test_decontamination_without_hashes_is_refused() -> None:
    with pytest.raises(DataError, match=r"lack image hashes, e\.g\. q0"):
        build([make_sample("q0", image_hashes=())], held_out=[make_sample("held")])
    with pytest.raises(DataError, match=r"lack image hashes, e\.g\. held"):
        build([make_sample("q0")], held_out=[make_sample("held", image_hashes=())])


def test_questions_without_a_base_verdict() -> None:
    samples = make_samples(3)
    _, report = build(samples, base={"q0": "unjudged", "q1": "wrong", "q2": "correct"}, max_family_share=1.0)
    assert report.dropped["base_unjudged"] == ("q0",)
    with pytest.raises(DataError, match=r"2 of 3 samples have no verdict of the base, e\.g\. q1"):
        build(samples, base={"q0": "wrong"})


def test_the_draw_depends_on_the_seed_and_not_on_the_order() -> None:
    samples = make_samples(60)
    ids = {sample.id for sample in build(samples, max_family_share=1.0)[0]}
    base = verdicts(samples)
    assert {sample.id for sample in build(samples[::-1], base=base, max_family_share=1.0)[0]} == ids
    assert {sample.id for sample in build(samples, seed=1, max_family_share=1.0)[0]} != ids


def test_double_ids_and_bad_shares_are_refused() -> None:
    with pytest.raises(DataError, match="twice"):
        build([make_sample("q0"), make_sample("q0")])
    for changes in ({"size": 0}, {"hard_share": 1.1}, {"max_family_share": 0.0}):
        with pytest.raises(ConfigError):
            build(make_samples(3), **changes)


def test_normalised_question() -> None:
    assert normalize_question("  Is there a RED circle?") == "is there a red circle"


@given(st.integers(0, 4), st.integers(1, 6), st.integers(0, 3))
def test_prompt_sets_are_disjoint_whole_and_stable(rounds: int, per_round: int, seed: int) -> None:
    samples = make_samples(24)
    sets = split_prompts(samples, rounds=rounds, per_round=per_round, seed=seed)
    ids = [sample.id for prompts in sets for sample in prompts]
    assert [len(prompts) for prompts in sets] == [per_round] * rounds
    assert len(set(ids)) == len(ids)
    assert split_prompts(samples[::-1], rounds=rounds, per_round=per_round, seed=seed) == sets
    if rounds:
        assert split_prompts(samples, rounds=rounds - 1, per_round=per_round, seed=seed) == sets[:-1]


def test_too_few_prompts_say_what_would_be_right() -> None:
    with pytest.raises(ConfigError, match="3 rounds x 10 prompts_per_round need 30 questions, there are 24"):
        split_prompts(make_samples(24), rounds=3, per_round=10, seed=0)
