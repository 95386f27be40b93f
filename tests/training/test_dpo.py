"""DPO rounds: ln 2 at the start, the terms of the loss by hand, references, resume, lineage of adapters, health figures."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.fixtures.tiny_models import BUILDERS, FREEZE
from visloop.chat.adapters import hash_weights
from visloop.config import DPOSettings, LoraSettings, Loss, SFTSettings
from visloop.errors import ConfigError, DataError, TrainingError
from visloop.records.reasoning import PreferencePair, SFTExample
from visloop.training import dpo
from visloop.training.dpo import build_loss, train_dpo
from visloop.training.encoding import Encoder, PairCollator
from visloop.training.models import load_policy
from visloop.training.sft import train_sft

LN2 = math.log(2.0)
LORA = LoraSettings(enabled=True, r=4, lora_alpha=8, target_modules=r".*(language_model|text_model).*\.(q_proj|v_proj|up_proj)")
STEP = DPOSettings(num_train_epochs=1.0, per_device_train_batch_size=4, learning_rate=1e-3, warmup_ratio=0.0, loss=Loss.sigmoid, beta=0.1)
LONG = replace(STEP, num_train_epochs=4.0, per_device_train_batch_size=2, save_steps=3.0)


class Killed(Exception):
    """Stands for a kill in the middle of a run."""


def compute_logps(folder: Path, pairs: list[PreferencePair], root: Path) -> tuple[Tensor, list[Tensor]]:
    """Sums over the completions, shape (pairs, 2), and the chosen completions' token log-probabilities; from plain logits."""
    loaded = load_policy(folder)
    batch = PairCollator(Encoder(loaded.processor, root), pairs)([{"index": index} for index in range(len(pairs))])
    mask = batch.pop("completion_mask")[:, 1:].bool()
    with torch.no_grad():
        logs = loaded.model.eval()(**batch).logits[:, :-1].log_softmax(-1)
    tokens = logs.gather(2, batch["input_ids"][:, 1:, None])[..., 0]
    sums = (tokens * mask).sum(dim=1)
    return torch.stack(sums.chunk(2), dim=1), [tokens[row][mask[row]] for row in range(len(pairs))]


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_every_architecture_takes_a_step_from_ln_2(
    name: str, adapter: bool, model_folder: Callable[[str], Path], image_root: Path, pairs: list[PreferencePair], tmp_path: Path
) -> None:
    base = model_folder(name)
    settings = replace(STEP, freeze=(FREEZE[name],), lora=LORA if adapter else LoraSettings())
    report = train_dpo(pairs[:4], policy=base, out=tmp_path / "01", settings=settings, seed=0, image_root=image_root)
    assert report.first_loss == pytest.approx(LN2, abs=1e-4), "policy and reference must be the same at the start"
    assert (report.steps, report.health_pairs) == (1, 4)
    assert report.weights_hash == hash_weights(tmp_path / "01") != hash_weights(base)
    before, _ = compute_logps(base, pairs[:4], image_root)
    after, _ = compute_logps(tmp_path / "01", pairs[:4], image_root)
    change = after - before
    assert report.chosen_logp_before == pytest.approx(float(before[:, 0].mean()), abs=1e-3)
    assert report.chosen_logp_after == pytest.approx(float(after[:, 0].mean()), abs=1e-3), "the saved model is the trained one"
    assert report.chosen_logp_drop == pytest.approx(-float(change[:, 0].mean()), abs=1e-3)
    assert report.reward_margin == pytest.approx(0.1 * float((change[:, 0] - change[:, 1]).mean()), abs=1e-4)
    assert report.reward_accuracy == pytest.approx(float((change[:, 0] > change[:, 1]).float().mean()))
    assert report.reward_margin > 0


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (DPOSettings(loss=Loss.sigmoid), {"loss_type": ["sigmoid"], "loss_weights": [1.0]}),
        (DPOSettings(loss=Loss.sigmoid_nll, nll_weight=0.5), {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]}),
        (DPOSettings(loss=Loss.mpo), {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]}),
        (DPOSettings(loss=Loss.sigmoid, label_smoothing=0.1), {"loss_type": ["robust"], "loss_weights": [1.0]}),
    ],
)
def test_losses_by_name(settings: DPOSettings, expected: dict[str, Any]) -> None:
    assert build_loss(settings) == expected | {"beta": settings.beta, "label_smoothing": settings.label_smoothing}


