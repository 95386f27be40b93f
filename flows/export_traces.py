"""The assistant's accepted runs as conversations to fine-tune an LLM on that plans and writes programs.

python -m flows.export_traces
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from prefect import flow

from flows._assistant_stages import read_tasks
from flows._cycle_history import check_cycle_files
from flows._entry import from_plain, run_flow
from flows._layout import Layout, pool_inputs
from flows._people import find_frozen, find_newest_cycle, is_played, read_frozen
from flows._records import read_json, write_json
from flows._run import open_flow_run
from flows._stage import run_stage
from flows._summary import open_console, show_tables
from visloop.assistant.export import CycleRuns, ExportParts, export_runs
from visloop.assistant.planner import open_encoder
from visloop.assistant.pools import POOL_NAMES, read_pools
from visloop.config import Config
from visloop.config_assistant import ListBackend, PlannerConfig, ToolsConfig
from visloop.errors import DataError
from visloop.evaluation.tables import Table
from visloop.ids import seed_for
from visloop.prompts.render import PromptSet
from visloop.records.assistant import Feedback, Trace
from visloop.records.shards import read_shard, write_shard
from visloop.scenes.workshop import BASE_VOCABULARY
from visloop.tools.base import ToolCatalogue
from visloop.tools.toolbox import open_toolbox

EXAMPLES_NAME = "examples.jsonl"
_READ = ("traces.jsonl", "feedback.jsonl")
"""What is read of a cycle besides the pools before it."""
_PROMPT_KEYS = ("encoder", "encoder_model", "demonstrations", "failures_from", "use_plan", "use_failures", "retrieval")
"""The planner's settings that decide what its prompts show."""


@flow(name="export_traces")
def export_traces(values: dict[str, Any]) -> None:
    """Every cycle that has passed its gates, those on people's feedback as well; what was rolled back is not among them."""
    config = from_plain(values)
    layout = Layout.from_config(config)
    with open_flow_run("export_traces", config) as run:
        run.log_stage(export_programs(config, layout))
        folder = find_export(layout)
        run.log_json(folder / "report.json")
        show_tables([make_export_table(read_json(folder / "report.json")["cycles"])])
        console = open_console()
        waiting = [str(number) for number in range(1, layout.find_last_cycle() + 1) if not is_played(layout, number)]
        if waiting:
            console.print(f"not exported, its gates were not passed yet: cycle {', '.join(waiting)}", markup=False)
        console.print(f"examples: {folder / EXAMPLES_NAME}", markup=False)


def find_export(layout: Layout) -> Path:
    """The folder of the exported programs."""
    return layout.exports / "programs"


def export_programs(config: Config, layout: Layout) -> Any:
    """Stage: the examples, and what became of the runs of each cycle.

    Raises:
        DataError: no cycle has passed its gates, or a file of one is not as it was written.
    """
    newest = find_newest_cycle(layout) or 0
    numbers = [number for number in range(1, newest + 1) if is_played(layout, number)]
    if not numbers:
        raise DataError(f"{layout.cycle(0).parent}: no cycle has passed its gates yet; play one (python -m flows.reflect_learn) and export")
    people = {number: folder for number in numbers if (folder := find_frozen(config, layout, number)) is not None}
    planner, prompts = config.assistant.planner, PromptSet("full")

    def work(place: Path) -> dict[str, float]:
        parts = ExportParts(
            planner=planner,
            prompts=prompts,
            encoder=open_encoder(planner),
            tools=list_tools(config.assistant.tools),
            vocabulary=frozenset(BASE_VOCABULARY),
            seed=seed_for(config.seed, "plan"),
        )
        examples, rows = export_runs(read_runs(layout, numbers, people), parts=parts)
        write_shard(place / EXAMPLES_NAME, examples)
        write_json(place / "report.json", {"cycles": [asdict(row) for row in rows]})
        return {
            "runs": sum(row.traces for row in rows),
            "exported": sum(row.exported for row in rows),
            "examples": len(examples),
        }

    return run_stage(
        "export programs",
        folder=find_export(layout),
        inputs={
            "tasks": layout.tasks,
            **{f"cycle {number}": layout.cycle(number) for number in numbers},
            **{f"{name} {number}": path for number in numbers for name, path in pool_inputs(layout.cycle(number - 1)).items()},
            **{f"people {number}": folder for number, folder in people.items()},
        },
        config={
            "planner": select_prompt_settings(planner),
            "plugins": config.assistant.tools.plugins,
            "prompts": prompts.hash,
            "seed": config.seed,
        },
        code=["visloop.assistant.export", "visloop.scenes.workshop"],
        work=work,
    )


def read_runs(layout: Layout, numbers: list[int], people: Mapping[int, Path]) -> Iterator[CycleRuns]:
    """Runs and feedback of each cycle, with the pools that it started with."""
    stream = read_tasks(layout, "stream")
    for number in numbers:
        before = layout.cycle(number - 1)
        check_cycle_files(layout, number, parts=_READ)
        check_cycle_files(layout, number - 1, parts=POOL_NAMES)
        asked = read_frozen(people[number]).tasks if number in people else ()
        folder = layout.cycle(number)
        yield CycleRuns(
            cycle=number,
            pools=read_pools(before),
            tasks={task.id: task for task in (*stream, *asked)},
            traces=read_shard(folder / "traces.jsonl", Trace),
            feedback=read_shard(folder / "feedback.jsonl", Feedback),
        )


def list_tools(config: ToolsConfig) -> ToolCatalogue:
    """What prompts list, with plugins; no tool is loaded, so that nothing is asked of an LLM or of the agents."""
    return open_toolbox(replace(config, names=ListBackend.facts), answer=lambda questions: [])


def select_prompt_settings(planner: PlannerConfig) -> dict[str, Any]:
    """What of the planner's settings enters the stage's key."""
    return {key: value for key, value in asdict(planner).items() if key in _PROMPT_KEYS}


def make_export_table(rows: list[dict[str, Any]]) -> Table:
    """A row per cycle and their sum."""
    columns = ("cycle", "runs", "exported", "repaired", "plans", "programs", "kinds", "authors", "left out")
    total: dict[str, Any] = {"cycle": "all", **{key: sum(row[key] for row in rows) for key in ("traces", "exported")}}
    for key in ("examples", "kinds", "authors", "provenances", "left_out"):
        total[key] = dict(sorted(sum((Counter(row[key]) for row in rows), Counter()).items()))
    shown = [
        (
            *(str(row[key]) for key in ("cycle", "traces", "exported")),
            str(row["provenances"].get("repaired", 0)),
            *(str(row["examples"].get(kind, 0)) for kind in ("plan", "program")),
            *(", ".join(f"{name} {count}" for name, count in row[key].items()) or "none" for key in ("kinds", "authors", "left_out")),
        )
        for row in [*rows, total]
    ]
    return Table("Accepted runs as examples", columns, tuple(shown))


if __name__ == "__main__":
    run_flow(export_traces, doc=__doc__ or "")
