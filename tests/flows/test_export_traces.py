"""A cycle's records as an export, and what is made from a cycle whose files are not as they were written: nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from apps._assistant import AssistantDesk
from apps._pictures import PictureStore
from flows._assistant_stages import start_pools
from flows._cycle_history import start_rollback
from flows._entry import compose_config, to_plain
from flows._layout import Layout
from flows._people import CYCLE_GATES
from flows._records import read_json, write_json
from flows._summary import shown_tables, stage_rows
from flows.export_traces import EXAMPLES_NAME, export_programs, export_traces, find_export
from flows.reflect_learn import settle_cycle
from tests.unit.test_program_export import MOONS, STARS, judge, make_trace
from visloop.assistant.pools import read_pools, save_pools
from visloop.config import Config
from visloop.errors import DataError
from visloop.ids import hash_file
from visloop.records.manifest import Manifest, write_manifest
from visloop.records.programs import ProgramExample
from visloop.records.shards import read_shard, write_shard

TRACES = (make_trace("right"), make_trace("wrong", MOONS))


@pytest.fixture(autouse=True)
def _same_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run and stage hashes all of the code, which takes longer than what is tested here."""
    for module in ("flows._tracking", "flows._stage"):
        monkeypatch.setattr(f"{module}.hash_code", lambda packages: "0" * 64)


def seal(folder: Path) -> None:
    files = {path.relative_to(folder).as_posix(): hash_file(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    write_manifest(folder, Manifest(stage=folder.name, inputs={}, config={}, code="", files=files))


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A project with tasks, the pools that the assistant starts with, and a cycle that has passed its gates."""
    paths = [f"paths.data={tmp_path / 'data'}", f"paths.mlruns={tmp_path / 'mlruns'}"]
    config = compose_config([*paths, "promotion.serve=newest"])  # a champion is looked for in MLflow, whose database takes seconds to make
    layout = Layout.from_config(config)
    write_shard(layout.tasks / "stream.jsonl", [STARS, MOONS])
    seal(layout.tasks)
    start_pools(config, layout)
    folder = layout.cycle(1)
    save_pools(read_pools(layout.cycle(0)), folder)
    write_shard(folder / "traces.jsonl", TRACES)
    write_shard(folder / "feedback.jsonl", [judge(trace, trace.id == "right") for trace in TRACES])
    write_json(folder / "report.json", {"cycle": 1})
    seal(folder)
    for suite in CYCLE_GATES:
        layout.cycle_gate(1, suite).mkdir(parents=True)
        seal(layout.cycle_gate(1, suite))
    return config


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_harness")
def test_the_flow_ends_with_a_table_of_what_became_of_the_runs(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    export_traces(to_plain(config))
    (table,) = shown_tables()
    assert table.columns[:6] == ("cycle", "runs", "exported", "repaired", "plans", "programs")
    counts = ("2", "1", "0", "1", "1", "vqa 1", "search 1", "refused 1")
    assert table.rows == (("1", *counts), ("all", *counts))
    printed = capsys.readouterr().err
    assert EXAMPLES_NAME in printed and "not exported" not in printed


def test_the_export_is_a_stage_that_is_skipped_when_nothing_changed(config: Config) -> None:
    layout = Layout.from_config(config)
    manifest = export_programs(config, layout)
    path = find_export(layout) / EXAMPLES_NAME
    assert path == layout.root / "exports" / "programs" / "examples.jsonl" and manifest.counts == {"runs": 2, "exported": 1, "examples": 2}
    examples = read_shard(path, ProgramExample)
    assert [(item.kind, item.path_id, item.cycle, len(item.shown)) for item in examples] == [
        ("plan", "right", 1, 4),
        ("program", "right", 1, 4),
    ]
    assert examples[0].pools["demonstrations"] == read_pools(layout.cycle(0)).demonstrations.hash
    assert read_json(find_export(layout) / "report.json")["cycles"][0]["left_out"] == {"refused": 1}
    before = path.read_bytes()
    export_programs(config, layout)
    assert [row.state for row in stage_rows()][-2:] == ["ran", "skipped"] and path.read_bytes() == before
    for change in (["assistant.planner.retrieval=random"], ["seed=3"]):
        export_programs(compose_config([f"paths.data={layout.root}", f"paths.mlruns={config.paths.mlruns}", *change]), layout)
        assert stage_rows()[-1].state == "ran", "what the prompts show is part of the key"


def test_a_cycle_that_has_not_passed_its_gates_is_not_exported(config: Config) -> None:
    layout = Layout.from_config(config)
    (layout.cycle_gate(1, "traces") / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"no cycle has passed its gates yet.*reflect_learn"):
        export_programs(config, layout)


def settle(config: Config, layout: Layout) -> None:
    settle_cycle(config, layout, cast(Any, None), 1)


def roll_back(config: Config, layout: Layout) -> None:
    start_rollback(layout, end=1)


def answer(config: Config, layout: Layout) -> None:
    AssistantDesk(config, layout, pictures=PictureStore(layout.root, layout.page))._open_pools()


def spoil(path: Path) -> None:
    """Other bytes that are a valid record all the same."""
    text = path.read_text()
    assert "search" in text or "seed" in text
    path.write_text(text.replace("search", "nobody").replace('"score":0', '"score":1'))


@pytest.mark.parametrize("use", [settle, roll_back, export_programs])
def test_records_that_were_changed_are_used_by_nobody(config: Config, use: Callable[[Config, Layout], object]) -> None:
    layout = Layout.from_config(config)
    spoil(layout.cycle(1) / "traces.jsonl")
    with pytest.raises(DataError, match=r"01/traces.jsonl is not as it was written \(1 of \d+ files.*dvc checkout.*make rollback"):
        use(config, layout)


@pytest.mark.parametrize("use", [settle, roll_back, answer])
@pytest.mark.parametrize("name", ["demonstrations/demonstrations.jsonl", "demonstrations/snapshot.json", "prompts/prompts.safetensors"])
def test_pools_that_are_not_as_they_were_written_are_used_by_nobody(
    config: Config, use: Callable[[Config, Layout], object], name: str
) -> None:
    layout = Layout.from_config(config)
    (layout.cycle(1) / name).unlink()
    with pytest.raises(DataError, match=rf"01/{name} is not as it was written.*dvc checkout"):
        use(config, layout)


def test_the_page_reads_the_pools_whatever_happened_to_other_files(config: Config) -> None:
    layout = Layout.from_config(config)
    desk = AssistantDesk(config, layout, pictures=PictureStore(layout.root, layout.page))
    spoil(layout.cycle(1) / "traces.jsonl")
    cycle, pools = desk._open_pools()
    assert cycle == 1 and pools.says_the_same(read_pools(layout.cycle(0)))


def test_pools_of_another_cycle_are_noticed_though_they_are_whole(config: Config) -> None:
    """A snapshot copied over another one is consistent in itself; only the manifest tells."""
    layout = Layout.from_config(config)
    pools = read_pools(layout.cycle(1))
    entries = pools.demonstrations.entries
    save_pools(type(pools)(demonstrations=type(pools.demonstrations)(entries[:-1]), prompts=pools.prompts), layout.cycle(1))
    read_pools(layout.cycle(1))
    for use in (settle, roll_back, answer):
        with pytest.raises(DataError, match=r"01/demonstrations/demonstrations.jsonl is not as it was written \(2 of"):
            use(config, layout)
