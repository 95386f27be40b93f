"""Train the embedded LM of plans from scratch:

    python -m visloop.embedded.train_planner --out DIR [--seed 0]

First it learns to follow one demonstration (made-up families in the same wording), then to tell when to (real ones among them). The
result is ``DIR/planner``: weights in fp16, ``symbols.json``, a model card with measured figures.
"""

import argparse
import json
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from visloop.assistant.planner import HybridPlanner
from visloop.assistant.retrieval import WordEncoder
from visloop.assistant.slot_filling import SlotFillingPlanner
from visloop.assistant.symbol_planner import SymbolPlanner
from visloop.assistant.symbols import CAPITAL, CLOSE, MOST_NUMBERS, MOST_PHRASES, NOTHING, OPEN, SPACE
from visloop.chat.symbol_model import SYMBOLS_FILE, load_symbol_model
from visloop.chat.symbol_rows import END, PAD, UNKNOWN, WRITES, code_entries, name_kind
from visloop.config_assistant import PlannerConfig
from visloop.embedded.card import CardFacts, Table, read_finished, write_card, write_figures
from visloop.embedded.dialogues import IGNORED
from visloop.embedded.planner_episodes import KINDS, EpisodeSource
from visloop.embedded.planner_exam import examine_planners
from visloop.embedded.planner_families import WORDINGS, load_families
from visloop.embedded.schedule import Report, make_schedule
from visloop.embedded.train import report_line
from visloop.errors import TrainingError
from visloop.memory import keep_freed_memory
from visloop.scenes.workshop import BASE_VOCABULARY
from visloop.tools.signatures import SIGNATURES

VARIABLES: Final = 24
ACCEPTED_ROW: Final = "known family, base wording: seeds"
_SAMPLED = 6000
"""Episodes whose programs give the vocabulary its words and signs."""
_POOL = 384
"""Episodes that are drawn at a time: sorted by length before they are cut into batches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannerRecipe:
    """Sizes of the model and of its training. ``tokens``: of a batch, about. ``down``: share of the second stage's steps in which the
    learning rate falls; ``least_known``: share of right programs in ``ACCEPTED_ROW`` from which the model is accepted."""

    width: int = 160
    layers: int = 4
    heads: int = 5
    copying: int = 400
    steps: int = 3000
    tokens: int = 3100
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.02
    warmup: int = 100
    down: float = 0.6
    examined: int = 60
    least_known: float = 0.8

    def describe(self) -> tuple[str, ...]:
        """Lines of the model card."""
        return (
            f"`LlamaForCausalLM`: width {self.width}, {self.layers} layers, {self.heads} heads; symbols in place of words "
            "(`visloop.assistant.symbols`), positions begin anew with every program",
            f"{self.copying} steps on made-up families shown once in the same wording, then {self.steps} in which half of the episodes are "
            "of real families, with or without a demonstration",
            f"batches of about {self.tokens:,} symbols, AdamW {self.learning_rate:g}, decay over the last {self.down:.0%} of the steps",
            "wordings: `planner_wordings.json`, without what the assistant is examined with",
            "rebuild: `python -m visloop.embedded.train_planner --out DIR`",
        )


def build_vocabulary(source: EpisodeSource) -> dict[str, int]:
    """Symbols with their ids: what the grammar needs, the words of instructions, and what programs of drawn episodes hold."""
    fixed = [
        PAD,
        WRITES,
        END,
        UNKNOWN,
        CAPITAL,
        SPACE,
        NOTHING,
        CLOSE,
        OPEN,
        *map(name_kind, KINDS),
        *SIGNATURES,
        "IMAGE",
        "LEFT",
        "MIDDLE",
        "RIGHT",
    ]
    fixed += [f"<{sign}{index}>" for sign in "pu" for index in range(MOST_PHRASES)]
    numbered = [f"<n{index}>" for index in range(MOST_NUMBERS)] + [f"v{index}" for index in range(VARIABLES)] + [str(n) for n in range(13)]
    fixed += [led + symbol for symbol in numbered for led in ("", SPACE)] + [f"{line}:" for line in range(1, VARIABLES + 1)]
    rng = random.Random(5)
    seen = [symbol for _ in range(_SAMPLED) for entry in source.draw(rng)[1] for symbol in entry.program]
    return {symbol: number for number, symbol in enumerate(dict.fromkeys([*fixed, *sorted(source.words), *sorted(set(seen))]))}


def build_model(symbols: int, *, recipe: PlannerRecipe, seed: int) -> LlamaForCausalLM:
    """The model before any training."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=symbols,
        hidden_size=recipe.width,
        intermediate_size=3 * recipe.width,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        max_position_embeddings=1024,
        # of the size of a unit vector's entries: attention that starts out flat learns late
        initializer_range=0.08,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config)


