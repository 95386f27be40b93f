"""A flow of seconds for the tests of sweeps: what it is judged by follows from ``dpo.beta``; a beta of 9 fails."""

from typing import Any

import flows  # noqa: F401 - first of all, as `python -m flows.<name>` does: it sets the environment that prefect reads when imported

# isort: split
from prefect import flow

from flows._entry import from_plain, run_flow
from flows._objective import log_objective
from flows._run import open_flow_run
from visloop.errors import DataError
from visloop.evaluation.metrics import Row


@flow
def sweep_flow(values: dict[str, Any]) -> float:
    """The value is 1 - beta, with an interval of a tenth to each side."""
    config = from_plain(values)
    with open_flow_run("sweep_flow", config) as run:
        if config.dpo.beta == 9:
            raise DataError("a beta of 9 was asked for")
        value = 1 - config.dpo.beta
        return log_objective(run, Row("model", "accuracy", value, value - 0.1, value + 0.1, 50))


if __name__ == "__main__":
    run_flow(sweep_flow, doc=__doc__ or "")
