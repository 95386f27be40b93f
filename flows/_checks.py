"""A gate as a stage: checked once per input, skipped on a re-run, its HTML page kept beside the run's history."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from flows._gates import GateContext, GateResult, check_records
from flows._layout import Layout
from flows._records import read_samples, write_json
from flows._stage import run_stage
from visloop.config import Config
from visloop.ids import hash_tree

_RULES = [Path(__file__).parent / name for name in ("_suites.py", "_facts.py", "_frames.py", "_pictures.py")]
"""The code behind the rules: a changed rule checks old records again."""


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
) -> None:
    """Check the records of a finished stage before the next one reads them.

    Args:
        name: of the gate; its result lies in ``gates/<name>`` of the data folder, its page under the MLflow folder.
        folder: another place for the result.
        records: the stage's folder.
        files: only these files of it; by default every shard.
        paths: sample id by path id, for suites that follow chains.

    Raises:
        GateError: a rule is broken; the rows are named and set aside.
    """
    pages = Path(config.paths.mlruns) / "gates" / name

    def work(place: Path) -> dict[str, float]:
        samples = read_samples(layout)
        context = GateContext.from_samples(
            samples if suite != "samples" else [], data=layout.root, paths=paths, max_unjudged_rate=config.assess.max_unjudged_rate
        )
        shards = [records / file for file in files] if files else sorted(records.glob("*.jsonl"))
        result: GateResult = check_records(shards, suite=suite, out=pages, context=context)  # type: ignore[arg-type]
        write_json(
            place / "result.json",
            {"suite": suite, "rows": result.rows, "rules": {rule.rule: rule.refused for rule in result.rules}},
        )
        return {"rows": result.rows, "rules": len(result.rules)}

    run_stage(
        f"gate {name}",
        folder=folder or layout.gate(name),
        inputs={"records": records, "raw": layout.raw},
        config={
            "suite": suite,
            "files": list(files or ()),
            "max_unjudged_rate": config.assess.max_unjudged_rate,
            "rules": hash_tree(_RULES),
        },
        code=["visloop.records"],
        work=work,
    )
