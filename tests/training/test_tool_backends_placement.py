"""Where each backend's prompt stands, its losses, and the weights of its ensembles."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.special import softmax

from tests.fixtures.tiny_vision import BUILDERS, SIDE, make_instances
from tests.training.test_tool_backends_contract import TUNING, make_config
from visloop.config_assistant import DetectionLoss, PromptTuning
from visloop.errors import TrainingError
from visloop.records.assistant import Instance, PromptEntry
from visloop.tools.answerers import make_answerer
from visloop.tools.base import ToolCall
from visloop.tools.detection_loss import assign_boxes, compute_focal, generalized_overlap, match_picture, to_corners
from visloop.tools.detectors import HALVES, make_detector, suppress_overlaps, weigh_finders
from visloop.tools.painters import make_painter
from visloop.tools.prompt_pool import LearnedPrompt, PromptPool
from visloop.tools.prompted import (
    attach_keys,
    attach_memory,
    attach_tokens,
    blend_prompts,
    find_share,
    mix_prompts,
    optimize_prompt,
)
from visloop.tools.segmenters import make_segmenter, weigh_inner
from visloop.tools.validated_tuning import share_instances, split_concepts
from visloop.tools.values import Box, VisualObject


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}

    def make(name: str) -> Path:
        if name not in made:
            made[name] = BUILDERS[name](tmp_path_factory.mktemp("models") / name)
        return made[name]

    return make


def make_prompt(identity: str, *, feature, prompt, concept: str = "star", validation: float = 1.0) -> LearnedPrompt:
    entry = PromptEntry(
        id=identity,
        tool="LOC",
        concept=concept,
        backend="b",
        placement="p",
        instance_ids=(),
        train_accuracy=1.0,
        validation_accuracy=validation,
        base_accuracy=1.0,
        base_accuracy_before=1.0,
    )
    return LearnedPrompt(entry=entry, feature=np.asarray(feature, np.float32), prompt=np.asarray(prompt, np.float32))


def make_pixels(count: int = 2, *, side: int = SIDE) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


# Hooks.


@pytest.mark.parametrize("name", ["owlvit", "owlv2"])
def test_visual_tokens_stand_behind_the_patches_and_are_dropped(name, folders):
    from transformers import AutoModelForZeroShotObjectDetection

    model = AutoModelForZeroShotObjectDetection.from_pretrained(folders(name)).eval()
    tower = getattr(model, name).vision_model
    pixels, prompt = make_pixels(), torch.randn(5, 16)
    seen = []
    hook = tower.encoder.layers[0].register_forward_hook(lambda module, args, output: seen.append(args[0]))
    plain = tower(pixel_values=pixels).last_hidden_state
    with attach_tokens(tower.encoder, None):
        assert torch.equal(tower(pixel_values=pixels).last_hidden_state, plain)
    with attach_tokens(tower.encoder, prompt):
        prompted = tower(pixel_values=pixels).last_hidden_state
    hook.remove()
    assert seen[2].shape[1] == seen[0].shape[1] + 5
    assert torch.equal(seen[2][:, -5:], prompt.expand(2, -1, -1))
    assert torch.equal(seen[2][:, :-5], seen[0])
    assert prompted.shape == plain.shape
    assert not torch.allclose(prompted, plain)
    assert torch.equal(tower(pixel_values=pixels).last_hidden_state, plain)


def test_hooks_are_removed_when_the_model_fails(folders):
    from transformers import AutoModelForZeroShotObjectDetection

    tower = AutoModelForZeroShotObjectDetection.from_pretrained(folders("owlvit")).eval().owlvit.vision_model
    plain = tower(pixel_values=make_pixels()).last_hidden_state
    with pytest.raises(RuntimeError), attach_tokens(tower.encoder, torch.randn(5, 7)):
        tower(pixel_values=make_pixels())
    assert torch.equal(tower(pixel_values=make_pixels()).last_hidden_state, plain)


def test_maskformer_keeps_the_positions_of_its_pixels(folders):
    from transformers import MaskFormerForInstanceSegmentation

    model = MaskFormerForInstanceSegmentation.from_pretrained(folders("maskformer")).eval()
    decoder = model.model.transformer_module.decoder
    seen = []
    hook = decoder.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True)
    pixels = make_pixels(side=2 * SIDE)
    plain = model(pixel_values=pixels)
    hook.remove()
    prompt = torch.randn(4, 16)
    with attach_memory(decoder, prompt):
        hook = decoder.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True)
        prompted = model(pixel_values=pixels)
        hook.remove()
    memory, places = seen[1]["encoder_hidden_states"], seen[1]["spatial_position_embeddings"]
    assert torch.equal(memory[:, :-4], seen[0]["encoder_hidden_states"]) and torch.equal(memory[0, -4:], prompt)
    assert torch.equal(places[:, :-4], seen[0]["spatial_position_embeddings"]) and not places[:, -4:].any()
    assert prompted.masks_queries_logits.shape == plain.masks_queries_logits.shape
    assert not torch.allclose(prompted.class_queries_logits, plain.class_queries_logits)
    with attach_memory(decoder, None):
        assert torch.equal(model(pixel_values=pixels).masks_queries_logits, plain.masks_queries_logits)


def test_mask2former_lets_every_query_see_the_prompt(folders):
    from transformers import Mask2FormerForUniversalSegmentation

    model = Mask2FormerForUniversalSegmentation.from_pretrained(folders("mask2former")).eval()
    attentions = [layer.cross_attn for layer in model.model.transformer_module.decoder.layers]
    pixels = make_pixels(side=2 * SIDE)
    plain = model(pixel_values=pixels)
    with attach_keys(attentions, None):
        assert torch.equal(model(pixel_values=pixels).masks_queries_logits, plain.masks_queries_logits)
    seen = []
    with attach_keys(attentions, torch.randn(3, 16)):
        hooks = [a.register_forward_pre_hook(lambda m, args, kwargs: seen.append(kwargs), with_kwargs=True) for a in attentions]
        prompted = model(pixel_values=pixels)
        for hook in hooks:
            hook.remove()
    assert len(seen) == len(attentions)
    for kwargs in seen:
        assert kwargs["attn_mask"].shape[-1] == len(kwargs["key"]) == len(kwargs["value"])
        assert not kwargs["attn_mask"][..., -3:].any()
    assert not torch.allclose(prompted.class_queries_logits, plain.class_queries_logits)


# The plain tools are the models themselves.


def test_an_empty_pool_gives_the_plain_models_outputs(folders, tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8))
    detector = make_detector(make_config("owlvit", folders("owlvit")), PromptPool())
    inputs = detector._encode([image], [["a photo of a star"]])
    with torch.no_grad():
        output = detector.mounted.model(**inputs)
        scores, boxes, _ = detector._forward([image], ["star"])
    assert torch.equal(scores, torch.sigmoid(output.logits[..., 0])) and torch.equal(boxes, output.pred_boxes)
    (read,) = detector.mounted.processor.post_process_grounded_object_detection(output, threshold=0.25, target_sizes=[(SIDE, SIDE)])
    best = detector.run([ToolCall(tool="LOC", arguments={"image": image, "object": "star"})])[0].value[0]
    corners = read["boxes"][read["scores"].argmax()].clamp(0, SIDE).tolist()
    assert best.corners == pytest.approx(corners, abs=1e-3) and best.score == pytest.approx(float(read["scores"].max()))

    answerer = make_answerer(make_config("blip", folders("blip")), PromptPool())
    encoded = answerer.mounted.processor(images=image, text="what color ?", return_tensors="pt")
    said = answerer.mounted.model.generate(**encoded, do_sample=False, max_new_tokens=10)
    text = answerer.mounted.processor.tokenizer.decode(said[0], skip_special_tokens=True).strip()
    found = answerer.run([ToolCall(tool="VQA", arguments={"image": image, "question": "what color ?"})])[0]
    assert (found.value or "") == text

    segmenter = make_segmenter(make_config("maskformer", folders("maskformer")), PromptPool())
    encoded = segmenter.mounted.processor(images=[image], return_tensors="pt")
    with torch.no_grad():
        output = segmenter.mounted.model(**encoded)
    (read,) = segmenter.mounted.processor.post_process_panoptic_segmentation(
        output, threshold=0.25, target_sizes=[(SIDE, SIDE)], label_ids_to_fuse=set()
    )
    objects = segmenter.run([ToolCall(tool="SEG", arguments={"image": image})])[0].value
    assert objects and len(objects) == len(read["segments_info"])
    masks = {(read["segmentation"] == info["id"]).numpy().tobytes() for info in read["segments_info"]}
    assert {entry.mask.tobytes() for entry in objects} == masks


def test_owlv2_boxes_are_read_in_the_frame_of_the_padded_square(folders):
    image = Image.new("RGB", (40, 20))
    detector = make_detector(make_config("owlv2", folders("owlv2")), PromptPool())
    boxes = detector._collect(image, "star", torch.tensor([0.9]), torch.tensor([[0.5, 0.25, 0.5, 0.25]]))
    assert boxes[0].corners == (10.0, 5.0, 30.0, 15.0)
    stretched = make_detector(make_config("owlvit", folders("owlvit")), PromptPool())
    boxes = stretched._collect(image, "star", torch.tensor([0.9]), torch.tensor([[0.5, 0.5, 0.5, 0.5]]))
    assert boxes[0].corners == (10.0, 5.0, 30.0, 15.0)


def test_halves_need_no_model(folders):
    detector = make_detector(make_config("owlvit", folders("owlvit")), PromptPool())
    image = Image.new("RGB", (40, 20))
    found = [detector.run([ToolCall(tool="LOC", arguments={"image": image, "object": name})])[0].value[0].corners for name in HALVES]
    assert found == [(0, 0, 40, 10), (0, 10, 40, 20), (0, 0, 20, 20), (20, 0, 40, 20)]


def test_suppression_keeps_the_best_of_what_overlaps():
    row = [Box(left=0, top=0, right=10, bottom=10, score=0.5), Box(left=1, top=0, right=11, bottom=10, score=0.9)]
    far = Box(left=30, top=0, right=40, bottom=10, score=0.2)
    assert suppress_overlaps([*row, far], overlap=0.5) == (row[1], far)
    assert len(suppress_overlaps([*row, far], overlap=0.9)) == 3


# LOC's loss.


def test_overlap_is_that_of_the_definition():
    first = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
    second = torch.tensor([[1.0, 0.0, 3.0, 2.0], [4.0, 0.0, 6.0, 2.0], [0.0, 0.0, 2.0, 2.0]])
    # shared 2, union 6, hull 6; apart: union 8, hull 12; equal
    assert generalized_overlap(first, second)[0].tolist() == pytest.approx([2 / 6, -4 / 12, 1.0])
    assert to_corners(torch.tensor([0.5, 0.5, 0.2, 0.4])).tolist() == pytest.approx([0.4, 0.3, 0.6, 0.7])


def test_focal_loss_is_that_of_the_definition():
    logits, targets = torch.tensor([0.3, -1.2]), torch.tensor([1.0, 0.0])
    chance = torch.sigmoid(logits)
    expected = [-0.3 * (1 - chance[0]) ** 2 * chance[0].log(), -0.7 * chance[1] ** 2 * (1 - chance[1]).log()]
    assert compute_focal(logits, targets, alpha=0.3, gamma=2.0).tolist() == pytest.approx([float(value) for value in expected])


def test_the_cheapest_assignment_is_taken_one_to_one():
    boxes = torch.tensor([[0.2, 0.2, 0.1, 0.1], [0.8, 0.8, 0.1, 0.1], [0.5, 0.5, 0.1, 0.1]])
    targets, names = boxes[[1, 0]], torch.tensor([0, 1])
    places, chosen = assign_boxes(torch.zeros(3, 2), boxes, names=names, targets=targets, weights=DetectionLoss())
    assert {(int(place), int(target)) for place, target in zip(places, chosen, strict=True)} == {(1, 0), (0, 1)}
    # A place that is sure of the name wins over one that is a little nearer.
    logits = torch.tensor([[-9.0], [9.0]])
    near = torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.52, 0.5, 0.2, 0.2]])
    places, _ = assign_boxes(logits, near, names=torch.tensor([0]), targets=near[:1], weights=DetectionLoss())
    assert places.tolist() == [1]


def test_the_loss_of_a_perfect_picture_is_nothing_and_one_without_targets_is_focal_only():
    boxes, names = torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.7, 0.7, 0.2, 0.2]]), torch.tensor([0])
    perfect = match_picture(torch.tensor([[30.0], [-30.0]]), boxes, names=names, targets=boxes[:1], weights=DetectionLoss())
    assert float(perfect.loss) == pytest.approx(0.0, abs=1e-6)
    assert perfect.right.all() and float(perfect.overlaps[0]) == pytest.approx(1.0)
    empty = match_picture(torch.zeros(2, 1), boxes, names=names[:0], targets=boxes[:0], weights=DetectionLoss())
    assert float(empty.loss) == pytest.approx(2 * 0.7 * 0.25 * np.log(2), rel=1e-5)


# Ensembles (clova.md 1.7 in numbers).


def test_weights_of_locs_ensemble():
    weights = weigh_finders(np.zeros(2, np.float32), [np.array([3, 4], np.float32), np.array([0, 10], np.float32)], [1, 3])
    expected = 0.5 * (softmax([-1.0, -2.0]) + np.array([0.25, 0.75]))
    assert weights.tolist() == pytest.approx(expected.tolist())


def test_weights_of_segs_ensemble():
    prompts = [make_prompt(str(index), feature=[value, 0], prompt=[[index]]) for index, value in enumerate([1.0, 3.0, 2.0])]
    weights, chosen = weigh_inner(np.array([1, 0], np.float32), prompts, most=2)
    assert [prompt.entry.id for prompt in chosen] == ["1", "2"]
    assert weights.tolist() == pytest.approx(softmax([3.0, 2.0]).tolist())


def test_weights_of_vqas_ensemble_and_its_floor():
    prompts = [make_prompt(str(index), feature=[np.cos(a), np.sin(a)], prompt=[[float(index)]]) for index, a in enumerate((0.0, 0.6, 2.5))]
    tuning = PromptTuning(ensemble=2, temperature=1.0)
    mixed, ids = blend_prompts(prompts, np.array([1, 0], np.float32), tuning=tuning, device=torch.device("cpu"), scale=2.0)
    assert ids == ("0", "1")
    assert float(mixed) == pytest.approx(softmax([2.0, 2 * np.cos(0.6)])[1], rel=1e-5)
    strict = replace(tuning, min_similarity=0.9)
    assert blend_prompts(prompts, np.array([1, 0], np.float32), tuning=strict, device=torch.device("cpu"))[1] == ("0",)
    assert blend_prompts(prompts[2:], np.array([1, 0], np.float32), tuning=strict, device=torch.device("cpu")) is None


def test_the_share_of_a_new_prompt_is_that_of_the_mean_which_uses_it():
    prompts = [make_prompt(str(index), feature=[np.cos(a), np.sin(a)], prompt=[[float(index + 2)]]) for index, a in enumerate((0.3, 0.6))]
    newcomer = make_prompt("new", feature=[1, 0], prompt=[[7.0]])
    cpu, asked = torch.device("cpu"), np.array([np.cos(0.2), np.sin(0.2)], np.float32)
    for most, alone in ((3, False), (1, True)):
        tuning = PromptTuning(ensemble=most, temperature=0.5)
        share, rest = find_share(prompts, newcomer, asked, tuning=tuning, device=cpu, scale=2.0)
        mixed, _ = blend_prompts((*prompts, newcomer), asked, tuning=tuning, device=cpu, scale=2.0)
        assert float(share * 7.0 + rest) == pytest.approx(float(mixed), rel=1e-5)
        assert (share == 0.0) == alone, "two others are more like the question"


def test_single_questions_validate_themselves_and_share_pictures_with_known_ones():
    shown = {"image": "a.png", "tool": "VQA", "positive": True, "split": "train", "source": "inference"}
    lesson = Instance(id="q", concept="yes", question="is it red ?", target="yes", **shown)
    known = Instance(id="k", concept="blue", question="what color ?", target="blue", **shown)
    alone = share_instances([lesson], replay=[known], tuning=PromptTuning(), seed=0, lone_questions=True)
    assert (alone.pictures, alone.positives, alone.base) == (((lesson,),), (lesson,), (known,))
    same = share_instances([lesson], replay=[replace(known, question=lesson.question)], tuning=PromptTuning(), seed=0, lone_questions=True)
    assert not same.pictures, "what is kept cannot be changed"
    by_picture = share_instances([lesson], replay=[known], tuning=PromptTuning(), seed=0)
    assert not by_picture.pictures and not by_picture.positives


def test_mixing_divides_by_the_sum():
    prompts = [make_prompt("0", feature=[1], prompt=[[2.0]]), make_prompt("1", feature=[1], prompt=[[8.0]])]
    assert float(mix_prompts(prompts, [1.0, 3.0], device=torch.device("cpu"))[0]) == pytest.approx(6.5)


# Training of one prompt.


def test_training_stops_when_it_fits_or_is_flat_or_is_no_number():
    quadratic = lambda prompt, step: ((prompt - 1) ** 2).sum()  # noqa: E731
    tuning = PromptTuning(steps=200, learning_rate=0.1, weight_decay=0.0)
    start = torch.zeros(2, 3)
    fitting = optimize_prompt(start, quadratic, tuning=tuning, optimizer=torch.optim.Adam, fits=lambda prompt: bool((prompt > 0.5).all()))
    assert len(fitting.losses) == 10 and (fitting.prompt > 0.5).all()
    flat = optimize_prompt(start, lambda prompt, step: prompt.sum() * 0 + 2, tuning=tuning, optimizer=torch.optim.Adam)
    assert len(flat.losses) == 21
    full = optimize_prompt(start, quadratic, tuning=tuning, optimizer=torch.optim.Adam)
    assert torch.allclose(full.prompt, torch.ones(2, 3), atol=0.05) and not start.any()
    with pytest.raises(TrainingError, match="step 0"):
        optimize_prompt(start, lambda prompt, step: prompt.sum() * float("nan"), tuning=tuning, optimizer=torch.optim.Adam)
    slow = optimize_prompt(start, quadratic, tuning=replace(tuning, decay_every=5, steps=15), optimizer=torch.optim.SGD)
    assert slow.losses[-1] > full.losses[14]


def test_a_picture_that_validates_or_is_replayed_is_never_learned_from(tmp_path):
    instances, replay = make_instances(tmp_path, "LOC")
    leaked = [replace(instances[0], id="leak-1", image=instances[5].image), replace(instances[1], id="leak-2", image=replay[0].image)]
    shares = share_instances([*instances, *leaked], replay=replay, tuning=TUNING, seed=1)
    learned = {item.image for picture in shares.pictures for item in picture}
    assert len(learned) == TUNING.instances
    assert not learned & {item.image for item in (*shares.positives, *shares.base)}
    assert {item.split for picture in shares.pictures for item in picture} == {"train"}
    assert [item.label for item in shares.base] == ["red", "blue", "blue"]
    assert shares.pictures == share_instances([*leaked, *reversed(instances)], replay=replay, tuning=TUNING, seed=1).pictures


def test_phrases_give_words_and_the_phrase():
    assert split_concepts("The red, striped star") == ("red", "striped", "star", "red striped star")
    assert split_concepts("star") == ("star",)
    assert split_concepts("the") == ()


# REPLACE.


def test_only_the_masked_part_of_the_first_object_changes(folders):
    painter = make_painter(make_config("inpainting", folders("inpainting")), PromptPool())
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 40, 3), dtype=np.uint8))
    mask = np.zeros((20, 40), np.bool_)
    mask[6:14, 4:20] = True
    objects = tuple(VisualObject(box=Box(left=0, top=0, right=1, bottom=1), mask=drawn) for drawn in (mask, np.ones_like(mask)))
    painted = painter.run([ToolCall(tool="REPLACE", arguments={"image": image, "object": objects, "prompt": "star"})])[0].value
    changed = (np.asarray(painted) != np.asarray(image)).any(axis=2)
    assert painted.size == image.size
    assert changed[8:12, 6:18].mean() > 0.9
    grown = np.zeros_like(mask)
    grown[4:16, 2:22] = True
    assert not changed[~grown].any()
    nothing = painter.run([ToolCall(tool="REPLACE", arguments={"image": image, "object": (), "prompt": "star"})])[0]
    assert "no object" in nothing.error


def test_a_painted_picture_that_the_check_refuses_is_an_error(folders):
    seen, images = [], [Image.new("RGB", (SIDE, SIDE), shade) for shade in ("red", "blue", "green")]

    def check(painted):
        seen.append([picture.size for picture in painted])
        return ["unsafe" if picture.getpixel((0, 0)) == (0, 0, 255) else "" for picture in painted]

    painter = make_painter(make_config("inpainting", folders("inpainting")), PromptPool(), open_check=lambda: check)
    objects = (VisualObject(box=Box(left=8, top=8, right=20, bottom=20)),)
    calls = [ToolCall(tool="REPLACE", arguments={"image": image, "object": objects, "prompt": "star"}) for image in images]
    results = painter.with_pool(PromptPool()).run(calls)
    assert seen == [[(SIDE, SIDE)] * 2, [(SIDE, SIDE)]], "a batch at a time, as people would see the pictures"
    assert [result.error for result in results] == [None, "REPLACE: what 'star' gave was refused: unsafe", None]
    assert results[1].value is None and isinstance(results[0].value, Image.Image)


def test_a_learned_word_leaves_tokenizer_and_embeddings_as_they_are(folders):
    painter = make_painter(make_config("inpainting", folders("inpainting")), PromptPool())
    tokenizer, rows = painter._pipeline.tokenizer, painter._pipeline.text_encoder.get_input_embeddings().weight
    size, before = len(tokenizer), rows.clone()
    word = painter._start_word("star")
    plain = painter._encode(["a photo of star"], None, None)
    same = painter._encode(["a photo of {}"], word, "star")
    assert torch.allclose(plain, same, atol=1e-6), "the start is the concept's own embedding"
    for _ in range(2):  # twice: a released loader refuses a word that it loaded before
        other = painter._encode(["a photo of {}"], word + 1, "star")
    assert not torch.allclose(plain, other)
    assert torch.allclose(plain[:, :4], other[:, :4], atol=1e-6), "earlier places do not see it"
    assert len(tokenizer) == size and torch.equal(rows, before)


def test_textual_inversion_lowers_the_error_on_its_pictures(folders, tmp_path):
    tuning = replace(TUNING, prompts=1, instances=3, steps=40, learning_rate=0.05, batch_size=4)
    painter = make_painter(replace(make_config("inpainting", folders("inpainting")), tuning=tuning), PromptPool(), root=tmp_path)
    instances, _ = make_instances(tmp_path, "REPLACE")
    learned = painter.learn("star", pictures=[(item,) for item in instances[:3]], negatives=(), seed=23)

    def error(word: torch.Tensor) -> float:
        draw = torch.Generator().manual_seed(7)
        latents = torch.cat([painter._to_latents([painter._open(item)]) for item in instances[:3]]).repeat(8, 1, 1, 1)
        with torch.no_grad():
            return float(painter._denoise(latents, painter._encode(["a photo of {}"] * 24, word, "star"), draw))

    assert error(torch.tensor(learned.prompt)) < error(painter._start_word("star"))
