"""One reflect-and-learn cycle of the assistant (CLOVA 3): run a batch of instructions, find the guilty step of each failure, teach it."""

from collections.abc import Mapping
from typing import Any

from prefect import flow

from flows._assistant_stages import draw_collection, draw_tasks, find_next_cycle, play_cycle, start_pools
from flows._checks import run_assistant_gate
from flows._cycle_history import check_cycle_files, hold_cycles
from flows._cycle_runs import find_cycle_runs, log_cycle
from flows._entry import from_plain, run_flow
from flows._layout import DEFAULT_CYCLES, Layout
from flows._objective import log_objective, measure_cycle
from flows._people import CYCLE_GATES, find_frozen, freeze_words, list_frozen
from flows._records import read_json
from flows._registry import POOLS, name_alias, register_model
from flows._round_stages import hash_stage
from flows._run import open_flow_run
from flows._summary import open_console, show_tables
from flows._tracking import TrackedRun
from flows._versioning import add_folders
from visloop.config import Config
from visloop.evaluation.tables import Table


@flow(name="reflect_learn")
def reflect_learn(values: dict[str, Any]) -> float | None:
    """The next cycle that has not been played, or the one that ``assistant.tasks.only`` names; 0 only prepares what cycles read. Behind
    the cycles of the drawn stream each call plays one on what people said since (``make page``, MLflow's pages). A second process that
    is started meanwhile is refused. Returns what a sweep compares: the cycle's figure on the gate's held-out tasks."""
    config = from_plain(values)
    layout = Layout.from_config(config)
    with hold_cycles(layout), open_flow_run("reflect_learn", config) as run:
        prepare_tasks(config, layout, run)
        only = config.assistant.tasks.only
        number = find_next_cycle(config, layout) if only is None else only
        if number == 0:
            return None
        if number is None:
            number = freeze_words(config, layout)
        if number is None:
            version_people(layout)  # what a run that was killed at its end left
            played = config.assistant.tasks.cycles
            open_console().print(f"all {played} cycles of the stream have been played, and nobody said anything new")
            return None
        if number > 1:
            settle_cycle(config, layout, run, number - 1)
        teach(config, layout, run, number)
        print_cycles(config, layout)
        version_people(layout)
        return judge_cycle(config, layout, run, number)


def judge_cycle(config: Config, layout: Layout, run: TrackedRun, number: int) -> float | None:
    """Record what the run is judged by: the figure of a cycle on the gate's held-out tasks."""
    if number == 0:
        return None
    row = measure_cycle(config, read_json(layout.cycle(number) / "report.json")["gate"], number=number, tasks=layout.tasks)
    return None if row is None else log_objective(run, row)


def version_people(layout: Layout) -> None:
    """Record with DVC what people said and the cycles that learned from it, as far as that has not been done."""
    folders = [folder for number in list_frozen(layout) for folder in (layout.feedback(number), layout.cycle(number))]
    missing = [folder for folder in folders if folder.is_dir() and not folder.with_name(f"{folder.name}.dvc").is_file()]
    if missing:
        add_folders(missing, data=layout.root)


def prepare_tasks(config: Config, layout: Layout, run: TrackedRun) -> None:
    """What every cycle reads: tasks, learning data, the pools to start with."""
    run.log_stage(draw_tasks(config, layout))
    run_assistant_gate("tasks", suite="tasks", records=layout.tasks, config=config, layout=layout, tasks=layout.tasks)
    run.log_stage(draw_collection(config, layout))
    run.log_stage(start_pools(config, layout))
    enter_pools(layout, run, 0)


def teach(config: Config, layout: Layout, run: TrackedRun, number: int) -> None:
    """Play one cycle, check it and enter it into the history."""
    people, waited = find_frozen(config, layout, number), list[float]()
    with run.open_child(f"cycle {number}", step=number) as child:
        child.log_stage(play_cycle(config, layout, number=number, people=people, on_chat=waited.append))
        if waited:
            child.log_round({"chat/seconds": sum(waited)})
        check_cycle(config, layout, number)
        log_cycle(config, layout, child, number)
        enter_pools(layout, child, number)


def settle_cycle(config: Config, layout: Layout, run: TrackedRun, number: int) -> None:
    """What a call that was killed, or stopped by a gate, left open behind a finished cycle: the next one starts only from a good one.

    Raises:
        DataError: a file of the cycle is not as it was written; its gates, which know it by its manifest, would be passed over.
    """
    check_cycle_files(layout, number)
    check_cycle(config, layout, number)
    if not find_cycle_runs(layout, run, number):
        with run.open_child(f"cycle {number}", step=number) as child:
            log_cycle(config, layout, child, number)
            enter_pools(layout, child, number)


def enter_pools(layout: Layout, run: TrackedRun, number: int) -> None:
    """Enter what the assistant knows after a cycle into the registry: a candidate for promotion."""
    report = read_json(layout.cycle(number) / "report.json")
    parent = hash_stage(layout.cycle(number - 1)) if number else ""
    register_model(
        run,
        name=POOLS,
        folder=layout.cycle(number),
        metrics={key: value for key, value in report.get("gate", {}).items() if isinstance(value, int | float)},
        aliases=[name_alias(f"c{number}", line=layout.cycles, default=DEFAULT_CYCLES)],
        tags={"round": str(number), "accepted": "true", **({"parent": parent} if parent else {})},
        data=layout.root,
    )


def check_cycle(config: Config, layout: Layout, number: int) -> None:
    """The gates behind a cycle: the next one starts from these records only if they pass."""
    folder = layout.cycle(number)
    for suite in CYCLE_GATES:
        apart = suite in ("demonstrations", "prompts")
        run_assistant_gate(
            f"cycle_{number:02d}_{suite}",
            suite=suite,
            records=folder / suite if apart else folder,
            files=None if apart else [f"{suite}.jsonl"],
            config=config,
            layout=layout,
            folder=layout.cycle_gate(number, suite),
            tasks=layout.tasks,
            traces=folder if suite == "critiques" else None,
            more=find_frozen(config, layout, number),
        )


def print_cycles(config: Config, layout: Layout) -> None:
    """What became of each cycle so far."""
    rows = []
    for number in [*range(1, config.assistant.tasks.cycles + 1), *list_frozen(layout)]:
        path = layout.cycle(number) / "report.json"
        if path.is_file():
            report = read_json(path)
            counts, gate = report["counts"], report["gate"]
            replay, held_out = (_show_change(gate, part) for part in ("replay", "held_out"))
            learned = ", ".join(sorted({word for words in report["concepts"].values() for word in words})) or "none"
            cells = (number, counts["tasks"], counts["right_at_first"], counts["solved"], report["demonstrations"])
            rows.append((*map(str, cells), learned, replay, held_out))
    columns = ("cycle", "tasks", "right at first", "solved after learning", "demonstrations", "concepts learned", "replay", "held out")
    show_tables([Table("Cycles", columns, tuple(rows))])


def _show_change(gate: Mapping[str, Any], part: str) -> str:
    before, after = gate[f"{part}_before"], gate[f"{part}_after"]
    return "-" if before is None or after is None else f"{before:.3f} -> {after:.3f}"


if __name__ == "__main__":
    run_flow(reflect_learn, doc=__doc__ or "")
