"""A stage that a flow replaces while a backup is taken is in the backup, whole, whatever moment of the swap the backup meets."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from flows._folders import STAGE_DIR, StageFolder
from flows._stage import run_stage
from flows.backups.contents import Places
from flows.backups.save import save_backup
from visloop.records.manifest import MANIFEST_NAME, check_files, read_manifest

NAMES = ("a.txt", "b.txt")


class Killed(Exception):
    pass


class Stage:
    """A finished stage that is made anew: its swap stops once and goes on later, as where a busy machine lets its process wait."""

    def __init__(self, data: Path, *, stop_at: str) -> None:
        self.data, self.place, self.stop_at = data, StageFolder(data / "squares"), stop_at
        self.make("first")

    def make(self, version: str) -> None:
        def write(place: Path) -> dict[str, float]:
            for name in NAMES:
                (place / name).write_text(f"{version} {name}")
            return {}

        run_stage("squares", folder=self.place.folder, inputs={}, config={"version": version}, code=["visloop.ids"], work=write)

    def begin(self) -> None:
        """Build the second version; its swap stops before it moves ``stop_at``."""
        replace = os.replace

        def stop(source: Path, target: Path) -> None:
            if Path(target) == self.place.folder / self.stop_at:
                raise Killed
            replace(source, target)

        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
            patch.setattr(os, "replace", stop)
            self.make("second")
        assert not (self.place.folder / MANIFEST_NAME).exists() and self.place.stage_dir.is_dir()

    def end(self) -> None:
        self.make("second")
        assert not self.place.stage_dir.exists()


@contextmanager
def watch(folder: Path, actions: dict[int, Callable[[], None]]) -> Iterator[list[Any]]:
    """Count the looks at ``folder`` and what lies in it: listings, questions whether something is there, copies. Before look ``n`` act."""
    looks: list[Any] = []
    acting = False

    def watched(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *arguments: Any, **named: Any) -> Any:
            nonlocal acting
            if not acting and isinstance(path, str | Path) and Path(path).is_relative_to(folder):
                acting = True
                actions.get(len(looks), lambda: None)()
                acting = False
                looks.append(path)
            return function(path, *arguments, **named)

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "sleep", lambda seconds: None)
        for module, name in ((os, "scandir"), (os, "stat"), (shutil, "copyfile")):
            patch.setattr(module, name, watched(getattr(module, name)))
        yield looks


@pytest.fixture(autouse=True)
def _no_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.backups.save.describe_git", lambda root: {})


def back_up(data: Path, target: Path) -> tuple[str, ...]:
    root = data.parent
    return save_backup(target, Places(root=root, data=data, mlruns=root / "mlruns", prefect=root / "prefect.db")).torn


def read_version(folder: Path) -> str:
    manifest = read_manifest(folder)
    assert manifest is not None and not check_files(folder, manifest) and tuple(sorted(manifest.files)) == NAMES
    assert sorted(path.name for path in folder.iterdir()) == [*NAMES, MANIFEST_NAME]
    return str(manifest.config["version"])


@pytest.mark.parametrize("stop_at", ["a.txt", "b.txt", MANIFEST_NAME])
def test_a_backup_in_the_midst_of_a_swap_has_the_new_version(tmp_path: Path, stop_at: str) -> None:
    """Also where nobody finishes the swap: its process was killed."""
    stage = Stage(tmp_path / "project" / "data", stop_at=stop_at)
    stage.begin()
    with watch(tmp_path, {}):
        assert back_up(stage.data, tmp_path / "backup") == ()
    assert read_version(tmp_path / "backup" / "data" / "squares") == "second"
    assert not (tmp_path / "backup" / "data" / "squares" / STAGE_DIR).exists()


def test_a_swap_at_any_moment_of_a_backup_leaves_nothing_out(tmp_path: Path) -> None:
    """It begins before the first look of the backup at the stage and ends before any other one, or begins before any and is short."""
    moments, versions = [(0, 0)], set()
    for begin, end in moments:
        stage = Stage(tmp_path / f"{begin}-{end}" / "data", stop_at=MANIFEST_NAME)
        actions = {begin: stage.begin, end: stage.end} if begin < end else {begin: partial(stage.make, "second")}
        with watch(stage.place.folder, actions) as looks:
            torn = back_up(stage.data, tmp_path / f"backup {begin}-{end}")
        assert torn == (), f"swap from look {begin} to look {end}"
        versions.add(read_version(tmp_path / f"backup {begin}-{end}" / "data" / "squares"))
        if moments == [(0, 0)]:
            moments += [(0, later) for later in range(1, len(looks))]
            moments += [(first, first + length) for first in range(1, len(looks)) for length in (0, 2)]
    assert versions == {"first", "second"} and len(moments) > 30


def test_a_damaged_stage_is_named(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "project" / "data", stop_at="")
    (stage.place.folder / "b.txt").write_text("damaged")
    with watch(tmp_path, {}):
        assert back_up(stage.data, tmp_path / "backup") == ("squares",)
    assert (tmp_path / "backup" / "data" / "squares" / "b.txt").read_text() == "damaged"
