"""Load and save policies: a full checkpoint folder, a hub id, or a LoRA adapter folder that names its base."""

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from tokenizers import AddedToken
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin
from transformers.utils.logging import disable_progress_bar

from visloop.chat.adapters import ADAPTER_CONFIG, find_base, hash_weights, is_adapter, name_base, write_base
from visloop.chat.loads import note_load
from visloop.chat.weights import load_arguments, resolve_model
from visloop.errors import ConfigError, DataError, ModelError
from visloop.records.chains import CHAIN_TOKENS

disable_progress_bar()  # a bar per load and save would break into the run's own


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A policy in memory. ``base`` is the folder or hub id that the weights come from; for an adapter, that of its base."""

    model: PreTrainedModel | PeftModel
    processor: ProcessorMixin
    is_adapter: bool
    base: str


def load_policy(model: str | Path, *, dtype: str = "float32", attn_implementation: str = "sdpa", trainable: bool = False) -> LoadedModel:
    """Load weights and processor of a checkpoint folder, a shipped model, a hub id or a LoRA adapter folder.

    Every load is counted by ``visloop.chat.loads``.

    Args:
        model: a folder, a shipped name (``embedded/base``) or a hub id. A folder with ``adapter_config.json`` is an
            adapter; its base is found by ``base.json``.
        dtype: floating-point type of the weights, e.g. ``float32`` or ``bfloat16``.
        trainable: leave an adapter's weights trainable; full weights always are.

    Raises:
        ModelError: no model there, an adapter without a readable ``base.json``, or a base with other weights than recorded.
    """
    source = resolve_model(str(model))
    adapter = is_adapter(source)
    base = find_base(source) if adapter else source
    try:
        loaded = AutoModelForImageTextToText.from_pretrained(**load_arguments(base), dtype=dtype, attn_implementation=attn_implementation)
        loaded.name_or_path = base  # with the revision of a pinned one, which an adapter records
        processor = AutoProcessor.from_pretrained(**load_arguments(source))
        if adapter:
            loaded = PeftModel.from_pretrained(loaded, source, is_trainable=trainable)
            loaded.peft_config["default"].base_model_name_or_path = base  # in memory; the file has its portable name
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise ModelError(f"{source}: cannot be loaded as an image-text model: {error}") from error
    note_load(source)
    if processor.tokenizer.pad_token is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    return LoadedModel(loaded, processor, adapter, base)


def save_checkpoint(model: PreTrainedModel | PeftModel, processor: ProcessorMixin, out: Path) -> str:
    """Save weights (safetensors), configuration, processor and chat template; returns the hash of the weights.

    Of a PEFT model only the adapter ``default`` is written, with its base named in ``base.json`` (``visloop.chat.adapters``).
    All is first written to a temporary folder beside ``out``. Where ``out`` is new, one rename puts it in place; otherwise
    its files are replaced one by one, the configuration last, so that a folder caught half-way does not load.

    Raises:
        DataError: the disk is full or ``out`` cannot be written.
    """
    out = Path(out).absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    partial.chmod(0o755)
    try:
        if isinstance(model, PeftModel):
            _save_adapter(model, partial)
        else:
            model.save_pretrained(partial)
        processor.save_pretrained(partial)
        digest = hash_weights(partial)
        if out.exists():
            _replace_files(partial, out)
        else:
            os.replace(partial, out)
    except (OSError, SafetensorError) as error:
        raise DataError(f"cannot save a model to {out}: {error}; free space or fix the permissions and run again") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return digest


def restore_weights(model: PreTrainedModel, checkpoint: Path) -> None:
    """Put the weights of a checkpoint folder into a model of the same architecture.

    The Trainer's own resume reads the file's names as they stand. Those of several architectures (LLaVA among them)
    differ from the names in memory, so it would load nothing and go on with a warning.

    Raises:
        ModelError: the checkpoint does not fit the model.
    """
    try:
        saved = type(model).from_pretrained(checkpoint, dtype=model.dtype)
        model.load_state_dict(saved.state_dict())
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"{checkpoint}: does not hold the weights of this {type(model).__name__}: {error}") from error


def is_write_failure(error: Exception) -> bool:
    """Whether an error means that the disk took no more: torch and safetensors have no type of their own for it."""
    return isinstance(error, OSError) or any(mark in str(error) for mark in ("PytorchStreamWriter", "inline_container", "I/O error"))


def freeze_modules(model: torch.nn.Module, names: Sequence[str]) -> int:
    """Fix every parameter whose name contains one of ``names``; returns how many numbers were fixed.

    Raises:
        ConfigError: a name matches no parameter, or nothing is left to train.
    """
    parameters = dict(model.named_parameters())
    for name in names:
        if not any(name in key for key in parameters):
            parts = sorted({".".join(key.split(".")[:2]) for key in parameters})
            raise ConfigError(f"freeze: {name!r} matches no parameter of {type(model).__name__}; its parts are {', '.join(parts)}")
    frozen = [parameter for key, parameter in parameters.items() if any(name in key for name in names)]
    for parameter in frozen:
        parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise ConfigError(f"freeze: {', '.join(names)} leaves nothing to train")
    return sum(parameter.numel() for parameter in frozen)


def ensure_chain_tokens(model: PreTrainedModel, processor: ProcessorMixin) -> int:
    """Add the tags of a chain as tokens where the tokenizer lacks them; returns how many were added.

    The new rows of the input and output embeddings start at the mean of the old ones (Insight-V 1.1). The tokens are
    not "special": they survive decoding, because the tags are part of a chain's text.
    """
    tokenizer = processor.tokenizer
    known = tokenizer.get_vocab()
    missing = [token for token in CHAIN_TOKENS if token not in known]
    if not missing:
        return 0
    old = len(tokenizer)
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in missing])
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    # Checkpoints often carry more rows than tokens, so the new ids may fall on rows that were never trained.
    with torch.no_grad():
        for layer in {model.get_input_embeddings(), model.get_output_embeddings()} - {None}:
            layer.weight[old : len(tokenizer)] = layer.weight[:old].mean(dim=0)
    return len(missing)


def _save_adapter(model: PeftModel, partial: Path) -> None:
    config: Any = model.peft_config["default"]
    base = model.get_base_model().name_or_path
    before, config.base_model_name_or_path = config.base_model_name_or_path, name_base(base)
    try:
        model.save_pretrained(partial, selected_adapters=["default"], save_embedding_layers=False)
    finally:
        config.base_model_name_or_path = before
    (partial / "README.md").unlink(missing_ok=True)  # a generated card that names the machine's path
    write_base(partial, base=base)


def _replace_files(partial: Path, out: Path) -> None:
    loadable = ("config.json", ADAPTER_CONFIG)
    for name in loadable:
        (out / name).unlink(missing_ok=True)
    for stale in out.glob("*.safetensors*"):
        stale.unlink()
    for file in sorted(partial.iterdir(), key=lambda file: (file.name in loadable, file.name)):
        if (out / file.name).is_dir():
            shutil.rmtree(out / file.name)
        os.replace(file, out / file.name)
