"""The assistant's loop end to end (CLOVA): instructions with feedback, cycles of reflection and learning, tests after each, ablations."""

from typing import Any

from prefect import flow

from flows._assistant_direct import measure_direct
from flows._assistant_report import REPORT_NAME, build_system_tables, make_assistant_report, publish_assistant_report
from flows._assistant_stages import examine_pools, play_cycle
from flows._assistant_systems import System, list_ablations, list_curve, list_frozen
from flows._cycle_history import hold_cycles
from flows._entry import from_plain, run_flow
from flows._layout import Layout
from flows._objective import log_rows
from flows._run import open_flow_run
from flows._summary import open_console, show_tables
from flows._tracking import TrackedRun
from flows.reflect_learn import judge_cycle, prepare_tasks, print_cycles, teach
from visloop.evaluation.report import read_report
from visloop.evaluation.tables import build_families_table, build_paired_table


@flow(name="clova")
def clova(values: dict[str, Any]) -> float | None:
    """Tasks, all cycles, every row of the table, curve and report. Returns what a sweep compares: the last cycle's figure on the gate's
    held-out tasks."""
    config = from_plain(values)
    layout = Layout.from_config(config)
    with hold_cycles(layout), open_flow_run("clova", config) as run:
        prepare_tasks(config, layout, run)
        layout.ablations.mkdir(exist_ok=True)  # an output of the DVC stage, also of a run without ablations
        for number in range(1, config.assistant.tasks.cycles + 1):
            teach(config, layout, run, number)
        print_cycles(config, layout)
        systems = [*list_frozen(config, layout), *list_curve(config, layout), *list_ablations(config, layout)]
        for system in systems:
            measure_system(layout, run, system)
        direct = measure_direct(config, layout, run)
        run.log_stage(make_assistant_report(config, layout, systems=systems, direct=direct))
        path = publish_assistant_report(layout)
        report = read_report(path)
        run.log_json(path)
        log_rows(run, report.rows, prefix="assistant")
        for picture in sorted((layout.assistant / "report").glob("*.png")):
            run.log_plot(picture)
        tables = (
            build_families_table(report.rows, title="Kinds of tasks"),
            *build_system_tables(report.rows),
            build_paired_table(report.paired),
        )
        show_tables(tables)
        open_console().print(f"report: {path} ({REPORT_NAME})", markup=False)
        return judge_cycle(config, layout, run, config.assistant.tasks.cycles)


def measure_system(layout: Layout, run: TrackedRun, system: System) -> None:
    """Learn anew where the row asks for it, then plan and run the held-out tasks."""
    for number in range(1, system.cycles + 1):
        run.log_stage(
            play_cycle(
                system.config,
                layout,
                number=number,
                folder=system.home / f"{number:02d}",
                before=system.home / f"{number - 1:02d}" if number > 1 else layout.cycle(0),
            )
        )
    run.log_stage(examine_pools(system.config, layout, name=system.name, pools=system.pools, parts=system.parts, folder=system.folder))


if __name__ == "__main__":
    run_flow(clova, doc=__doc__ or "")
