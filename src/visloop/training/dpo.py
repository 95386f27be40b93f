"""One round of direct preference optimisation (Insight-V 3.4): from M_t and its pairs D_t to M_{t+1}."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from torch.utils.data import DataLoader
from trl import DPOConfig, DPOTrainer

from visloop.config import ChatConfig, DPOSettings, Loss
from visloop.records.reasoning import PreferencePair
from visloop.training.callbacks import OnLog
from visloop.training.checkpoints import FOLDER
from visloop.training.encoding import IGNORED_LABEL, Encoder, PairCollator
from visloop.training.models import freeze_modules, load_policy, save_checkpoint
from visloop.training.runs import (
    TrainReport,
    build_arguments,
    build_lora,
    check_adapter,
    check_lengths,
    make_rows,
    make_run_key,
    release_trainer,
    remove_checkpoints,
    run_trainer,
    weights_dtype,
)

HEALTH_PAIRS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class DPOReport(TrainReport):
    """A training report with the round's health, measured without dropout on ``health_pairs`` pairs spread evenly over D_t.

    ``reward_accuracy``: share of pairs whose chosen reward ends above the rejected one; ``reward_margin``: mean difference
    of the rewards, beta * log(policy / reference); ``chosen_logp_drop``: mean fall of log p(chosen) in nats per sequence
    from before the round to after it. ``first_loss``: loss of step 1; ln 2 for plain ``sigmoid`` from policy == reference.
    """

    first_loss: float
    reward_accuracy: float
    reward_margin: float
    chosen_logp_before: float
    chosen_logp_after: float
    chosen_logp_drop: float
    health_pairs: int


def train_dpo(
    pairs: Sequence[PreferencePair],
    *,
    policy: str | Path,
    out: Path,
    settings: DPOSettings,
    seed: int,
    image_root: Path,
    reference: str | Path | None = None,
    max_image_pixels: int = ChatConfig.max_image_pixels,
    on_log: OnLog | None = None,
) -> DPOReport:
    """Train ``policy`` on preference pairs by TRL's DPOTrainer and save the next policy to ``out``.

    The reference is frozen for the whole round: by default the policy itself as it lies in its folder (loaded a second
    time for full fine-tuning; for a continued adapter the copy that TRL keeps as adapter ``ref``; for a new adapter the
    weights beneath it). A killed run continues from its last whole checkpoint and ends with the same weights.

    Args:
        pairs: D_t; picture paths are relative to ``image_root``.
        policy: M_t: full weights or a LoRA adapter folder, which is continued.
        reference: another model as reference, full weights or adapter folder.

    Raises:
        TrainingError: an empty set, a pair over ``max_length``, or a loss that is not finite.
        DataError: a picture is missing or broken, or the disk is full.
        ModelError: a model cannot be loaded.
        ConfigError: ``freeze`` matches nothing, or the LoRA settings do not describe the adapter.
    """
    out = Path(out)
    rows = make_rows(pairs, image_root=image_root)
    loaded = load_policy(policy, dtype=weights_dtype(settings), trainable=True)
    new_adapter = settings.lora.enabled and not loaded.is_adapter
    if loaded.is_adapter:
        check_adapter(loaded.model.peft_config["default"], settings.lora, source=str(policy))
    frozen = None
    if reference is not None or not settings.lora.enabled:
        frozen = load_policy(reference or policy, dtype=weights_dtype(settings)).model
        if isinstance(frozen, PeftModel):
            frozen = frozen.merge_and_unload()  # TRL can put its forward on plain models only
        frozen.requires_grad_(False)
    freeze_modules(loaded.model, settings.freeze)
    encoder = Encoder(loaded.processor, image_root, max_image_pixels=max_image_pixels)
    collator = PairCollator(encoder, pairs)
    if settings.max_length is not None:
        lengths = [(pair.id, max(len(side.input_ids) for side in encoder.encode_pair(pair))) for pair in pairs]
        check_lengths(lengths, max_length=settings.max_length)
    arguments = build_arguments(settings, folder=out / FOLDER, seed=seed, examples=len(pairs)) | build_loss(settings)
    trainer = DPOTrainer(
        model=loaded.model,
        ref_model=frozen,
        args=DPOConfig(**arguments),
        train_dataset=rows,
        data_collator=collator,
        processing_class=loaded.processor,
        peft_config=build_lora(settings.lora) if new_adapter else None,
    )
    probe = _probe_batches(rows, collator, settings.per_device_train_batch_size)
    before = measure_logps(trainer, probe)
    compared = before if reference is None else measure_logps(trainer, probe, model=trainer.ref_model)
    key = make_run_key(pairs, settings, seed=seed, sources=[policy, reference], max_image_pixels=max_image_pixels)
    result = run_trainer(trainer, title=f"DPO {out.name}", key=key, examples=len(pairs), on_log=on_log)
    after = measure_logps(trainer, probe)
    digest = save_checkpoint(trainer.accelerator.unwrap_model(trainer.model), loaded.processor, out)
    release_trainer(trainer)
    remove_checkpoints(out)
    margins = settings.beta * ((after - compared)[:, 0] - (after - compared)[:, 1])
    return DPOReport(
        out=str(out),
        examples=len(pairs),
        weights_hash=digest,
        **asdict(result),
        first_loss=result.history[0]["loss"],
        reward_accuracy=float((margins > 0).float().mean()),
        reward_margin=float(margins.mean()),
        chosen_logp_before=float(before[:, 0].mean()),
        chosen_logp_after=float(after[:, 0].mean()),
        chosen_logp_drop=float((before - after)[:, 0].mean()),
        health_pairs=len(before),
    )


def build_loss(settings: DPOSettings) -> dict[str, Any]:
    """DPOConfig's part for the objective.

    ``mpo`` has the weights of Mixed Preference Optimization (0.8 preference, 0.2 quality, 1.0 generation); TRL's
    ``bco_pair`` has no running reward shift. Label smoothing needs TRL's loss ``robust`` (its ``sigmoid`` ignores the
    value): the DPO loss corrected for a share ``label_smoothing`` of flipped labels.
    """
    preference = "robust" if settings.label_smoothing > 0 else "sigmoid"
    losses = {
        Loss.sigmoid: {preference: 1.0},
        Loss.sigmoid_nll: {preference: 1.0, "sft": settings.nll_weight},
        Loss.mpo: {preference: 0.8, "bco_pair": 0.2, "sft": 1.0},
    }[settings.loss]
    return {
        "beta": settings.beta,
        "loss_type": list(losses),
        "loss_weights": list(losses.values()),
        "label_smoothing": settings.label_smoothing,
    }


@torch.no_grad()
def measure_logps(trainer: DPOTrainer, batches: Iterable[dict[str, Tensor]], *, model: torch.nn.Module | None = None) -> Tensor:
    """Log-probabilities of whole completions in nats under the policy (or ``model``): shape (pairs, 2), chosen and rejected."""
    model = model or trainer.model
    was_training = model.training
    model.eval()
    rows = []
    for batch in batches:
        inputs = {key: value.to(trainer.accelerator.device) for key, value in batch.items()}
        labels = inputs["input_ids"].masked_fill(inputs.pop("completion_mask") == 0, IGNORED_LABEL)
        with trainer.accelerator.autocast():
            scores = model(**inputs, labels=labels, fused_lm_head=True).log_probs
        rows.append(torch.stack(scores.float().sum(dim=1).chunk(2), dim=1).cpu())
    model.train(was_training)
    return torch.cat(rows)


def _probe_batches(rows: Any, collator: PairCollator, batch_size: int) -> Iterable[dict[str, Tensor]]:
    count = min(HEALTH_PAIRS, len(rows))
    subset = rows.select([index * len(rows) // count for index in range(count)])
    return DataLoader(subset, batch_size=batch_size, collate_fn=collator)
