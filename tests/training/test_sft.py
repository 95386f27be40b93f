"""Supervised fine-tuning: every architecture, resume, truncation, frozen parts, learning, logging."""

import io
import json
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from transformers import TrainerControl, TrainerState, TrainingArguments

from tests.fixtures.tiny_models import BUILDERS, FREEZE, build_llava
from tests.fixtures.training_records import make_example
from visloop.chat.adapters import hash_weights
from visloop.config import LoraSettings, SFTSettings
from visloop.errors import ConfigError, DataError, TrainingError
from visloop.records.chains import CHAIN_TOKENS
from visloop.records.reasoning import SFTExample
from visloop.training import runs
from visloop.training.callbacks import FiniteGuard, ProgressReporter
from visloop.training.encoding import Encoder, SFTCollator
from visloop.training.models import load_policy, save_checkpoint
from visloop.training.sft import train_sft

LORA = LoraSettings(enabled=True, r=4, lora_alpha=8, target_modules=r".*(language_model|text_model).*\.(q_proj|v_proj|up_proj)")
STEP = SFTSettings(num_train_epochs=1.0, per_device_train_batch_size=4, learning_rate=1e-3, warmup_ratio=0.0)
LONG = replace(STEP, num_train_epochs=4.0, per_device_train_batch_size=2, save_steps=3.0)


class Killed(Exception):
    """Stands for a kill in the middle of a run."""


def kill_at(step: int) -> Callable[[int, dict[str, float]], None]:
    def on_log(current: int, metrics: dict[str, float]) -> None:
        if current >= step:
            raise Killed

    return on_log


def compute_logits(folder: Path, examples: list[SFTExample], root: Path) -> torch.Tensor:
    loaded = load_policy(folder)
    batch = SFTCollator(Encoder(loaded.processor, root), examples)([{"index": 0}, {"index": 1}])
    batch.pop("labels")
    with torch.no_grad():
        return loaded.model.eval()(**batch).logits


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_every_architecture_takes_a_step_saves_and_reloads(
    name: str,
    adapter: bool,
    model_folder: Callable[[str], Path],
    image_root: Path,
    examples: list[SFTExample],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = model_folder(name)
    trained: list[torch.Tensor] = []
    save = runs.release_trainer

    def remember(trainer: object) -> None:
        """The logits of the model in memory, just before it is let go."""
        loaded = load_policy(base)
        batch = SFTCollator(Encoder(loaded.processor, image_root), examples)([{"index": 0}, {"index": 1}])
        batch.pop("labels")
        with torch.no_grad():
            trained.append(trainer.model.eval()(**batch).logits)  # type: ignore[attr-defined]
        save(trainer)  # type: ignore[arg-type]

    monkeypatch.setattr("visloop.training.sft.release_trainer", remember)
    settings = replace(STEP, freeze=(FREEZE[name],), lora=LORA if adapter else LoraSettings())
    report = train_sft(examples[:4], model=base, out=tmp_path / "agent", settings=settings, seed=0, image_root=image_root)
    assert (report.steps, report.examples, report.resumed_from) == (1, 4, None)
    assert report.weights_hash == hash_weights(tmp_path / "agent") != hash_weights(base)
    assert report.trained_parameters > 0
    assert report.peak_memory_bytes > 10**8
    assert [entry["step"] for entry in report.history] == [1.0]
    again = compute_logits(tmp_path / "agent", examples, image_root)
    assert torch.equal(again, trained[0])
    assert not torch.equal(again, compute_logits(base, examples, image_root)), "one step must change the model"
    files = {path.name for path in (tmp_path / "agent").rglob("*")}
    assert ".checkpoints" not in files
    assert not {file for file in files if file.endswith((".pt", ".pth", ".bin"))}
    assert load_policy(tmp_path / "agent").is_adapter == adapter


def test_frozen_parts_stay_and_the_rest_moves(
    model_folder: Callable[[str], Path], image_root: Path, examples: list[SFTExample], tmp_path: Path
) -> None:
    base = model_folder("llava")
    report = train_sft(examples, model=base, out=tmp_path / "agent", settings=STEP, seed=0, image_root=image_root)
    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / "agent" / "model.safetensors")
    assert before.keys() == after.keys()
    same = {key for key in before if torch.equal(before[key], after[key])}
    assert same == {key for key in before if "vision_tower" in key}
    assert report.trained_parameters == sum(value.numel() for key, value in before.items() if key not in same)


