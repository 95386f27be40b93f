"""Vision models in memory: loaded once per process for everyone who uses them, frozen, with what they take as input."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock, RLock
from typing import Any
from weakref import WeakValueDictionary

import torch
from PIL import Image

from visloop.chat.loads import note_load
from visloop.chat.weights import resolve_model, stamp_weights
from visloop.config_assistant import VisionConfig
from visloop.errors import ConfigError, DataError, ModelError


@dataclass(eq=False)
class Mounted:
    """A frozen model with its processor. ``name`` is the model as the configuration spells it.

    ``lock`` is held by whoever runs or tunes: a prompt is hooked into the shared model, and must not reach another thread's pictures.
    """

    model: Any
    processor: Any
    device: torch.device
    name: str
    lock: Any = field(default_factory=RLock)


_MOUNTED: WeakValueDictionary[tuple[object, ...], Mounted] = WeakValueDictionary()
_LOADING = Lock()


def mount_model(config: VisionConfig, load: Callable[[str, torch.dtype | str], tuple[Any, Any]], *, kind: str) -> Mounted:
    """Load ``config.model`` with ``load(source, dtype)``, which gives model and processor; shared while anyone uses it.

    Raises:
        ModelError: not found, or not a model of this kind.
        ConfigError: an unknown device or dtype.
    """
    source = resolve_model(config.model)
    device, dtype = pick_device(config.device), pick_dtype(config.dtype, device=config.device)
    key = (kind, source, stamp_weights(source), str(device), str(dtype))
    with _LOADING:
        if (mounted := _MOUNTED.get(key)) is not None:
            return mounted
        try:
            model, processor = load(source, dtype)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise ModelError(f"model {config.model!r} ({source}) cannot be loaded as {kind}: {error}") from error
        note_load(config.model)
        mounted = Mounted(model.to(device), processor, device, config.model)
        if isinstance(mounted.model, torch.nn.Module):
            mounted.model.requires_grad_(False)
            mounted.model.eval()
        _MOUNTED[key] = mounted
        return mounted


def pick_device(name: str) -> torch.device:
    """The named device; ``auto`` is an accelerator if there is one.

    Raises:
        ConfigError: torch knows no such device.
    """
    try:
        return torch.device(name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
    except RuntimeError as error:
        raise ConfigError(f"device {name!r}: {error}") from error


def pick_dtype(name: str, *, device: str) -> torch.dtype | str:
    """The named floating-point type; ``auto`` is the checkpoint's on an accelerator, and float32 on a CPU.

    Raises:
        ConfigError: no such type.
    """
    if name == "auto":
        return torch.float32 if pick_device(device).type == "cpu" else "auto"
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ConfigError(f"dtype {name!r}; it must be auto or a floating-point type of torch, e.g. float32 or bfloat16")
    return dtype


def open_picture(root: Path, name: str) -> Image.Image:
    """The RGB picture ``name`` under the data folder.

    Raises:
        DataError: no such picture, or not one that can be read.
    """
    try:
        with Image.open(root / name) as opened:
            return opened.convert("RGB")
    except OSError as error:
        raise DataError(f"{root / name}: not a readable picture: {error}") from error


def split_batches(count: int, size: int) -> Sequence[range]:
    """Ranges of at most ``size`` that cover ``count`` items.

    Raises:
        ConfigError: ``size`` is not positive.
    """
    if size < 1:
        raise ConfigError(f"batch_size {size}; it must be 1 or more")
    return [range(start, min(start + size, count)) for start in range(0, count, size)]
