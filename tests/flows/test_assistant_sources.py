"""What a workbench makes of ``assistant.providers``: the providers of each tool, what they left out, and CLIP's word on edits."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flows import _assistant_parts
from flows._assistant_parts import LEFT_OUT, Workbench
from flows._assistant_report import build_system_tables, list_outcomes
from flows._entry import compose_config
from flows._folders import find_scratch
from flows._layout import Layout
from tests.fixtures.outside_data import serve_search, write_lvis
from tests.fixtures.scripted_chat import ScriptedChat
from visloop.assistant.sources import LeftOut, list_files
from visloop.config import Config
from visloop.errors import ConfigError
from visloop.evaluation.metrics import measure_outcomes
from visloop.records.assistant import Proposal, Task, TaskKind, TaskTruth, Trace, TraceStatus
from visloop.records.reasoning import Prediction
from visloop.records.shards import read_shard
from visloop.scenes.workshop_tasks import make_tasks


def open_bench(config: Config, root: Path, **truths: TaskTruth) -> Workbench:
    layout = Layout(root, dataset="scenes")
    return Workbench(config, layout, truths=truths, folder=root / "cycles/01/.stage/build", shown="cycles/01")


def test_a_cycle_is_taught_by_the_providers_of_its_configuration_and_tells_what_they_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = ScriptedChat(lambda request: '["dog"]')
    monkeypatch.setattr(_assistant_parts, "cached_chat", lambda config: chat)
    folder = tmp_path / "lvis"
    folder.mkdir()
    annotations = write_lvis(folder)
    (folder / "p2.png").write_bytes(b"broken")
    (tmp_path / "assistant/collection/image_search").mkdir(parents=True)
    with serve_search() as server:
        server.name("cat", "/good/1.png", "/page.html")
        config = compose_config(
            [
                "providers@assistant.providers=clova_paper",
                f"assistant.providers.regions.annotations={annotations}",
                f"assistant.providers.regions.pictures={folder}",
                f"assistant.providers.search.endpoint={server.base}/search",
                f"assistant.providers.search.store={tmp_path / 'store'}",
                "assistant.providers.search.min_side=4",
                "assistant.providers.search.allow_private=true",
            ]
        )
        assert list_files(config.assistant.providers) == {"lvis": annotations}
        bench = open_bench(config, tmp_path)
        providers = bench.open_parts().sources.providers
        found = providers["LOC"][0].collect("cat", tool="LOC", positives=3, negatives=0, seed=0)
        found += providers["SELECT"][0].collect("cat", tool="SELECT", positives=3, negatives=1, seed=0)
        assert [item.source for item in found] == ["open_vocabulary", "image_search"]
        again = open_bench(config, tmp_path).open_parts().sources.providers["LOC"][0]
        again.collect("cat", tool="LOC", positives=3, negatives=0, seed=0)
    assert "cat" in chat.requests[0].messages[0].text
    bench.keep_material(found)
    assert {path.name for path in bench.folder.rglob("*.png")} == {Path(item.image).name for item in found}
    left = read_shard(bench.folder / LEFT_OUT, LeftOut)
    assert [(item.source, item.tool, item.where.rpartition("/")[2]) for item in left] == [
        ("open_vocabulary", "LOC", "annotation 12"),
        ("image_search", "SELECT", "page.html"),
    ], "each once, also when a run goes on after a kill"
    assert (find_scratch(bench.folder) / LEFT_OUT).is_file()


def test_nothing_left_out_is_an_empty_file(tmp_path: Path) -> None:
    bench = open_bench(compose_config(), tmp_path)
    bench.keep_material([])
    assert read_shard(bench.folder / LEFT_OUT, LeftOut) == []
    with pytest.raises(ConfigError, match=r"assistant\.providers\.search\.endpoint"):
        list_files(compose_config(["providers@assistant.providers=http"]).assistant.providers)


def test_an_edit_has_the_word_of_the_frozen_clip_beside_its_score(tmp_path: Path) -> None:
    """The check changes no verdict; without a picture it is 0; of words that the CLIP does not know it says nothing."""
    tasks, truths = make_tasks(
        tmp_path / "pictures",
        seed=3,
        kind="editing",
        count=40,
        split="test",
        novel_share=0.0,
        new_wording_share=0.0,
        image_prefix="pictures",
    )
    by_id = {truth.task_id: truth for truth in truths}
    named = [(task, [entry.label for entry in by_id[task.id].region if entry.label != "kept"]) for task in tasks]
    replaced = next(task for task, labels in named if labels and "_" not in labels[0])
    hidden = next(task for task, labels in named if labels and "_" in labels[0])
    bench = open_bench(compose_config(), tmp_path, **by_id)
    bench.folder.mkdir(parents=True)

    def run(task: Task, picture: str | None) -> Trace:
        image = None
        if picture is not None:
            with Image.open(tmp_path / picture) as opened:
                image = bench.save_image(opened.convert("RGB"))
        proposal = Proposal(task_id=task.id, plan=(), program="", author="scripted")
        status: TraceStatus = "finished" if image else "tool_error"
        return Trace(id=f"r{task.id}", task_id=task.id, proposal=proposal, steps=(), status=status, result_image=image)

    good = bench.score(replaced, run(replaced, by_id[replaced.id].target))
    bad = bench.score(replaced, run(replaced, replaced.images[0]))
    none = bench.score(replaced, run(replaced, None))
    emoji = bench.score(hidden, run(hidden, by_id[hidden.id].target))
    assert good.correct and good.metrics["check"] > 0.9
    assert not bad.correct and bad.metrics["check"] < 0.5
    assert none.metrics == {"finished": 0.0, "edit_score": 0.0, "check": 0.0}
    assert "check" not in emoji.metrics


def test_the_report_shows_the_check_of_edits_and_what_f1_is_made_of() -> None:
    def predict(name: str, metrics: dict[str, float]) -> Prediction:
        return Prediction(sample_id=name, system="all", family="f", group=name, answer=None, correct=True, status="ok", metrics=metrics)

    def task(name: str, kind: TaskKind) -> Task:
        places: dict[str, Any] = {"images": (), "inputs": (), "group": name, "split": "test", "source": "workshop"}
        return Task(id=name, kind=kind, instruction="i", family="f", wording="base", **places)

    tasks = {"e1": task("e1", "editing"), "e2": task("e2", "editing"), "t1": task("t1", "tagging")}
    test = [
        predict("e1", {"edit_score": 1.0, "check": 0.75}),
        predict("e2", {"edit_score": 1.0}),
        predict("t1", {"precision": 1.0, "recall": 0.5, "f1": 2 / 3}),
    ]
    rows = [measure_outcomes(found, bootstrap_samples=10) for found in list_outcomes("all", test, (), tasks=tasks)]
    figures = {row.metric: (row.value, row.n) for row in rows}
    assert figures["editing_clip_check"] == (0.75, 1), "over the tasks that the check can say something of"
    assert (figures["tagging_precision"], figures["tagging_recall"]) == ((1.0, 1), (0.5, 1))
    systems, details = build_system_tables(rows)
    assert details.columns[1:] == ("tagging f1 (%)", "tagging precision (%)", "tagging recall (%)", "editing clip check (%)", "n")
    assert not {"tagging f1 (%)", "editing clip check (%)"} & set(systems.columns) and "accuracy (%)" in systems.columns
