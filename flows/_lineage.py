"""Where a registered version comes from, hop by hop: model, pairs, chains, prompts, data, commit. Every hop is followed by hash.

A stage's manifest names its inputs by the hash of what they held. The folder that holds a stage with that hash now is the hop's other
end, and its files are compared with their recorded hashes; an input that no folder holds any more is a broken hop.
"""

import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flows._candidates import Candidate
from flows._database import PARENT_TAG, connect
from flows._folders import STAGE_DIR, hash_input
from flows._registry import load_registered
from visloop.chat.weights import shipped_folder
from visloop.errors import DataError, ModelError
from visloop.ids import hash_json
from visloop.prompts.render import PromptSet
from visloop.records.manifest import MANIFEST_NAME, Manifest, check_files, read_manifest

HopState = Literal["intact", "changed", "missing", "seen"]
"""``intact``; ``changed``: files are other than recorded; ``missing``: nothing has the recorded hash; ``seen``: shown further up."""
STYLES = ("compact", "full")
_COMMIT, _DIRTY = "mlflow.source.git.commit", "git_dirty"


@dataclass(frozen=True, kw_only=True)
class Hop:
    """One line of the lineage. ``depth`` counts from the version (0); ``role`` is what it was to the line above."""

    depth: int
    role: str
    what: str
    digest: str
    place: str
    state: HopState
    note: str = ""

    @property
    def is_broken(self) -> bool:
        return self.state in ("changed", "missing")


class Ground:
    """Everything that may be the other end of a hop, by hash: finished stages of a data folder, shipped models, prompt styles."""

    def __init__(self, data: Path, *, outside: Mapping[str, Path] | None = None) -> None:
        """``outside``: folders that the run's settings name (a base model, a source of data), by the role that they have as an input."""
        self._outside = dict(outside or {})
        self.folders: dict[str, list[Path]] = {}
        for path in sorted(data.rglob(MANIFEST_NAME)):
            if STAGE_DIR not in path.parts and (manifest := read_manifest(path.parent)) is not None:
                self.folders.setdefault(hash_json(manifest.files), []).append(path.parent)
        for folder in sorted(path for path in shipped_folder().iterdir() if path.is_dir()):
            self.folders.setdefault(hash_input(folder), []).append(folder)
        self.styles = {PromptSet(style).hash: style for style in STYLES}

    def find(self, digest: str) -> Path | None:
        """The folder that holds what has this hash."""
        if digest not in self.folders:
            for folder in self._outside.values():
                self.folders.setdefault(hash_input(folder), []).append(folder)
            self._outside = {}
        return next(iter(self.folders.get(digest, ())), None)


def trace_lineage(candidate: Candidate, *, mlruns: Path) -> list[Hop]:
    """The version, then what it was made from, depth first, each stage once; last the commit.

    Raises:
        DataError: the version was registered before the hash of its stage was kept.
    """
    tags, params = _read_run(candidate, mlruns=mlruns)
    if candidate.stage is None or candidate.folder is None:
        raise DataError(f"{candidate.label} does not name the stage that made it: run the flow that made it again, which adds that")
    ground = Ground(candidate.data, outside=_find_outside(params))
    hops = [_check_version(candidate, mlruns=mlruns)]
    hops += _follow(ground, "made by", candidate.stage, depth=1, seen=set())
    hops.append(_check_commit(tags))
    return hops


def _check_version(candidate: Candidate, *, mlruns: Path) -> Hop:
    state: HopState = "intact"
    note, place = "", candidate.folder
    try:
        place = load_registered(candidate.name, mlruns=mlruns, version=candidate.version)
    except (DataError, ModelError) as error:
        state, note = "changed" if place is not None and place.is_dir() else "missing", str(error)
    return Hop(depth=0, role="version", what=candidate.label, digest=candidate.digest, place=str(place), state=state, note=note)


