"""Made-up families for the embedded LM of plans ("symbol tuning"): a wording that means nothing, with a program that follows from nothing.

What such an instruction needs stands in its demonstration alone, so that the LM has to read it.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from visloop.assistant.checks import check_program
from visloop.assistant.grammar import parse_program
from visloop.assistant.program import TASK_INPUTS
from visloop.embedded.planner_families import PlannerFamily, draw_slots, is_held_out
from visloop.errors import ProgramError
from visloop.records.assistant import TaskKind
from visloop.scenes.tasks_vqa import CROPS
from visloop.scenes.workshop_families import SLOT, fill_slots
from visloop.tools.base import Parameter, ToolSignature
from visloop.tools.signatures import find_signature, list_signatures

_PHRASES: Final = ("a", "b", "c")
_OTHER_SLOTS: Final = {
    **{"crop": "<direction>", "digit": "<number>", "emoji": "<emoji>", "set": "<set>", "P": "<p>", "Q": "<q>"},
    **{"END": "<end>", "target": "<target>", "color": "<color>"},
}
"""Slots of programs, and how an instruction says them."""
_OPERATOR = re.compile(r" (==|!=|>=|<=|>|<|\+|-|and|or|xor) ")
_DIGIT = re.compile(r"(?<![\w{])\d(?!\w)")
_CROP = re.compile(r"=(?:CROP\w*|<crop>)\(")
_QUESTION = re.compile(r"question='[^']*'")
_COMPARISONS: Final = ("==", "!=", ">", "<", ">=", "<=")
_CROPS: Final = ("CROP", *sorted(CROPS.values()), "<crop>")
_TARGETS: Final = ("wall", "corner", "top", "bottom", "left", "right")


@dataclass(frozen=True)
class Inventor:
    """``families`` are what it starts from; ``words`` are those that wordings are made of."""

    families: dict[TaskKind, list[PlannerFamily]]
    words: tuple[str, ...]

    def invent(self, rng: random.Random, kind: TaskKind) -> tuple[str, tuple[str, ...]]:
        """A wording and the lines of its program, with slots; never the program of a held-out family."""
        lines: tuple[str, ...] = ()
        while not lines or is_held_out(kind, lines):
            lines = self._change(rng.choice(self.families[kind]).program, rng, kind) if rng.random() < 0.6 else self._compose(rng, kind)
        used = set(SLOT.findall("\n".join(lines)))
        needed = [rng.choice((f"<{name}>", f"<an_{name}>", f"<{name}s>")) for name in _PHRASES if name in used]
        needed += [said for name, said in _OTHER_SLOTS.items() if name in used]
        rng.shuffle(needed)
        return (self._reword(needed, rng, kind) if rng.random() < 0.45 else self._say(needed, rng)), lines

    def perturb(self, wording: str, rng: random.Random) -> str:
        """The wording with up to three words more, fewer or other ones."""
        parts = wording.split()
        for _ in range(rng.choice((0, 1, 1, 2, 3))):
            place, what = rng.randrange(len(parts) + 1), rng.random()
            if what < 0.35:
                parts.insert(place, rng.choice(self.words))
            elif place < len(parts) and "<" not in parts[place]:
                parts[place : place + 1] = [] if what < 0.7 else [rng.choice(self.words)]
        return " ".join(parts) or wording

    def _reword(self, needed: list[str], rng: random.Random, kind: TaskKind) -> str:
        """Another family's wording with these slots in the places of its own."""
        pieces = re.split(r"(<\w+>)", rng.choice(rng.choice(self.families[kind]).wordings))
        for place, piece in enumerate(pieces):
            if piece.startswith("<"):
                pieces[place] = needed.pop() if needed else rng.choice(self.words)
        return "".join(pieces) + "".join(f" {rng.choice(self.words)} {slot}" for slot in needed)

    def _say(self, needed: Sequence[str], rng: random.Random) -> str:
        parts: list[str] = []
        for slot in needed:
            parts += [*rng.choices(self.words, k=rng.choice((0, 1, 1, 2, 2, 3, 4))), slot]
        parts += rng.choices(self.words, k=rng.choice((0, 0, 1, 2, 3)))
        return " ".join(parts if len(parts) > 1 else [*parts, *rng.choices(self.words, k=2)])

    def _change(self, lines: tuple[str, ...], rng: random.Random, kind: TaskKind) -> tuple[str, ...]:
        """The lines with up to three changes that leave a program without problems."""
        for _ in range(rng.choice((0, 1, 1, 2, 3))):
            changed = tuple(self._change_once(lines, rng))
            if _is_sound(changed, kind):
                lines = changed
        return lines

    def _change_once(self, lines: tuple[str, ...], rng: random.Random) -> list[str]:
        what = rng.randrange(5)
        if what == 0:
            return [_OPERATOR.sub(lambda match: f" {_draw_operator(match[1], rng)} ", line) if "EVAL" in line else line for line in lines]
        if what == 1:
            return [_DIGIT.sub(lambda _: str(rng.randrange(4)), line) if "EVAL" in line else line for line in lines]
        if what == 2:
            crop = rng.choice(_CROPS)
            return [_CROP.sub(f"={crop}(", line) for line in lines]
        if what == 3:
            there = [name for name in _PHRASES if any(f"<{name}>" in line for line in lines)]
            mixed = dict(zip(there, rng.sample(there, len(there)), strict=True))
            return [re.sub(r"<([abc])>", lambda match: f"<{mixed[match[1]]}>", line) for line in lines]
        asked = f"question='{self._ask(rng, 'a')}'"
        return [_QUESTION.sub(lambda _: asked, line) if rng.random() < 0.7 else line for line in lines]

    def _ask(self, rng: random.Random, name: str) -> str:
        return " ".join(rng.choices(self.words, k=rng.randrange(1, 5))).capitalize().replace("'", "") + f" <{name}>?"

    def _compose(self, rng: random.Random, kind: TaskKind) -> tuple[str, ...]:
        """Well-typed lines of tools of the kind, chosen by chance."""
        tools = [signature for signature in list_signatures(kind) if signature.name != "RESULT"]
        types: dict[str, str] = dict.fromkeys(TASK_INPUTS[kind], "Image")
        phrases, lines, wanted = _PHRASES[: rng.choice((1, 1, 2, 2, 3))], list[str](), rng.randrange(2, 8)
        while len(lines) < wanted:
            tool = rng.choice(tools)
            values = [self._draw_value(tool, parameter, types, phrases, rng) for parameter in tool.parameters]
            if None in values:
                continue
            name = f"X{len(lines)}"
            pairs = zip(tool.parameters, values, strict=True)
            lines.append(f"{name}={tool.name}({','.join(f'{parameter.name}={value}' for parameter, value in pairs)})")
            types[name] = tool.returns
        return (*lines, f"FINAL_RESULT=RESULT(var=X{len(lines) - 1})")

    def _draw_value(
        self, tool: ToolSignature, parameter: Parameter, types: dict[str, str], phrases: Sequence[str], rng: random.Random
    ) -> str | None:
        """A value for a parameter; None where there is none to take."""
        fitting = [name for name, kind in types.items() if kind in parameter.types and tool.name != "EVAL"]
        if fitting and ("Text" not in parameter.types or rng.random() < 0.3):
            return fitting[-1] if rng.random() < 0.6 else rng.choice(fitting)
        if "Number" in parameter.types:
            return str(rng.randrange(2, 8))
        if "Text" not in parameter.types or (not parameter.required and rng.random() < 0.7):
            return None if parameter.required else "None"
        text = self._draw_text(tool, types, phrases, rng)
        return None if text is None else f'"{text}"' if "'" in text else f"'{text}'"

    def _draw_text(self, tool: ToolSignature, types: dict[str, str], phrases: Sequence[str], rng: random.Random) -> str | None:
        match tool.name:
            case "EVAL":
                values = [name for name, kind in types.items() if kind in ("Number", "Text", "Bool")]
                return _draw_expression(values, rng) if values else None
            case "VQA":
                return self._ask(rng, rng.choice(phrases))
            case "EMOJI":
                return "<emoji>"
            case "LIST":
                what, whose = rng.choice(("shapes", "colors", "names", "kinds", "parts")), rng.choice(("set", "flag", "group"))
                return f"{what} of the <set> {whose}"
            case "TOUCHING":
                return rng.choice(_TARGETS)
        chosen = f"<{rng.choice(phrases)}>"
        return rng.choices((chosen, f"<{phrases[0]}>,<{phrases[-1]}>", "object", rng.choice(self.words)), (5, 1, 1, 1))[0]


