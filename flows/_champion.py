"""The alias ``champion``: moved by a paired test on held-out data, moved back by hand, every move and every refusal recorded.

Each attempt is a run of the MLflow experiment ``promotion`` with the figures as metrics, and with the predictions of the candidate, so that
a champion can be compared with when its own evaluation has made room for another one. The runs are the history: nothing else is kept.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from flows._candidates import Candidate, find_candidate, find_champion
from flows._database import PatientClient, call_patiently, connect, get_experiment
from flows._measured import Measured, find_measured, keep_measured, pair_measured, read_kept
from flows._provenance import MAX_TAG, describe_git
from flows._registry import CHAMPION, load_registered
from visloop.config import Config
from visloop.errors import DataError, ModelError
from visloop.evaluation.metrics import measure_outcomes, read_outcomes
from visloop.evaluation.promotion import PairedTest, compare_with_champion, describe_test, list_objections

EXPERIMENT = "promotion"
Outcome = Literal["promoted", "refused", "rolled_back"]
_OUTCOME, _MODEL, _VERSION, _BEFORE, _REASON = (f"visloop.{key}" for key in ("outcome", "model", "version", "before", "reason"))
_KEPT = "predictions"


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What became of an attempt. ``version`` is the one it was about, ``before`` the champion until then; ``test`` is None for the first
    champion and for a rollback."""

    outcome: Outcome
    name: str
    version: int
    before: int | None
    reason: str
    test: PairedTest | None = None


def promote(config: Config, *, name: str, which: str) -> Decision:
    """Make a version the champion if it is better than the present one on the same held-out samples.

    Without a champion yet, a version with held-out predictions becomes it untested. The files are compared with the recorded hashes first.

    Raises:
        ModelError: no such version, or its round was rejected.
        DataError: files are missing or other than recorded, or there are no predictions of both under the same conditions.
    """
    mlruns, data = Path(config.paths.mlruns), Path(config.paths.data)
    with _lock(mlruns):
        candidate = find_candidate(name, which, mlruns=mlruns, data=data)
        champion = find_champion(name, mlruns=mlruns, data=data)
        if not candidate.accepted:
            raise ModelError(
                f"{candidate.label} failed the guards of its round: it cannot be promoted (data/rounds/*/report/report.json says why)"
            )
        if champion is not None and champion.digest == candidate.digest:
            return Decision(
                outcome="refused", name=name, version=candidate.version, before=champion.version, reason="it is the champion already"
            )
        load_registered(name, mlruns=mlruns, version=candidate.version)
        mine = find_measured(candidate)
        if champion is None:
            return _crown_first(config, candidate, mine[-1])
        one, other = pair_measured(mine, _find_measured_champion(champion, mlruns=mlruns))
        test = _compare(config, candidate, champion, one, other)
        objections = list_objections(test, confidence=config.evaluation.confidence, min_gain=config.promotion.min_gain)
        reason = "; ".join([describe_test(test), *objections])
        outcome: Outcome = "refused" if objections else "promoted"
        decision = Decision(outcome=outcome, name=name, version=candidate.version, before=champion.version, reason=reason, test=test)
        _record(config, decision, metrics=_flatten(test), measured=None if objections else one)
        return decision


def roll_back(config: Config, *, name: str, to: int | None = None) -> Decision:
    """Move ``champion`` back to the version that was it before, or to ``to``, which must have been it.

    Raises:
        ModelError: there is no champion, or none before it.
        DataError: the files of the earlier champion are missing or other than recorded.
    """
    mlruns, data = Path(config.paths.mlruns), Path(config.paths.data)
    with _lock(mlruns):
        champion = find_champion(name, mlruns=mlruns, data=data)
        if champion is None:
            raise ModelError(f"{name} has no champion in {mlruns}: there is nothing to roll back")
        earlier = [version for version in list_reign(name, mlruns=mlruns) if version != champion.version]
        if to is not None and to not in earlier:
            raise ModelError(f"{name}: version {to} was not champion before version {champion.version}; these were: {earlier or 'none'}")
        if not earlier:
            raise ModelError(f"{name}: version {champion.version} is the first champion; promote another version instead")
        target = earlier[-1] if to is None else to
        load_registered(name, mlruns=mlruns, version=target)
        reason = f"version {champion.version} gives way to version {target}, champion before it"
        decision = Decision(outcome="rolled_back", name=name, version=target, before=champion.version, reason=reason)
        _record(config, decision, metrics={}, measured=None)
        return decision


def list_history(name: str, *, mlruns: Path) -> list[Any]:
    """Attempts as MLflow runs, oldest first. One that was killed before the alias moved is left out."""
    client = connect(mlruns)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return []
    query = f"tags.`{_MODEL}` = '{name}' and attributes.status = 'FINISHED'"
    return list(client.search_runs([experiment.experiment_id], query, order_by=["attributes.start_time ASC"]))


