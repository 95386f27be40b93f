"""The check of pictures by a classifier, on a tiny ViT: which labels count, from which score on, in which batches."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flows._assistant_stages import part_inputs
from flows._entry import compose_config
from flows._layout import Layout
from flows._named_models import needs_hub
from tests.fixtures.tiny_vision import SIDE, save_classifier
from visloop.assistant.safety import Safety
from visloop.chat.loads import count_loads, reset_loads
from visloop.config_providers import SafetyConfig
from visloop.errors import ConfigError, ModelError
from visloop.tools.picture_check import load_picture_check


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    draw = np.random.default_rng(0)
    noise = [draw.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8) // (1 + index) for index in range(5)]
    return [Image.fromarray(pixels) for pixels in noise]


def score_plainly(folder: Path, images: list[Image.Image], *, several: bool) -> list[float]:
    """How unsafe the model finds each picture, one by one and without the check."""
    from transformers import ViTForImageClassification, ViTImageProcessor

    model, processor = ViTForImageClassification.from_pretrained(folder).eval(), ViTImageProcessor.from_pretrained(folder)
    with torch.no_grad():
        rows = [model(**processor(images=image, return_tensors="pt")).logits[0] for image in images]
    return [float(row.sigmoid()[1:].max() if several else row.softmax(0)[1:].sum()) for row in rows]


@pytest.mark.parametrize("several", [False, True])
def test_pictures_from_the_threshold_on_are_refused(tmp_path: Path, images: list[Image.Image], several: bool) -> None:
    folder = save_classifier(tmp_path / "several" / "classifier", several=several)
    scores = score_plainly(folder, images, several=several)
    ordered = sorted(scores)
    assert ordered[2] - ordered[1] > 1e-3, "the pictures are told apart"
    threshold = (ordered[1] + ordered[2]) / 2
    reset_loads()
    safety = Safety(SafetyConfig(classifier=str(folder), unsafe_labels=["gore", "NUDITY"], threshold=threshold, batch_size=2))
    reasons = safety.open_check()(images)
    assert [bool(reason) for reason in reasons] == [score >= threshold for score in scores]
    worst = scores.index(ordered[-1])
    assert reasons[worst] == f"unsafe by several/classifier: {ordered[-1]:.2f}"
    assert safety.open_check()([]) == [] and sum(count_loads().values()) == 1, "loaded once"


def test_the_pinned_revision_is_the_one_that_is_loaded(tmp_path: Path, images: list[Image.Image], monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    cached, loaded = tmp_path / "models--owner--vit", []
    (cached / "refs").mkdir(parents=True)
    for tag, commit in (("main", "a" * 40), ("v1", "b" * 40)):
        folder = save_classifier(cached / "snapshots" / commit, several=tag == "v1")
        (cached / "refs" / tag).write_text(commit)
        loaded.append(score_plainly(folder, images[:1], several=tag == "v1")[0])
    for name, score in zip(("owner/vit", "owner/vit@v1"), loaded, strict=True):
        check = load_picture_check(SafetyConfig(classifier=name, unsafe_labels=["gore", "nudity"], threshold=1e-6))
        assert check(images[:1]) == [f"unsafe by {name}: {score:.2f}"]
    assert f"{loaded[0]:.2f}" != f"{loaded[1]:.2f}"
    with pytest.raises(ModelError, match="owner/vit@v2"):
        load_picture_check(SafetyConfig(classifier="owner/vit@v2", unsafe_labels=["gore"]))


def test_what_gives_no_number_is_refused(tmp_path: Path, images: list[Image.Image]) -> None:
    check = load_picture_check(SafetyConfig(classifier=str(save_classifier(tmp_path)), unsafe_labels=["gore"], threshold=1.0))
    assert check(images[:1]) == [""]
    torch.nn.init.constant_(check.mounted.model.classifier.bias, float("nan"))
    assert check(images[:1])[0].endswith(": nan")


def test_a_classifier_that_cannot_say_it_is_refused_with_its_key(tmp_path: Path) -> None:
    folder = save_classifier(tmp_path / "classifier")
    with pytest.raises(ConfigError, match=r"assistant\.safety\.unsafe_labels: .* has no label blood; it has normal, Gore, nudity"):
        Safety(SafetyConfig(classifier=str(folder), unsafe_labels=["gore", "blood"])).open_check()
    with pytest.raises(ConfigError, match=r"assistant\.safety\.classifier: .*neither config\.json"):
        Safety(SafetyConfig(classifier=str(tmp_path), unsafe_labels=["gore"])).open_check()


def test_stages_depend_on_the_classifier(tmp_path: Path) -> None:
    folder = save_classifier(tmp_path / "classifier")
    named = compose_config([f"assistant.safety.classifier={folder}", "assistant.safety.unsafe_labels=[gore]"])
    assert part_inputs(named, Layout(tmp_path, dataset="scenes"))["safety"] == folder and not needs_hub(named)
    assert needs_hub(compose_config(["assistant.safety.classifier=some/model", "assistant.safety.unsafe_labels=[gore]"]))
    assert "safety" not in part_inputs(compose_config(), Layout(tmp_path, dataset="scenes"))
