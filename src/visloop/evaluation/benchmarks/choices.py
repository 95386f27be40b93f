"""Reading an option letter from a reply, by the rules of each multiple-choice benchmark.

Where a benchmark's own rule guesses when nothing can be read, the guess is keyed by a seed and marked as such: a guess is
counted as a parse failure, never hidden in the accuracy.
"""

import random
import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Convention = Literal["official", "lmms"]
"""Whose rules, where the two differ: the benchmark's own repository, or the widely used lmms-eval kit."""


@dataclass(frozen=True, slots=True)
class Choice:
    """An option letter; ``guessed`` says that the reply held none and the benchmark's rule drew one."""

    letter: str
    guessed: bool = False


def list_letters(options: Sequence[str]) -> list[str]:
    """``A``, ``B``, ... for each option."""
    return list(string.ascii_uppercase[: len(options)])


def parse_mmmu_choice(reply: str, *, options: Sequence[str], seed: int, convention: Convention = "official") -> Choice:
    """MMMU and MMMU-Pro: ``(A)``, else a free-standing ``A``, else (over five words) an option's text; the last one wins.

    lmms-eval asks for ``A`` before a space only, and tries ``A.`` before the texts.
    """
    letters = list_letters(options)
    text = reply
    for mark in ",.!?;:'":
        text = text.strip(mark)
    text = f" {text} "
    forms = ["({})", " {} "] if convention == "official" else ["({})", "{} ", "{}."]
    for form in forms:
        found = [letter for letter in letters if form.format(letter) in text]
        if found:
            # several single letters are ordered by their free-standing occurrence, also where "A " or "A." found them
            order = form if form == "({})" else " {} "
            return Choice(max(found, key=lambda letter: (text.rfind(order.format(letter)), -letters.index(letter))))
    if len(text.split()) > 5:
        lowered = text.lower()
        named = [
            (lowered.rfind(option.lower()), letter) for letter, option in zip(letters, options, strict=True) if option.lower() in lowered
        ]
        if named:
            return Choice(max(named, key=lambda item: (item[0], -letters.index(item[1])))[1])
    return guess_letter(letters, seed=seed)


def infer_option(reply: str, *, options: Sequence[str], seed: int) -> Choice:
    """MMBench without a judge, as VLMEvalKit's rules: the only option letter among the reply's words, if it is one of the last
    four; else the only option whose text is in the reply, if the reply is not twice as long as all options; else a guess."""
    letters = list_letters(options)
    words = re.sub(r"[.()\[\],:;!*#{}]", " ", reply).split()
    found = [letter for letter in letters if letter in words]
    if len(found) == 1 and words.index(found[0]) > len(words) - 5:
        return Choice(found[0])
    lowered = reply.lower()
    named = [letter for letter, option in zip(letters, options, strict=True) if option and option.lower() in lowered]
    if len(named) == 1 and len(reply) <= 2 * sum(map(len, options)):
        return Choice(named[0])
    return guess_letter(letters, seed=seed)


def guess_letter(letters: Sequence[str], *, seed: int) -> Choice:
    """A uniformly drawn letter, the same for the same seed."""
    return Choice(random.Random(seed).choice(list(letters)), guessed=True)


def read_mmstar_letter(reply: str) -> str | None:
    """MMStar: the first character, or the one after ``(``, ``option `` or ``the answer is ``; case plays no part."""
    text = reply.lower().strip().replace("\n", " ")
    for lead in ("(", "option ", "the answer is ", ""):
        if text.startswith(lead) and len(text) > len(lead):
            letter = text[len(lead)]
            return letter.upper() if letter in string.ascii_lowercase else None
    return None


def read_ai2d_letter(reply: str) -> str | None:
    """AI2D: the letter of a reply that starts with ``B.``, else the whole reply where it is one letter (punctuation ignored)."""
    text = reply.strip()
    if re.match(r"[A-Za-z]\.", text):
        return text[0].upper()
    bare = text.strip(string.punctuation + string.whitespace)
    return bare.upper() if len(bare) == 1 and bare.isalpha() else None
