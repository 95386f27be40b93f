"""Train the embedded models from nothing: ``python -m visloop.embedded.train --out DIR [--models base judge] [--seed N]``.

Writes ``DIR/base`` and ``DIR/judge`` (fp16 safetensors, processor, model card) and keeps a checkpoint of every finished
stage under ``DIR/stages``: the same command continues an interrupted run.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from visloop.embedded.build import Sizes
from visloop.embedded.recipe import JudgeRecipe, Recipe
from visloop.embedded.run_base import BaseRun
from visloop.embedded.run_judge import JudgeRun
from visloop.errors import ConfigError
from visloop.memory import keep_freed_memory
from visloop.prompts.render import PromptSet
from visloop.scenes.world import DEFAULT_WORLD

EXAMINED_SEED = 995_001
"""Seed of the scenes that measure the shipped files; training never uses it."""


def choose_device(name: str) -> str:
    """``auto`` is the GPU where there is one.

    Raises:
        ConfigError: ``cuda`` is asked for and there is none.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch sees no GPU here; use cpu or auto")
    return name


def report_line(text: str) -> None:
    """Print one line of progress at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def train_models(
    out: Path,
    *,
    models: Sequence[str],
    device: str,
    seed: int,
    recipe: Recipe | None = None,
    plan: JudgeRecipe | None = None,
    sizes: Sizes | None = None,
) -> None:
    """Train, measure and write the named models (``base``, ``judge``) into ``out``; the judge starts from ``out/base``.

    Raises:
        TrainingError: a stage misses the figure it must reach.
        ModelError: the judge is asked for and ``out/base`` is not there.
    """
    recipe, sizes, prompts = recipe or Recipe(), sizes or Sizes(), PromptSet("compact")
    if "base" in models:
        run = BaseRun(
            out / "base",
            stages=out / "stages",
            recipe=recipe,
            sizes=sizes,
            spec=DEFAULT_WORLD,
            prompts=prompts,
            seed=seed,
            device=device,
            report=report_line,
        )
        run.run()
        run.ship(examined_seed=EXAMINED_SEED)
    if "judge" in models:
        judge = JudgeRun(
            out / "base",
            out / "judge",
            recipe=recipe,
            plan=plan or JudgeRecipe(),
            spec=DEFAULT_WORLD,
            prompts=prompts,
            seed=seed,
            device=device,
            report=report_line,
        )
        judge.run()
        judge.ship(base=out / "base", examined_seed=EXAMINED_SEED)


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description="Train the embedded models from scratch.")
    parser.add_argument("--out", type=Path, required=True, help="folder that receives base/ and judge/")
    parser.add_argument("--models", nargs="+", choices=("base", "judge"), default=("base", "judge"))
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; more than one hardly helps models of this size")
    given = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(given.threads)
    train_models(given.out, models=given.models, device=choose_device(given.device), seed=given.seed)


if __name__ == "__main__":
    main()
