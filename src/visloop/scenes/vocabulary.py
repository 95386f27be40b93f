"""Every word that questions, steps and answers of a world can contain."""

import re

from visloop.scenes.steps import BOUNDS, COMPARISONS, DIRECTIONS
from visloop.scenes.wordings import NUMBER_WORDS, list_literal_texts
from visloop.scenes.world import ATTRIBUTES, DEFAULT_WORLD, WorldSpec

_WORD = re.compile(r"[^\W_]+|[^\w\s]")
_STEP_TEXT = (
    "find not thing box none",
    "conclude exist count compare check answer yes no true false",
    "< > = ,",
)


def split_words(text: str) -> list[str]:
    """Lower-case words and single punctuation marks, in order."""
    return _WORD.findall(text.lower())


def list_words(spec: WorldSpec = DEFAULT_WORLD) -> tuple[str, ...]:
    """All words of a world, sorted: questions (held-out wordings too), reasoning steps and answers.

    Numbers run from 0 to the number of cells (the largest count).
    """
    texts = [*list_literal_texts(), *_STEP_TEXT, *BOUNDS, *COMPARISONS, *DIRECTIONS, *ATTRIBUTES, *NUMBER_WORDS]
    texts += [word for attribute in ATTRIBUTES for word in spec.values(attribute)]
    texts += [shape.plural for shape in spec.shapes]
    texts += [f"{axis}{number}" for axis in "xy" for number in range(1, spec.grid + 1)]
    texts += [str(number) for number in range(spec.grid**2 + 1)]
    return tuple(sorted({word for text in texts for word in split_words(text)}))
