"""The SFT trainer takes exported programs as they lie on disk."""

import math
from collections.abc import Callable
from pathlib import Path

from tests.training.test_sft import STEP
from tests.unit.test_program_export import export, make_runs, make_trace
from visloop.records.reasoning import SFTExample
from visloop.records.shards import read_shard, write_shard
from visloop.training.encoding import Encoder
from visloop.training.models import load_policy
from visloop.training.sft import train_sft


def test_exported_programs_train_a_model(model_folder: Callable[[str], Path], image_root: Path, tmp_path: Path) -> None:
    examples, _ = export(make_runs((make_trace("t"), True)), demonstrations={"vqa": 0})
    write_shard(tmp_path / "examples.jsonl", examples)
    read = read_shard(tmp_path / "examples.jsonl", SFTExample)
    report = train_sft(read, model=model_folder("llava"), out=tmp_path / "planner", settings=STEP, seed=0, image_root=image_root)
    assert report.examples == 2 and math.isfinite(report.history[0]["loss"])
    loaded = load_policy(tmp_path / "planner")
    encoded = Encoder(loaded.processor, image_root).encode_example(read[1])
    learned = encoded.input_ids[encoded.trained].tolist()
    program = loaded.processor.tokenizer(examples[1].turns[1].text, add_special_tokens=False)["input_ids"]
    assert learned[: len(program)] == program and len(learned) <= len(program) + 2, "loss is taken on the program alone"
