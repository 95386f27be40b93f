"""Model cards written from measured figures, so that a card cannot say what was not measured."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

Table = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class CardFacts:
    """What a card reports besides its tables."""

    title: str
    purpose: str
    recipe: tuple[str, ...]
    seed: int
    parameters: int
    bytes_on_disk: int
    minutes: float
    device: str
    limits: tuple[str, ...]
    pipeline_tag: str = "image-text-to-text"


FIGURES = "figures.json"
"""Recipe, seed and measured figures of a model, beside its card."""


def write_figures(folder: Path, *, recipe: Mapping[str, object], seed: int, figures: Table, **more: object) -> None:
    """Write what a model was made with and what was measured."""
    (folder / FIGURES).write_text(json.dumps({"recipe": recipe, "seed": seed, **more, "figures": figures}, indent=1) + "\n")


def read_finished(folder: Path, *, recipe: Mapping[str, object], seed: int) -> Table | None:
    """The figures of a written model, if it has a card and this recipe and seed made it."""
    figures = folder / FIGURES
    if not figures.is_file() or not (folder / "README.md").is_file():
        return None
    written = json.loads(figures.read_text())
    table: Table = written["figures"]
    return table if (written["recipe"], written.get("seed")) == (recipe, seed) else None


def format_table(table: Table, *, corner: str) -> str:
    """A Markdown table: one row per entry, columns in the order in which they first appear.

    Whole numbers are counts; shares get three decimals, larger values one.
    """
    columns = list(dict.fromkeys(column for row in table.values() for column in row))

    def show(value: float) -> str:
        return f"{value:.0f}" if isinstance(value, int) else f"{value:.3f}" if abs(value) <= 1 else f"{value:.1f}"

    lines = [f"| {corner} | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for name, row in table.items():
        cells = [show(row[column]) if column in row else "" for column in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def write_card(folder: Path, *, facts: CardFacts, tables: Mapping[str, Table]) -> None:
    """Write ``README.md`` into a model's folder; ``tables`` are headed by their keys."""
    parts = [
        f"---\nlicense: apache-2.0\nlibrary_name: transformers\npipeline_tag: {facts.pipeline_tag}\n---",
        f"# {facts.title}",
        facts.purpose,
        "## Recipe\n\n" + "\n".join(f"- {line}" for line in facts.recipe),
        "## Size and cost\n\n"
        f"- {facts.parameters:,} parameters, {facts.bytes_on_disk / 1e6:.2f} MB of fp16 safetensors\n"
        f"- seed {facts.seed}; {facts.minutes:.0f} CPU minutes on one thread of {facts.device}",
        *(f"## {heading}\n\n{format_table(table, corner='')}" for heading, table in tables.items()),
        "## Limits\n\n" + "\n".join(f"- {line}" for line in facts.limits),
    ]
    (folder / "README.md").write_text("\n\n".join(parts) + "\n")
