"""Train the embedded CLIP from nothing: ``python -m visloop.embedded.train_clip --out DIR [--seed N]``.

Writes ``DIR/clip``: fp16 safetensors, processor, ``vocabulary.json``, ``exemplars.safetensors`` and a model card with measured figures. The
trained weights are kept in full precision under ``DIR/stages/clip``: the same command goes on from there.
"""

import argparse
from pathlib import Path

import torch

from visloop.embedded.clip import ClipRecipe
from visloop.embedded.clip_build import ClipSizes
from visloop.embedded.clip_run import ClipRun
from visloop.embedded.train import report_line
from visloop.memory import keep_freed_memory

EXAMINED_SEED = 995_002
"""Seed of the scenes that measure the shipped files; training never uses it."""


def main() -> None:
    """Read the command line, train, measure and write."""
    parser = argparse.ArgumentParser(description="Train the embedded CLIP from scratch.")
    parser.add_argument("--out", type=Path, required=True, help="folder that receives clip/")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    given = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(given.threads)
    run = ClipRun(
        given.out / "clip",
        stages=given.out / "stages" / "clip",
        recipe=ClipRecipe(),
        sizes=ClipSizes(),
        seed=given.seed,
        report=report_line,
    )
    run.run()
    run.ship(examined_seed=EXAMINED_SEED)


if __name__ == "__main__":
    main()
