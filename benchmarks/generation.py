"""Chain generation against two baselines that write exactly as many tokens with the same model, in one run.

    python -m benchmarks.generation [--questions 128] [--repeats 3] [--model embedded/base]

``ours``: one shard through ``generate_paths`` and the in-process chat backend, as the flow calls them.
``one_at_a_time``: the same conversations, every turn of every chain a ``generate`` call of its own that starts from nothing
(how the released code asks). Measured on some of the chains.
``raw_batch``: the same batch size, prompt and number of new tokens per chain, in a single turn: no steps, no JSON to read, no
repairs. It is the speed that batching alone allows.
The three take turns; a ratio is the median over the turns, by the clock and by CPU seconds (which a busy machine changes less).
Results go to ``benchmarks/results/generation.json``.
"""

import argparse
import json
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig, StoppingCriteria, StoppingCriteriaList

from visloop.chat.base import ChatModel, ChatReply, ChatRequest, Sampling
from visloop.chat.factory import open_chat
from visloop.chat.loads import count_loads
from visloop.chat.weights import resolve_model
from visloop.config import ChatConfig, GenerateConfig
from visloop.prompts.render import PromptSet
from visloop.reasoning.generate import generate_paths
from visloop.records.reasoning import ReasoningPath, Sample
from visloop.scenes.export import export_dataset

RESULTS = Path(__file__).parent / "results" / "generation.json"
SEED = 0


@dataclass
class Recorder:
    """A chat model that notes what it was asked and how many tokens it wrote, by chain."""

    inner: ChatModel
    asked: dict[str, list[tuple[ChatRequest, int]]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.inner.name

    def reply(self, requests: Sequence[ChatRequest], *, sampling: Sampling) -> list[ChatReply]:
        replies = self.inner.reply(requests, sampling=sampling)
        for request, reply in zip(requests, replies, strict=True):
            self.asked.setdefault(request.id, []).append((request, reply.new_tokens))
        return replies

    def close(self) -> None:
        self.inner.close()


class RowBudgets(StoppingCriteria):
    """Each row ends after its own number of new tokens."""

    def __init__(self, budgets: Sequence[int], *, prompt_columns: int) -> None:
        self._ends = torch.tensor(list(budgets)) + prompt_columns

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return self._ends <= input_ids.shape[1]


class RawModel:
    """Weights and processor as a script would load and call them."""

    def __init__(self, folder: str) -> None:
        self.model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
        self.model.generation_config.eos_token_id = None  # rows end by their budgets alone
        self.processor = AutoProcessor.from_pretrained(folder)

    def generate(self, requests: Sequence[ChatRequest], *, budgets: Sequence[int]) -> list[str]:
        """One ``generate`` call; row i writes ``budgets[i]`` tokens at temperature 1."""
        texts, pictures = [], []
        for request in requests:
            turns = [
                {"role": message.role, "content": [*({"type": "image"} for _ in message.images), {"type": "text", "text": message.text}]}
                for message in request.messages
            ]
            texts.append(self.processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False))
            for message in request.messages:
                for path in message.images:
                    with Image.open(path) as picture:
                        pictures.append(picture.convert("RGB"))
        inputs = self.processor(text=texts, images=pictures, padding=True, padding_side="left", return_tensors="pt")
        columns = inputs["input_ids"].shape[1]
        with torch.inference_mode():
            output = self.model.generate(
                **inputs,
                generation_config=GenerationConfig(
                    do_sample=True,
                    temperature=1.0,
                    top_k=0,
                    max_new_tokens=max(budgets),
                    pad_token_id=self.processor.tokenizer.pad_token_id,
                ),
                stopping_criteria=StoppingCriteriaList([RowBudgets(budgets, prompt_columns=columns)]),
            )
        if output.shape[1] - columns != max(budgets):
            raise RuntimeError(f"the baseline wrote {output.shape[1] - columns} tokens, not {max(budgets)}: no fair comparison")
        decoded: list[str] = self.processor.tokenizer.batch_decode(output[:, columns:], skip_special_tokens=True)
        return decoded


