"""Every backend of a learnable tool keeps the same contract, on tiny random models: nothing here depends on how good they are."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.fixtures.tiny_vision import BUILDERS, SIDE, make_instances
from visloop.chat.loads import count_loads, reset_loads
from visloop.config_assistant import (
    PaintConfig,
    PromptTuning,
    RegionBackend,
    ReplaceBackend,
    SegmentKind,
    ToolsConfig,
    VisionConfig,
    VqaBackend,
)
from visloop.errors import ConfigError, ModelError
from visloop.tools.answerers import ANCHORS, make_answerer
from visloop.tools.base import ToolCall
from visloop.tools.detectors import make_detector
from visloop.tools.handed_answers import CallableAnswerer
from visloop.tools.painters import make_painter
from visloop.tools.prompt_pool import LearnedPrompt, PromptPool, load_pool, save_pool
from visloop.tools.segmenters import make_segmenter
from visloop.tools.validated_tuning import tune_prompts
from visloop.tools.values import Box, VisualObject

BACKENDS = ("owlvit", "owlv2", "maskformer", "mask2former", "clipseg", "blip", "inpainting")
TUNING = PromptTuning(
    tokens=3, prompts=2, instances=4, steps=12, learning_rate=0.05, weight_decay=0.0, min_validation=0.01, init_std=0.02, ensemble=10
)


def make_config(name: str, folder: Path) -> ToolsConfig:
    """Thresholds are where random models find something."""
    vision = VisionConfig(model=str(folder), device="cpu", batch_size=2, threshold=0.25, overlap=0.7)
    return ToolsConfig(
        loc=RegionBackend.owlvit,
        seg=RegionBackend.clipseg if name == "clipseg" else RegionBackend.maskformer,
        vqa=VqaBackend.blip,
        replace=ReplaceBackend.diffusion,
        segments=SegmentKind.instance if name == "mask2former" else SegmentKind.panoptic,
        categories=["circle"],
        detector=vision,
        segmenter=vision,
        answerer=vision,
        painter=replace(vision, threshold=0.5),
        paint=PaintConfig(size=0, steps=2, guidance=2.0, seed=3),
        tuning=TUNING,
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            made[name] = BUILDERS[name](tmp_path_factory.mktemp("models") / name)
        return made[name]

    return make


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pictures")


def open_tool(name, folders, data, *, pool=None, tuning=None, **changes):
    config = make_config(name, folders(name))
    config = replace(config, tuning=tuning or config.tuning, **changes)
    makers = {"blip": make_answerer, "inpainting": make_painter, "owlvit": make_detector, "owlv2": make_detector}
    return makers.get(name, make_segmenter)(config, pool or PromptPool(), root=data)


def make_call(tool, name: str, *, concept: str = "star", index: int = 0, size: tuple[int, int] = (SIDE, SIDE)) -> ToolCall:
    pixels = np.random.default_rng(index).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    box = Box(left=4, top=6, right=20, bottom=24)
    arguments = {
        "LOC": {"image": image, "object": concept},
        "SEG": {"image": image},
        "VQA": {"image": image, "question": f"what shape is the {concept} ?"},
        "REPLACE": {"image": image, "object": (VisualObject(box=box),), "prompt": concept},
    }[tool.owner]
    return ToolCall(tool=tool.owner, arguments=arguments, concepts=(concept,) if tool.owner == "SEG" else ())


def show(result) -> object:
    """A value that tests equality to the last bit."""
    value = result.value
    if isinstance(value, Image.Image):
        return value.tobytes()
    if isinstance(value, tuple):
        return tuple((entry.box, entry.label, entry.mask.tobytes()) if isinstance(entry, VisualObject) else entry for entry in value)
    return value, result.confidence, result.error


def fill_pool(tool, *, concept: str = "star", scale: float = 3.0, seed: int = 0) -> PromptPool:
    """One random prompt of the right shape, as tuning makes them, kept without a look at what it does."""
    given = {"min_validation": 0.0, "steps": 1, "prompts": 1}
    instances, replay = make_instances(tool.root, tool.owner)
    open_tuning = replace(TUNING, **given)
    report = tune_prompts(tool, concept, pool=PromptPool(), instances=instances, replay=replay, tuning=open_tuning, seed=seed, cycle=1)
    (prompt,) = report.pool.prompts
    noise = np.random.default_rng(seed).normal(0, scale, prompt.prompt.shape).astype(np.float32)
    return PromptPool((LearnedPrompt(entry=prompt.entry, feature=prompt.feature, prompt=noise),))


@pytest.mark.parametrize("name", BACKENDS)
def test_a_batch_is_answered_in_order_and_a_bad_call_is_its_own_error(name, folders, data):
    tool = open_tool(name, folders, data)
    calls = [make_call(tool, name, index=index, size=(SIDE + 8 * index, SIDE)) for index in range(3)]
    calls.insert(1, ToolCall(tool=tool.owner, arguments={"image": "no picture", "object": "star", "question": "what ?", "prompt": "star"}))
    together = tool.run(calls)
    assert [result.error is None for result in together] == [True, False, True, True]
    assert "no picture" in together[1].error and together[1].value is None
    for call, result in zip(calls, together, strict=True):
        alone = tool.run([call])[0]
        if name == "blip":
            assert alone.value == result.value
        elif name == "inpainting":
            assert np.abs(np.asarray(alone.value or 0, int) - np.asarray(result.value or 0, int)).max() <= 1
        elif result.value is not None:
            assert [entry.label for entry in alone.value] == [entry.label for entry in result.value]
    assert tool.run([]) == []


@pytest.mark.parametrize("name", BACKENDS)
def test_prompts_act_only_where_their_concept_is_asked_for(name, folders, data):
    plain = open_tool(name, folders, data)
    if name.startswith("owl"):  # LOC's prompts act where the plain model finds nothing
        plain = open_tool(name, folders, data, detector=replace(plain.config.detector, threshold=between(plain, fill_pool(plain))))
    if "mask" in name:  # SEG adds what differs from the plain objects
        plain = open_tool(name, folders, data, segmenter=replace(plain.config.segmenter, overlap=0.999))
    if name == "blip":  # VQA's prompts act where picture and question are like those learned from
        plain = open_tool(name, folders, data, tuning=replace(TUNING, min_similarity=0.999))
    reset_loads()
    prompted = plain.with_pool(fill_pool(plain))
    assert count_loads() == {}, "nothing is loaded again"
    base = [make_call(plain, name, concept="blue", index=index) for index in range(3)]
    assert [show(result) for result in prompted.run(base)] == [show(result) for result in plain.run(base)]
    if name == "blip":
        item = make_instances(data, "VQA")[0][0]
        learned = [ToolCall(tool="VQA", arguments={"image": Image.open(data / item.image), "question": item.question})]
        prompted = plain.with_pool(fill_pool_from(plain, prompted.pool, learned[0]))
    else:
        learned = [make_call(plain, name, index=index) for index in range(3)]
    before, after = plain.run(learned), prompted.run(learned)
    assert any(result.prompts for result in after) and not any(result.prompts for result in before)
    assert [show(result) for result in after] != [show(result) for result in before]
    assert [show(result) for result in plain.run(learned)] == [show(result) for result in before], "hooks are gone after a call"


def between(tool, pool: PromptPool) -> float:
    """A threshold that some call's picture reaches with the pool's prompt only."""
    (prompt,) = pool.prompts
    images = [make_call(tool, "owl", index=index).arguments["image"] for index in range(3)]
    plain = tool._forward(images, ["star"] * 3)[0].amax(dim=1)
    prompted = tool._forward(images, ["star"] * 3, torch.tensor(prompt.prompt))[0].amax(dim=1)
    best = int((prompted - plain).argmax())
    assert prompted[best] > plain[best] + 0.01, "the prompt has to be seen in the scores"
    return float(prompted[best] + plain[best]) / 2


def fill_pool_from(tool, pool: PromptPool, call: ToolCall) -> PromptPool:
    """The pool's prompt as if it had been learned from exactly this question."""
    with torch.no_grad():
        feature = tool._encode([(call.arguments["question"], call.arguments["image"].convert("RGB"))])[2][0].numpy()
    (prompt,) = pool.prompts
    return PromptPool((LearnedPrompt(entry=prompt.entry, feature=feature, prompt=prompt.prompt),))


