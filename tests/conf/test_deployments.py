"""``prefect.yaml``: every flow can be started by Prefect, and whatever trains waits in one queue."""

import importlib
from pathlib import Path

import pytest
import yaml

from flows.operations.deployments import POOL, QUEUES

ROOT = Path(__file__).resolve().parents[2]
FLOWS = sorted(path.stem for path in (ROOT / "flows").glob("[a-z]*.py"))
DEPLOYMENTS = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
TRAINING = {"sft", "dpo_rounds", "pipeline", "scaling", "seeds", "reflect_learn", "clova"}


def _name_flow(deployment: dict[str, str]) -> str:
    module, _, name = deployment["entrypoint"].rpartition(".")
    assert module == "flows.operations.deployed"
    return name


def test_every_flow_has_a_deployment() -> None:
    assert sorted(_name_flow(item) for item in DEPLOYMENTS) == FLOWS


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=_name_flow)
def test_a_deployment_starts_its_flow_with_overrides(deployment: dict) -> None:  # type: ignore[type-arg]
    name = _name_flow(deployment)
    deployed = getattr(importlib.import_module("flows.operations.deployed"), name)
    assert deployed.name == name
    assert set(deployed.parameters.properties) == {"overrides"} == set(deployed.parameters.required)
    assert deployed.parameters.properties["overrides"]["items"] == {"type": "string"}
    assert isinstance(deployment["parameters"]["overrides"], list)
    assert deployment["tags"] and deployment["description"].endswith(".")
    queue = "training" if name in TRAINING else "default"
    assert deployment["work_pool"] == {"name": POOL, "work_queue_name": queue}
    assert queue in QUEUES and ("training" in deployment["tags"]) == (queue == "training")


def test_the_schedules_are_those_of_the_page() -> None:
    found = {
        _name_flow(item): (schedule["slug"], schedule.get("active", True)) for item in DEPLOYMENTS for schedule in item.get("schedules", [])
    }
    assert found == {
        "dpo_rounds": ("weekly", True),
        "evaluation": ("nightly", True),
        "reflect_learn": ("hourly", True),
        "pipeline": ("monthly", False),
    }
