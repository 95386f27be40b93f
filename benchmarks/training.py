"""Training against a bare TRL script on the same data, model and settings: samples per second and peak memory.

    python -m benchmarks.training [--examples 384] [--pairs 192] [--repeats 3] [--model embedded/base]

Each run is a process of its own, so that its peak memory is its own. Both sides run at the same time with half of the
cores each, so that both meet the same load of the machine; a ratio is the median over the repeats. ``loop`` is the training
loop, also per CPU second, which is steady on a shared machine; the figures with load and save add those, the checks and
DPO's health figures, but no imports. The bare script is what
TRL's documentation shows: its own collator, the same checkpoints, ``save_model`` at the end.
Results go to ``benchmarks/results/training.json``.
"""

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent
BATCH = 16
EPOCHS = 2
BETA = 0.1
LEARNING_RATE = 1e-4
SEED = 0
FROZEN = "vision_tower"
WORDS = (
    "reason find conclude compare count red green blue circle square triangle small large left right of how many are there yes no none at"
)


def make_data(folder: Path, *, model: Path, examples: int, pairs: int) -> None:
    """Pictures of 64x64 pixels and texts of the lengths that the embedded loop has, in words that the model knows."""
    import numpy as np
    from PIL import Image
    from transformers import AutoTokenizer

    draw = np.random.default_rng(SEED)
    known = AutoTokenizer.from_pretrained(model).get_vocab()
    words = [word for word in WORDS.split() if word in known] or ["a"]
    (folder / "pictures").mkdir(parents=True)
    count = max(1, (examples + 1) // 2)  # two questions per picture
    for index in range(count):
        Image.fromarray(draw.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(folder / "pictures" / f"{index}.png")

    def say(low: int, high: int) -> str:
        return " ".join(draw.choice(words, int(draw.integers(low, high))))

    def chain() -> str:
        return (
            "<thoughts>\n"
            + "\n".join(f"find: {say(4, 12)}" for _ in range(int(draw.integers(2, 5))))
            + "\n</thoughts>\n<output>yes</output>"
        )

    rows = [
        {"image": f"pictures/{index % count}.png", "prompt": f"reason {say(6, 12)}", "chosen": chain(), "rejected": chain()}
        for index in range(max(examples, pairs))
    ]
    (folder / "rows.json").write_text(json.dumps({"sft": rows[:examples], "dpo": rows[:pairs]}))


def run_ours(kind: str, rows: list[dict[str, str]], *, model: Path, folder: Path, out: Path) -> tuple[float, float]:
    """Our functions; returns wall and CPU seconds of the training loop."""
    from visloop.config import DPOSettings, Loss, SFTSettings
    from visloop.records.reasoning import ChatTurn, PreferencePair, SFTExample
    from visloop.training.dpo import train_dpo
    from visloop.training.sft import train_sft

    shared: dict[str, Any] = {"num_train_epochs": float(EPOCHS), "per_device_train_batch_size": BATCH, "learning_rate": LEARNING_RATE}
    if kind == "sft":
        examples = [
            SFTExample(
                id=f"e{index}",
                sample_id=f"s{index}",
                kind="reason",
                images=(row["image"],),
                turns=(ChatTurn(role="user", text=row["prompt"]), ChatTurn(role="assistant", text=row["chosen"])),
            )
            for index, row in enumerate(rows)
        ]
        report = train_sft(examples, model=model, out=out, settings=SFTSettings(**shared), seed=SEED, image_root=folder)
        return report.seconds, report.cpu_seconds
    pairs = [
        PreferencePair(
            id=f"p{index}",
            sample_id=f"s{index}",
            images=(row["image"],),
            prompt=row["prompt"],
            chosen=row["chosen"],
            rejected=row["rejected"],
            chosen_path_id="c",
            rejected_path_id="r",
            chosen_verdict="correct",
            rejected_verdict="wrong",
            chosen_score=None,
            rejected_score=None,
            strategy="best_worst",
            round=0,
        )
        for index, row in enumerate(rows)
    ]
    settings = DPOSettings(**shared, beta=BETA, loss=Loss.sigmoid)
    result = train_dpo(pairs, policy=model, out=out, settings=settings, seed=SEED, image_root=folder)
    return result.seconds, result.cpu_seconds


def run_bare(kind: str, rows: list[dict[str, str]], *, model: Path, folder: Path, out: Path) -> tuple[float, float]:
    """A plain TRL script; returns wall and CPU seconds of the training loop."""
    from datasets import Dataset, List
    from datasets import Image as Picture
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    def turn(role: str, text: str) -> list[dict[str, str]]:
        return [{"role": role, "content": text}]

    processor = AutoProcessor.from_pretrained(model)
    policy = AutoModelForImageTextToText.from_pretrained(model, dtype="float32")
    for name, parameter in policy.named_parameters():
        parameter.requires_grad_(FROZEN not in name)
    columns = {"sft": ("completion",), "dpo": ("chosen", "rejected")}[kind]
    table = [
        {"images": [str(folder / row["image"])], "prompt": turn("user", row["prompt"])}
        | {column: turn("assistant", row["chosen" if column == "completion" else column]) for column in columns}
        for row in rows
    ]
    data = Dataset.from_list(table).cast_column("images", List(Picture()))
    shared: dict[str, Any] = {
        "output_dir": str(out),
        "num_train_epochs": EPOCHS,
        "per_device_train_batch_size": BATCH,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "cosine",
        "max_length": None,
        "bf16": False,
        "activation_checkpointing": False,
        "gradient_checkpointing": None,
        "save_steps": 0.25,
        "save_total_limit": 2,
        "report_to": "none",
        "disable_tqdm": True,
        "seed": SEED,
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }
    if kind == "sft":
        trainer: Any = SFTTrainer(model=policy, args=SFTConfig(**shared), train_dataset=data, processing_class=processor)
    else:
        reference = AutoModelForImageTextToText.from_pretrained(model, dtype="float32")
        trainer = DPOTrainer(
            model=policy, ref_model=reference, args=DPOConfig(**shared, beta=BETA), train_dataset=data, processing_class=processor
        )
    start, cpu_start = time.perf_counter(), time.process_time()
    trainer.train()
    seconds = time.perf_counter() - start, time.process_time() - cpu_start
    trainer.save_model(str(out))
    return seconds


def run_worker(side: str, kind: str, *, model: Path, folder: Path) -> dict[str, float]:
    """One measured run in this process."""
    import transformers
    import trl

    transformers.logging.set_verbosity_error()
    assert trl.SFTTrainer and trl.DPOTrainer  # lazy modules: load them before the clock starts
    rows = json.loads((folder / "rows.json").read_text())[kind]
    out = Path(tempfile.mkdtemp(dir=folder)) / "out"
    start = time.perf_counter()
    loop, loop_cpu = (run_ours if side == "ours" else run_bare)(kind, rows, model=model, folder=folder, out=out)
    total = time.perf_counter() - start
    shutil.rmtree(out.parent)
    samples = len(rows) * EPOCHS
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"loop": samples / loop, "total": samples / total, "cpu": samples / loop_cpu, "peak_mib": peak}


def threads_per_side() -> int:
    """Half of the cores."""
    return max(1, (os.cpu_count() or 1) // 2)


def compare(kind: str, *, model: Path, folder: Path, repeats: int) -> dict[str, Any]:
    """Both sides at the same time, ``repeats`` times; figures are medians, ratios ours / bare."""
    runs: dict[str, list[dict[str, float]]] = {"ours": [], "bare": []}
    environment = os.environ | {"OMP_NUM_THREADS": str(threads_per_side())}
    for _ in range(repeats):
        started = {}
        for side in runs:
            command = [sys.executable, "-m", "benchmarks.training", "--worker", side, kind, str(model), str(folder)]
            started[side] = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT.parent, env=environment
            )
        for side, process in started.items():
            printed, complaints = process.communicate()
            if process.returncode:
                raise SystemExit(f"{side} {kind} failed:\n{complaints[-2000:]}")
            runs[side].append(json.loads(printed.splitlines()[-1]))
            print(kind, side, {key: round(value, 1) for key, value in runs[side][-1].items()}, file=sys.stderr)

    def median(side: str, key: str) -> float:
        return statistics.median(run[key] for run in runs[side])

    def ratio(key: str) -> float:
        return statistics.median(ours[key] / bare[key] for ours, bare in zip(runs["ours"], runs["bare"], strict=True))

    return {
        "name": kind,
        "samples_per_second": {side: round(median(side, "loop"), 1) for side in runs},
        "samples_per_cpu_second": {side: round(median(side, "cpu"), 1) for side in runs},
        "samples_per_second_with_load_and_save": {side: round(median(side, "total"), 1) for side in runs},
        "peak_mib": {side: round(median(side, "peak_mib"), 1) for side in runs},
        "ratio_samples_per_second": round(ratio("loop"), 3),
        "ratio_samples_per_second_with_load_and_save": round(ratio("total"), 3),
        "ratio_samples_per_cpu_second": round(ratio("cpu"), 3),
        "ratio_peak_memory": round(ratio("peak_mib"), 3),
        "aims": {"ratio_samples_per_second": ">= 0.95", "ratio_samples_per_cpu_second": ">= 0.95", "ratio_peak_memory": "<= 1.1"},
        "repeats": repeats,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=384)
    parser.add_argument("--pairs", type=int, default=192)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--model", default="embedded/base")
    parser.add_argument("--worker", nargs=4, metavar=("SIDE", "KIND", "MODEL", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        side, kind, model, folder = options.worker
        print(json.dumps(run_worker(side, kind, model=Path(model), folder=Path(folder))))
        return
    import torch

    from visloop.chat.adapters import hash_weights
    from visloop.chat.weights import resolve_model

    model = Path(resolve_model(options.model))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "data"
        make_data(folder, model=model, examples=options.examples, pairs=options.pairs)
        rows = [compare(kind, model=model, folder=folder, repeats=options.repeats) for kind in ("sft", "dpo")]
    result = {
        "benchmark": "training",
        "baseline": "a bare TRL script: SFTTrainer / DPOTrainer with their own collators",
        "model": options.model if options.model.startswith("embedded/") else model.name,
        "weights_hash": hash_weights(model),
        "examples": options.examples,
        "pairs": options.pairs,
        "batch": BATCH,
        "epochs": EPOCHS,
        "threads": threads_per_side(),
        "machine": f"{platform.machine()} {platform.system()}, Python {platform.python_version()}, torch {torch.__version__}",
        "rows": rows,
    }
    path = ROOT / "results" / "training.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