@pytest.mark.parametrize("loss", list(Loss))
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_the_formula(
    loss: Loss,
    smoothing: float,
    model_folder: Callable[[str], Path],
    image_root: Path,
    pairs: list[PreferencePair],
    tmp_path_factory: pytest.TempPathFactory,
    tmp_path: Path,
) -> None:
    """From a reference other than the policy, so that no term vanishes; expected values from plain logits."""
    base = model_folder("llava")
    policy = tmp_path / "policy"
    moved = replace(STEP, learning_rate=2e-2)
    train_dpo(pairs, policy=base, out=policy, settings=moved, seed=1, image_root=image_root)
    settings = replace(STEP, per_device_train_batch_size=8, loss=loss, beta=0.5, nll_weight=0.7, label_smoothing=smoothing)
    report = train_dpo(pairs, policy=policy, reference=base, out=tmp_path / "out", settings=settings, seed=0, image_root=image_root)

    policy_sums, chosen_tokens = compute_logps(policy, pairs, image_root)
    reference_sums, _ = compute_logps(base, pairs, image_root)
    preference = quality = 0.0
    for row in (policy_sums - reference_sums).tolist():
        chosen, rejected = 0.5 * row[0], 0.5 * row[1]
        right, flipped = math.log1p(math.exp(rejected - chosen)), math.log1p(math.exp(chosen - rejected))
        preference += ((1 - smoothing) * right - smoothing * flipped) / (1 - 2 * smoothing) / len(pairs)
        quality += (math.log1p(math.exp(-chosen)) + math.log1p(math.exp(rejected))) / len(pairs)
    nll = -float(torch.cat(chosen_tokens).mean())
    expected = {
        Loss.sigmoid: preference,
        Loss.sigmoid_nll: preference + 0.7 * nll,
        Loss.mpo: 0.8 * preference + 0.2 * quality + 1.0 * nll,
    }[loss]
    assert abs(preference - LN2) > 0.01, "the reference must differ from the policy for this test to say anything"
    assert report.first_loss == pytest.approx(expected, abs=2e-4)


