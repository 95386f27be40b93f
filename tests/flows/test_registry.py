"""M_t in the registry: what comes back is what went in, by hash and by logits, and weights are not kept twice."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flows._database import connect
from flows._registry import NEWEST, WEIGHTS_NAME, WEIGHTS_TAG, RegisteredModel, load_registered, register_model
from flows._tracking import open_run
from visloop.config import Config, PathsConfig
from visloop.errors import DataError, ModelError


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project folder with one database for all tests of this module; tests use model names of their own."""
    return tmp_path_factory.mktemp("project")


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    return str(request.node.name)


def save_files(folder: Path, *, weights: bytes = b"w" * 5000, base: dict[str, Any] | None = None) -> Path:
    """A model's folder as training leaves it: full weights, or an adapter where ``base`` is given; and files that are no model."""
    (folder / "checkpoint-5").mkdir(parents=True)
    (folder / "checkpoint-5/model.safetensors").write_bytes(b"not yet")
    (folder / ".stage").write_text("x")
    if base is None:
        (folder / "model.safetensors").write_bytes(weights)
        (folder / "config.json").write_text("{}")
    else:
        (folder / "adapter_model.safetensors").write_bytes(weights)
        (folder / "adapter_config.json").write_text("{}")
        (folder / "base.json").write_text(json.dumps(base))
    return folder


def register(root: Path, name: str, folder: Path, *, step: int = 1, seed: int = 0, **named: Any) -> RegisteredModel:
    config = Config(paths=PathsConfig(mlruns=str(root / "mlruns")), seed=seed)
    with open_run(name.replace("[", ".").replace("]", ""), config) as run, run.open_child(f"M_{step}", step=step) as child:
        return register_model(child, name=name, folder=folder, **named)


def list_stored(root: Path, model: RegisteredModel) -> list[Path]:
    return [path for path in (root / "mlruns").rglob("*") if path.is_file() and model.model_id in path.parts]


def test_full_weights_stay_where_they_are(root: Path, name: str) -> None:
    """The registry holds a small file that names them, relative to the project; loading gives their own folder."""
    folder = save_files(root / "data/rounds/01" / name)
    model = register(root, name, folder, aliases=["m1"])
    stored = list_stored(root, model)
    assert [path.name for path in stored if path.suffix in (".json", ".safetensors")] == [WEIGHTS_NAME]
    content = json.loads(next(path for path in stored if path.name == WEIGHTS_NAME).read_text())
    assert content["path"] == f"data/rounds/01/{name}" and set(content["sha256"]) == {"config.json", "model.safetensors"}
    assert load_registered(name, mlruns=root / "mlruns", alias="m1") == folder


def test_adapter_files_are_kept_and_find_their_base(root: Path, name: str) -> None:
    """An adapter is loaded from another folder than it was saved to: its base is named from the project, so that it is found there too."""
    folder = save_files(root / "data/rounds/02" / name, base={"base": f"./models/{name}", "hash": "h"})
    model = register(root, name, folder, step=2, aliases=["m2"])
    loaded = load_registered(name, mlruns=root / "mlruns", alias="m2")
    assert model.kind == "adapter" and loaded.is_relative_to(root / "mlruns")
    assert {path.name for path in loaded.iterdir()} == {"adapter_model.safetensors", "adapter_config.json", "base.json"}
    assert json.loads((loaded / "base.json").read_text()) == {"base": f"./models/{name}", "hash": "h"}
    assert (loaded / "adapter_model.safetensors").read_bytes() == (folder / "adapter_model.safetensors").read_bytes()
    shutil.rmtree(folder)
    assert load_registered(name, mlruns=root / "mlruns") == loaded