@pytest.mark.parametrize("name", BACKENDS)
def test_a_saved_pool_gives_the_same_outputs(name, folders, data, tmp_path):
    tool = open_tool(name, folders, data)
    if name.startswith("owl"):
        tool = open_tool(name, folders, data, detector=replace(tool.config.detector, threshold=0.6))
    pool = fill_pool(tool, scale=1.0)
    save_pool(pool, tmp_path / "pool")
    calls = [make_call(tool, name, index=index) for index in range(2)]
    used, again = tool.with_pool(pool).run(calls), tool.with_pool(load_pool(tmp_path / "pool")).run(calls)
    assert [show(result) for result in used] == [show(result) for result in again]
    assert [result.prompts for result in used] == [result.prompts for result in again]


@pytest.mark.parametrize("name", BACKENDS)
def test_tuning_lowers_the_loss_of_its_instances_and_leaves_the_weights(name, folders, data, monkeypatch):
    import visloop.tools.prompted as prompted

    losses: list[tuple[float, ...]] = []
    kept = prompted.optimize_prompt

    def spy(start, loss_of, **given):
        found = kept(start, loss_of, **(given | {"fits": None}))
        losses.append((float(loss_of(start, 0)), float(loss_of(found.prompt, 0))))
        return found

    module = {"LOC": "detectors", "SEG": "segmenters", "VQA": "answerers", "REPLACE": "painters"}
    rates = {"inpainting": 0.01, "mask2former": 0.3}
    tuning = replace(TUNING, learning_rate=rates.get(name, 0.05), steps={"mask2former": 25, "inpainting": 3}.get(name, 12), batch_size=4)
    tool = open_tool(name, folders, data, tuning=tuning)
    monkeypatch.setattr(f"visloop.tools.{module[tool.owner]}.optimize_prompt", spy)
    model = tool.mounted.model
    parts = [model.unet, model.vae, model.text_encoder] if name == "inpainting" else [model]
    before = [parameter.clone() for part in parts for parameter in part.parameters()]
    instances, replay = make_instances(data, tool.owner)
    report = tool.tune("star", instances=instances, replay=replay, seed=5, cycle=2)
    assert len(losses) == TUNING.prompts
    if name != "inpainting":  # whose loss depends on the noise that is drawn; test_tool_backends_placement holds it still
        assert all(last < first for first, last in losses), losses
    assert all(torch.equal(old, new) for old, new in zip(before, (p for part in parts for p in part.parameters()), strict=True))
    assert len(report.kept) + report.refused == TUNING.prompts
    assert {prompt.entry.id for prompt in report.pool.find_prompts(tool.owner, "star")} == set(report.kept)
    for prompt in report.pool.find_prompts(tool.owner, "star"):
        entry = prompt.entry
        assert entry.validation_accuracy >= max(TUNING.min_validation, report.validation_before)
        assert entry.base_accuracy >= entry.base_accuracy_before - TUNING.max_base_drop
        assert set(entry.instance_ids) <= {item.id for item in instances if item.split == "train" and item.positive}
        assert (entry.cycle, entry.tool, entry.concept) == (2, tool.owner, "star")
    again = tool.tune("star", instances=instances, replay=replay, seed=5, cycle=2)
    assert again.kept == report.kept and again.pool.hash == report.pool.hash, "the same seed gives the same prompts"
    assert tool.pool.prompts == (), "the given snapshot stays"


