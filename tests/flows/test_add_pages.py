"""What the pages on adding things and on results show is what runs: files and settings are taken from the pages themselves."""

import json
import re
import runpy
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

from flows import _entry
from flows._checks import run_gate
from flows._entry import compose_config
from flows._layout import Layout
from flows._records import SPLITS
from flows.generation import make_dataset
from visloop.chat.weights import shipped_folder
from visloop.datasets.readers import find_reader, register_reader
from visloop.errors import ConfigError, DataError
from visloop.evaluation.report import read_report
from visloop.records.reasoning import Sample
from visloop.records.shards import read_shard

DOCS = Path(__file__).parents[2] / "docs"


def read_fences(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(), flags=re.DOTALL)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to run from, with a copy of ``conf/`` to which files may be added."""
    shutil.copytree(_entry.CONFIG_DIR, tmp_path / "conf")
    monkeypatch.setattr(_entry, "CONFIG_DIR", tmp_path / "conf")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.slow
def test_the_model_of_the_page_answers(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The shipped base stands for the model of one's own; the page's snippet asks it about a picture."""
    (settings,), (snippet,) = read_fences("add_a_model.md", "yaml"), read_fences("add_a_model.md", "python")
    (place / "conf" / "model" / "my_vlm.yaml").write_text(settings)
    shutil.copytree(shipped_folder() / "base", place / "models" / "my_vlm")
    Image.new("RGB", (64, 64), "white").save(place / "picture.png")
    for override in re.findall(r"`(\+?model@[\w.]+=my_vlm)`", (DOCS / "add_a_model.md").read_text()):
        assert "models/my_vlm" in str(_entry.to_plain(compose_config([override]))), override
    (place / "ask.py").write_text(snippet)
    runpy.run_path(str(place / "ask.py"))
    finish, tokens, *said = capfd.readouterr().out.split()
    assert finish in ("stop", "length") and int(tokens) > 0 and said[-1] == "None"


def test_the_dataset_of_the_page_is_read_and_passes_its_gate(place: Path) -> None:
    (module,), (settings,) = read_fences("add_a_dataset.md", "python"), read_fences("add_a_dataset.md", "yaml")
    (place / "shelves_reader.py").write_text(module)
    (place / "conf" / "data" / "shelves.yaml").write_text(settings)
    root = place / "data" / "external" / "shelves"
    root.mkdir(parents=True)
    rows = []
    for number in range(12):
        Image.new("RGB", (32, 24), (number * 20, 0, 0)).save(root / f"{number}.png")
        split = "train" if number < 6 else "validation" if number < 9 else "test"
        rows.append({"picture": f"{number}.png", "question": f"Is there a red box on shelf {number}?", "answer": "yes", "split": split})
    (root / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    config = compose_config(["data=shelves", "data.train=5", "paths.data=data-shelves"])
    layout = Layout.from_config(config)
    first = make_dataset(config, layout)
    assert first.counts == {"train": 5, "validation": 3, "test": 3}
    samples = read_shard(layout.raw / "train.jsonl", Sample)
    assert {sample.source for sample in samples} == {"shelves"} and all((layout.root / sample.images[0]).is_file() for sample in samples)
    run_gate("samples", suite="samples", records=layout.raw, config=config, layout=layout, files=[f"{split}.jsonl" for split in SPLITS])

    same = compose_config(
        ["data=nlvr", "data.name=shelves", "data.plugin=shelves_reader", "data.root=data/external/shelves", "paths.data=data-shelves"]
    )
    assert find_reader(same.data.name, plugin=same.data.plugin).source == place / "shelves_reader.py"
    (place / "shelves_reader.py").write_text(module.replace('family="shelf"', 'family="box"'))
    assert make_dataset(config, layout).key != first.key, "a change of the reader is noticed"
    (root / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, {**rows[0], "answer": "perhaps"}]))
    with pytest.raises(DataError, match=r"1 of 13 rows cannot be used .*questions\.jsonl:13: answer 'perhaps'"):
        make_dataset(config, layout)
    del sys.modules["shelves_reader"]


def test_a_reader_that_is_not_there_is_named(place: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.name='shelf': there are readers for 'scenes', 'nlvr'"):
        find_reader("shelf")
    with pytest.raises(ConfigError, match=r"data\.plugin: no_module cannot be imported: ModuleNotFoundError"):
        find_reader("shelf", plugin="no_module")
    (place / "silent_reader.py").write_text("")
    with pytest.raises(ConfigError, match=r"silent_reader registers no reader of 'shelf'"):
        find_reader("shelf", plugin="silent_reader")
    for name, named in (("nlvr", "choose another"), ("a/b", "also a folder's")):
        with pytest.raises(ConfigError, match=named):
            register_reader(name, find_reader("nlvr").read)


def test_the_report_of_the_page_is_one_and_is_read_as_shown(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (example,), (snippet,) = read_fences("read_the_results.md", "json"), read_fences("read_the_results.md", "python")
    path = place / "data" / "reports" / "insight_v.json"
    path.parent.mkdir(parents=True)
    report = json.loads(example)
    report["rows"] += [{**report["rows"][0], "name": name, "metric": "sampled_accuracy"} for name in ("M_0", "M_3")]
    path.write_text(json.dumps(report))
    assert read_report(path).paired[0].difference == 0.07
    (place / "show.py").write_text(snippet)
    runpy.run_path(str(place / "show.py"))
    assert capsys.readouterr().out == "M_3 - M_0, sampled_accuracy: +7.0 [+5.2, +8.9] *\n"