def test_each_round_is_a_version_with_its_aliases(root: Path, name: str) -> None:
    models = []
    for step in range(3):
        folder = save_files(root / f"{name}/{step}", weights=bytes([step]) * 9)
        models.append(register(root, name, folder, step=step, aliases=[f"m{step}"], metrics={"a": step}))
    assert [model.version for model in models] == [1, 2, 3] and len({model.digest for model in models}) == 3
    for step in range(3):
        assert load_registered(name, mlruns=root / "mlruns", alias=f"m{step}") == root / f"{name}/{step}"
        assert load_registered(name, mlruns=root / "mlruns", version=step + 1) == root / f"{name}/{step}"
    assert load_registered(name, mlruns=root / "mlruns") == root / f"{name}/2" and NEWEST != "latest"
    logged = connect(root / "mlruns").get_logged_model(models[1].model_id)
    assert [(metric.key, metric.value, metric.step) for metric in logged.metrics] == [("a", 1.0, 1)]
    assert logged.tags["round"] == "1" and len(logged.tags[WEIGHTS_TAG]) == 64


def test_same_model_of_the_same_run_is_entered_once(root: Path, name: str) -> None:
    folder = save_files(root / name)
    first, again = register(root, name, folder, aliases=["m1"]), register(root, name, folder, aliases=["m1", "head"])
    assert first == again and load_registered(name, mlruns=root / "mlruns", alias="head") == folder
    assert register(root, name, folder, seed=1).version == 2  # another run: another version of the same files
    (folder / "model.safetensors").write_bytes(b"other")
    assert register(root, name, folder, seed=1).version == 3


def test_changed_or_missing_files_are_refused(root: Path, name: str) -> None:
    folder = save_files(root / name)
    model = register(root, name, folder)
    (folder / "model.safetensors").write_bytes(b"w" * 4999 + b"x")
    with pytest.raises(DataError, match=r"not those of .* version 1.*dvc checkout"):
        load_registered(name, mlruns=root / "mlruns")
    shutil.rmtree(folder)
    with pytest.raises(DataError, match=r"is missing.*dvc"):
        load_registered(name, mlruns=root / "mlruns")
    adapter = save_files(root / f"{name}-adapter", base={"base": "hub/id", "hash": None})
    model = register(root, name, adapter)
    next(path for path in list_stored(root, model) if path.name == "adapter_model.safetensors").write_bytes(b"changed")
    with pytest.raises(DataError, match="not those of"):
        load_registered(name, mlruns=root / "mlruns")


def test_unknown_names_and_empty_folders_are_named(root: Path, name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no registered model 'nobody'"):
        load_registered("nobody", mlruns=root / "mlruns")
    register(root, name, save_files(root / name))
    with pytest.raises(ModelError, match="alias 'm7'"):
        load_registered(name, mlruns=root / "mlruns", alias="m7")
    with pytest.raises(ModelError, match="version 7"):
        load_registered(name, mlruns=root / "mlruns", version=7)
    with pytest.raises(ModelError, match="safetensors"):
        register(root, name, tmp_path, seed=3)


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_loaded_model_gives_the_same_logits(root: Path, name: str, lora: bool) -> None:
    """M_t saved by training, registered, loaded back: bit-equal logits, and other ones than the base's."""
    import torch
    from peft import LoraConfig, get_peft_model

    from tests.fixtures.tiny_models import save_tiny
    from visloop.training.models import load_policy, save_checkpoint

    base = save_tiny("llava", root / f"base-{lora}")
    source = load_policy(base)
    picture = Image.effect_noise((32, 32), 60.0).convert("RGB")
    inputs = source.processor(text=["<image> how many red circle ?"], images=[picture], return_tensors="pt")

    def compute_logits(model: Any) -> Any:
        with torch.no_grad():
            return model.eval()(**inputs).logits

    untouched = compute_logits(source.model).clone()
    model: Any = source.model
    torch.manual_seed(1)
    if lora:
        settings = LoraConfig(r=4, lora_alpha=8, target_modules=r".*language_model.*\.(q_proj|v_proj)", init_lora_weights=False)
        model = get_peft_model(source.model, settings)
    else:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    trained = compute_logits(model)
    folder = root / "data/rounds" / f"{lora}"
    save_checkpoint(model, source.processor, folder)

    registered = register(root, name, folder, aliases=["m1"])
    loaded = load_policy(load_registered(name, mlruns=root / "mlruns", alias="m1"))
    assert registered.kind == ("adapter" if lora else "full") and loaded.is_adapter == lora
    assert torch.equal(compute_logits(loaded.model), trained)
    assert not torch.allclose(trained, untouched, atol=1e-3)
