"""Train the embedded detector: ``python -m visloop.embedded.train_owlvit --out DIR [--clip embedded/clip] [--seed N]``.

Writes ``DIR/owlvit``: fp16 safetensors, processor and a model card with figures measured on scenes that training never saw.
"""

import argparse
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch
from transformers import CLIPModel, CLIPProcessor

from visloop.chat.weights import resolve_model
from visloop.config_assistant import RegionBackend, ToolsConfig, VisionConfig
from visloop.embedded.card import CardFacts, read_finished, write_card, write_figures
from visloop.embedded.checkpoints import save_shipped
from visloop.embedded.owlvit import GROUPS, OwlRecipe, OwlTrainer, build_owlvit, draw_scenes, list_queries, render_pictures
from visloop.embedded.owlvit_measure import average_precision, choose_threshold, draw_pairs, judge_detector, score_f1
from visloop.embedded.schedule import Report
from visloop.embedded.train import report_line
from visloop.errors import ModelError, TrainingError
from visloop.memory import keep_freed_memory
from visloop.scenes.workshop import WORKSHOP_BASE
from visloop.tools.detectors import make_detector
from visloop.tools.prompt_pool import PromptPool

EXAMINED_SEED, CALIBRATION_SEED = 995_003, 995_004
"""Seeds of the scenes that measure the written model, and of those that its threshold is chosen on; training uses neither."""
Table = dict[str, dict[str, float]]


def train_owlvit(out: Path, *, clip: str, recipe: OwlRecipe, seed: int, device: str, report: Report) -> Table:
    """Train, write, measure what was written, write the card; returns the figures.

    Raises:
        ModelError: no CLIP in ``clip``.
        TrainingError: the written model does not reach ``recipe.least_f1``.
    """
    folder = out / "owlvit"
    found = read_finished(folder, recipe=asdict(recipe), seed=seed)
    if found is not None and found["all"]["F1"] >= recipe.least_f1:
        report(f"owlvit: {folder} is finished with this recipe and seed")
        return found
    source, started = resolve_model(clip), time.process_time()
    try:
        tower, processor = CLIPModel.from_pretrained(source, dtype=torch.float32), CLIPProcessor.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot load a CLIP from {clip!r}: {error}") from error
    pictures = render_pictures(draw_scenes(recipe.pictures, boxed=recipe.boxed, seed=seed), side=recipe.image_size)
    report(f"owlvit: {len(pictures)} pictures drawn in {time.process_time() - started:.0f} CPU-s")
    model, reader = build_owlvit(tower, processor, image_size=recipe.image_size, seed=seed)
    OwlTrainer(model, reader, recipe=recipe, device=device).train(pictures, seed=seed, report=report)
    minutes = (time.process_time() - started) / 60
    change = save_shipped(model.cpu(), reader, folder)  # type: ignore[arg-type]
    table, threshold = measure_owlvit(folder, recipe=recipe)
    write_figures(folder, recipe=asdict(recipe), seed=seed, figures=table, threshold=threshold)
    facts = CardFacts(
        title="visloop embedded detector",
        purpose=(
            "A tiny OWL-ViT for the drawn world of the assistant: LOC's backend `owlvit`, the same code that runs the large checkpoints. "
            "It finds base shapes, colours, patterns and `object`; novel words are in its tokenizer and untrained."
        ),
        recipe=(
            *recipe.describe(),
            f"threshold of the best F1 on other scenes: {threshold:.2f}",
            f"rounding to fp16 changed no weight by more than {change:.2%}",
            "rebuild: `python -m visloop.embedded.train_owlvit --out DIR`",
        ),
        seed=seed,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        bytes_on_disk=(folder / "model.safetensors").stat().st_size,
        minutes=minutes,
        device=device,
        limits=(
            "connected regions named by the embedded CLIP (backend `proposals`) find more of this world",
            "held-out scenes share the training distribution",
            "one seed was trained; the spread over seeds was not measured",
        ),
        pipeline_tag="zero-shot-object-detection",
    )
    write_card(folder, facts=facts, tables={"Measured on held-out scenes (boxes with IoU of at least 0.5)": table})
    report(f"owlvit: AP50 {table['all']['AP50']:.3f}, F1 {table['all']['F1']:.3f} at {threshold:.2f}, {minutes:.1f} CPU minutes")
    if table["all"]["F1"] < recipe.least_f1:
        raise TrainingError(f"F1 {table['all']['F1']:.3f} on held-out scenes, accepted from {recipe.least_f1}; train more steps")
    return table


def measure_owlvit(folder: Path, *, recipe: OwlRecipe) -> tuple[Table, float]:
    """AP50 and F1 of a written model by kind of word, and the threshold, which was chosen on other scenes."""
    config = ToolsConfig(loc=RegionBackend.owlvit, detector=VisionConfig(model=str(folder), device="cpu", batch_size=64))
    detector, queries = make_detector(config, PromptPool()), list_queries()
    tuned = draw_scenes(max(1, recipe.examined // 3), boxed=recipe.boxed, seed=CALIBRATION_SEED)
    examined = draw_scenes(recipe.examined, boxed=recipe.boxed, seed=EXAMINED_SEED)
    threshold = choose_threshold(judge_detector(detector, tuned, (*queries, *draw_pairs(tuned, seed=CALIBRATION_SEED))))
    pairs = draw_pairs(examined, seed=EXAMINED_SEED)
    judged = judge_detector(detector, examined, (*queries, *pairs))
    kinds: dict[str, tuple[str, ...]] = {str(group): WORKSHOP_BASE.values(group) for group in GROUPS}
    table: Table = {}
    for kind, names in (kinds | {"object": queries[-1:], "two words": pairs, "all": (*queries, *pairs)}).items():
        chosen = [judged[name] for name in names]
        table[kind] = {
            "to find": sum(entry.wanted for entry in chosen),
            "AP50": float(sum(average_precision(entry) for entry in chosen) / len(chosen)),
            "F1": score_f1(chosen, threshold=threshold),
        }
    return table, threshold


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description="Train the embedded detector from the embedded CLIP.")
    parser.add_argument("--out", type=Path, required=True, help="folder that receives owlvit/")
    parser.add_argument("--clip", default="embedded/clip", help="a CLIP: shipped name or folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="instead of the recipe's; the result is written whatever it reaches")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    given = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(given.threads)
    recipe = OwlRecipe() if given.steps is None else replace(OwlRecipe(), steps=given.steps, least_f1=0.0)
    train_owlvit(given.out, clip=given.clip, recipe=recipe, seed=given.seed, device=given.device, report=report_line)


if __name__ == "__main__":
    main()
