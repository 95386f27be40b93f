"""A small flow for the tests of the entry: squares numbers in shards, and fails where it is told to."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flows  # noqa: F401 - first of all, as `python -m flows.<name>` does: it sets the environment that prefect reads when imported

# isort: split
from prefect import flow

from flows._entry import from_plain, run_flow
from flows._stage import Shard, make_shards, run_sharded_stage, run_stage
from visloop.errors import DataError, ModelError
from visloop.records.shards import write_text

attempts: dict[str, int] = {}


@flow
def sample_flow(config: dict[str, Any]) -> float:
    """``data.train`` numbers in shards of 2; ``data.wording`` names the failure that is wanted."""
    settings = from_plain(config)
    data = Path(settings.paths.data)

    def work(shard: Shard[list[int]], path: Path) -> Mapping[str, float]:
        attempts[shard.name] = attempts.get(shard.name, 0) + 1
        if settings.data.wording == "unreachable once" and attempts[shard.name] == 1:
            raise ModelError("the endpoint does not answer")
        if settings.data.wording == "wrong data":
            raise DataError("picture 7 of shard 00000 cannot be opened; export the pictures again")
        if settings.data.wording == "defect":
            raise ZeroDivisionError("a defect of the program")
        write_text(path, "".join(f"{number * number}\n" for number in shard.payload))
        return {"numbers": len(shard.payload)}

    def write_beta(folder: Path) -> Mapping[str, float]:
        write_text(folder / "beta.txt", f"{settings.dpo.beta}\n")
        return {"beta": settings.dpo.beta}

    run_sharded_stage(
        "squares",
        folder=data / "squares",
        inputs={},
        config={"seed": settings.seed},
        code=["visloop.ids"],
        shards=make_shards(list(range(settings.data.train)), size=2),
        work=work,
        retries=1,
    )
    run_stage(
        "beta", folder=data / "beta", inputs={"squares": data / "squares"}, config=settings.dpo, code=["visloop.ids"], work=write_beta
    )
    return settings.dpo.beta


if __name__ == "__main__":
    run_flow(sample_flow, doc=__doc__ or "")
