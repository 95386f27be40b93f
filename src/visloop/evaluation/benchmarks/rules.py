"""One rule per benchmark: what a reply to one question is worth, and whether it could be read."""

from collections.abc import Callable
from dataclasses import dataclass

from visloop.datasets.benchmarks import BenchmarkItem
from visloop.errors import DataError
from visloop.evaluation.benchmarks.choices import Choice, Convention, infer_option, parse_mmmu_choice, read_ai2d_letter, read_mmstar_letter
from visloop.evaluation.benchmarks.open_answers import extract_mathvista, match_chartqa, match_mathvista, match_mmmu_open
from visloop.evaluation.benchmarks.text_answers import match_ocrbench, read_mme_answer, score_anls, score_textvqa


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a rule says of one reply: a value 0..1, and whether an answer could be read at all."""

    value: float
    readable: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How a reply is read: the seed of a guess, whose convention, and what a judge extracted (None: nothing)."""

    seed: int
    convention: Convention
    extracted: str | None


def _judge_letter(choice: Choice, item: BenchmarkItem) -> Verdict:
    return Verdict(float(choice.letter == item.answers[0]), not choice.guessed)


def _rule_mmmu(item: BenchmarkItem, reply: str, reading: Reading) -> Verdict:
    if not item.options:
        return Verdict(float(match_mmmu_open(reply, answers=item.answers)))
    return _judge_letter(parse_mmmu_choice(reply, options=item.options, seed=reading.seed, convention=reading.convention), item)


def _rule_mmbench(item: BenchmarkItem, reply: str, reading: Reading) -> Verdict:
    return _judge_letter(infer_option(reading.extracted or reply, options=item.options, seed=reading.seed), item)


def _rule_mme(item: BenchmarkItem, reply: str, reading: Reading) -> Verdict:
    answer = read_mme_answer(reply, convention=reading.convention)
    return Verdict(float(answer == item.answers[0]), answer is not None)


def _rule_chartqa(item: BenchmarkItem, reply: str, reading: Reading) -> Verdict:
    return Verdict(float(any(match_chartqa(reply, answer=answer) for answer in item.answers)))


def _rule_mathvista(item: BenchmarkItem, reply: str, reading: Reading) -> Verdict:
    kind, precision = item.details["answer_type"], item.details["precision"]
    if kind not in ("text", "integer", "float", "list"):
        raise DataError(f"question {item.details['key']}: MathVista's answer_type {kind!r} is none of text, integer, float, list")
    found = reading.extracted or extract_mathvista(reply, kind=kind, choices=item.options)  # type: ignore[arg-type]
    if found is None:
        return Verdict(0.0, readable=False)
    right = match_mathvista(
        found,
        answer=item.answers[0],
        kind=kind,  # type: ignore[arg-type]
        choices=item.options,
        precision=int(precision) if precision else None,
    )
    return Verdict(float(right))


def _rule_mmstar(item: BenchmarkItem, reply: str, reading: Reading) -> Verdict:
    letter = read_mmstar_letter(reply)
    return Verdict(float(letter == item.answers[0]), letter is not None)


def _rule_ai2d(item: BenchmarkItem, reply: str, reading: Reading) -> Verdict:
    letter = read_ai2d_letter(reply)
    return Verdict(float(letter == item.answers[0]), letter is not None)


def _rule_textvqa(item: BenchmarkItem, reply: str, reading: Reading) -> Verdict:
    return Verdict(score_textvqa(reply, answers=item.answers))


def _rule_docvqa(item: BenchmarkItem, reply: str, reading: Reading) -> Verdict:
    return Verdict(score_anls(reply, answers=item.answers))


def _rule_ocrbench(item: BenchmarkItem, reply: str, reading: Reading) -> Verdict:
    return Verdict(float(match_ocrbench(reply, answers=item.answers, dataset=item.details["dataset"])))


RULES: dict[str, Callable[[BenchmarkItem, str, Reading], Verdict]] = {
    "mmmu": _rule_mmmu,
    "mmmu_pro_standard": _rule_mmmu,
    "mmmu_pro_vision": _rule_mmmu,
    "mmbench": _rule_mmbench,
    "mme": _rule_mme,
    "chartqa": _rule_chartqa,
    "mathvista": _rule_mathvista,
    "mmstar": _rule_mmstar,
    "textvqa": _rule_textvqa,
    "docvqa": _rule_docvqa,
    "ocrbench": _rule_ocrbench,
    "ai2d": _rule_ai2d,
}
JUDGED = frozenset({"mmbench", "mathvista"})