def _follow(ground: Ground, role: str, digest: str, *, depth: int, seen: set[str]) -> Iterator[Hop]:
    folder = ground.find(digest)
    if folder is None:
        note = "no stage in the data folder has this hash: it was made anew since, or its files are gone"
        yield Hop(depth=depth, role=role, what="?", digest=digest, place="", state="missing", note=note)
        return
    manifest = read_manifest(folder)
    if manifest is None:  # weights that are shipped, or lie outside: found by hashing them
        yield Hop(depth=depth, role=role, what="files", digest=digest, place=str(folder), state="intact")
        return
    if digest in seen:
        yield Hop(depth=depth, role=role, what=manifest.stage, digest=digest, place=str(folder), state="seen")
        return
    seen.add(digest)
    wrong = check_files(folder, manifest)
    note = f"{len(wrong)} of {len(manifest.files)} files are missing or changed, e.g. {wrong[0]}" if wrong else ""
    state: HopState = "changed" if wrong else "intact"
    yield Hop(depth=depth, role=role, what=manifest.stage, digest=digest, place=str(folder), state=state, note=note)
    yield from _check_prompts(ground, manifest, depth=depth + 1)
    for name, below in _sort_inputs(manifest.inputs):
        yield from _follow(ground, name, below, depth=depth + 1, seen=seen)


def _sort_inputs(inputs: Mapping[str, str]) -> list[tuple[str, str]]:
    """What a stage was made from, the data last and the model before it, so that the chain of work reads down the page."""
    late = {"policy": 1, "reference": 1, "model": 1, "base": 2, "raw": 3}
    return sorted(inputs.items(), key=lambda item: (late.get(item[0], 0), item[0]))


def _check_prompts(ground: Ground, manifest: Manifest, *, depth: int) -> Iterator[Hop]:
    """The templates of the prompts, where the stage's settings name them by hash."""
    digest = manifest.config.get("prompts")
    if not isinstance(digest, str):
        assistant = manifest.config.get("assistant")
        digest = assistant.get("prompts") if isinstance(assistant, dict) else None
    if not isinstance(digest, str) or len(digest) < 16:
        return
    style = ground.styles.get(digest)
    if style is not None:
        yield Hop(depth=depth, role="prompts", what=f"templates {style}", digest=digest, place="src/visloop/prompts", state="intact")
    else:
        note = "the templates were edited since: the commit below has them"
        yield Hop(depth=depth, role="prompts", what="templates", digest=digest, place="src/visloop/prompts", state="changed", note=note)


def _check_commit(tags: Mapping[str, str]) -> Hop:
    commit = tags.get(_COMMIT, "")
    if not commit:
        note = "the run names no commit: it was made outside of a git checkout"
        return Hop(depth=1, role="commit", what="git", digest="", place="", state="missing", note=note)
    found = subprocess.run(["git", "cat-file", "-t", commit], capture_output=True, text=True, check=False)
    note = "the work tree had changes that are not in this commit" if tags.get(_DIRTY) == "true" else ""
    if found.stdout.strip() != "commit":
        note = "this checkout does not have the commit: fetch it"
        return Hop(depth=1, role="commit", what="git", digest=commit, place="", state="missing", note=note)
    return Hop(depth=1, role="commit", what="git", digest=commit, place="", state="intact", note=note)


def _read_run(candidate: Candidate, *, mlruns: Path) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """Tags and settings of the flow run that registered the version: of the parent where it was a round or a cycle.

    Raises:
        DataError: the run is no longer in the database.
    """
    from mlflow.exceptions import MlflowException

    client: Any = connect(mlruns)
    try:
        run = client.get_run(candidate.run_id)
        parent = run.data.tags.get(PARENT_TAG)
        run = client.get_run(parent) if parent else run
    except MlflowException as error:
        raise DataError(f"{candidate.label}: its MLflow run {candidate.run_id} is not in {mlruns}: {error.message}") from error
    return run.data.tags, run.data.params


def _find_outside(params: Mapping[str, str]) -> dict[str, Path]:
    """Folders that the settings name outside of the data folder: models of one's own, a source of data."""
    named = {key: value for key, value in params.items() if key == "data.root" or key.endswith(".model")}
    return {key: Path(value) for key, value in named.items() if value and Path(value).is_dir()}