@dataclass(frozen=True, slots=True)
class _Row:
    ids: list[int]
    positions: list[int]
    labels: list[int]


def draw_batches(
    source: EpisodeSource, ids: dict[str, int], *, tokens: int, seed: int, copying: bool
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Ids, positions and labels (rows, length) without end; rows of a batch are of like length."""
    rng = random.Random(seed)
    while True:
        rows = sorted((_draw_row(source, ids, rng, copying=copying) for _ in range(_POOL)), key=lambda row: len(row.ids))
        batches: list[list[_Row]] = [[]]
        for row in rows:
            batches[-1].append(row)
            if len(batches[-1]) * len(row.ids) >= tokens:
                batches.append([])
        rng.shuffle(batches)
        yield from (_collate(batch) for batch in batches if batch)


def _draw_row(source: EpisodeSource, ids: dict[str, int], rng: random.Random, *, copying: bool) -> _Row:
    kind, entries = source.draw(rng, copying=copying)
    coded = code_entries(kind, [(entry.instruction, entry.program) for entry in entries], ids=ids)
    labels = [IGNORED] * len(coded.ids)
    start = 1
    for entry in entries:
        start += len(entry.instruction) + 1
        stop = start + len(entry.program) + 1
        if entry.learned:
            labels[start:stop] = coded.ids[start:stop]
        start = stop
    return _Row(coded.ids, coded.positions, labels)


def _collate(rows: list[_Row]) -> tuple[Tensor, Tensor, Tensor]:
    longest = max(len(row.ids) for row in rows)

    def pad(values: list[int], filler: int) -> list[int]:
        return values + [filler] * (longest - len(values))

    ids = torch.tensor([pad(row.ids, 0) for row in rows])
    return ids, torch.tensor([pad(row.positions, 0) for row in rows]), torch.tensor([pad(row.labels, IGNORED) for row in rows])


def train_stage(
    model: LlamaForCausalLM,
    source: EpisodeSource,
    ids: dict[str, int],
    *,
    recipe: PlannerRecipe,
    steps: int,
    down: float,
    copying: bool,
    seed: int,
    report: Report,
) -> None:
    """Train in place on ``steps`` batches.

    Raises:
        TrainingError: the loss is no longer finite.
    """
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=recipe.weight_decay, fused=True
    )
    schedule = make_schedule(optimizer, steps=steps, warmup=recipe.warmup, down=down)
    name, losses, begin = "copying" if copying else "all", list[float](), time.process_time()
    batches = draw_batches(source, ids, tokens=recipe.tokens, seed=seed, copying=copying)
    model.train()
    for step, (rows, positions, labels) in zip(range(steps), batches, strict=False):
        mask = (rows != 0).long()
        states = model.model(input_ids=rows, attention_mask=mask, position_ids=positions, use_cache=False).last_hidden_state[:, :-1]
        wanted = labels[:, 1:]
        carried = wanted != IGNORED
        loss = nn.functional.cross_entropy(model.lm_head(states[carried]), wanted[carried])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if not losses[-1] < float("inf"):
            raise TrainingError(f"stage {name!r}: loss {losses[-1]} at step {step}; lower its learning rate")
        if (step + 1) % 100 == 0 or step + 1 == steps:
            recent = losses[-100:]
            report(f"{name} {step + 1}/{steps} loss {sum(recent) / len(recent):.4f} cpu {time.process_time() - begin:.0f} s")
    model.eval()


def examine_model(folder: Path, *, count: int) -> Table:
    """The written model alone, slot filling, and the hybrid of the two."""
    config, encoder, words = PlannerConfig(), WordEncoder(), frozenset(BASE_VOCABULARY)
    alone = SymbolPlanner(writer=load_symbol_model(str(folder)), config=config, encoder=encoder, vocabulary=words)
    filling = SlotFillingPlanner(config=config, encoder=encoder, vocabulary=words)
    hybrid = HybridPlanner(first=filling, second=alone, min_confidence=config.min_confidence, min_second=config.min_lm_confidence)
    return examine_planners({"LM": alone, "slot filling": filling, "hybrid": hybrid}, count=count)


def train_planner(out: Path, *, recipe: PlannerRecipe, seed: int, report: Report) -> Table:
    """Train, write ``out/planner`` and measure what was written. One that this recipe and seed have made is kept.

    Raises:
        TrainingError: the loss is no longer finite, or the model alone writes too few programs right.
    """
    folder = out / "planner"
    made_with = {**asdict(recipe), "wordings": sha256(WORDINGS.read_bytes()).hexdigest()}
    found = read_finished(folder, recipe=made_with, seed=seed)
    if found is not None and found[ACCEPTED_ROW]["LM"] >= recipe.least_known:
        report(f"planner: {folder} is finished with this recipe and seed")
        return found
    begin = time.process_time()
    source = EpisodeSource(load_families())
    ids = build_vocabulary(source)
    model = build_model(len(ids), recipe=recipe, seed=seed)
    for copying, steps, down in ((True, recipe.copying, 0.0), (False, recipe.steps, recipe.down)):
        train_stage(
            model, source, ids, recipe=recipe, steps=steps, down=down, copying=copying, seed=seed + 1 + (not copying), report=report
        )
    minutes = (time.process_time() - begin) / 60
    write_model(folder, model, ids, words=source.words)
    table = examine_model(folder, count=recipe.examined)
    write_figures(folder, recipe=made_with, seed=seed, figures=table)
    write_planner_card(folder, table=table, recipe=recipe, seed=seed, minutes=minutes)
    known = table[ACCEPTED_ROW]["LM"]
    report(f"planner: {known:.3f} of {ACCEPTED_ROW} right, {minutes:.1f} CPU minutes")
    if known < recipe.least_known:
        raise TrainingError(f"{known:.3f} of the programs ({ACCEPTED_ROW}) are right, accepted from {recipe.least_known}; train more steps")
    return table


def write_model(folder: Path, model: LlamaForCausalLM, ids: dict[str, int], *, words: frozenset[str]) -> None:
    """Weights in fp16 with their symbols."""
    folder.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(folder)
    (folder / SYMBOLS_FILE).write_text(json.dumps({"ids": ids, "words": sorted(words)}, ensure_ascii=False, indent=0) + "\n")


def write_planner_card(folder: Path, *, table: Table, recipe: PlannerRecipe, seed: int, minutes: float) -> None:
    """The model card of what was measured."""
    weights = folder / "model.safetensors"
    facts = CardFacts(
        title="visloop embedded LM of plans",
        purpose=(
            "A `LlamaForCausalLM` that writes visual programs for instructions about drawn pictures, under a grammar, with one "
            "demonstration in its prompt or none. It is no general language model: it knows some hundred words of instructions, and "
            "phrases by their place."
        ),
        recipe=recipe.describe(),
        seed=seed,
        parameters=sum(parameter.numel() for parameter in LlamaForCausalLM.from_pretrained(folder).parameters()),
        bytes_on_disk=weights.stat().st_size,
        minutes=minutes,
        device="a CPU",
        limits=(
            "writes programs alone, no plans, no critiques",
            "a wording that is nothing like those that it has seen, and that no demonstration shows, is a guess",
            "tools of plugins are not in its vocabulary",
            "a word of a demonstration's program that neither its instruction nor the vocabulary has cannot be copied",
            "one seed",
        ),
        pipeline_tag="text-generation",
    )
    write_card(folder, facts=facts, tables={"Right programs by what the pool of demonstrations holds (share)": table})


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description="Train the embedded LM of plans.")
    parser.add_argument("--out", type=Path, required=True, help="folder that receives planner/")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="of the second stage, instead of the recipe's; written whatever it reaches")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    given = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(given.threads)
    recipe = PlannerRecipe() if given.steps is None else replace(PlannerRecipe(), steps=given.steps, least_known=0.0)
    train_planner(given.out, recipe=recipe, seed=given.seed, report=report_line)


if __name__ == "__main__":
    main()
