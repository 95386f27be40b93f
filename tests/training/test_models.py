"""Loading, saving, freezing, chain tokens, encodings and checkpoints."""

import json
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from trl.trainer.dpo_trainer import DataCollatorForVisionPreference
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from tests.fixtures.tiny_models import BUILDERS, build_llava
from tests.fixtures.training_records import make_example, make_pair
from visloop.chat.adapters import hash_weights
from visloop.chat.images import load_image
from visloop.chat.loads import count_loads, reset_loads
from visloop.config import SFTSettings
from visloop.errors import ConfigError, DataError, ModelError, TrainingError
from visloop.records.chains import CHAIN_TOKENS
from visloop.records.reasoning import ChatTurn, PreferencePair, SFTExample
from visloop.training.checkpoints import is_whole, prepare_checkpoints
from visloop.training.encoding import Encoder, PairCollator, SFTCollator, render_segments
from visloop.training.models import ensure_chain_tokens, freeze_modules, load_policy, save_checkpoint
from visloop.training.sft import train_sft

LINEARS = r".*(language_model|text_model).*\.(q_proj|v_proj)"


def compute_logits(model: torch.nn.Module, processor: object, examples: list[SFTExample], root: Path) -> torch.Tensor:
    batch = SFTCollator(Encoder(processor, root), examples)([{"index": 0}, {"index": 1}])
    batch.pop("labels")
    with torch.no_grad():
        return model.eval()(**batch).logits


@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_batches_equal_those_of_trl(
    name: str, model_folder: Callable[[str], Path], image_root: Path, examples: list[SFTExample], pairs: list[PreferencePair]
) -> None:
    processor = load_policy(model_folder(name)).processor
    encoder = Encoder(processor, image_root)
    rows = [{"index": 0}, {"index": 1}, {"index": 2}]
    ours = SFTCollator(encoder, examples)(rows)
    messages = [[{"role": turn.role, "content": turn.text} for turn in example.turns] for example in examples[:3]]
    pictures = [[load_image(image_root / image, max_pixels=10**6) for image in example.images] for example in examples[:3]]
    theirs = DataCollatorForVisionLanguageModeling(processor, completion_only_loss=True)(
        [{"images": images, "prompt": turns[:-1], "completion": turns[-1:]} for images, turns in zip(pictures, messages, strict=True)]
    )
    assert set(ours) == set(theirs)
    for key, value in theirs.items():
        assert torch.equal(ours[key], value), key

    ours = PairCollator(encoder, pairs)(rows)
    theirs = DataCollatorForVisionPreference(processor)(
        [
            {
                "images": images,
                "prompt": [{"role": "user", "content": pair.prompt}],
                "chosen": [{"role": "assistant", "content": pair.chosen}],
                "rejected": [{"role": "assistant", "content": pair.rejected}],
            }
            for images, pair in zip(pictures, pairs[:3], strict=True)
        ]
    )
    assert set(ours) == set(theirs)
    theirs["input_ids"][theirs["attention_mask"] == 0] = processor.tokenizer.pad_token_id  # TRL fills with EOS where the pad id is 0
    for key, value in theirs.items():
        assert torch.equal(ours[key], value), key


@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_a_sequence_scores_the_same_alone_and_in_a_padded_batch(name: str, model_folder: Callable[[str], Path], image_root: Path) -> None:
    loaded = load_policy(model_folder(name))
    examples = [make_example(0, pictures=1), make_example(1, pictures=2)]
    collator = SFTCollator(Encoder(loaded.processor, image_root), examples)
    losses = []
    for rows in ([{"index": 0}], [{"index": 1}], [{"index": 0}, {"index": 1}]):
        batch = collator(rows)
        with torch.no_grad():
            logits = loaded.model.eval()(**{key: value for key, value in batch.items() if key != "labels"}).logits
        scores = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum")
        losses.append(float(scores))
    assert losses[2] == pytest.approx(losses[0] + losses[1], rel=1e-4)