def test_first_loss_is_the_mean_over_the_answer_tokens(
    model_folder: Callable[[str], Path], image_root: Path, examples: list[SFTExample], tmp_path: Path
) -> None:
    base = model_folder("llava")
    settings = replace(STEP, per_device_train_batch_size=8)
    report = train_sft(examples, model=base, out=tmp_path / "agent", settings=settings, seed=0, image_root=image_root)
    loaded = load_policy(base)
    total, tokens = 0.0, 0
    for index in range(len(examples)):
        batch = SFTCollator(Encoder(loaded.processor, image_root), examples)([{"index": index}])
        labels = batch.pop("labels")[0, 1:]
        with torch.no_grad():
            logs = loaded.model.eval()(**batch).logits[0, :-1].log_softmax(-1)
        for position, label in enumerate(labels.tolist()):
            if label != -100:
                total, tokens = total - float(logs[position, label]), tokens + 1
    assert report.history[0]["loss"] == pytest.approx(total / tokens, abs=2e-4)


def test_eight_examples_are_learned_by_heart(model_folder: Callable[[str], Path], image_root: Path, tmp_path: Path) -> None:
    examples = [make_example(index) for index in range(8)]
    settings = replace(STEP, num_train_epochs=70.0, per_device_train_batch_size=8, learning_rate=1e-2)
    report = train_sft(examples, model=model_folder("llava"), out=tmp_path / "agent", settings=settings, seed=0, image_root=image_root)
    assert report.history[0]["loss"] > 3.5, "a random model over 50 words starts near ln 50 = 3.9"
    assert report.history[-1]["loss"] < 0.3
    loaded = load_policy(tmp_path / "agent")
    tokenizer = loaded.processor.tokenizer
    encoded = Encoder(loaded.processor, image_root).encode_example(examples[1])
    prompt = encoded.input_ids[~encoded.trained][None]
    reply = loaded.model.eval().generate(
        input_ids=prompt, attention_mask=torch.ones_like(prompt), **encoded.pictures, max_new_tokens=40, do_sample=False
    )
    assert tokenizer.decode(reply[0, prompt.shape[1] :]) == tokenizer.decode(encoded.input_ids[encoded.trained])


@pytest.mark.parametrize(
    ("steps", "save_steps", "intervals"),
    [(226, 0.25, (4, 56)), (78, 0.25, (1, 20)), (12, 3.0, (1, 3)), (1000, 10.0, (10, 10)), (1000, 50.0, (20, 40)), (1, 0.25, (1, 1))],
)
def test_a_checkpoint_follows_a_log(steps: int, save_steps: float, intervals: tuple[int, int]) -> None:
    log_every, save_every = runs.plan_intervals(steps, replace(STEP, save_steps=save_steps))
    assert (log_every, save_every) == intervals and save_every % log_every == 0


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_a_killed_run_ends_with_the_same_weights(
    adapter: bool, model_folder: Callable[[str], Path], image_root: Path, examples: list[SFTExample], tmp_path: Path
) -> None:
    dropout = replace(LORA, lora_dropout=0.1)  # so that the random state must be restored, too
    settings = replace(LONG, lora=dropout if adapter else LoraSettings())
    arguments = {"model": model_folder("llava"), "settings": settings, "seed": 3, "image_root": image_root}
    whole = train_sft(examples, out=tmp_path / "whole", **arguments)
    again = train_sft(examples, out=tmp_path / "again", **arguments)
    assert again.weights_hash == whole.weights_hash
    assert again.history[-1]["loss"] == whole.history[-1]["loss"]

    with pytest.raises(Killed):
        train_sft(examples, out=tmp_path / "killed", on_log=kill_at(11), **arguments)
    checkpoints = tmp_path / "killed" / ".checkpoints"
    assert {path.name for path in checkpoints.glob("checkpoint-*")} == {"checkpoint-6", "checkpoint-9"}
    assert not list((tmp_path / "killed").glob("*.safetensors")), "an unfinished run must not look like an agent"
    newest = next((checkpoints / "checkpoint-9").glob("*.safetensors"))
    newest.write_bytes(newest.read_bytes()[:-64])  # half-written: the one before it counts
    steps: list[int] = []
    resumed = train_sft(examples, out=tmp_path / "killed", on_log=lambda step, _: steps.append(step), **arguments)
    assert resumed.resumed_from == 6
    assert steps[0] == 7
    assert resumed.weights_hash == whole.weights_hash
    assert resumed.history == whole.history
    assert not checkpoints.exists()


