"""The prompt pool with 100,000 entries, and learning one concept.

    python -m benchmarks.prompt_pool [--concepts 10000] [--prompts 10] [--repeats 200]

``look_up``: the prompts of one concept, ranked by likeness to a picture's feature. ``scan`` is the named baseline: the same over a list of
all entries, without an index. ``learn``: the seconds from collected instances of one novel word to its validated prompts on the embedded
CLIP, with the paper's training and validation. Results go to ``benchmarks/results/prompt_pool.json``.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from visloop.chat.weights import resolve_model
from visloop.embedded.clip_exam import ClipExam, Teacher
from visloop.records.assistant import PromptEntry
from visloop.tools.prompt_pool import LearnedPrompt, PromptPool, load_pool, rank_prompts, save_pool

RESULTS = Path(__file__).parent / "results" / "prompt_pool.json"
FEATURE_WIDTH, TOKENS, WIDTH = 512, 4, 64
MOST = 10


def make_pool(concepts: int, prompts: int) -> PromptPool:
    """A pool of random prompts with features as wide as CLIP ViT-B's."""
    draw = np.random.default_rng(0)
    features = draw.standard_normal((concepts, prompts, FEATURE_WIDTH), dtype=np.float32)
    values = draw.standard_normal((TOKENS, WIDTH), dtype=np.float32)
    return PromptPool(
        tuple(
            LearnedPrompt(entry=_make_entry(f"concept {number}", index), feature=features[number, index], prompt=values)
            for number in range(concepts)
            for index in range(prompts)
        )
    )


def _make_entry(concept: str, index: int) -> PromptEntry:
    return PromptEntry(
        id=f"{concept}/{index}",
        tool="CLIP",
        concept=concept,
        backend="bench",
        placement="text prefix",
        instance_ids=(),
        train_accuracy=1.0,
        validation_accuracy=1.0,
        base_accuracy=1.0,
        base_accuracy_before=1.0,
    )


def measure(work: Callable[[int], object], repeats: int) -> float:
    """Median milliseconds of one call."""
    taken = []
    for number in range(repeats):
        started = time.perf_counter()
        work(number)
        taken.append(1000 * (time.perf_counter() - started))
    return statistics.median(taken)


def measure_learning(concept: str) -> dict[str, float]:
    """Seconds of learning one novel word, and what it is worth on its validation instances."""
    exam = ClipExam(Path(resolve_model("embedded/clip")), crops=10, seed=0, report=print)
    with tempfile.TemporaryDirectory() as folder:
        instances, replay = Teacher(exam, Path(folder)).collect(concept, "shape")
        exam.engine.root = Path(folder)
        started, computed = time.perf_counter(), time.process_time()
        told = exam.engine.tune_word(concept, pool=PromptPool(), instances=instances, replay=replay, group="shape", seed=0, cycle=1)
        seconds, computed = time.perf_counter() - started, time.process_time() - computed
    return {
        "seconds": seconds,
        "CPU seconds": computed,
        "validation_before": told.validation_before,
        "validation_after": told.validation_after,
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="The prompt pool with many entries, and learning one concept.")
    parser.add_argument("--concepts", type=int, default=10_000)
    parser.add_argument("--prompts", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=200)
    given = parser.parse_args()
    torch.set_num_threads(1)
    pool = make_pool(given.concepts, given.prompts)
    query = np.random.default_rng(1).standard_normal(FEATURE_WIDTH, dtype=np.float32)
    names = [f"concept {number * 7919 % given.concepts}" for number in range(given.repeats)]

    def look_up(number: int) -> object:
        return rank_prompts(pool.find_prompts("CLIP", names[number]), query, most=MOST)

    def scan(number: int) -> object:
        found = [prompt for prompt in pool.prompts if (prompt.entry.tool, prompt.entry.concept) == ("CLIP", names[number])]
        return rank_prompts(found, query, most=MOST)

    ours, baseline = measure(look_up, given.repeats), measure(scan, min(given.repeats, 10))
    with tempfile.TemporaryDirectory() as folder:
        saving = measure(lambda _: save_pool(pool, Path(folder) / "pool"), 1)
        loading = measure(lambda _: load_pool(Path(folder) / "pool"), 1)
    adding = measure(lambda number: pool.add_prompts([_copy(pool.prompts[0], number)], most_per_concept=MOST), 3)
    learned = measure_learning("hexagon")
    result = {
        "entries": len(pool.prompts),
        "rows": [
            {"name": "look_up", "metric": "milliseconds", "value": ours},
            {"name": "scan", "metric": "milliseconds", "value": baseline},
            {"name": "look_up / scan", "metric": "ratio", "value": ours / baseline},
            {"name": "add one", "metric": "milliseconds", "value": adding},
            {"name": "save", "metric": "milliseconds", "value": saving},
            {"name": "load", "metric": "milliseconds", "value": loading},
            *({"name": "learn one concept", "metric": metric, "value": value} for metric, value in learned.items()),
        ],
        "machine": {"python": platform.python_version(), "torch": torch.__version__, "threads": torch.get_num_threads()},
    }
    for row in result["rows"]:
        print(f"{row['name']:<20} {row['metric']:<20} {row['value']:.3f}")
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(f"results: {RESULTS}")


def _copy(prompt: LearnedPrompt, number: int) -> LearnedPrompt:
    return LearnedPrompt(entry=_make_entry("concept 0", 1000 + number), feature=prompt.feature, prompt=prompt.prompt)


if __name__ == "__main__":
    main()
