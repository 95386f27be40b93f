"""Go back to the pools of an earlier cycle: the next instructions and the next cycle start from them, later cycles are set aside.

python -m flows.rollback assistant.tasks.back_to=1
"""

from typing import Any

from prefect import flow

from flows._cycle_history import RECORD_NAME, Rollback, finish_rollback, hold_cycles, set_aside, start_rollback
from flows._cycle_runs import UNDONE_TAG, find_cycle_runs
from flows._database import KEY_TAG
from flows._entry import from_plain, run_flow
from flows._layout import Layout
from flows._run import open_flow_run
from flows._summary import open_console
from flows._tracking import TrackedRun
from visloop.errors import ConfigError


@flow(name="rollback")
def rollback(values: dict[str, Any]) -> None:
    """Set the cycles after ``assistant.tasks.back_to`` aside and write down who did it; a rollback that was killed is finished."""
    config = from_plain(values)
    layout, end = Layout.from_config(config), config.assistant.tasks.back_to
    if end is None:
        raise ConfigError("assistant.tasks.back_to is empty; name the last cycle that stays, e.g. assistant.tasks.back_to=1 (0: all go)")
    with hold_cycles(layout, play=False):
        record = start_rollback(layout, end=end)
        if record is None:
            open_console().print(f"nothing to do: cycle {end} is the last one in {layout.cycle(0).parent}", markup=False)
            return
        with open_flow_run("rollback", config) as run:
            set_aside(layout, record)
            track_rollback(layout, run, record)
        finish_rollback(layout, record)
    moved = ", ".join(map(str, record.cycles))
    console = open_console()
    console.print(f"The assistant's pools are those of cycle {end}; set aside in {layout.undone / record.id}: {moved}.", markup=False)
    console.print(f"Cycle {end + 1} is the next one of flows.reflect_learn; flows.clova plays all that is missing and measures again.")


def track_rollback(layout: Layout, run: TrackedRun, record: Rollback) -> None:
    """A child run for the rollback, and its mark on the runs of the cycles that were taken back. May be repeated.

    Their run keys change, so that a cycle that is played again gets a run of its own.
    """
    tags = {"rollback.by": record.by, "rollback.from": str(record.start), "rollback.to": str(record.end), "rollback.when": record.when}
    hashes = {f"pools.{number:02d}.{name}": digest for number, pools in record.pools.items() for name, digest in pools.items()}
    with run.open_child(f"rollback {record.id}", step=record.end, tags=tags) as child:
        child.log_hashes(hashes)
        child.log_json(layout.undone / record.id / RECORD_NAME)
        for number in record.cycles:
            for entry in find_cycle_runs(layout, run, number):
                run.client.set_tag(entry.info.run_id, KEY_TAG, f"{entry.data.tags[KEY_TAG]} undone by {record.id}")
                run.client.set_tag(entry.info.run_id, UNDONE_TAG, record.id)


if __name__ == "__main__":
    run_flow(rollback, doc=__doc__ or "")
