"""The flows as deployments start them: ``overrides`` is the list of what one would type behind ``python -m flows.<name>``.

``prefect.yaml`` names them as ``flows.operations.deployed.<name>``. Code and heavy libraries of a flow are imported when it runs,
so that deploying all of them costs one import of Prefect.
"""

import importlib

import flows  # noqa: F401 - first of all: it sets the environment that prefect reads when imported

# isort: split
from prefect import Flow, flow
from prefect.runtime import flow_run

from flows._entry import describe_overrides, start_flow


def _name_run() -> str:
    """As the command line names its runs: flow and overrides."""
    return describe_overrides(str(flow_run.flow_name), flow_run.parameters.get("overrides") or [])


def _deploy(name: str) -> "Flow[[list[str]], None]":
    def start(overrides: list[str]) -> None:
        """The flow with Hydra overrides, as on the command line.

        Args:
            overrides: e.g. ``["experiment=smoke", "dpo.beta=0.2"]``; an empty list takes ``conf/`` as it is.
        """
        start_flow(getattr(importlib.import_module(f"flows.{name}"), name), overrides)

    start.__name__ = start.__qualname__ = name
    return flow(name=name, flow_run_name=_name_run)(start)


generation = _deploy("generation")
assessment = _deploy("assessment")
sft = _deploy("sft")
dpo_rounds = _deploy("dpo_rounds")
evaluation = _deploy("evaluation")
benchmarks = _deploy("benchmarks")
pipeline = _deploy("pipeline")
rollback = _deploy("rollback")
scaling = _deploy("scaling")
seeds = _deploy("seeds")
reflect_learn = _deploy("reflect_learn")
clova = _deploy("clova")
export_traces = _deploy("export_traces")
nlvr = _deploy("nlvr")