def _draw_operator(known: str, rng: random.Random) -> str:
    """Another operator of its kind."""
    return rng.choice(("and", "or", "xor") if known in ("and", "or", "xor") else ("+", "-") if known in "+-" else _COMPARISONS)


def _draw_expression(values: Sequence[str], rng: random.Random) -> str:
    def value() -> str:
        return "{" + rng.choice(values) + "}"

    def compare() -> str:
        return f"{value()} {rng.choice(_COMPARISONS)} {rng.choice((value(), str(rng.randrange(4)), '<digit>'))}"

    text = rng.choice(
        (
            compare(),
            f"{value()} {rng.choice('+-')} {value()}",
            f"{compare()} {rng.choice(('and', 'or', 'xor'))} {compare()}",
            f"({value()} + {value()}) {rng.choice(_COMPARISONS)} {rng.randrange(4)}",
            f"not {compare()}",
            f"{value()} + {rng.randrange(4)}",
        )
    )
    if rng.random() < 0.4:
        return f"'{rng.choice(('yes', 'no', 'red', 'true'))}' if {text} else '{rng.choice(('yes', 'no', 'blue', 'false'))}'"
    return text


def _is_sound(lines: Sequence[str], kind: TaskKind) -> bool:
    slots = draw_slots(random.Random(0))
    try:
        program = parse_program("\n".join(fill_slots(line, slots) for line in lines))
    except ProgramError:
        return False
    return not check_program(program, kind=kind, find_signature=find_signature)