@pytest.mark.parametrize("name", ["owlvit", "maskformer", "inpainting"])  # BLIP: one inferred answer is all it gets
def test_without_validation_pictures_nothing_is_kept(name, folders, data):
    tool = open_tool(name, folders, data)
    instances, replay = make_instances(data, tool.owner)
    report = tool.tune("star", instances=[item for item in instances if item.split == "train"], replay=replay, seed=0, cycle=1)
    assert (report.kept, report.pool.prompts, "no positive validation instance" in report.reason) == ((), (), True)


@pytest.mark.parametrize("name", ["owlvit", "maskformer", "blip", "inpainting"])
def test_concepts_of_a_call(name, folders, data):
    tool = open_tool(name, folders, data)
    call = make_call(tool, name, concept="The red star")
    assert {"red", "star"} <= set(tool.list_concepts(call))
    assert "the" not in tool.list_concepts(call)
    assert tool.list_concepts(ToolCall(tool=tool.owner, arguments={})) == ()


def test_wrong_backends_and_models_are_named(folders, data):
    config = make_config("owlvit", folders("owlvit"))
    for make, changed in (
        (make_detector, {"loc": RegionBackend.proposals}),
        (make_segmenter, {"seg": RegionBackend.proposals}),
        (make_answerer, {"vqa": VqaBackend.clip}),
        (make_answerer, {"vqa": VqaBackend.agents}),
        (make_painter, {"replace": ReplaceBackend.paste}),
    ):
        with pytest.raises(ConfigError):
            make(replace(config, **changed), PromptPool())
    for make in (make_segmenter, make_answerer, make_painter):
        with pytest.raises(ModelError, match=r"owlvit|cannot be loaded"):
            make(config, PromptPool())
    with pytest.raises(ModelError, match="clipseg"):
        make_segmenter(replace(make_config("clipseg", folders("clipseg")), seg=RegionBackend.maskformer), PromptPool())


