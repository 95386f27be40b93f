"""The manifest of weights: what is recorded of a model's files, and every way in which they can be other than that."""

from collections.abc import Callable
from pathlib import Path

import pytest

from apps import weights as command
from flows._named_models import NamedModel
from visloop.chat.inventory import WeightsManifest, compare_models, find_model, read_weights_manifest, sum_model, write_weights_manifest
from visloop.chat.weights import MIRROR, list_shipped, shipped_folder
from visloop.errors import DataError
from visloop.ids import hash_text

COMMIT = "c" * 40
Show = Callable[..., tuple[int, str]]


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache on this machine, with one model of which tag v1 was loaded."""
    from huggingface_hub import constants

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(MIRROR, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    cached = tmp_path / "hub" / "models--owner--cached"
    save(cached / "snapshots" / COMMIT, weights="cached")
    (cached / "refs").mkdir()
    (cached / "refs" / "v1").write_text(COMMIT)
    return tmp_path


def save(folder: Path, *, weights: str) -> Path:
    (folder / "unet").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "unet" / "model.safetensors").write_text(weights)
    for other in ("README.md", "picture.png", ".hidden.json"):
        (folder / other).write_text("not loaded")
    return folder


@pytest.fixture
def show(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Show:
    """The command for models of the given names; its exit code and what it says, in one line."""

    def run(*arguments: object, names: dict[str, str]) -> tuple[int, str]:
        monkeypatch.setattr(command, "compose_config", lambda overrides: None)
        monkeypatch.setattr(command, "list_named_models", lambda config: [NamedModel(role, name) for role, name in names.items()])
        code = command.main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return code, " ".join((said.out + said.err).split())

    return run


def test_the_shipped_models_are_those_of_the_shipped_manifest() -> None:
    """After ``make base``: python -m apps.weights --shipped --write src/visloop/embedded/weights.yaml"""
    manifest = read_weights_manifest(shipped_folder().parent / "weights.yaml")
    assert sorted(manifest.models) == list_shipped() and len(list_shipped()) >= 5
    assert compare_models(manifest, {name: sum_model(find_model(name)) for name in list_shipped()}) == []


def test_where_models_come_from(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(hub / "mine", weights="own")
    found = [find_model(name) for name in ("embedded/base", "mine", "owner/cached@v1", "owner/cached@v2", "owner/none")]
    assert [(model.origin, model.revision) for model in found] == [
        ("shipped", None),
        ("folder", None),
        ("hub cache", COMMIT),
        ("not here", "v2"),
        ("not here", None),
    ]
    monkeypatch.setenv(MIRROR, str(hub / "mirror"))
    save(hub / "mirror" / "owner" / "cached@v1", weights="mirrored")
    mirrored = find_model("owner/cached@v1")
    assert (mirrored.origin, mirrored.revision) == ("mirror", "v1")
    assert sum_model(mirrored).files["unet/model.safetensors"].sha256 == hash_text("mirrored")
    assert list(sum_model(mirrored).files) == ["config.json", "unet/model.safetensors"], "what nothing is loaded from is not recorded"
    with pytest.raises(DataError, match=r"'owner/none' is not on this machine"):
        sum_model(found[-1])


def test_what_was_written_is_checked(hub: Path, show: Show) -> None:
    mine, names = save(hub / "mine", weights="own"), {"base": "mine", "llm": "owner/cached@v1"}
    code, said = show("--write", "m.yaml", names=names)
    assert code == 0 and "4 files of 2 models" in said and "hub cache" in said and hash_text("own")[:16] in said
    assert show("--check", "m.yaml", names=names) == (0, "m.yaml: all 4 files are as recorded")
    manifest = read_weights_manifest(hub / "m.yaml")
    write_weights_manifest(manifest, hub / "again.yaml")
    assert (hub / "again.yaml").read_bytes() == (hub / "m.yaml").read_bytes()

    (mine / "unet" / "model.safetensors").write_text("0wn")
    code, said = show("--check", "m.yaml", names=names)
    assert code == 1 and "unet/model.safetensors" in said and f"other bytes: SHA-256 {hash_text('0wn')[:12]}" in said
    (mine / "unet" / "model.safetensors").write_text("longer")
    (mine / "more.bin").write_text("x")
    (mine / "more.json").write_text("{}")
    (mine / "config.json").rename(mine / "model_index.json")
    code, said = show("--check", "m.yaml", names=names)
    problems = ("6 bytes, recorded are 3", "weights that are not in the manifest", "config.json │ missing")
    assert code == 1 and all(problem in said for problem in problems) and "more.json" not in said
    (mine / "model_index.json").unlink()
    code, said = show("--check", "m.yaml", names=names)
    assert code == 1 and "mine │ - │ not on this machine" in said, "a folder that holds no model any more"


def test_models_that_nobody_recorded_and_other_revisions(hub: Path, show: Show) -> None:
    names = {"llm": "owner/cached@v1"}
    assert show("--write", "m.yaml", names=names)[0] == 0
    code, said = show("--check", "m.yaml", names=names | {"base": "embedded/base"})
    assert code == 1 and "embedded/base │ - │ not in the manifest" in said
    cached = hub / "hub" / "models--owner--cached"
    (cached / "snapshots" / COMMIT).rename(cached / "snapshots" / ("d" * 40))
    (cached / "refs" / "v1").write_text("d" * 40)
    code, said = show("--check", "m.yaml", names=names)
    assert code == 1 and f"revision {'d' * 40}, recorded is {COMMIT}" in said, "a tag that was moved"
    code, said = show("--write", "n.yaml", names=names | {"base": "owner/none"})
    assert code == 1 and "owner/none cannot be recorded" in said and not (hub / "n.yaml").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot be read"), ("a: [", "no YAML"), ("models: 3", "models"), ("models: {a: {files: {b: {bytes: x}}}}", "models.a.files.b")],
)
def test_a_damaged_manifest_is_named(hub: Path, show: Show, content: str | None, message: str) -> None:
    if content is not None:
        (hub / "m.yaml").write_text(content)
    code, said = show("--check", "m.yaml", names={})
    assert code == 1 and "DataError: m.yaml" in said and message in said
    assert compare_models(WeightsManifest(models={}), {}) == []