def list_reign(name: str, *, mlruns: Path) -> list[int]:
    """The versions that were champion, each followed by those that it gave way to: what a rollback took back is no longer in it."""
    reign: list[int] = []
    for run in list_history(name, mlruns=mlruns):
        version = int(run.data.tags[_VERSION])
        if run.data.tags[_OUTCOME] == "promoted":
            reign.append(version)
        elif run.data.tags[_OUTCOME] == "rolled_back" and version in reign:
            reign = reign[: len(reign) - reign[::-1].index(version)]
    return reign


def read_decision(run: Any) -> Decision:
    """A recorded attempt, without its test."""
    tags = run.data.tags
    before = tags.get(_BEFORE, "")
    return Decision(
        outcome=tags[_OUTCOME],
        name=tags[_MODEL],
        version=int(tags[_VERSION]),
        before=int(before) if before else None,
        reason=tags[_REASON],
    )


def _crown_first(config: Config, candidate: Candidate, measured: Measured) -> Decision:
    outcomes = read_outcomes(measured.read(), metric=config.promotion.metric, name=candidate.label)
    row = measure_outcomes(outcomes, confidence=config.evaluation.confidence, bootstrap_samples=config.evaluation.bootstrap_samples)
    figures = f"{row.metric} {row.value:.4g} [{row.low:.4g}, {row.high:.4g}], n = {row.n}"
    decision = Decision(
        outcome="promoted", name=candidate.name, version=candidate.version, before=None, reason=f"the first champion: {figures}"
    )
    _record(config, decision, metrics={"value": row.value, "low": row.low, "high": row.high, "n": row.n}, measured=measured)
    return decision


def _compare(config: Config, candidate: Candidate, champion: Candidate, one: Measured, other: Measured) -> PairedTest:
    metric = config.promotion.metric
    left = read_outcomes(one.read(), metric=metric, name=f"version {candidate.version}")
    right = read_outcomes(other.read(), metric=metric, name=f"version {champion.version}")
    return compare_with_champion(
        left,
        right,
        confidence=config.evaluation.confidence,
        bootstrap_samples=config.evaluation.bootstrap_samples,
        seed=config.seed,
    )


def _find_measured_champion(champion: Candidate, *, mlruns: Path) -> list[Measured]:
    """The champion's examinations: those that lie in its data folder, then the one that its promotion kept."""
    try:
        found, missing = find_measured(champion), None
    except DataError as error:
        found, missing = [], error
    runs = [run for run in list_history(champion.name, mlruns=mlruns) if run.data.tags[_OUTCOME] == "promoted"]
    for run in [run for run in runs if int(run.data.tags[_VERSION]) == champion.version][-1:]:
        found.append(read_kept(_fetch_kept(run.info.run_id)))
    if not found and missing is not None:
        raise missing
    return found


def _fetch_kept(run_id: str) -> Path:
    import mlflow

    return Path(call_patiently(lambda: mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=_KEPT)))


def _record(config: Config, decision: Decision, *, metrics: Mapping[str, float], measured: Measured | None) -> None:
    """Write the attempt down and, unless it was refused, move the alias. Finished last: a run that is not finished moved nothing."""
    mlruns = Path(config.paths.mlruns).resolve()
    client = connect(mlruns)
    experiment_id = get_experiment(client, EXPERIMENT, mlruns=mlruns)
    tags = {
        **describe_git(Path.cwd()),
        _OUTCOME: decision.outcome,
        _MODEL: decision.name,
        _VERSION: str(decision.version),
        _BEFORE: "" if decision.before is None else str(decision.before),
        _REASON: decision.reason[:MAX_TAG],
    }
    title = f"{decision.name} version {decision.version} {decision.outcome.replace('_', ' ')}"
    run_id = client.create_run(experiment_id, run_name=title, tags=tags).info.run_id
    try:
        for key, value in metrics.items():
            client.log_metric(run_id, key, float(value))
        client.log_param(run_id, "metric", config.promotion.metric)
        if measured is not None:
            _keep(client, run_id, measured)
        if decision.outcome != "refused":
            client.set_registered_model_alias(decision.name, CHAMPION, str(decision.version))
    except BaseException:
        client.set_terminated(run_id, "FAILED")
        raise
    client.set_terminated(run_id, "FINISHED")


def _keep(client: PatientClient, run_id: str, measured: Measured) -> None:
    with tempfile.TemporaryDirectory(prefix="visloop-") as temporary:
        keep_measured(measured, Path(temporary))
        client.log_artifacts(run_id, temporary, _KEPT)


def _flatten(test: PairedTest) -> dict[str, float]:
    return {key: float(value) for key, value in asdict(test).items() if isinstance(value, int | float)}


def _lock(mlruns: Path) -> FileLock:
    """One attempt at a time: two could each beat the old champion and not each other."""
    mlruns.mkdir(parents=True, exist_ok=True)
    return FileLock(mlruns / ".promotion.lock")
