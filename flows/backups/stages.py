"""Finished stages of the data folder, each copied as it was at one moment, also while a flow replaces it.

A swap takes the old manifest away, moves one output after the other out of ``.stage/build`` and the new manifest last. From the moment on
which ``.stage/build`` has a manifest, what it names lies in one of both folders. So a stage has a whole version at every moment, and its
copy holds what the newest manifest names, each output from where it is.
"""

import logging
import os
import shutil
import time
from pathlib import Path

from flows._folders import STAGE_DIR, StageFolder, make_way
from flows.backups.contents import Places, is_covered, list_files
from visloop.errors import DataError
from visloop.ids import hash_file
from visloop.records.manifest import MANIFEST_NAME, Manifest, check_files, read_manifest, write_manifest

_TRIES = 8
_PAUSE = 0.25
_log = logging.getLogger(__name__)


def copy_stages(target: Path, places: Places, outs: dict[str, str]) -> list[str]:
    """Make every finished stage below ``target``, a copy of the data folder, whole; those that ``outs`` cover are passed over.

    Returns the stages, relative to the data folder, that have no whole version: outputs are damaged, or a flow replaces them faster than
    they are copied. They are named in the log as well.
    """
    torn: dict[str, bool] = {}
    while found := [stage for stage in _list_stages(places, outs) if stage not in torn]:
        for stage in found:
            torn[stage] = not _copy_stage(places.data / stage, target / stage)
            if torn[stage]:
                _log.warning("%s is not whole: its files are not those of its manifest; its flow will make it again", places.data / stage)
    return sorted(stage for stage, is_torn in torn.items() if is_torn)


def _list_stages(places: Places, outs: dict[str, str]) -> list[str]:
    """Folders with a manifest or with work in progress."""
    stages = []
    for place, folders, names in os.walk(places.data):
        folder = Path(place)
        if is_covered(folder, places, outs):
            folders.clear()
            continue
        # A swap may have ended while the folder was listed: neither its manifest nor its work was seen. It is asked again.
        if MANIFEST_NAME in names or STAGE_DIR in folders or StageFolder(folder).is_started():
            stages.append(folder.relative_to(places.data).as_posix())
        folders[:] = sorted(name for name in folders if name != STAGE_DIR)
    return stages


def _copy_stage(stage: Path, copy: Path) -> bool:
    """Whether ``copy`` is whole now, or ``stage`` has no outputs yet."""
    place = StageFolder(stage)
    for attempt in range(_TRIES):
        time.sleep(_PAUSE * min(max(attempt - 1, 0), 4))
        try:
            if _is_whole(copy):
                return True
            manifest = place.read_sealed()
        except DataError:
            return False  # a manifest that nobody can read
        if manifest is None:
            if next(list_files(copy), None) is None:
                return True
        elif all(_copy_output(place, copy, name, digest) for name, digest in manifest.files.items()):
            _remove_outdated(stage, copy, manifest)
            write_manifest(copy, manifest)
            return True
    return False


def _is_whole(copy: Path) -> bool:
    manifest = read_manifest(copy)
    return manifest is not None and not check_files(copy, manifest)


def _copy_output(place: StageFolder, copy: Path, name: str, digest: str) -> bool:
    target = copy / name
    if target.is_file() and hash_file(target) == digest:
        return True
    make_way(target, copy)
    for folder in (place.folder, place.build, place.folder):  # again, as it may have been moved meanwhile
        try:
            shutil.copy2(folder / name, target)
        except FileNotFoundError:
            continue
        if hash_file(target) == digest:
            return True
    return False


def _remove_outdated(stage: Path, copy: Path, manifest: Manifest) -> None:
    """Remove what was copied of older outputs."""
    for name in list(list_files(copy)):
        if name not in manifest.files and not (stage / name).is_file():
            (copy / name).unlink()
