"""Supervised fine-tuning of one agent (Insight-V 3.3: the reasoning agent and the summary agent, each from the base)."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from trl import SFTConfig, SFTTrainer

from visloop.config import ChatConfig, SFTSettings
from visloop.errors import ConfigError
from visloop.records.reasoning import SFTExample
from visloop.training.callbacks import OnLog
from visloop.training.checkpoints import FOLDER
from visloop.training.encoding import Encoder, SFTCollator
from visloop.training.models import ensure_chain_tokens, freeze_modules, load_policy, save_checkpoint
from visloop.training.runs import (
    TrainReport,
    build_arguments,
    build_lora,
    check_lengths,
    make_rows,
    make_run_key,
    release_trainer,
    remove_checkpoints,
    run_trainer,
    weights_dtype,
)


def train_sft(
    examples: Sequence[SFTExample],
    *,
    model: str | Path,
    out: Path,
    settings: SFTSettings,
    seed: int,
    image_root: Path,
    max_image_pixels: int = ChatConfig.max_image_pixels,
    on_log: OnLog | None = None,
) -> TrainReport:
    """Fine-tune ``model`` on conversations by TRL's SFTTrainer and save the agent to ``out``.

    Loss is taken on the last assistant turn, for ``multi_turn`` examples on every one. With full fine-tuning the tags of
    a chain become tokens where the tokenizer lacks them; an adapter cannot carry new embeddings, so there they stay text.
    A killed run continues from its last whole checkpoint in ``out/.checkpoints`` and ends with the same weights.

    Args:
        examples: the training set; picture paths are relative to ``image_root``.
        model: full weights (folder or hub id) to start from.
        out: folder of the agent: full weights, or the adapter with its ``base.json``.
        on_log: gets (step, metrics) at each log.

    Raises:
        TrainingError: an empty set, an example over ``max_length``, or a loss that is not finite.
        DataError: a picture is missing or broken, or the disk is full.
        ModelError: ``model`` cannot be loaded.
        ConfigError: ``freeze`` matches nothing, or ``model`` is an adapter.
    """
    out = Path(out)
    rows = make_rows(examples, image_root=image_root)
    loaded = load_policy(model, dtype=weights_dtype(settings))
    if loaded.is_adapter:
        raise ConfigError(f"model {model} is a LoRA adapter; fine-tuning starts from full weights")
    if not settings.lora.enabled:
        ensure_chain_tokens(loaded.model, loaded.processor)
    freeze_modules(loaded.model, settings.freeze)
    encoder = Encoder(loaded.processor, image_root, max_image_pixels=max_image_pixels)
    if settings.max_length is not None:
        check_lengths([(item.id, len(encoder.encode_example(item).input_ids)) for item in examples], max_length=settings.max_length)
    trainer = SFTTrainer(
        model=loaded.model,
        args=SFTConfig(**build_arguments(settings, folder=out / FOLDER, seed=seed, examples=len(examples))),
        train_dataset=rows,
        data_collator=SFTCollator(encoder, examples),
        processing_class=loaded.processor,
        peft_config=build_lora(settings.lora) if settings.lora.enabled else None,
    )
    key = make_run_key(examples, settings, seed=seed, sources=[model], max_image_pixels=max_image_pixels)
    result = run_trainer(trainer, title=f"SFT {out.name}", key=key, examples=len(examples), on_log=on_log)
    digest = save_checkpoint(trainer.accelerator.unwrap_model(trainer.model), loaded.processor, out)
    release_trainer(trainer)
    remove_checkpoints(out)
    return TrainReport(out=str(out), examples=len(examples), weights_hash=digest, **asdict(result))
