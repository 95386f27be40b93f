"""Rules for text that is read in the picture: TextVQA, DocVQA and OCRBench; and MME's yes or no."""

import re
from collections.abc import Sequence

from visloop.evaluation.benchmarks.choices import Convention
from visloop.evaluation.benchmarks.open_answers import measure_edits

_NUMBER_WORDS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5"}
_NUMBER_WORDS |= {"six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10"}
_ARTICLES = frozenset({"a", "an", "the"})
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_STRAY_PERIOD = re.compile(r"\.(?!\d)")
_CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock
oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's they'd
they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd where's
where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've
you'd you'd've you'll you're you've
"""


def _list_contractions() -> dict[str, str]:
    """Contractions by each spelling that lacks one apostrophe. The challenge's own table has one entry the other way round
    and some with a capital, which lower-case text never meets."""
    spellings = {"somebody'd": "somebodyd"}
    for word in _CONTRACTED.split():
        for index, letter in enumerate(word):
            if letter == "'":
                spellings[word[:index] + word[index + 1 :]] = word
    return spellings


_CONTRACTIONS = _list_contractions()


def normalize_vqa(text: str) -> str:
    """The VQA challenge's normal form: lower case, no commas and question marks, punctuation removed, number words as digits,
    no articles, apostrophes of contractions restored."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip().replace("\n", " ").replace("\t", " ").strip()
    cleaned = text
    for mark in _PUNCTUATION:
        # a mark beside a space is dropped everywhere, one inside words becomes a space
        beside = f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if beside else " ")
    words = _STRAY_PERIOD.sub("", cleaned).lower().split()
    words = [_NUMBER_WORDS.get(word, word) for word in words]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def score_textvqa(reply: str, *, answers: Sequence[str]) -> float:
    """TextVQA's soft accuracy: the mean over leaving out one annotator of min(1, agreeing others / 3)."""
    predicted = normalize_vqa(reply)
    gold = [normalize_vqa(answer) for answer in answers]
    agreeing = sum(answer == predicted for answer in gold)
    return sum(min(1.0, (agreeing - (answer == predicted)) / 3) for answer in gold) / len(gold)


def score_anls(reply: str, *, answers: Sequence[str], threshold: float = 0.5) -> float:
    """DocVQA's ANLS: one minus the smallest normalised edit distance to an answer; below the threshold 0."""
    predicted = " ".join(reply.lower().split())
    best = 0.0
    for answer in answers:
        gold = " ".join(answer.lower().split())
        length = max(len(gold), len(predicted))
        best = max(best, 1.0 - measure_edits(gold, predicted) / length if length else 1.0)
    return best if best >= threshold else 0.0


def match_ocrbench(reply: str, *, answers: Sequence[str], dataset: str) -> bool:
    """OCRBench: a gold string is contained in the reply; for HME100k with case and without spaces, else without case.

    A long reply contains more strings, so only the final answer may be given here, never a chain.
    """
    if dataset == "HME100k":
        predicted = reply.strip().replace("\n", " ").replace(" ", "")
        return any(gold and gold in predicted for gold in (answer.strip().replace("\n", " ").replace(" ", "") for answer in answers))
    predicted = reply.lower().strip().replace("\n", " ")
    return any(gold and gold in predicted for gold in (answer.lower().strip().replace("\n", " ") for answer in answers))


def read_mme_answer(reply: str, *, convention: Convention = "official") -> str | None:
    """MME's ``yes`` or ``no`` by the first four characters (so "not sure" is a no), None for neither; lmms-eval also takes a
    bare ``y`` or ``n``."""
    text = reply.lower().strip().replace(".", "")
    if convention == "lmms" and text in ("y", "n"):
        return {"y": "yes", "n": "no"}[text]
    return next((word for word in ("yes", "no") if word in text[:4]), None)
