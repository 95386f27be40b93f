"""Names of models: shipped, folders, hub ids, and what is none of them."""

import ast
from pathlib import Path

import pytest

from visloop.chat import weights
from visloop.chat.loads import count_loads, note_load, reset_loads
from visloop.errors import ModelError


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("judge", "base"):
        (tmp_path / "weights" / name).mkdir(parents=True)
        (tmp_path / "weights" / name / "config.json").write_text("{}")
    (tmp_path / "weights" / "half_written").mkdir()
    monkeypatch.delenv(weights.MIRROR, raising=False)
    monkeypatch.setattr(weights, "shipped_folder", lambda: tmp_path / "weights")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_shipped_name_is_its_folder(shipped: Path) -> None:
    assert weights.resolve_model("embedded/base") == str(shipped / "weights" / "base")


@pytest.mark.parametrize("name", ["embedded/bose", "embedded/half_written", "embedded/", "embedded/../base"])
def test_unknown_shipped_name_lists_the_known(shipped: Path, name: str) -> None:
    with pytest.raises(ModelError, match=r"shipped are: embedded/base, embedded/judge"):
        weights.resolve_model(name)


def test_local_folder_is_made_absolute(shipped: Path) -> None:
    (shipped / "run" / "m_1").mkdir(parents=True)
    (shipped / "run" / "m_1" / "config.json").write_text("{}")
    assert weights.resolve_model("run/m_1") == str(shipped / "run" / "m_1")


def test_folder_without_a_config_is_refused(shipped: Path) -> None:
    (shipped / "run").mkdir()
    with pytest.raises(ModelError, match=r"'run': the folder has neither config\.json"):
        weights.resolve_model("run")


@pytest.mark.parametrize("name", ["llava-hf/llava-v1.6-mistral-7b-hf", "Qwen/Qwen2.5-VL-7B-Instruct"])
def test_hub_id_is_left_alone(shipped: Path, name: str) -> None:
    assert weights.resolve_model(name) == name


def test_a_pinned_revision_stays_with_the_hub_id_until_it_is_loaded(shipped: Path) -> None:
    source = weights.resolve_model("Qwen/Qwen2.5-VL-7B@4f2a.b-1")
    assert weights.split_revision(source) == ("Qwen/Qwen2.5-VL-7B", "4f2a.b-1")
    assert weights.load_arguments(source) == {"pretrained_model_name_or_path": "Qwen/Qwen2.5-VL-7B", "revision": "4f2a.b-1"}
    assert weights.load_arguments("gpt2") == {"pretrained_model_name_or_path": "gpt2"}
    assert weights.name_model("owner/model@v1") == "owner/model@v1", "records say which revision it was"
    for wrong in ("owner/model@", "owner/model@a b", "owner/model@-x", "embedded/base@v1"):
        with pytest.raises(ModelError):
            weights.resolve_model(wrong)


def test_a_mirrored_model_comes_before_the_hub(shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = shipped / "mirror"
    for name in ("owner/model", "owner/model@v1"):
        (mirror / name).mkdir(parents=True)
        (mirror / name / "model_index.json").write_text("{}")
    (mirror / "owner" / "half").mkdir()
    assert weights.resolve_model("owner/model") == "owner/model" and not weights.is_local("owner/model")
    monkeypatch.setenv(weights.MIRROR, str(mirror))
    assert weights.resolve_model("owner/model") == str(mirror / "owner/model") and weights.is_local("owner/model")
    pinned = weights.resolve_model("owner/model@v1")
    assert weights.load_arguments(pinned) == {"pretrained_model_name_or_path": str(mirror / "owner/model@v1")}
    assert weights.resolve_model("owner/model@v2") == "owner/model@v2", "a copy that does not say its revision is not taken for one"
    assert weights.resolve_model("embedded/base") == str(shipped / "weights" / "base")
    (shipped / "owner" / "model").mkdir(parents=True)
    (shipped / "owner" / "model" / "config.json").write_text("{}")
    assert weights.resolve_model("owner/model") == str(shipped / "owner/model"), "a folder that is named is that folder"
    with pytest.raises(ModelError, match=r"'owner/half': the folder has neither .*mirror/owner/half"):
        weights.resolve_model("owner/half")
    monkeypatch.setenv(weights.MIRROR, str(shipped / "none"))
    with pytest.raises(ModelError, match=r"VISLOOP_WEIGHTS=.*none: no such folder"):
        weights.resolve_model("owner/other")


def test_every_loader_passes_the_revision_on() -> None:
    """``from_pretrained`` of a resolved name takes ``load_arguments``; what is always a folder is named here."""
    folders = {"symbol_model.py", "clip_run.py", "train_owlvit.py", "train_planner.py", "checkpoints.py"}
    wrong, passed = [], 0
    texts = {path: path.read_text() for path in sorted(Path(weights.visloop.__file__).parent.rglob("*.py")) if path.name not in folders}
    for path, text in texts.items():
        calls = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)) if "from_pretrained(" in text else ()
        for call in calls:
            if not isinstance(call.func, ast.Attribute) or call.func.attr != "from_pretrained":
                continue
            given = ast.unparse(call)
            if "load_arguments(" in given:
                passed += 1
            elif not given.startswith(("PeftModel.", "type(model).")):  # an adapter's folder; a checkpoint's
                wrong.append(f"{path.name}:{call.lineno}: {given}")
    assert wrong == [] and passed >= 15


@pytest.mark.parametrize("name", ["data/rounds/01/model", "./m_1", "/nowhere/m_1", "", "a b", "../m"])
def test_missing_folder_is_no_hub_id(shipped: Path, name: str) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        weights.resolve_model(name)


def test_the_recorded_name_does_not_say_where_the_project_lies(shipped: Path, tmp_path: Path) -> None:
    for place in ("here", "there"):
        (tmp_path / place / "models" / "reasoner").mkdir(parents=True)
    names = {weights.name_model(str(tmp_path / place / "models" / "reasoner")) for place in ("here", "there")}
    assert names == {"models/reasoner"} == {weights.name_model("here/models/reasoner")}
    assert [weights.name_model(name) for name in ("embedded/base", "Qwen/Qwen2-VL-7B")] == ["embedded/base", "Qwen/Qwen2-VL-7B"]


def test_stamp_tells_rewritten_weights(shipped: Path) -> None:
    folder = shipped / "weights" / "base"
    before = weights.stamp_weights(str(folder))
    (folder / "model.safetensors").write_bytes(b"new")
    assert weights.stamp_weights(str(folder)) > before > 0
    assert weights.stamp_weights("owner/model") == 0


def test_loads_are_counted_per_model() -> None:
    reset_loads()
    for name in ("a", "b", "a"):
        note_load(name)
    assert count_loads() == {"a": 2, "b": 1}
    count_loads()["a"] = 9
    assert count_loads()["a"] == 2
    reset_loads()
    assert count_loads() == {}