def test_the_two_agents_answer_by_injection():
    config = ToolsConfig(vqa=VqaBackend.agents)
    asked = []

    def answer(questions):
        asked.append([question for question, _ in questions])
        return [f"answer {index}" for index, _ in enumerate(questions)]

    tool = make_answerer(config, PromptPool(), answer=answer)
    assert isinstance(tool, CallableAnswerer)
    image = Image.new("RGB", (8, 8))
    calls = [ToolCall(tool="VQA", arguments={"image": image, "question": text}) for text in ("one ?", "", "two ?")]
    assert [result.value for result in tool.run(calls)] == ["answer 0", None, "answer 1"]
    assert asked == [["one ?", "two ?"]], "one batch"
    assert tool.tune("star", instances=[], replay=[], seed=0, cycle=0).kept == ()
    with pytest.raises(ModelError, match="0 answers to 2"):
        make_answerer(config, PromptPool(), answer=lambda questions: []).run(calls)


def test_anchors_are_zero_prompts_of_questions_that_were_right(folders, data):
    tool = open_tool("blip", folders, data, tuning=replace(TUNING, min_validation=0.0, steps=2))
    instances, replay = make_instances(data, "VQA")
    said = tool.run([ToolCall(tool="VQA", arguments={"image": Image.open(data / replay[0].image), "question": replay[0].question})])
    right = replace(replay[0], target=said[0].value or "")
    assert said[0].value, "the tiny model says something"
    report = tool.tune("star", instances=instances, replay=[right, replay[1], replay[0]], seed=0, cycle=1)
    anchors = report.pool.find_prompts("VQA", ANCHORS)
    assert [anchor.entry.instance_ids for anchor in anchors] == [(right.id,)]
    assert not anchors[0].prompt.any() and anchors[0].feature.any()


def test_an_answer_is_learned_and_kept_where_it_holds_on_other_pictures_and_refused_where_it_does_not(folders, data):
    tuning = replace(TUNING, steps=100, learning_rate=0.2, min_validation=0.9, max_base_drop=0.05, label_smoothing=0.1)
    tool = make_answerer(replace(make_config("blip", folders("trained_blip")), tuning=tuning), PromptPool(), root=data)
    made = make_instances(data, "VQA")
    instances, replay = ([replace(item, question="what color is the thing ?", target=item.label) for item in group] for group in made)

    def ask(pool: PromptPool) -> list[object]:
        return [result.value for result in tool._run_instances([*instances, *replay], pool=pool)]

    colors = ["red", "red", "blue", "blue"]
    assert ask(PromptPool()) == ["red"] * 8 + colors, "the model has never seen the colour of a star"
    learned = tool.tune("star", instances=instances, replay=replay, seed=0, cycle=1)
    assert learned.kept and learned.pool.find_prompts("VQA", ANCHORS)
    assert (learned.validation_before, learned.validation_after, learned.base_before, learned.base_after) == (0.0, 1.0, 1.0, 1.0)
    assert ask(learned.pool) == ["star"] * 8 + colors

    elsewhere = [replace(item, target="circle") if item.split == "validation" else item for item in instances]
    memorized = tool.tune("star", instances=elsewhere, replay=replay, seed=0, cycle=1)
    assert (memorized.kept, memorized.refused, memorized.pool.prompts) == ((), 2, ())
    assert "best 0.00 of 3 validation instances" in memorized.reason

    # Pictures like those of the concept had another right answer before: to learn the concept is to forget them.
    known = [replace(item, id=f"known-{item.id}", target="red") for item in instances if item.split == "validation" and item.positive]
    harmful = tool.tune("star", instances=instances, replay=[*replay, *known], seed=0, cycle=1)
    assert (harmful.kept, harmful.refused, harmful.base_after) == ((), 2, harmful.base_before)


def test_threads_that_share_a_model_do_not_see_each_others_prompts(folders, data):
    from concurrent.futures import ThreadPoolExecutor

    plain = open_tool("maskformer", folders, data)
    plain = open_tool("maskformer", folders, data, segmenter=replace(plain.config.segmenter, overlap=0.999))
    prompted = plain.with_pool(fill_pool(plain))
    calls = [make_call(plain, "maskformer", index=index) for index in range(2)]
    expected = [[show(result) for result in tool.run(calls)] for tool in (plain, prompted)]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda tool: [show(result) for result in tool.run(calls)], [plain, prompted] * 6))
    assert found == expected * 6