def test_the_reference_does_not_move_within_a_round(
    model_folder: Callable[[str], Path], image_root: Path, pairs: list[PreferencePair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = model_folder("llava")
    seen: list[dict[str, Tensor]] = []
    release = dpo.release_trainer

    def look(trainer: Any) -> None:
        seen.append({key: value.clone() for key, value in trainer.ref_model.state_dict().items()})
        assert not any(parameter.requires_grad for parameter in trainer.ref_model.parameters())
        release(trainer)

    monkeypatch.setattr(dpo, "release_trainer", look)
    train_dpo(pairs, policy=base, out=tmp_path / "01", settings=LONG, seed=0, image_root=image_root)
    start = load_policy(base).model.state_dict()
    assert seen[0].keys() == start.keys()
    assert all(torch.equal(seen[0][key], start[key]) for key in start)


def test_training_raises_the_margin_and_freezes_the_tower(
    model_folder: Callable[[str], Path], image_root: Path, pairs: list[PreferencePair], tmp_path: Path
) -> None:
    base = model_folder("llava")
    settings = replace(STEP, num_train_epochs=10.0, learning_rate=2e-3, beta=0.5)
    report = train_dpo(pairs, policy=base, out=tmp_path / "01", settings=settings, seed=0, image_root=image_root)
    assert report.reward_accuracy == 1.0
    assert report.reward_margin > 1.0
    assert report.history[-1]["loss"] < 0.5 * LN2
    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / "01" / "model.safetensors")
    assert {key for key in before if torch.equal(before[key], after[key])} == {key for key in before if "vision_tower" in key}


def test_the_nll_term_holds_the_chosen_chain_up(
    model_folder: Callable[[str], Path], image_root: Path, pairs: list[PreferencePair], tmp_path: Path
) -> None:
    settings = replace(STEP, num_train_epochs=5.0, learning_rate=2e-3)
    drops = {
        loss: train_dpo(
            pairs,
            policy=model_folder("llava"),
            out=tmp_path / loss.value,
            settings=replace(settings, loss=loss),
            seed=0,
            image_root=image_root,
        ).chosen_logp_drop
        for loss in (Loss.sigmoid, Loss.sigmoid_nll)
    }
    assert drops[Loss.sigmoid_nll] < drops[Loss.sigmoid]
    assert drops[Loss.sigmoid_nll] < 0


@pytest.mark.parametrize("start", ["full", "new adapter", "continued adapter", "mpo"])
def test_a_killed_round_ends_with_the_same_weights(
    start: str,
    model_folder: Callable[[str], Path],
    image_root: Path,
    pairs: list[PreferencePair],
    examples: list[SFTExample],
    tmp_path: Path,
) -> None:
    policy = model_folder("llava")
    settings = replace(LONG, loss=Loss.mpo if start == "mpo" else Loss.sigmoid)
    if "adapter" in start:
        settings = replace(settings, lora=replace(LORA, lora_dropout=0.1))
    if start == "continued adapter":
        sft = SFTSettings(num_train_epochs=1.0, learning_rate=1e-2, lora=LORA)
        train_sft(examples, model=policy, out=tmp_path / "m0", settings=sft, seed=0, image_root=image_root)
        policy = tmp_path / "m0"
    arguments = {"policy": policy, "settings": settings, "seed": 5, "image_root": image_root}
    whole = train_dpo(pairs, out=tmp_path / "whole", **arguments)

    def kill(step: int, metrics: dict[str, float]) -> None:
        if step >= 11:
            raise Killed

    with pytest.raises(Killed):
        train_dpo(pairs, out=tmp_path / "killed", on_log=kill, **arguments)
    (tmp_path / "killed" / ".checkpoints" / "checkpoint-9" / "trainer_state.json").unlink()  # the last file of a checkpoint
    resumed = train_dpo(pairs, out=tmp_path / "killed", **arguments)
    assert resumed.resumed_from == 6
    assert resumed.weights_hash == whole.weights_hash
    assert resumed.history == whole.history
    figures = ("first_loss", "reward_accuracy", "reward_margin", "chosen_logp_before", "chosen_logp_after", "chosen_logp_drop")
    assert [getattr(resumed, name) for name in figures] == [getattr(whole, name) for name in figures]


def test_rounds_continue_the_adapter_and_each_starts_at_ln_2(
    model_folder: Callable[[str], Path], image_root: Path, pairs: list[PreferencePair], examples: list[SFTExample], tmp_path: Path
) -> None:
    base = model_folder("llava")
    sft = SFTSettings(num_train_epochs=2.0, per_device_train_batch_size=4, learning_rate=1e-2, lora=LORA)
    train_sft(examples, model=base, out=tmp_path / "00", settings=sft, seed=0, image_root=image_root)
    settings = replace(STEP, learning_rate=1e-2, lora=LORA)
    for number in (1, 2):
        report = train_dpo(
            pairs,
            policy=tmp_path / f"{number - 1:02}",
            out=tmp_path / f"{number:02}",
            settings=settings,
            seed=number,
            image_root=image_root,
        )
        assert report.first_loss == pytest.approx(LN2, abs=1e-4), "the reference is the adapter before, not the base"
        loaded = load_policy(tmp_path / f"{number:02}")
        assert list(loaded.model.peft_config) == ["default"]
        assert loaded.base == str(base.resolve())
        assert not [path for path in (tmp_path / f"{number:02}").iterdir() if path.is_dir()], "the adapter 'ref' must not be saved"
        assert not any(".ref." in key for key in load_file(tmp_path / f"{number:02}" / "adapter_model.safetensors"))
    with pytest.raises(ConfigError, match=r"lora\.enabled is false but .* is a LoRA adapter"):
        train_dpo(pairs, policy=tmp_path / "02", out=tmp_path / "x", settings=STEP, seed=0, image_root=image_root)
    with pytest.raises(ConfigError, match=r"lora\.r is 8 but the adapter .* has 4"):
        other = replace(settings, lora=replace(LORA, r=8))
        train_dpo(pairs, policy=tmp_path / "02", out=tmp_path / "x", settings=other, seed=0, image_root=image_root)


def test_an_adapter_can_be_trained_against_another_adapter(
    model_folder: Callable[[str], Path], image_root: Path, pairs: list[PreferencePair], examples: list[SFTExample], tmp_path: Path
) -> None:
    sft = SFTSettings(num_train_epochs=2.0, per_device_train_batch_size=4, learning_rate=1e-2, lora=LORA)
    for seed in (0, 1):
        train_sft(examples, model=model_folder("llava"), out=tmp_path / f"m{seed}", settings=sft, seed=seed, image_root=image_root)
    settings = replace(STEP, per_device_train_batch_size=8, lora=LORA)
    report = train_dpo(
        pairs, policy=tmp_path / "m0", reference=tmp_path / "m1", out=tmp_path / "01", settings=settings, seed=0, image_root=image_root
    )
    gap = compute_logps(tmp_path / "m0", pairs, image_root)[0] - compute_logps(tmp_path / "m1", pairs, image_root)[0]
    expected = float(torch.nn.functional.softplus(-0.1 * (gap[:, 0] - gap[:, 1])).mean())
    assert abs(expected - LN2) > 1e-4
    assert report.first_loss == pytest.approx(expected, abs=2e-5)


def test_full_rounds_chain_without_carrying_old_weights(
    model_folder: Callable[[str], Path], image_root: Path, pairs: list[PreferencePair], tmp_path: Path
) -> None:
    policy = model_folder("llava")
    for number in (1, 2):
        out = tmp_path / f"{number:02}"
        report = train_dpo(pairs, policy=policy, out=out, settings=replace(STEP, learning_rate=5e-3), seed=number, image_root=image_root)
        assert report.first_loss == pytest.approx(LN2, abs=1e-4)
        expected, _ = compute_logps(out, pairs, image_root)
        assert report.chosen_logp_after == pytest.approx(float(expected[:, 0].mean()), abs=1e-3)
        policy = out


def test_unusable_pairs_are_refused(
    model_folder: Callable[[str], Path], image_root: Path, pairs: list[PreferencePair], tmp_path: Path
) -> None:
    arguments = {"policy": model_folder("llava"), "out": tmp_path / "01", "seed": 0, "image_root": image_root}
    with pytest.raises(TrainingError, match="the set is empty"):
        train_dpo([], settings=STEP, **arguments)
    with pytest.raises(DataError, match=r"example pair-0: picture .*gone\.png is missing"):
        train_dpo([replace(pairs[0], images=("gone.png",))], settings=STEP, **arguments)
    long = replace(pairs[2], rejected=pairs[2].rejected + " none" * 100)
    with pytest.raises(TrainingError, match="1 of 8 examples are longer than max_length=60 tokens, the longest is pair-2 with"):
        train_dpo([*pairs[:2], long, *pairs[3:]], settings=replace(STEP, max_length=60), **arguments)


def test_health_is_measured_on_pairs_spread_over_the_round(
    model_folder: Callable[[str], Path], image_root: Path, pairs: list[PreferencePair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dpo, "HEALTH_PAIRS", 3)
    base = model_folder("llava")
    report = train_dpo(pairs, policy=base, out=tmp_path / "01", settings=STEP, seed=0, image_root=image_root)
    assert report.health_pairs == 3
    before, _ = compute_logps(base, [pairs[0], pairs[2], pairs[5]], image_root)
    assert report.chosen_logp_before == pytest.approx(float(before[:, 0].mean()), abs=1e-3)
