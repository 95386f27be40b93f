"""The Insight-V loop end to end: grow reasoning data, train the two agents, improve the reasoner by DPO rounds, measure.

Finished stages are skipped, killed ones continue: run the same command again.
"""

from typing import Any

from prefect import flow

from flows._entry import from_plain, run_flow
from flows._run import open_flow_run
from flows.assessment import assessment
from flows.dpo_rounds import dpo_rounds
from flows.evaluation import evaluation
from flows.generation import generation
from flows.sft import sft

PHASES = (generation, assessment, sft, dpo_rounds, evaluation)


@flow(name="pipeline")
def pipeline(values: dict[str, Any]) -> float:
    """All phases in order, in one MLflow run. Returns what a sweep compares: the figure of the rounds."""
    with open_flow_run("pipeline", from_plain(values)):
        returned = {phase.name: phase(values) for phase in PHASES}
    return float(returned[dpo_rounds.name])


if __name__ == "__main__":
    run_flow(pipeline, doc=__doc__ or "")