def test_other_data_does_not_continue_an_old_run(
    model_folder: Callable[[str], Path], image_root: Path, examples: list[SFTExample], tmp_path: Path
) -> None:
    arguments = {"model": model_folder("llava"), "out": tmp_path / "agent", "settings": LONG, "image_root": image_root}
    with pytest.raises(Killed):
        train_sft(examples, seed=3, on_log=kill_at(11), **arguments)
    other = [*examples[:-1], replace(examples[-1], turns=examples[0].turns)]
    report = train_sft(other, seed=3, **arguments)
    assert report.resumed_from is None


def test_another_seed_gives_other_weights(
    model_folder: Callable[[str], Path], image_root: Path, examples: list[SFTExample], tmp_path: Path
) -> None:
    settings = replace(STEP, per_device_train_batch_size=2)
    hashes = {
        train_sft(
            examples, model=model_folder("llava"), out=tmp_path / str(seed), settings=settings, seed=seed, image_root=image_root
        ).weights_hash
        for seed in (0, 1)
    }
    assert len(hashes) == 2


def test_nothing_is_cut_in_silence(
    model_folder: Callable[[str], Path], image_root: Path, examples: list[SFTExample], tmp_path: Path
) -> None:
    base = model_folder("llava")
    turns = examples[3].turns
    long = replace(examples[3], turns=(turns[0], replace(turns[1], text=turns[1].text + " none" * 100)))
    mixed = [*examples[:3], long, *examples[4:]]
    length = len(Encoder(load_policy(base).processor, image_root).encode_example(long).input_ids)
    arguments = {"model": base, "seed": 0, "image_root": image_root}
    with pytest.raises(
        TrainingError, match=rf"1 of 8 examples are longer than max_length={length - 1} tokens, the longest is example-3 with {length}"
    ):
        train_sft(mixed, out=tmp_path / "a", settings=replace(STEP, max_length=length - 1), **arguments)
    exact = train_sft(mixed, out=tmp_path / "b", settings=replace(STEP, max_length=length), **arguments)
    unlimited = train_sft(mixed, out=tmp_path / "c", settings=STEP, **arguments)
    assert exact.weights_hash == unlimited.weights_hash


def test_unusable_sets_are_refused_before_training(
    model_folder: Callable[[str], Path], image_root: Path, examples: list[SFTExample], tmp_path: Path
) -> None:
    arguments = {"model": model_folder("llava"), "out": tmp_path / "agent", "settings": STEP, "seed": 0, "image_root": image_root}
    with pytest.raises(TrainingError, match="the set is empty"):
        train_sft([], **arguments)
    with pytest.raises(TrainingError, match="two records have the id example-0"):
        train_sft([examples[0], examples[0]], **arguments)
    with pytest.raises(DataError, match=r"example example-0: picture .*gone\.png is missing"):
        train_sft([replace(examples[0], images=("pictures/gone.png",))], **arguments)
    assert not (tmp_path / "agent").exists()


def test_fine_tuning_does_not_start_from_an_adapter(
    model_folder: Callable[[str], Path], image_root: Path, examples: list[SFTExample], tmp_path: Path
) -> None:
    settings = replace(STEP, lora=LORA)
    arguments = {"settings": settings, "seed": 0, "image_root": image_root}
    train_sft(examples[:4], model=model_folder("llava"), out=tmp_path / "a", **arguments)
    with pytest.raises(ConfigError, match="is a LoRA adapter; fine-tuning starts from full weights"):
        train_sft(examples[:4], model=tmp_path / "a", out=tmp_path / "b", **arguments)


