"""Which pictures an image classifier takes for unsafe: those that a search finds, those that diffusion paints."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from visloop.chat.weights import load_arguments, name_model
from visloop.config_assistant import VisionConfig
from visloop.config_providers import SafetyConfig
from visloop.errors import ConfigError
from visloop.tools.mounted import Mounted, mount_model, split_batches


def load_picture_check(config: SafetyConfig) -> "PictureCheck":
    """The check by ``config.classifier``.

    Raises:
        ModelError: no image-classification model there.
        ConfigError: the model has no such label.
    """
    return PictureCheck(mount_model(VisionConfig(model=config.classifier), _load_classifier, kind="image classifier"), config=config)


def _load_classifier(source: str, dtype: torch.dtype | str) -> tuple[Any, Any]:
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    processor: Any = AutoImageProcessor.from_pretrained(**load_arguments(source))  # type: ignore[no-untyped-call]
    return AutoModelForImageClassification.from_pretrained(**load_arguments(source), dtype=dtype), processor


class PictureCheck:
    """A classifier with the labels that are unsafe. Labels are compared without regard to case.

    Raises:
        ConfigError: the model has no such label.
    """

    def __init__(self, mounted: Mounted, *, config: SafetyConfig) -> None:
        self.mounted, self.config = mounted, config
        settings = mounted.model.config
        places = {str(label).casefold(): place for place, label in settings.id2label.items()}
        unknown = [label for label in config.unsafe_labels if label.casefold() not in places]
        if unknown:
            known = ", ".join(map(str, list(settings.id2label.values())[:20]))
            raise ConfigError(f"assistant.safety.unsafe_labels: {mounted.name} has no label {', '.join(unknown)}; it has {known}")
        self._places = sorted({places[label.casefold()] for label in config.unsafe_labels})
        self._several = settings.num_labels == 1 or settings.problem_type == "multi_label_classification"

    def __call__(self, images: Sequence[Image.Image]) -> list[str]:
        """For each picture why it is refused; empty where it passed. What gives no number is refused."""
        scores = [
            score for batch in split_batches(len(images), self.config.batch_size) for score in self._score([images[at] for at in batch])
        ]
        name = name_model(self.mounted.name)
        return ["" if score < self.config.threshold else f"unsafe by {name}: {score:.2f}" for score in scores]

    @torch.no_grad()
    def _score(self, images: Sequence[Image.Image]) -> list[float]:
        """How unsafe each picture is, 0-1."""
        model = self.mounted.model
        pixels = self.mounted.processor(images=[image.convert("RGB") for image in images], return_tensors="pt")["pixel_values"]
        logits: Tensor = model(pixel_values=pixels.to(self.mounted.device, model.dtype)).logits.float()
        if self._several:
            found: list[float] = logits.sigmoid()[:, self._places].amax(dim=1).tolist()
        else:
            found = logits.softmax(dim=1)[:, self._places].sum(dim=1).tolist()
        return found
