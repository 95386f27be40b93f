"""A gate as a stage: checked once per input, skipped on a re-run, its HTML page kept beside the run's history."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flows._assistant_context import AssistantContext
from flows._gates import Context, GateContext, check_records
from flows._layout import Layout
from flows._records import read_samples, write_json
from flows._stage import run_stage
from visloop.assistant.material import adapt_tools
from visloop.config import Config
from visloop.errors import DataError
from visloop.ids import hash_tree
from visloop.records.assistant import Task, Trace
from visloop.records.reasoning import Sample
from visloop.records.shards import read_shard
from visloop.tools.prompt_pool import TENSORS_NAME
from visloop.tools.tunings import find_owners

TRUTHS_NAME, TRACES_NAME = "truth.jsonl", "traces.jsonl"

_HERE = Path(__file__).parent
_RULES = [_HERE / name for name in ("_rules.py", "_suites.py", "_facts.py", "_frames.py", "_pictures.py")]
"""The code behind the rules: a changed rule checks old records again."""
_ASSISTANT_RULES = [
    *_RULES,
    *(_HERE / name for name in ("_assistant_context.py", "_assistant_suites.py", "_assistant_facts.py", "_learned_facts.py")),
]


def run_gate(
    name: str,
    *,
    suite: str,
    records: Path,
    config: Config,
    layout: Layout,
    files: Sequence[str] | None = None,
    paths: Mapping[str, str] | None = None,
    folder: Path | None = None,
    more: Path | None = None,
) -> None:
    """Check the records of a finished stage before the next one reads them.

    Args:
        name: of the gate; its result lies in ``gates/<name>`` of the data folder, its page under the MLflow folder.
        folder: another place for the result.
        records: the stage's folder.
        files: only these files of it; by default every shard.
        paths: sample id by path id, for suites that follow chains.
        more: a folder whose ``samples.jsonl`` are known samples too (people's questions).

    Raises:
        GateError: a rule is broken; the rows are named and set aside.
    """

    def work(place: Path) -> dict[str, float]:
        samples = read_samples(layout) + ([] if more is None else read_shard(more / "samples.jsonl", Sample))
        context = GateContext.from_samples(
            samples if suite != "samples" else [], data=layout.root, paths=paths, max_unjudged_rate=config.assess.max_unjudged_rate
        )
        return _check_shards(place, _list_shards(records, files), suite=suite, pages=_find_pages(config, name), context=context)

    run_stage(
        f"gate {name}",
        folder=folder or layout.gate(name),
        inputs={"records": records, "raw": layout.raw, **({} if more is None else {"more": more})},
        config={
            "suite": suite,
            "files": list(files or ()),
            "max_unjudged_rate": config.assess.max_unjudged_rate,
            "rules": hash_tree(_RULES),
        },
        code=["visloop.records"],
        work=work,
    )


def run_assistant_gate(
    name: str,
    *,
    suite: str,
    records: Path,
    config: Config,
    layout: Layout,
    tasks: Path,
    files: Sequence[str] | None = None,
    traces: Path | None = None,
    folder: Path | None = None,
    more: Path | None = None,
) -> None:
    """Check the assistant's records of a finished stage before the next one reads them.

    Args:
        name: of the gate; its result lies in ``gates/<name>`` of the data folder, its page under the MLflow folder.
        suite: one of ``flows._assistant_context.ASSISTANT_SUITE_NAMES``.
        records: the stage's folder. For ``prompts`` it holds the tensors as well.
        tasks: the folder of the task set: all its shards are tasks, except ``truth.jsonl``.
        files: only these files of ``records``; by default every shard (of a task set every shard with tasks).
        traces: the shard with the runs that critiques are about, or the folder that has it as ``traces.jsonl``.
        folder: another place for the result.
        more: a folder whose ``tasks.jsonl`` are known tasks too (what people asked).

    Raises:
        GateError: a rule is broken; the rows are named and set aside.
        DataError: a shard is missing.
    """
    runs = None if traces is None else traces / TRACES_NAME if traces.is_dir() else traces

    def work(place: Path) -> dict[str, float]:
        whole_set = suite == "tasks" and not files
        shards = _list_tasks(records) if whole_set else _list_shards(records, files)
        known = _list_tasks(tasks) + ([] if more is None else [more / "tasks.jsonl"])
        context = AssistantContext.from_tasks(
            [task for shard in known for task in read_shard(shard, Task)] if suite != "tasks" else [],
            data=layout.root,
            traces=None if runs is None else read_shard(runs, Trace),
            config=config.assistant,
            tensors=records / TENSORS_NAME,
        )
        return _check_shards(place, shards, suite=suite, pages=_find_pages(config, name), context=context)

    run_stage(
        f"gate {name}",
        folder=folder or layout.gate(name),
        inputs={
            "records": records,
            "tasks": tasks,
            **({} if runs is None else {"traces": runs}),
            **({} if more is None else {"more": more}),
        },
        config={"suite": suite, "files": list(files or ()), "limits": _select_limits(suite, config), "rules": hash_tree(_ASSISTANT_RULES)},
        code=["visloop.records", "visloop.assistant.checks"],
        work=work,
    )


def _select_limits(suite: str, config: Config) -> dict[str, Any]:
    """The settings that the rules of a suite compare with."""
    assistant = config.assistant
    if suite == "critiques":
        return {"max_unreadable_rate": assistant.reflection.max_unreadable_rate, "plugins": assistant.tools.plugins}
    if suite == "prompts":
        tools = adapt_tools(assistant.tools, learning=assistant.learning)
        owners = {"owners": find_owners(tools)} if tools.tunings else {}  # the backends say whose settings a prompt was learned with
        return {"tuning": asdict(tools.tuning), "tunings": {name: asdict(tuning) for name, tuning in tools.tunings.items()}, **owners}
    return {"plugins": assistant.tools.plugins} if suite in ("traces", "demonstrations") else {}


def _list_shards(records: Path, files: Sequence[str] | None) -> list[Path] | Path:
    """The named shards; where none are named all of the folder, or the folder itself if it has none, which the gate refuses."""
    if files:
        return [records / file for file in files]
    return sorted(records.glob("*.jsonl")) or records


def _list_tasks(tasks: Path) -> list[Path]:
    """The shards of a task set that hold tasks.

    Raises:
        DataError: there are none.
    """
    shards = [shard for shard in sorted(tasks.glob("*.jsonl")) if shard.name != TRUTHS_NAME]
    if not shards:
        raise DataError(f"{tasks}: no *.jsonl shard with tasks there; run the stage that draws them")
    return shards


def _find_pages(config: Config, name: str) -> Path:
    return Path(config.paths.mlruns) / "gates" / name


def _check_shards(place: Path, shards: Sequence[Path] | Path, *, suite: str, pages: Path, context: Context) -> dict[str, float]:
    """Check, and write the result of a gate that was passed."""
    result = check_records(shards, suite=suite, out=pages, context=context)
    write_json(place / "result.json", {"suite": suite, "rows": result.rows, "rules": {rule.rule: rule.refused for rule in result.rules}})
    return {"rows": result.rows, "rules": len(result.rules)}
