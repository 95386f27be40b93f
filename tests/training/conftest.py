"""Shared material of the training tests: pictures, examples, pairs, and one saved tiny model per architecture."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.fixtures.tiny_models import missing_requirement, save_tiny
from tests.fixtures.training_records import make_example, make_pair
from visloop.records.reasoning import PreferencePair, SFTExample

SIZES = ((48, 48), (40, 64), (64, 40), (50, 50))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def image_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pictures of four shapes: ``pictures/0.png`` to ``pictures/7.png``."""
    root = tmp_path_factory.mktemp("data")
    (root / "pictures").mkdir()
    draw = np.random.default_rng(0)
    for index in range(8):
        width, height = SIZES[index % len(SIZES)]
        pixels = draw.integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "pictures" / f"{index}.png")
    return root


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of the tiny model of an architecture; the test is skipped where it cannot be built."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if reason := missing_requirement(name):
            pytest.skip(reason)
        if name not in made:
            made[name] = save_tiny(name, tmp_path_factory.mktemp(name) / "base")
        return made[name]

    return make


@pytest.fixture(scope="session")
def examples() -> list[SFTExample]:
    return [make_example(index) for index in range(8)]


@pytest.fixture(scope="session")
def pairs() -> list[PreferencePair]:
    return [make_pair(index) for index in range(8)]
