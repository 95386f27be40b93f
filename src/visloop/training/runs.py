"""One training run: from settings to the trainer's arguments, through checkpoints to a report."""

import json
import logging
import math
import os
import resource
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from safetensors import SafetensorError
from transformers import PrinterCallback, Trainer

from visloop.chat.adapters import hash_weights
from visloop.chat.weights import resolve_model
from visloop.config import LoraSettings, TrainSettings
from visloop.errors import ConfigError, DataError, TrainingError
from visloop.ids import hash_json
from visloop.records.reasoning import PreferencePair, SFTExample
from visloop.training.callbacks import FiniteGuard, LogForwarder, OnLog, ProgressReporter, read_metrics
from visloop.training.checkpoints import FOLDER, STATE, prepare_checkpoints
from visloop.training.models import is_write_failure, restore_weights

logger = logging.getLogger(__name__)
LOGS_PER_RUN = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainReport:
    """What a run did. ``history`` has one entry per log, each with its ``step``; the parts before a resume are in it.

    ``seconds``, ``cpu_seconds`` (of this process) and ``samples_per_second`` are of this process's share of the training
    loop; ``peak_memory_bytes`` is the accelerator's peak during the run, on the CPU the process's peak so far;
    ``resumed_from`` is a step.
    """

    out: str
    steps: int
    examples: int
    history: tuple[dict[str, float], ...]
    seconds: float
    cpu_seconds: float
    samples_per_second: float
    peak_memory_bytes: int
    trained_parameters: int
    weights_hash: str
    resumed_from: int | None = None


@dataclass(frozen=True, slots=True)
class LoopResult:
    """Figures of the training loop alone, before the model is saved."""

    steps: int
    history: tuple[dict[str, float], ...]
    seconds: float
    cpu_seconds: float
    samples_per_second: float
    peak_memory_bytes: int
    trained_parameters: int
    resumed_from: int | None


def make_rows(records: Sequence[SFTExample] | Sequence[PreferencePair], *, image_root: Path) -> Dataset:
    """The trainer's dataset: per record its index and picture paths. Pictures are opened when a batch needs them.

    Raises:
        TrainingError: no record, or two of one id.
        DataError: a picture is missing (the record is named).
    """
    if not records:
        raise TrainingError("nothing to train on: the set is empty; look at the report of the stage that built it")
    seen: set[str] = set()
    for record in records:
        if record.id in seen:
            raise TrainingError(f"two records have the id {record.id}; ids must be unique in a training set")
        seen.add(record.id)
        for image in record.images:
            if not (image_root / image).is_file():
                raise DataError(f"example {record.id}: picture {image_root / image} is missing")
    # The column "images" tells TRL that this is a vision dataset, so that it leaves the preparation to the collator.
    return Dataset.from_dict({"index": list(range(len(records))), "images": [list(record.images) for record in records]})


def check_lengths(lengths: Sequence[tuple[str, int]], *, max_length: int) -> None:
    """Refuse to cut: image tokens and answers at the end would be lost without a word.

    Raises:
        TrainingError: an example is longer than ``max_length`` tokens; the longest is named.
    """
    over = [item for item in lengths if item[1] > max_length]
    if over:
        name, length = max(over, key=lambda item: item[1])
        raise TrainingError(
            f"{len(over)} of {len(lengths)} examples are longer than max_length={max_length} tokens, the longest is {name} "
            f"with {length}; raise max_length, set it to null, or leave these examples out"
        )


def plan_steps(examples: int, settings: TrainSettings) -> int:
    """Optimizer steps of a run over ``examples`` examples on one device."""
    batches = math.ceil(examples / settings.per_device_train_batch_size)
    return math.ceil(math.ceil(batches / settings.gradient_accumulation_steps) * settings.num_train_epochs)


