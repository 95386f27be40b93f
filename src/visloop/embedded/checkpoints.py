"""Write and read the embedded models' folders: fp16 weights beside a config that asks for fp32, and stage checkpoints."""

import json
from pathlib import Path

import torch
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    ProcessorMixin,
)

from visloop.errors import ModelError, TrainingError

LARGEST_ROUNDING = 2e-3
"""Largest relative change that rounding to fp16 may make to a weight that is not tiny."""


def save_shipped(model: PreTrainedModel, processor: ProcessorMixin, folder: Path) -> float:
    """Write the model as fp16 safetensors with its processor; ``from_pretrained`` gives fp32 tensors back.

    Returns:
        The largest relative change of a weight by the rounding (weights under 1e-4 in size: relative to 1e-4).

    Raises:
        TrainingError: a weight does not fit fp16.
    """
    state = model.state_dict()
    half = {name: value.half() for name, value in state.items()}
    change = max(
        ((half[name].float() - value.float()).abs() / value.float().abs().clamp_min(1e-4)).max().item() for name, value in state.items()
    )
    if not change < LARGEST_ROUNDING:
        raise TrainingError(f"rounding to fp16 changes a weight by a share of {change}; at most {LARGEST_ROUNDING} is allowed")
    model.save_pretrained(folder, state_dict=half)
    processor.save_pretrained(folder)
    return change


def load_model(folder: str | Path, *, device: str = "cpu") -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Model (fp32, evaluation mode) and processor of one folder.

    Raises:
        ModelError: the folder holds no LLaVA.
    """
    try:
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
        processor = AutoProcessor.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot load an embedded model from {folder}: {error}") from error
    if not isinstance(model, LlavaForConditionalGeneration):
        raise ModelError(f"{folder} holds a {type(model).__name__}; an embedded model is a LlavaForConditionalGeneration")
    return model.to(device).eval(), processor


class StageStore:
    """Full-precision checkpoints of finished stages, so that a long run continues where it was interrupted.

    Args:
        folder: where they lie; created when first needed.
        key: hash of everything that decides the weights; checkpoints of another key are never used.
    """

    def __init__(self, folder: Path, *, key: str) -> None:
        self._folder, self._key = folder, key

    def load(self, stage: str, model: LlavaForConditionalGeneration) -> dict[str, float] | None:
        """Put a finished stage's weights into ``model`` and return its figures; None if the stage is not finished."""
        mark = self._folder / stage / "stage.json"
        if not mark.is_file():
            return None
        written = json.loads(mark.read_text())
        if written["key"] != self._key:
            return None
        stored, _ = load_model(self._folder / stage)
        model.load_state_dict(stored.state_dict())
        figures: dict[str, float] = written["figures"]
        return figures

    def save(self, stage: str, model: LlavaForConditionalGeneration, processor: LlavaProcessor, figures: dict[str, float]) -> None:
        """Write a stage; ``stage.json`` comes last and marks it as finished."""
        model.save_pretrained(self._folder / stage)
        processor.save_pretrained(self._folder / stage)
        (self._folder / stage / "stage.json").write_text(json.dumps({"key": self._key, "figures": figures}, indent=1))
