"""How an adapter finds its base: by name from the working directory, checked by hash, wherever the adapter itself lies."""

import json
from pathlib import Path

import pytest

from visloop.chat import adapters, weights
from visloop.chat.adapters import BASE_FILE, find_base, hash_weights, is_adapter, name_base, write_base
from visloop.errors import ModelError


def save_base(folder: Path, content: bytes = b"base") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(content)
    return folder


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a shipped model ``embedded/base`` outside of it."""
    save_base(tmp_path / "package" / "base")
    for module in (weights, adapters):
        monkeypatch.setattr(module, "shipped_folder", lambda: tmp_path / "package")
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


@pytest.mark.parametrize("built_in", ["models/reasoner", "models/reasoner/.stage/build", "mlruns/1/models/m-1/artifacts"])
@pytest.mark.parametrize("base", ["embedded/base", "data/models/plain", "embedded/mine"])
def test_the_base_is_found_wherever_the_adapter_was_written(base: str, built_in: str, project: Path) -> None:
    if base != "embedded/base":
        save_base(project / base, b"own")
    source = weights.resolve_model("embedded/base") if base == "embedded/base" else str(project / base)
    built = project / built_in
    built.mkdir(parents=True)
    write_base(built, base=source)
    assert json.loads((built / BASE_FILE).read_text())["base"] == (base if base == "embedded/base" else f"./{base}")
    built.rename(project / "moved")
    assert find_base("moved") == source


def test_a_base_outside_of_the_working_directory_keeps_its_path(project: Path, tmp_path: Path) -> None:
    outside = save_base(tmp_path / "elsewhere" / "base")
    (project / "m").mkdir()
    write_base(project / "m", base=outside)
    assert find_base(project / "m") == str(outside)


def test_a_hub_id_has_no_hash_and_is_left_alone(project: Path) -> None:
    (project / "m").mkdir()
    write_base(project / "m", base="llava-hf/llava-1.5-7b-hf")
    assert json.loads((project / "m" / BASE_FILE).read_text()) == {"base": "llava-hf/llava-1.5-7b-hf", "hash": None}
    assert find_base("m") == "llava-hf/llava-1.5-7b-hf"
    assert name_base("owner/model") == "owner/model"


def test_a_mirrored_base_is_named_as_the_hub_names_it(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = save_base(tmp_path / "mirror" / "owner" / "model@v1")
    monkeypatch.setenv(weights.MIRROR, str(tmp_path / "mirror"))
    (project / "m").mkdir()
    write_base(project / "m", base=base)
    assert json.loads((project / "m" / BASE_FILE).read_text())["base"] == "owner/model@v1"
    assert find_base("m") == str(base)
    (base / "model.safetensors").write_bytes(b"other")
    with pytest.raises(ModelError, match="are not those"):
        find_base("m")
    write_base(project / "m", base="owner/model@v2")
    assert find_base("m") == "owner/model@v2"


def test_other_weights_are_refused_also_after_a_first_look(project: Path) -> None:
    base = save_base(project / "base")
    (project / "m").mkdir()
    write_base(project / "m", base=base)
    assert find_base("m") == str(base)
    (base / "model.safetensors").write_bytes(b"trained further")
    with pytest.raises(ModelError, match=r"m/base\.json: the weights in .*base are not those"):
        find_base("m")


def test_a_missing_base_is_named_with_the_place_it_was_sought_from(project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    base = save_base(project / "base")
    (project / "m").mkdir()
    write_base(project / "m", base=base)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=rf"base is not there, seen from {tmp_path} \(model '\./base': no such folder"):
        find_base(project / "m")


@pytest.mark.parametrize("content", ["[]", "{}", '{"base": "./b"}', "", "{", '"x"'])
def test_a_damaged_record_is_refused(content: str, project: Path) -> None:
    (project / "m").mkdir()
    (project / "m" / BASE_FILE).write_text(content)
    with pytest.raises(ModelError, match=r"m/base\.json: an adapter needs this file with the keys base and hash"):
        find_base("m")


def test_an_adapter_is_known_by_its_config(project: Path) -> None:
    assert not is_adapter(save_base(project / "base"))
    (project / "m").mkdir()
    (project / "m" / "adapter_config.json").write_text("{}")
    assert is_adapter("m") and not is_adapter("owner/model")


def test_weights_hash_counts_names_and_bytes(project: Path) -> None:
    first, second = save_base(project / "a"), save_base(project / "b")
    assert hash_weights(first) == hash_weights(second)
    (second / "model.safetensors").rename(second / "other.safetensors")
    assert hash_weights(first) != hash_weights(second)
    with pytest.raises(ModelError, match=r"no \*\.safetensors file"):
        hash_weights(project)