def plan_intervals(steps: int, settings: TrainSettings) -> tuple[int, int]:
    """Steps between two logs and between two checkpoints. A checkpoint always follows a log: what is averaged between two logs is in no
    checkpoint, and a continued run must tell the same history."""
    wanted = math.ceil(settings.save_steps * steps) if settings.save_steps < 1 else int(settings.save_steps)
    log_every = max(1, min(steps // LOGS_PER_RUN, wanted))
    return log_every, max(1, wanted // log_every) * log_every


def build_arguments(settings: TrainSettings, *, folder: Path, seed: int, examples: int) -> dict[str, Any]:
    """Arguments that SFTConfig and DPOConfig share; see ``transformers.TrainingArguments`` for their meaning."""
    on_gpu = torch.cuda.is_available()
    log_every, save_every = plan_intervals(plan_steps(examples, settings), settings)
    return {
        "output_dir": str(folder),
        "learning_rate": settings.learning_rate,
        "num_train_epochs": settings.num_train_epochs,
        "per_device_train_batch_size": settings.per_device_train_batch_size,
        "gradient_accumulation_steps": settings.gradient_accumulation_steps,
        "lr_scheduler_type": settings.lr_scheduler_type,
        "warmup_steps": math.ceil(settings.warmup_ratio * plan_steps(examples, settings)),
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "max_length": None,  # nothing is ever cut: see check_lengths
        "bf16": settings.bf16,
        "activation_checkpointing": settings.gradient_checkpointing,
        "gradient_checkpointing": None,  # the old name of the line above, on by default in TRL
        "seed": seed,
        "data_seed": seed,
        "save_strategy": "steps",
        "save_steps": save_every,
        "save_total_limit": 2,
        "logging_steps": log_every,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,  # FiniteGuard must see them
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": on_gpu,
        "use_cpu": not on_gpu,
    }


def build_lora(settings: LoraSettings) -> LoraConfig:
    """PEFT's configuration of a new adapter."""
    return LoraConfig(
        r=settings.r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=settings.target_modules,
        task_type="CAUSAL_LM",
    )


def check_adapter(config: Any, settings: LoraSettings, *, source: str) -> None:
    """An adapter is continued as it is, so the settings must describe it.

    Raises:
        ConfigError: LoRA is switched off, or rank or scale differ.
    """
    if not settings.enabled:
        raise ConfigError(f"lora.enabled is false but {source} is a LoRA adapter; enable it, or start from full weights")
    for key in ("r", "lora_alpha"):
        if getattr(config, key) != getattr(settings, key):
            raise ConfigError(f"lora.{key} is {getattr(settings, key)} but the adapter {source} has {getattr(config, key)}")


def weights_dtype(settings: TrainSettings) -> str:
    """Type of the loaded weights. Trained weights stay in float32 (bf16 is then autocast); a frozen base may be bfloat16."""
    return "bfloat16" if settings.bf16 and settings.lora.enabled else "float32"


def make_run_key(
    records: Sequence[Any], settings: TrainSettings, *, seed: int, sources: Sequence[str | Path | None], max_image_pixels: int
) -> str:
    """One hash over everything that decides the weights of a run; a checkpoint of another key is not continued."""
    resolved = [resolve_model(str(source)) if source else "" for source in sources]
    weights = [hash_weights(source) if source and Path(source).is_dir() else source for source in resolved]
    values = {key: value.value if isinstance(value, Enum) else value for key, value in asdict(settings).items()}
    rows = [asdict(record) for record in records]
    return hash_json({"records": rows, "settings": values, "seed": seed, "weights": weights, "max_image_pixels": max_image_pixels})


def restore_token_count(trainer: Trainer, checkpoint: Path) -> None:
    """Let TRL's count of tokens go on from the last log before ``checkpoint``: its trainers would start again from 0."""
    logged = json.loads((checkpoint / STATE).read_text())["log_history"]
    counts = [entry["num_tokens"] for entry in logged if "num_tokens" in entry]
    if counts and hasattr(trainer, "_total_train_tokens"):
        trainer._total_train_tokens = int(float(counts[-1]))


def run_trainer(trainer: Trainer, *, title: str, key: str, examples: int, on_log: OnLog | None) -> LoopResult:
    """Train, continuing from the last whole checkpoint of the same run, with progress and a guard against NaN.

    Raises:
        TrainingError: a loss or gradient norm that is not finite, or the accelerator's memory is too small.
        DataError: a picture cannot be opened, or the disk is full.
    """
    checkpoint = prepare_checkpoints(Path(trainer.args.output_dir), key=key)
    progress = ProgressReporter(title)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(FiniteGuard())
    trainer.add_callback(progress)
    if on_log is not None:
        trainer.add_callback(LogForwarder(on_log))
    quiet = logging.getLogger("transformers.trainer")
    if checkpoint is not None:
        logger.info("%s: continues from %s", title, checkpoint.name)
        restore_token_count(trainer, checkpoint)
        if not isinstance(trainer.model, PeftModel):
            restore_weights(trainer.model, checkpoint)
            quiet.addFilter(_is_not_about_keys)
    resumed = int(checkpoint.name.rpartition("-")[2]) if checkpoint else None
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    trained = sum(parameter.numel() for parameter in trainer.model.parameters() if parameter.requires_grad)
    start, cpu_start = time.perf_counter(), time.process_time()
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except torch.OutOfMemoryError as error:
        raise TrainingError(f"{title}: out of memory; lower per_device_train_batch_size or set gradient_checkpointing") from error
    except (OSError, RuntimeError, SafetensorError) as error:
        if not is_write_failure(error):
            raise
        raise DataError(f"{title}: cannot write a checkpoint: {error}; free space and run again, it continues") from error
    finally:
        progress.close()
        quiet.removeFilter(_is_not_about_keys)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    steps = trainer.state.global_step
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    share = (steps - (resumed or 0)) / max(steps, 1)
    return LoopResult(
        steps=steps,
        history=tuple(read_metrics(entry) for entry in logs),
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        samples_per_second=share * examples * trainer.args.num_train_epochs / seconds,
        peak_memory_bytes=_peak_memory(),
        trained_parameters=trained,
        resumed_from=resumed,
    )


def release_trainer(trainer: Trainer) -> None:
    """Undo what a TRL trainer leaves on its model, and let its memory go.

    TRL puts a ``forward`` of its own on the model. A later deep copy would carry it along and answer with the weights of
    the original model.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    vars(base).pop("forward", None)
    trainer.optimizer = trainer.lr_scheduler = None
    trainer.accelerator.free_memory()


def remove_checkpoints(out: Path) -> None:
    """Remove a finished run's checkpoints."""
    shutil.rmtree(out / FOLDER, ignore_errors=True)


def _is_not_about_keys(record: logging.LogRecord) -> bool:
    """Passes all but the Trainer's warning about names that ``restore_weights`` has already matched."""
    return "keys in the checkpoint model loaded" not in record.getMessage()


def _peak_memory() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    scale = 1 if os.uname().sysname == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
