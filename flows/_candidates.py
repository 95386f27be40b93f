"""Registered versions as candidates: what each is, where it lies, how it is named by people."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flows._database import connect
from flows._layout import Layout
from flows._registry import CHAMPION, DATA_TAG, DIGEST_TAG, FOLDER_TAG, KIND_TAG, POOLS, REASONER, STAGE_TAG, find_version
from visloop.config import Config
from visloop.errors import ConfigError, ModelError

NAMES = {"reasoner": REASONER, "pools": POOLS}
"""Short names of the registered models, for people."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A version. ``stage`` and ``folder`` are None for one that was registered before they were kept; ``data`` is its data folder;
    ``round`` is the round or the cycle; ``accepted`` whether its round passed the guards (a cycle is registered behind its gates)."""

    name: str
    version: int
    aliases: tuple[str, ...]
    digest: str
    stage: str | None
    folder: Path | None
    data: Path
    round: int
    kind: str
    accepted: bool
    run_id: str

    @property
    def label(self) -> str:
        """``visloop-reasoner version 3 (m2, head)``."""
        return f"{self.name} version {self.version}" + (f" ({', '.join(self.aliases)})" if self.aliases else "")


def list_candidates(name: str, *, mlruns: Path, data: Path) -> list[Candidate]:
    """All versions, newest first; of several entries of the same files (made by several runs) the newest, with the aliases of all.

    Args:
        data: the data folder of versions that do not name theirs.
    """
    client = connect(mlruns)
    found = sorted(client.search_model_versions(f"name = '{name}'"), key=lambda item: -int(item.version))
    by_version = _list_aliases(client, name)
    kept: dict[tuple[str, str], Candidate] = {}
    for item in found:
        key = (item.tags[DIGEST_TAG], item.tags.get(FOLDER_TAG, ""))
        aliases = by_version.get(int(item.version), ())
        if key not in kept:
            kept[key] = _read_candidate(item, aliases=aliases, mlruns=mlruns, data=data)
        elif aliases:
            kept[key] = _with_aliases(kept[key], aliases)
    return list(kept.values())


def find_candidate(name: str, which: str, *, mlruns: Path, data: Path) -> Candidate:
    """The version with this number or alias, e.g. ``4``, ``m3``, ``champion``.

    Raises:
        ModelError: there is none; the message lists what there is.
    """
    number = which.removeprefix("v")
    item = find_version(name, mlruns=mlruns, version=int(number)) if number.isdigit() else find_version(name, mlruns=mlruns, alias=which)
    if item is None:
        known = [
            f"{one.version}" + (f" ({', '.join(one.aliases)})" if one.aliases else "")
            for one in list_candidates(name, mlruns=mlruns, data=data)
        ]
        hint = f"registered are: {'; '.join(known)}" if known else "nothing is registered under this name yet: run the flow that makes it"
        raise ModelError(f"{name}: no version or alias {which!r} in {mlruns}; {hint}")
    aliases = _list_aliases(connect(mlruns), name).get(int(item.version), ())
    return _read_candidate(item, aliases=aliases, mlruns=mlruns, data=data)


def find_champion(name: str, *, mlruns: Path, data: Path) -> Candidate | None:
    """The promoted version, or None before the first promotion."""
    return find_candidate(name, CHAMPION, mlruns=mlruns, data=data) if find_version(name, mlruns=mlruns, alias=CHAMPION) else None


def find_champion_cycle(config: Config, layout: Layout) -> int | None:
    """The cycle of the promoted pools where they are those of this data folder and line of cycles; else None."""
    champion = find_champion(POOLS, mlruns=Path(config.paths.mlruns), data=layout.root)
    if champion is None or champion.folder is None or champion.folder.parent.resolve() != layout.cycle(0).parent.resolve():
        return None
    return int(champion.folder.name)


def resolve_name(short: str) -> str:
    """The registered name of ``reasoner`` or ``pools``.

    Raises:
        ConfigError: another word.
    """
    if short not in NAMES:
        raise ConfigError(f"{short!r}: one of {', '.join(NAMES)} is needed")
    return NAMES[short]


def _read_candidate(item: Any, *, aliases: tuple[str, ...], mlruns: Path, data: Path) -> Candidate:
    root, tags = mlruns.resolve().parent, item.tags
    return Candidate(
        name=item.name,
        version=int(item.version),
        aliases=aliases,
        digest=tags[DIGEST_TAG],
        stage=tags.get(STAGE_TAG),
        folder=root / tags[FOLDER_TAG] if FOLDER_TAG in tags else None,
        data=root / tags[DATA_TAG] if DATA_TAG in tags else data,
        round=int(tags["round"]),
        kind=tags[KIND_TAG],
        accepted=tags.get("accepted", "true") == "true",
        run_id=item.run_id,
    )


def _with_aliases(candidate: Candidate, more: tuple[str, ...]) -> Candidate:
    return replace(candidate, aliases=tuple(dict.fromkeys((*candidate.aliases, *more))))


def _list_aliases(client: Any, name: str) -> dict[int, tuple[str, ...]]:
    """Aliases by version. A search does not carry them."""
    from mlflow.exceptions import MlflowException

    try:
        entry = client.get_registered_model(name)
    except MlflowException:
        return {}
    found: dict[int, tuple[str, ...]] = {}
    for alias, version in sorted(entry.aliases.items()):
        found[int(version)] = (*found.get(int(version), ()), alias)
    return found
