"""Learning words on the shipped CLIP: what is kept, what is refused, and that nothing else changes."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from visloop.chat.weights import shipped_folder
from visloop.config_assistant import PromptTuning, ToolsConfig, VisionConfig
from visloop.embedded.clip_exam import EXAM_TUNING, ClipExam, Teacher
from visloop.errors import DataError, TrainingError
from visloop.records.assistant import Instance, PromptEntry
from visloop.scenes.workshop import WORKSHOP, WORKSHOP_BASE
from visloop.tools.base import ToolCall
from visloop.tools.clip_tools import make_clip_tools
from visloop.tools.naming import WEIGHT_STEPS, combine_prompts, weigh_prompts
from visloop.tools.prompt_pool import LearnedPrompt, PromptPool, load_pool, save_pool
from visloop.tools.tuning import draw_folds, fit_prompt, split_instances

TUNING = PromptTuning(prompts=2, instances=24, validation=10, negatives=60, steps=60, learning_rate=1e-2)
CONFIG = ToolsConfig(clip=VisionConfig(model="embedded/clip", threshold=0.5), tuning=TUNING)


@pytest.fixture(scope="module")
def exam() -> ClipExam:
    return ClipExam(shipped_folder() / "clip", crops=60, seed=77, report=lambda text: None, tuning=TUNING)


@pytest.fixture(scope="module")
def lessons(exam, tmp_path_factory) -> tuple[Path, dict[str, tuple[list[Instance], list[Instance]]]]:
    root = tmp_path_factory.mktemp("lessons")
    teacher = Teacher(exam, root)
    return root, {concept: teacher.collect(concept, group) for concept, group in (("pink", "color"), ("teal", "color"), ("star", "shape"))}


@pytest.fixture(scope="module")
def taught(lessons):
    """The tools before, after pink, and after pink and teal."""
    root, found = lessons
    stages = [make_clip_tools(CONFIG, PromptPool(), root=root)]
    reports = []
    for concept in ("pink", "teal"):
        instances, replay = found[concept]
        report = stages[-1]["LOC"].tune(concept, instances=instances, replay=replay, seed=5, cycle=1)
        reports.append(report)
        stages.append({name: tool.with_pool(report.pool) for name, tool in stages[-1].items()})
    return stages, reports


def recall(tools, exam: ClipExam, word: str, group: str, world=WORKSHOP) -> tuple[float, float]:
    """Share of objects with the word that FILTER keeps, and of others that it keeps as well."""
    shown = exam._take(world, 120, 9)
    kept = []
    for entry in shown:
        from visloop.tools.values import VisualObject

        item = VisualObject(box=entry.region.box, mask=entry.region.mask)
        (result,) = tools["FILTER"].run([ToolCall(tool="FILTER", arguments={"image": entry.picture, "object": (item,), "query": word})])
        kept.append(bool(result.value))
    fits = np.array([entry.word(group) == word for entry in shown])
    return float(np.array(kept)[fits].mean()), float(np.array(kept)[~fits].mean())


def test_a_learned_word_is_found_and_its_prompts_are_named(taught, exam):
    stages, reports = taught
    assert all(report.kept and report.reason == "" and report.validation_after >= 0.7 for report in reports)
    assert reports[0].validation_before == 0.0 and reports[0].base_before - reports[0].base_after <= TUNING.max_base_drop
    assert recall(stages[0], exam, "pink", "color") == (0.0, 0.0)
    found, wrong = recall(stages[2], exam, "pink", "color")
    assert found >= 0.8 and wrong <= 0.05
    picture = exam._take(WORKSHOP, 1, 9)[0].picture
    (result,) = stages[2]["LOC"].run([ToolCall(tool="LOC", arguments={"image": picture, "object": "pink"})])
    assert set(result.prompts) == set(reports[0].kept)
    (plain,) = stages[2]["LOC"].run([ToolCall(tool="LOC", arguments={"image": picture, "object": "red"})])
    assert plain.prompts == ()


def test_words_learned_one_after_the_other_do_not_take_from_each_other_or_from_the_known(taught, exam):
    stages, reports = taught
    assert recall(stages[2], exam, "teal", "color")[0] >= 0.7
    shown = exam._take(WORKSHOP_BASE, 150, 8)
    before, after = (exam._score(shown, "color", pool) for pool in (PromptPool(), reports[1].pool))
    truth = [entry.word("color") for entry in shown]
    right = [np.mean([word == wanted for word, wanted in zip(words, truth, strict=True)]) for words in (before, after)]
    assert right[0] >= 0.99 and right[1] >= right[0] - 0.03


def test_other_groups_and_an_empty_pool_are_exactly_unchanged(taught, exam):
    stages, reports = taught
    picture = exam._take(WORKSHOP, 1, 7)[0].picture
    emptied = stages[2]["LOC"].with_pool(reports[1].pool.drop_prompts([*reports[0].kept, *reports[1].kept]))
    for tool, word in ((stages[2]["LOC"], "circle"), (stages[2]["LOC"], "dotted"), (emptied, "red")):
        call = ToolCall(tool="LOC", arguments={"image": picture, "object": word})
        assert tool.run([call])[0].value == stages[0]["LOC"].run([call])[0].value
    assert stages[0]["LOC"].pool.prompts == ()


def test_a_saved_pool_gives_the_same_answers(taught, exam, tmp_path):
    stages, reports = taught
    save_pool(reports[1].pool, tmp_path / "pool")
    again = stages[0]["LOC"].with_pool(load_pool(tmp_path / "pool"))
    for entry in exam._take(WORKSHOP, 4, 6):
        call = ToolCall(tool="LOC", arguments={"image": entry.picture, "object": "pink or teal"})
        assert again.run([call])[0] == stages[2]["LOC"].run([call])[0]


def test_tuning_is_repeatable(taught, lessons):
    stages, reports = taught
    instances, replay = lessons[1]["pink"]
    again = stages[0]["CLASSIFY"].tune("pink", instances=instances, replay=replay, seed=5, cycle=1)
    assert again.kept == reports[0].kept and again.validation_after == reports[0].validation_after


def test_validation_refuses_what_the_instances_do_not_show(taught, lessons):
    stages, _ = taught
    instances, replay = lessons[1]["star"]
    # The labels of the validation positives belong to other regions: whatever is learned, it cannot be right on them.
    others = [entry for entry in instances if not entry.positive]
    wrong = [
        replace(entry, box=others[index].box, image=others[index].image)
        for index, entry in enumerate(instances)
        if entry.split == "validation"
    ]
    kept = [entry for entry in instances if entry.split == "train" and entry not in others[: len(instances)]]
    report = stages[0]["SELECT"].tune("star", instances=[*kept, *wrong], replay=replay, seed=5, cycle=1)
    assert report.kept == () and report.refused == TUNING.prompts and "no prompt passed" in report.reason
    assert report.pool is stages[0]["SELECT"].pool


def test_a_word_that_the_model_knows_is_not_learned_again(taught, lessons):
    stages, _ = taught
    instances, replay = lessons[1]["teal"]
    known = [
        replace(entry, concept="red", positive=entry.label == "red", split="validation" if index % 2 else "train")
        for index, entry in enumerate(entry for entry in instances if entry.label == "red")
    ]
    report = stages[0]["LOC"].tune("red", instances=known, replay=replay, seed=5, cycle=1)
    assert report.validation_before == 1.0 and report.kept == () and "known already" in report.reason


def test_instances_must_be_split_without_leak(taught, lessons):
    stages, _ = taught
    instances, replay = lessons[1]["pink"]
    train = [entry for entry in instances if entry.split == "train"]
    with pytest.raises(DataError, match="positives are missing"):
        stages[0]["LOC"].tune("pink", instances=train, replay=replay, seed=5, cycle=1)
    with pytest.raises(DataError, match="validation instance too"):
        split_instances([*train, replace(train[0], id="copy", split="validation")])


def test_replace_learns_an_exemplar(taught, lessons, exam):
    stages, _ = taught
    instances, replay = lessons[1]["star"]
    replay = [replace(entry, concept=entry.label, positive=True) for entry in replay]  # as cycles collect it: each shows its own word
    report = stages[0]["REPLACE"].tune("star", instances=instances, replay=replay, seed=5, cycle=2)
    assert report.kept and report.validation_after >= 0.7 > report.validation_before
    assert {prompt.entry.tool for prompt in report.pool.prompts} == {"PASTE"}
    circles = [replace(entry, concept="circle", positive=entry.label == "circle") for entry in (*instances, *replay)]
    shipped = stages[0]["REPLACE"].tune("circle", instances=circles, replay=[], seed=5, cycle=2)
    assert not shipped.kept and "known already" in shipped.reason, "the model's own exemplar is not replaced"
    known = stages[0]["LOC"].tune("star", instances=instances, replay=replay, seed=5, cycle=2)
    tools = {name: tool.with_pool(report.pool.add_prompts(known.pool.prompts, most_per_concept=10)) for name, tool in stages[0].items()}
    entry = next(item for item in exam._take(WORKSHOP_BASE, 30, 5) if item.entry.shape == "circle")
    box = ask_loc(tools, entry.picture, f"{entry.entry.color} circle")
    (result,) = tools["REPLACE"].run(
        [ToolCall(tool="REPLACE", arguments={"image": entry.picture, "object": box[:1], "prompt": "green star"})]
    )
    assert result.prompts[0] in report.kept
    assert len(ask_loc(tools, result.value, "green star")) == 1


def ask_loc(tools, picture, words: str):
    (result,) = tools["LOC"].run([ToolCall(tool="LOC", arguments={"image": picture, "object": words})])
    return result.value


def make_prompt(name: str, feature: Sequence[float], value: float, validation: float) -> LearnedPrompt:
    entry = PromptEntry(
        id=name, tool="CLIP", concept="x", backend="b", placement="p", instance_ids=(), train_accuracy=1.0, validation_accuracy=validation,
        base_accuracy=1.0, base_accuracy_before=1.0,
    )  # fmt: skip
    return LearnedPrompt(entry=entry, feature=np.array(feature, np.float32), prompt=np.full((2, 3), value, np.float32))


def test_the_ensemble_is_a_softmax_over_similarities():
    prompts = [make_prompt("a", (1, 0), 1.0, 0.8), make_prompt("b", (0, 1), 3.0, 0.9), make_prompt("c", (-1, 0), 9.0, 0.7)]
    features = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    tuning = PromptTuning(temperature=1.0, ensemble=2)
    first, second = weigh_prompts(prompts, features, tuning=tuning)
    share = float(np.exp(1) / (np.exp(1) + np.exp(0)))
    assert [(prompt.entry.id, weight) for prompt, weight in first] == [
        ("a", pytest.approx(share, abs=0.5 / WEIGHT_STEPS)),
        ("b", pytest.approx(1 - share, abs=0.5 / WEIGHT_STEPS)),
    ]
    assert [prompt.entry.id for prompt, _ in second] == ["b", "a"]
    assert combine_prompts(first)[0, 0].item() == pytest.approx(share * 1.0 + (1 - share) * 3.0, abs=2 / WEIGHT_STEPS)
    (single,) = weigh_prompts(prompts, features[:1], tuning=PromptTuning(ensemble=1))
    assert [(prompt.entry.id, weight) for prompt, weight in single] == [("b", 1.0)]


def test_text_features_are_shared_between_pools_but_not_between_prompts_of_one_id(taught):
    stages, _ = taught
    engine = stages[0]["LOC"].engine
    width = engine.encoder.prompt_width
    first, second = (
        replace(made, prompt=np.full((2, width), value, np.float32))
        for value in (0.1, 0.2)
        for made in (make_prompt("a", (1, 0), 0.0, 0.9),)
    )
    banks = [engine.open_bank(PromptPool()) for _ in range(2)]
    one, again = (bank.encode([("star", ((first, 1.0),))]) for bank in banks)
    assert torch.equal(one, again) and banks[0].features is banks[1].features
    assert not torch.allclose(one, banks[1].encode([("star", ((second, 1.0),))]))


def test_a_tool_learns_and_combines_prompts_by_its_own_settings(taught, lessons):
    root, found = lessons
    instances, replay = found["pink"]
    own = {
        "SELECT": replace(TUNING, prompts=1, tokens=2, min_validation=0.0, max_base_drop=1.0),
        "CLASSIFY": replace(TUNING, known_at=0.0),
        "REPLACE": replace(TUNING, known_at=0.0),
        "CLIP": replace(TUNING, ensemble=1),
    }
    tools = make_clip_tools(replace(CONFIG, tunings=own), PromptPool(), root=root)
    found_tunings = {name: tool.bank.tuning for name, tool in tools.items() if name != "REPLACE"}
    assert found_tunings == {name: own.get(name, own["CLIP"]) for name in found_tunings} | {"FILTER": own["SELECT"]}
    report = tools["SELECT"].tune("pink", instances=instances, replay=replay, seed=5, cycle=1)
    assert [prompt.prompt.shape[0] for prompt in report.pool.prompts] == [2] and report.refused == 0
    for name, concept in (("CLASSIFY", "pink"), ("REPLACE", "star")):
        told = tools[name].tune(concept, instances=found[concept][0], replay=found[concept][1], seed=5, cycle=1)
        assert told.kept == () and "known already" in told.reason
    stages, _ = taught
    assert all(tool.bank.tuning is TUNING for tool in stages[0].values()), "without settings of single tools those of all hold"


def test_folds_are_different_and_repeatable():
    folds = draw_folds(12, prompts=4, seed=3)
    assert len({tuple(fold) for fold in folds}) == 4 and all(len(fold) == 9 for fold in folds)
    assert folds == draw_folds(12, prompts=4, seed=3) != draw_folds(12, prompts=4, seed=4)
    assert draw_folds(1, prompts=4, seed=0) == [[0]]


def test_a_prompt_is_fitted_and_a_loss_that_is_no_number_is_named():
    target = torch.tensor([[1.0, -2.0]])
    config = PromptTuning(steps=200, learning_rate=0.1, weight_decay=0.0)
    assert torch.allclose(fit_prompt(torch.zeros(1, 2), lambda prompt: ((prompt - target) ** 2).sum(), config=config), target, atol=0.05)
    with pytest.raises(TrainingError, match="learning_rate"):
        fit_prompt(torch.zeros(1, 2), lambda prompt: prompt.sum() * float("nan"), config=config)


def test_the_card_was_measured_with_the_shipped_configuration():
    given = yaml.safe_load(Path("conf/tools/embedded.yaml").read_text())
    assert PromptTuning(**given["tuning"]) == EXAM_TUNING
    assert given["clip"]["threshold"] == 0.5