def test_chain_tags_become_tokens_and_are_learned(image_root: Path, examples: list[SFTExample], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, processor = build_llava(tags=("\n",))
    save_checkpoint(model, processor, tmp_path / "base")
    train_sft(examples, model=tmp_path / "base", out=tmp_path / "agent", settings=STEP, seed=0, image_root=image_root)
    loaded = load_policy(tmp_path / "agent")
    tokenizer = loaded.processor.tokenizer
    ids = tokenizer.convert_tokens_to_ids(list(CHAIN_TOKENS))
    assert tokenizer.unk_token_id not in ids
    rows = loaded.model.get_output_embeddings().weight[ids]
    assert not torch.allclose(rows[0], rows[1]), "training must tell the tags apart"


def test_rows_without_pictures_train_beside_rows_with_several(
    model_folder: Callable[[str], Path], image_root: Path, tmp_path: Path
) -> None:
    for name in ("llava", "llava_next", "idefics3"):
        mixed = [make_example(index, pictures=index % 3) for index in range(4)]
        settings = replace(STEP, freeze=(FREEZE[name],))
        report = train_sft(mixed, model=model_folder(name), out=tmp_path / name, settings=settings, seed=0, image_root=image_root)
        assert math.isfinite(report.history[0]["loss"])
        bare = [replace(example, images=()) for example in mixed]
        train_sft(bare, model=model_folder(name), out=tmp_path / f"{name}-bare", settings=settings, seed=0, image_root=image_root)


def test_a_loss_that_is_not_finite_stops_the_run(image_root: Path, examples: list[SFTExample], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, processor = build_llava()
    with torch.no_grad():
        model.get_output_embeddings().weight[0, 0] = float("nan")
    save_checkpoint(model, processor, tmp_path / "base")
    with pytest.raises(TrainingError, match=r"loss is nan at step 1 of 2: try a lower learning_rate \(now 0\.001\)"):
        train_sft(examples, model=tmp_path / "base", out=tmp_path / "agent", settings=STEP, seed=0, image_root=image_root)
    assert not list((tmp_path / "agent").glob("*.safetensors"))


@pytest.mark.parametrize("logs", [{"loss": "inf"}, {"loss": 1.0, "grad_norm": float("nan")}])
def test_the_guard_reads_losses_and_norms(logs: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="at step 7 of 9"):
        FiniteGuard().on_log(
            TrainingArguments(str(tmp_path), use_cpu=True), TrainerState(global_step=7, max_steps=9), TrainerControl(), logs=logs
        )


@pytest.fixture
def info_log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.INFO, logger="visloop.training"):
        yield caplog


def drive(reporter: ProgressReporter, folder: Path, steps: int) -> None:
    arguments, control = TrainingArguments(str(folder), use_cpu=True), TrainerControl()
    state = TrainerState(max_steps=steps)
    reporter.on_train_begin(arguments, state, control)
    for step in range(1, steps + 1):
        state.global_step = step
        reporter.on_step_end(arguments, state, control)
        reporter.on_log(arguments, state, control, logs={"loss": "0.5", "rewards/accuracies": 0.75})
    reporter.close()


def test_progress_is_a_bar_on_a_terminal_and_few_lines_elsewhere(tmp_path: Path, info_log: pytest.LogCaptureFixture) -> None:
    screen = io.StringIO()
    drive(ProgressReporter("DPO 01", Console(file=screen, force_terminal=True, width=120)), tmp_path, 50)
    assert "DPO 01" in screen.getvalue()
    assert "50/50" in screen.getvalue()
    assert "loss 0.500  reward accuracy 0.75" in screen.getvalue()
    assert not info_log.records
    pipe = io.StringIO()
    drive(ProgressReporter("DPO 01", Console(file=pipe, force_terminal=False)), tmp_path, 50)
    assert pipe.getvalue() == ""
    assert [record.getMessage() for record in info_log.records] == [
        "DPO 01: 50 steps, from step 0",
        "DPO 01: step 50 of 50, loss 0.500  reward accuracy 0.75",
    ]


def test_reports_can_be_written_as_json(
    model_folder: Callable[[str], Path], image_root: Path, examples: list[SFTExample], tmp_path: Path
) -> None:
    from dataclasses import asdict

    report = train_sft(examples, model=model_folder("llava"), out=tmp_path / "agent", settings=STEP, seed=0, image_root=image_root)
    assert json.loads(json.dumps(asdict(report)))["history"][0]["step"] == 1.0
    assert report.samples_per_second == pytest.approx(8 / report.seconds)
