"""The families of instructions that the embedded LM of plans learns: the assistant's known ones in many more wordings, and others.

What the assistant is examined with stays out: wordings of the tasks' ``new`` list, and programs of held-out families, whatever the order
of their lines.
"""

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from visloop.assistant.checks import check_program
from visloop.assistant.grammar import parse_program
from visloop.assistant.lexicon import normalize_word, pluralize_word
from visloop.errors import ConfigError, ProgramError
from visloop.records.assistant import TaskKind
from visloop.scenes.statement_draws import INPUTS, NUMBERS, number_slots
from visloop.scenes.tasks_vqa import CROPS
from visloop.scenes.workshop import BASE_VOCABULARY, BASE_WORDS, NOVEL_WORDS
from visloop.scenes.workshop_families import SLOT, fill_slots, form_slots
from visloop.scenes.workshop_tasks import FAMILIES, draw_case
from visloop.scenes.world import Attribute
from visloop.tools.signatures import find_signature

WORDINGS: Final = Path(__file__).with_name("planner_wordings.json")
INVENTED: Final = tuple("blick dax wug tomo zorp fep gorp tulver nim pell quib rast sleb vorn yint krel mab lorp hix jep".split())  # noqa: SIM905
"""Words that mean nothing, in place of concepts that nobody knows yet; their plurals are regular."""
EMOJIS: Final = (
    *("smiling face", "party popper", "red heart", "cat", "ghost", "rocket", "sun"),
    *("thumbs up", "crying face", "pizza", "clown face", "balloon"),
)
SETS: Final = ("garden", "kitchen", "north", "river", "alpha", "moon", "forest", "royal", "old", "delta", "winter", "harbor")
BASE_CONCEPTS: Final = frozenset(map(normalize_word, BASE_VOCABULARY))
OTHER_CONCEPTS: Final = tuple(sorted({normalize_word(word) for words in NOVEL_WORDS.values() for word in words} | set(INVENTED)))
_VARIABLE = re.compile(r"\b(?:BOX|OBJ|IMAGE|ANSWER|LIST|LEFT|MIDDLE|RIGHT|FINAL_\w+)\d*\b|\bX\d+\b")
_CASES = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannerFamily:
    """Instructions of one meaning. ``cases`` fill the slots of the assistant's own families; others are filled by ``draw_slots``."""

    name: str
    kind: TaskKind
    wordings: tuple[str, ...]
    program: tuple[str, ...]
    cases: tuple[dict[str, str], ...] = ()

    def draw(self, rng: random.Random) -> tuple[str, dict[str, str]]:
        """A wording, and what fills the slots of it and of the program."""
        slots = draw_slots(rng)
        if self.cases:
            case = dict(rng.choice(self.cases))
            if rng.random() < 0.5 and self.name != "part_of_set":  # whose phrase follows from its colour
                case = {name: text for name, text in case.items() if name not in _PHRASE_SLOTS}
            slots |= case
        return rng.choice(self.wordings), slots


def draw_slots(rng: random.Random) -> dict[str, str]:
    """Something for every slot that there is."""
    slots: dict[str, str] = {}
    for name in "abc":
        phrase = _draw_phrase(rng)
        slots |= form_slots(name, single=phrase, plural=pluralize_word(phrase))
    direction, digit = rng.choice(list(CROPS)), rng.randrange(len(NUMBERS))
    emoji, (first, second) = rng.choice(EMOJIS), rng.sample(INPUTS, 2)
    return slots | {
        "direction": direction,
        "crop": CROPS[direction],
        **number_slots(digit),
        "emoji": emoji.replace(" ", "_") if rng.random() < 0.6 else emoji,
        "set": rng.choice(SETS),
        **{"P": first, "p": first.lower(), "Q": second, "q": second.lower(), "end": "top", "END": "TOP"},
        "target": rng.choice(("wall", "corner", "top", "bottom")),
        "color": rng.choice([*BASE_WORDS["color"], *NOVEL_WORDS["color"]]),
    }


_PHRASE_SLOTS = frozenset(form for name in "abc" for form in form_slots(name, single="x", plural="xs"))


def _draw_phrase(rng: random.Random) -> str:
    def draw_word(*attributes: Attribute) -> str:
        attribute = rng.choice(attributes)
        known = (*BASE_WORDS.get(attribute, ()), *NOVEL_WORDS.get(attribute, ()))
        return rng.choice(INVENTED if rng.random() < 0.2 else known)

    shape, color, other = draw_word("shape"), draw_word("color"), draw_word("pattern", "size")
    forms = (shape, f"{color} {shape}", f"{other} {shape}", f"{other} {color} {shape}", f"{color} object")
    return rng.choices(forms, (0.3, 0.35, 0.15, 0.12, 0.08))[0]


def load_families(*, seed: int = 0) -> list[PlannerFamily]:
    """All families, without what the assistant is examined with.

    Raises:
        ConfigError: an extra family whose program breaks a rule, or a slot that nothing fills.
    """
    written = json.loads(WORDINGS.read_text())
    every = [family for families in FAMILIES.values() for family in families]
    examined = {_bare(text) for family in every for text in (family.base + family.new if family.held_out else family.new)}
    families = []
    for family in every:
        if family.held_out:
            continue
        cases = tuple(
            dict(draw_case(family, seed=seed + 77, place=place, novel=place % 2 == 1, wanted=place % 7 / 7).slots)
            for place in range(_CASES)
        )
        more = tuple(text for text in written["known"][family.name] if _bare(text) not in examined)
        families.append(
            PlannerFamily(name=family.name, kind=family.kind, wordings=(*family.base, *more), program=family.program, cases=cases)
        )
    for entry in written["extra"]:
        extra = PlannerFamily(
            name=entry["name"],
            kind=entry["kind"],
            wordings=tuple(text for text in entry["wordings"] if _bare(text) not in examined),
            program=tuple(entry["program"]),
        )
        if not is_held_out(extra.kind, extra.program):
            _check(extra)
            families.append(extra)
    return families


def is_held_out(kind: TaskKind, lines: Sequence[str]) -> bool:
    """Whether a program is that of a held-out family: the same tools with the same texts."""
    return _form(lines) in _list_held_out_forms(kind)


@cache
def _list_held_out_forms(kind: TaskKind) -> frozenset[tuple[str, ...]]:
    return frozenset(_form(family.program) for family in FAMILIES[kind] if family.held_out)


def _bare(text: str) -> str:
    return re.sub(r"[^a-z<>_ ]", "", text.lower())


def _form(lines: Sequence[str]) -> tuple[str, ...]:
    """Equal for programs that call the same tools with the same texts, up to names of slots and variables and the order of lines."""
    names: dict[str, str] = {}
    text = SLOT.sub(lambda match: names.setdefault(match[1], f"s{len(names)}"), "\n".join(lines))
    return tuple(sorted(_VARIABLE.sub("V", text).splitlines()))


def _check(family: PlannerFamily) -> None:
    slots = draw_slots(random.Random(1))
    try:
        for wording in family.wordings:
            fill_slots(wording, slots)
        program = parse_program("\n".join(fill_slots(line, slots) for line in family.program))
    except ProgramError as error:
        raise ConfigError(f"{WORDINGS.name}, {family.name}: {error}") from error
    problems = check_program(program, kind=family.kind, find_signature=find_signature)
    if problems:
        raise ConfigError(f"{WORDINGS.name}, {family.name}: {problems[0].describe()}")