def test_loss_covers_the_last_turn_only_or_every_turn_of_multi_turn(model_folder: Callable[[str], Path], image_root: Path) -> None:
    processor = load_policy(model_folder("llava")).processor
    turns = (
        ChatTurn(role="system", text="answer"),
        ChatTurn(role="user", text="find red"),
        ChatTurn(role="assistant", text="x1 y1"),
        ChatTurn(role="user", text="find blue"),
        ChatTurn(role="assistant", text="x2 y2"),
    )
    kinds = {"reason": "x2 y2 <eos>", "multi_turn": "x1 y1 <eos> x2 y2 <eos>"}
    for kind, expected in kinds.items():
        example = SFTExample(id=kind, sample_id="s", kind=kind, images=("pictures/0.png",), turns=turns)  # type: ignore[arg-type]
        encoded = Encoder(processor, image_root).encode_example(example)
        assert processor.tokenizer.decode(encoded.input_ids[encoded.trained]) == expected
        assert encoded.input_ids.tolist().count(processor.tokenizer.convert_tokens_to_ids("<image>")) == 4


def test_templates_that_rewrite_earlier_turns_and_open_ends_are_refused(model_folder: Callable[[str], Path], image_root: Path) -> None:
    processor = load_policy(model_folder("llava")).processor
    user, reply = ChatTurn(role="user", text="find red"), ChatTurn(role="assistant", text="x1")
    with pytest.raises(TrainingError, match="last turn must be the assistant's"):
        render_segments(processor, (user,), 0, every_turn=False)
    with pytest.raises(TrainingError, match="pictures need a user turn"):
        render_segments(processor, (reply,), 1, every_turn=False)
    processor.chat_template = "{{ messages | length }}" + processor.chat_template
    example = SFTExample(id="e7", sample_id="s", kind="reason", images=(), turns=(user, reply))
    with pytest.raises(TrainingError, match="example e7: the chat template renders earlier turns differently"):
        Encoder(processor, image_root).encode_example(example)


def test_encodings_are_kept_within_the_budget_only(model_folder: Callable[[str], Path], image_root: Path) -> None:
    processor = load_policy(model_folder("llava")).processor
    kept, none = Encoder(processor, image_root), Encoder(processor, image_root, cache_bytes=0)
    example = make_example(0)
    assert kept.encode_example(example) is kept.encode_example(example)
    assert none.encode_example(example) is not none.encode_example(example)
    assert torch.equal(kept.encode_example(example).input_ids, none.encode_example(example).input_ids)
    chosen, rejected = kept.encode_pair(make_pair(0))
    assert chosen.pictures is rejected.pictures is kept.encode_example(example).pictures


def test_a_broken_picture_is_named_with_its_example(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    processor = load_policy(model_folder("llava")).processor
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "0.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\x00" * 40)
    with pytest.raises(DataError, match=r"example example-0: .*0\.png"):
        Encoder(processor, tmp_path).encode_example(make_example(0))


@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_full_weights_survive_a_round_trip(
    name: str, model_folder: Callable[[str], Path], image_root: Path, examples: list[SFTExample], tmp_path: Path
) -> None:
    loaded = load_policy(model_folder(name))
    before = compute_logits(loaded.model, loaded.processor, examples, image_root)
    digest = save_checkpoint(loaded.model, loaded.processor, tmp_path / "saved")
    again = load_policy(tmp_path / "saved")
    assert torch.equal(compute_logits(again.model, again.processor, examples, image_root), before)
    assert digest == hash_weights(tmp_path / "saved")
    assert again.processor.chat_template == loaded.processor.chat_template
    for file in (tmp_path / "saved").rglob("*.json"):
        assert str(tmp_path) not in file.read_text(), file
    assert not [file.name for file in (tmp_path / "saved").iterdir() if file.suffix in {".bin", ".pt", ".pth", ".pkl"}]