def measure_time(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds by the clock, and CPU seconds of this process."""
    clock, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - clock, time.process_time() - cpu


def run_benchmark(*, model: str, questions: int, repeats: int, alone: int, threads: int) -> dict[str, Any]:
    """Measure all three in turns; chains per second, tokens and ratios."""
    torch.set_num_threads(threads)
    config = GenerateConfig(model=ChatConfig(model=model))
    prompts = PromptSet("compact")
    chat = open_chat(config.model)
    raw = RawModel(resolve_model(model))
    draw = random.Random(SEED)
    turns: list[dict[str, tuple[float, float, int]]] = []
    tokens, calls = 0, 0
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for repeat in range(repeats + 1):
            count = questions if repeat else 8  # the first turn warms up and is not counted
            samples = export_dataset(root, seed=SEED + repeat, counts={"train": count}, questions_per_scene=2)["train"].samples

            recorder = Recorder(chat)
            paths: list[ReasoningPath] = []
            ours = measure_time(
                lambda r=recorder, s=samples, p=paths: p.extend(generate(s, chat=r, prompts=prompts, config=config, root=root))
            )
            chains = [recorder.asked[path.id] for path in paths]
            size = config.model.batch_size
            batches = [chains[start : start + size] for start in range(0, len(chains), size)]
            batched = measure_time(lambda b=batches: [generate_raw(raw, batch) for batch in b])
            some = draw.sample(chains, min(alone, len(chains)))
            single = measure_time(lambda c=some: [raw.generate([request], budgets=[max(1, new)]) for chain in c for request, new in chain])
            if repeat:
                turns.append({"ours": (*ours, len(chains)), "raw_batch": (*batched, len(chains)), "one_at_a_time": (*single, len(some))})
                tokens += sum(new for chain in chains for _, new in chain)
                calls += sum(len(chain) for chain in chains)
    loads = count_loads()
    chat.close()
    return {
        "benchmark": "generation",
        "settings": {
            "model": model,
            "questions": questions,
            "chains": questions * config.samples_per_question,
            "batch_size": config.model.batch_size,
            "repeats": repeats,
            "torch_threads": threads,
            "machine": f"{platform.machine()}, {platform.system()}, torch {torch.__version__}",
        },
        "tokens_per_chain": tokens / sum(turn["ours"][2] for turn in turns),
        "replies_per_chain": calls / sum(turn["ours"][2] for turn in turns),
        "model_loads_of_ours": loads,
        "rows": [row for name in ("ours", "raw_batch", "one_at_a_time") for row in summarize_speed(turns, name)],
        "ratios": [row for name in ("raw_batch", "one_at_a_time") for row in summarize_ratio(turns, name)],
    }


def generate(samples: list[Sample], *, chat: ChatModel, prompts: PromptSet, config: GenerateConfig, root: Path) -> list[ReasoningPath]:
    """One shard, as the generation flow runs it."""
    return generate_paths(samples, model=chat, prompts=prompts, config=config, seed=SEED, image_root=root)


def generate_raw(raw: RawModel, chains: Sequence[list[tuple[ChatRequest, int]]]) -> list[str]:
    """The first turn of every chain as prompt, and all of the chain's tokens in one go."""
    return raw.generate([chain[0][0] for chain in chains], budgets=[max(1, sum(new for _, new in chain)) for chain in chains])


def summarize_speed(turns: Sequence[dict[str, tuple[float, float, int]]], name: str) -> list[dict[str, Any]]:
    """Chains per second: median, smallest and largest over the turns."""
    rows = []
    for metric, place in (("chains_per_second", 0), ("chains_per_cpu_second", 1)):
        values = [turn[name][2] / turn[name][place] for turn in turns]
        rows.append(
            {"name": name, "metric": metric, "value": statistics.median(values), "low": min(values), "high": max(values), "n": len(values)}
        )
    return rows


def summarize_ratio(turns: Sequence[dict[str, tuple[float, float, int]]], baseline: str) -> list[dict[str, Any]]:
    """How many times as many chains per second ours makes; the ratio is taken within each turn."""
    rows = []
    for metric, place in (("chains_per_second", 0), ("chains_per_cpu_second", 1)):
        values = [(turn["ours"][2] / turn["ours"][place]) / (turn[baseline][2] / turn[baseline][place]) for turn in turns]
        rows.append(
            {"a": "ours", "b": baseline, "metric": metric, "ratio": statistics.median(values), "low": min(values), "high": max(values)}
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded/base", help="a shipped name or a folder")
    parser.add_argument("--questions", type=int, default=128, help="questions of the shard; four chains each")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--alone", type=int, default=24, help="chains asked one request at a time, per repeat")
    parser.add_argument("--threads", type=int, default=1, help="torch threads, the same for all three")
    parser.add_argument("--out", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    result = run_benchmark(
        model=chosen.model, questions=chosen.questions, repeats=chosen.repeats, alone=chosen.alone, threads=chosen.threads
    )
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(json.dumps(result, indent=2) + "\n")
    for row in result["rows"]:
        print(f"{row['name']:14} {row['metric']:22} {row['value']:9.2f}  ({row['low']:.2f} to {row['high']:.2f})")
    for row in result["ratios"]:
        print(f"ours / {row['b']:14} {row['metric']:22} {row['ratio']:6.2f}  ({row['low']:.2f} to {row['high']:.2f})")


if __name__ == "__main__":
    main()
