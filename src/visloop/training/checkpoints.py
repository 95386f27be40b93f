"""Which checkpoint a run may continue from: the newest one that was written whole, by the same run."""

import json
import shutil
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open

from visloop.errors import DataError
from visloop.records.shards import write_text

FOLDER = ".checkpoints"
RUN_FILE = "run.json"
STATE = "trainer_state.json"


def prepare_checkpoints(folder: Path, *, key: str) -> Path | None:
    """Make ``folder`` ready for a run and return the checkpoint to continue from, or None.

    Checkpoints of another run (another ``key``: other data, settings, seed or start weights) and half-written ones are removed.

    Raises:
        DataError: the folder cannot be written.
    """
    record = folder / RUN_FILE
    try:
        same = record.is_file() and json.loads(record.read_text()).get("key") == key
    except ValueError:
        same = False
    try:
        if folder.exists() and not same:
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        whole = []
        for path in folder.glob("checkpoint-*"):
            if is_whole(path):
                whole.append(path)
            else:
                shutil.rmtree(path)
    except OSError as error:
        raise DataError(f"cannot prepare {folder}: {error.strerror}; free space or fix the permissions and run again") from error
    write_text(record, json.dumps({"key": key}) + "\n")
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint has its trainer state, weights, optimizer and random state, all of them readable to the end."""
    try:
        json.loads((checkpoint / STATE).read_text())
        weights = list(checkpoint.glob("*.safetensors"))
        for file in weights:
            with safe_open(file, framework="pt") as tensors:  # the header's sizes are checked against the file's
                tensors.keys()
    except (OSError, ValueError, SafetensorError):
        return False
    archives = [checkpoint / "optimizer.pt", checkpoint / "scheduler.pt", *checkpoint.glob("rng_state*.pth")]
    return bool(weights) and len(archives) > 2 and all(zipfile.is_zipfile(file) for file in archives)