def test_an_adapter_finds_its_base_after_the_folder_moved(
    model_folder: Callable[[str], Path], image_root: Path, examples: list[SFTExample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The project moves as a whole; and an adapter is built in one folder and swapped to another."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    first = load_policy(model_folder("llava"))
    save_checkpoint(first.model, first.processor, here / "base")
    loaded = load_policy(here / "base")
    torch.manual_seed(0)
    adapter = get_peft_model(loaded.model, LoraConfig(r=4, target_modules=LINEARS, init_lora_weights=False))
    adapter.add_adapter("ref", adapter.peft_config["default"])
    before = compute_logits(adapter, loaded.processor, examples, image_root)
    save_checkpoint(adapter, loaded.processor, here / "rounds" / "01" / "in" / "progress")
    (here / "rounds" / "01" / "in" / "progress").rename(here / "rounds" / "02")
    (here / "rounds" / "01" / "in").rmdir()
    (here / "rounds" / "01").rmdir()
    (here / "rounds" / "02").rename(here / "rounds" / "01")
    assert json.loads((here / "rounds" / "01" / "base.json").read_text())["base"] == "./base"
    assert not [path for path in (here / "rounds" / "01").iterdir() if path.is_dir()], "only the adapter 'default' may be saved"
    for file in (here / "rounds" / "01").iterdir():
        assert str(tmp_path).encode() not in file.read_bytes(), file

    here.rename(tmp_path / "there")
    monkeypatch.chdir(tmp_path / "there")
    moved = load_policy(tmp_path / "there" / "rounds" / "01")
    assert moved.is_adapter
    assert moved.base == str(tmp_path / "there" / "base")
    assert torch.equal(compute_logits(moved.model, moved.processor, examples, image_root), before)
    assert torch.equal(compute_logits(moved.model.base_model.model, moved.processor, examples, image_root), before), (
        "the adapter must be active"
    )


def test_an_adapter_refuses_another_base(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    loaded = load_policy(model_folder("llava"))
    save_checkpoint(loaded.model, loaded.processor, tmp_path / "base")
    loaded = load_policy(tmp_path / "base")
    save_checkpoint(get_peft_model(loaded.model, LoraConfig(r=2, target_modules=LINEARS)), loaded.processor, tmp_path / "adapter")
    other, _ = build_llava()
    other.save_pretrained(tmp_path / "base")
    with pytest.raises(ModelError, match="not those that the adapter was trained on"):
        load_policy(tmp_path / "adapter")
    (tmp_path / "adapter" / "base.json").write_text("[]")
    with pytest.raises(ModelError, match=r"base\.json: an adapter needs this file"):
        load_policy(tmp_path / "adapter")


def test_what_is_no_model_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nowhere"):
        load_policy(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="cannot be loaded as an image-text model"):
        load_policy(tmp_path)


def test_loads_are_counted(model_folder: Callable[[str], Path]) -> None:
    folder = model_folder("llava")
    reset_loads()
    load_policy(folder)
    load_policy(folder)
    assert count_loads() == {str(folder.resolve()): 2}


def test_saving_over_a_folder_replaces_its_model_and_leaves_the_rest(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    loaded = load_policy(model_folder("llava"))
    out = tmp_path / "out"
    save_checkpoint(loaded.model, loaded.processor, out)
    (out / "manifest.json").write_text("kept")
    (out / "model-00001-of-00002.safetensors").write_bytes(b"stale shard")
    with torch.no_grad():
        loaded.model.get_output_embeddings().weight.add_(1.0)
    digest = save_checkpoint(loaded.model, loaded.processor, out)
    assert (out / "manifest.json").read_text() == "kept"
    assert [file.name for file in out.glob("*.safetensors")] == ["model.safetensors"]
    assert hash_weights(out) == digest
    assert torch.equal(load_policy(out).model.get_output_embeddings().weight, loaded.model.get_output_embeddings().weight)
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "no temporary folder may stay behind"


def test_a_failed_save_leaves_nothing_loadable_or_temporary(
    model_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_policy(model_folder("llava"))

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(loaded.processor), "save_pretrained", refuse)
    with pytest.raises(DataError, match="No space left on device"):
        save_checkpoint(loaded.model, loaded.processor, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_files() -> Iterator[Callable[[int], None]]:
    """Makes writing more than so many bytes into one file fail, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_named_and_spares_the_old_model(
    model_folder: Callable[[str], Path], tmp_path: Path, small_files: Callable[[int], None]
) -> None:
    loaded = load_policy(model_folder("llava"))
    digest = save_checkpoint(loaded.model, loaded.processor, tmp_path / "out")
    small_files(20_000)
    with pytest.raises(DataError, match=r"cannot save a model to .*free space"):
        save_checkpoint(loaded.model, loaded.processor, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert hash_weights(tmp_path / "out") == digest


@pytest.mark.parametrize("limit", [20_000, 200_000], ids=["weights", "optimizer"])
def test_a_disk_that_fills_up_while_training_can_be_continued(
    limit: int,
    model_folder: Callable[[str], Path],
    image_root: Path,
    examples: list[SFTExample],
    tmp_path: Path,
    small_files: Callable[[int], None],
) -> None:
    size = (model_folder("llava") / "model.safetensors").stat().st_size
    assert 20_000 < size < 200_000, "the optimizer's file, twice as large as what it trains, must cross the second limit"
    settings = SFTSettings(num_train_epochs=2.0, per_device_train_batch_size=2, save_steps=2.0)
    arguments = {"model": model_folder("llava"), "settings": settings, "seed": 0, "image_root": image_root}
    small_files(limit)
    with pytest.raises(DataError, match=r"SFT agent: cannot write a checkpoint: .*free space and run again"):
        train_sft(examples, out=tmp_path / "agent", **arguments)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    report = train_sft(examples, out=tmp_path / "agent", **arguments)
    assert report.weights_hash == train_sft(examples, out=tmp_path / "other", **arguments).weights_hash


def test_freezing_names_what_it_fixes(model_folder: Callable[[str], Path]) -> None:
    model = load_policy(model_folder("llava")).model
    fixed = freeze_modules(model, ("vision_tower", "multi_modal_projector"))
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if "vision_tower" in name or "multi_modal_projector" in name}
    assert fixed == sum(parameter.numel() for name, parameter in model.named_parameters() if name in frozen)
    with pytest.raises(ConfigError, match="'visual' matches no parameter of LlavaForConditionalGeneration; its parts are"):
        freeze_modules(model, ("visual",))
    with pytest.raises(ConfigError, match="leaves nothing to train"):
        freeze_modules(model, ("model", "lm_head"))


@pytest.mark.parametrize("spare_rows", [0, 16])
def test_chain_tokens_are_added_at_the_mean_and_round_trip(spare_rows: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, processor = build_llava(tags=("\n",))
    tokenizer = processor.tokenizer
    chain = "<thoughts>\nfind red: x1\n</thoughts>\n<output>1</output>"
    assert tokenizer.unk_token_id in tokenizer(chain)["input_ids"]
    old = len(tokenizer)
    model.resize_token_embeddings(old + spare_rows, mean_resizing=False)
    means = [layer.weight[:old].mean(dim=0) for layer in (model.get_input_embeddings(), model.get_output_embeddings())]
    kept = model.get_input_embeddings().weight[:old].clone()

    assert ensure_chain_tokens(model, processor) == 4
    assert ensure_chain_tokens(model, processor) == 0
    save_checkpoint(model, processor, tmp_path / "out")
    loaded = load_policy(tmp_path / "out")
    ids = loaded.processor.tokenizer(chain)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert [ids.count(loaded.processor.tokenizer.convert_tokens_to_ids(token)) for token in CHAIN_TOKENS] == [1, 1, 1, 1]
    text = loaded.processor.tokenizer.decode(ids, skip_special_tokens=True)
    assert all(token in text for token in CHAIN_TOKENS), "the tags must survive decoding"
    for layer, mean in zip((loaded.model.get_input_embeddings(), loaded.model.get_output_embeddings()), means, strict=True):
        assert layer.weight.shape[0] == max(old + 4, old + spare_rows)
        for row in layer.weight[old : old + 4]:
            assert torch.allclose(row, mean, atol=1e-7)
    assert torch.equal(loaded.model.get_input_embeddings().weight[:old], kept)


def test_only_whole_checkpoints_of_the_same_run_are_continued(tmp_path: Path, model_folder: Callable[[str], Path]) -> None:
    folder = tmp_path / ".checkpoints"
    assert prepare_checkpoints(folder, key="a") is None
    weights = (model_folder("llava") / "model.safetensors").read_bytes()
    for step in (5, 10, 20):
        path = folder / f"checkpoint-{step}"
        path.mkdir()
        (path / "model.safetensors").write_bytes(weights)
        (path / "trainer_state.json").write_text('{"global_step": 1}')
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
            torch.save({"step": step}, path / name)
        assert is_whole(path)
    assert prepare_checkpoints(folder, key="a") == folder / "checkpoint-20", "newest by number, not by name"

    (folder / "checkpoint-20" / "model.safetensors").write_bytes(weights[:-10])
    assert not is_whole(folder / "checkpoint-20")
    optimizer = folder / "checkpoint-10" / "optimizer.pt"
    optimizer.write_bytes(optimizer.read_bytes()[:-30])
    assert not is_whole(folder / "checkpoint-10")
    assert prepare_checkpoints(folder, key="a") == folder / "checkpoint-5"
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-5", "run.json"]
    assert prepare_checkpoints(folder, key="b") is None, "other data or settings: start again"
    assert [path.name for path in folder.iterdir()] == ["run.json"]
