"""How a row of each public benchmark becomes a question: its fields, its gold answers, its option list.

Field names are those of the lmms-eval copies on the hub. A missing field is a KeyError, which the reader counts as a broken
row. Every question ends with the short instruction for its answer format.
"""

import ast
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from visloop.errors import DataError
from visloop.records.reasoning import AnswerType

ASK_LETTER = "Answer with the letter of the right option only."
ASK_SHORT = "Answer with a single word or a short phrase."
ASK_BOOLEAN = "Answer with yes or no."
MMBENCH_STEP = 1_000_000
"""MMBench numbers the rotations of one question ``index + k * MMBENCH_STEP``."""

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A question as read from a row; ``images`` are bytes, paths or mappings with either.

    ``key`` is the benchmark's own id (empty: it has none, and the row's number serves); ``group`` is what makes rows depend
    on each other (empty: the picture).
    """

    question: str
    answers: tuple[str, ...]
    answer_type: AnswerType
    images: tuple[Any, ...]
    family: str
    key: str = ""
    options: tuple[str, ...] = ()
    group: str = ""
    details: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkSource:
    """Where a benchmark's rows are found on the hub, and how one becomes a question."""

    hub_id: str
    config: str | None
    split: str
    convert: Callable[[Row], Draft]


def list_options(options: Sequence[str]) -> str:
    """One line per option: ``A. text``."""
    return "\n".join(f"{letter}. {option}" for letter, option in zip(string.ascii_uppercase, options, strict=False))


def read_list(value: Any) -> tuple[str, ...]:
    """Texts of a list, or of a list written as text, as MMMU has them; a plain text is a list of one.

    Raises:
        DataError: the text starts like a list but is none.
    """
    if isinstance(value, str):
        if not value.lstrip().startswith("["):
            return (value,)
        try:
            value = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError) as error:
            raise DataError(f"not a list of options or answers: {value[:60]!r}") from error
    return tuple(str(part) for part in value)


def _read_texts(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(str(part) for part in value)


def _is_given(value: Any) -> bool:
    # tables write a missing cell as None, as an empty text, or as a float that is not a number
    return value is not None and value == value and value not in ("", "nan")


def _ask(question: str, options: Sequence[str], instruction: str) -> str:
    if not question.strip():
        raise DataError("the question is empty")
    parts = [question.strip(), list_options(options) if options else "", instruction]
    return "\n".join(part for part in parts if part)


def _check_letter(key: str, letter: str, options: Sequence[str]) -> str:
    if letter not in string.ascii_uppercase[: len(options)] or len(letter) != 1:
        raise DataError(f"question {key}: the answer {letter!r} is not one of the {len(options)} options")
    return letter


def _convert_mmmu(row: Row) -> Draft:
    key, kind = str(row["id"]), row["question_type"]
    options = read_list(row["options"]) if kind == "multiple-choice" else ()
    letters = (_check_letter(key, row["answer"], options),) if options else read_list(row["answer"])
    subject = key.removeprefix("validation_").removeprefix("dev_").rsplit("_", 1)[0]
    return Draft(
        key=key,
        question=_ask(row["question"], options, ASK_LETTER if options else ASK_SHORT),
        answers=letters,
        answer_type="letter" if options else "phrase",
        images=_numbered_images(row),
        family=subject,
        options=options,
        details={"question_type": kind},
    )


def _numbered_images(row: Row) -> tuple[Any, ...]:
    images = tuple(row[f"image_{number}"] for number in range(1, 8) if row.get(f"image_{number}") is not None)
    return images or ((row["image"],) if row.get("image") is not None else ())


def _convert_mmmu_pro(row: Row) -> Draft:
    key, options = str(row["id"]), read_list(row["options"])
    # in the vision part the question is printed in the picture
    question = row.get("question") or "Answer the question that stands in the picture."
    return Draft(
        key=key,
        question=_ask(question, options, ASK_LETTER),
        answers=(_check_letter(key, row["answer"], options),),
        answer_type="letter",
        images=_numbered_images(row),
        family=str(row.get("subject") or "all"),
        options=options,
    )


def _convert_mmbench(row: Row) -> Draft:
    index = int(row["index"])
    options = tuple(str(row[letter]) for letter in "ABCDE" if _is_given(row.get(letter)))
    hint = row.get("hint")
    question = f"{hint}\n{row['question']}" if _is_given(hint) else row["question"]
    return Draft(
        key=str(index),
        question=_ask(question, options, ASK_LETTER),
        answers=(_check_letter(str(index), row["answer"], options),),
        answer_type="letter",
        images=(row["image"],),
        family=str(row.get("category") or "all"),
        options=options,
        group=str(index % MMBENCH_STEP),
        details={"l2_category": str(row.get("L2-category") or "")},
    )


def _convert_mme(row: Row) -> Draft:
    answer, category = row["answer"].strip().lower(), row["category"]
    if answer not in ("yes", "no"):
        raise DataError(f"question {row['question_id']}: the answer {row['answer']!r} is neither yes nor no")
    text = row["question"].strip()
    for ending in ("Please answer yes or no.", "Please answer yes or no"):
        text = text.removesuffix(ending).strip()
    return Draft(
        key=f"{category}/{row['question_id']}/{text}",
        question=_ask(text, (), ASK_BOOLEAN),
        answers=(answer,),
        answer_type="boolean",
        images=(row["image"],),
        family=category,
        group=f"{category}/{row['question_id']}",
    )


def _convert_chartqa(row: Row) -> Draft:
    answers = _read_texts(row["answer"])
    kind = "human" if str(row["type"]).startswith("human") else "augmented"
    return Draft(
        question=_ask(row["question"], (), ASK_SHORT),
        answers=answers,
        answer_type="phrase",
        images=(row["image"],),
        family=kind,
    )


def _convert_mathvista(row: Row) -> Draft:
    choices = tuple(str(choice) for choice in row["choices"] or ())
    kind, precision = str(row["answer_type"]), row.get("precision")
    unit = row.get("unit")
    question = f"{row['question']} (unit: {unit})" if unit else row["question"]
    wishes = {"integer": "Answer with an integer.", "list": "Answer with a list."}
    wishes["float"] = f"Answer with a number of {int(precision or 1)} decimals."
    return Draft(
        key=str(row["pid"]),
        question=_ask(question, choices, ASK_LETTER if choices else wishes.get(kind, ASK_SHORT)),
        answers=(str(row["answer"]),),
        answer_type="phrase",
        images=(row["decoded_image"],),
        family=str((row.get("metadata") or {}).get("task") or "all"),
        options=choices,
        details={"answer_type": kind, "precision": "" if precision is None else str(int(precision))},
    )


def _convert_mmstar(row: Row) -> Draft:
    return Draft(
        key=str(row["index"]),
        question=_ask(row["question"], (), ASK_LETTER),
        answers=(row["answer"].strip().upper(),),
        answer_type="letter",
        images=(row["image"],),
        family=row["category"],
        details={"l2_category": row["l2_category"]},
    )


def _convert_textvqa(row: Row) -> Draft:
    return Draft(
        key=str(row["question_id"]),
        question=_ask(row["question"], (), ASK_SHORT),
        answers=_read_texts(row["answers"]),
        answer_type="phrase",
        images=(row["image"],),
        family="all",
    )


def _convert_docvqa(row: Row) -> Draft:
    return Draft(
        key=str(row["questionId"]),
        question=_ask(row["question"], (), ASK_SHORT),
        answers=_read_texts(row["answers"]),
        answer_type="phrase",
        images=(row["image"],),
        family="all",
    )


def _convert_ocrbench(row: Row) -> Draft:
    return Draft(
        question=row["question"].strip(),
        answers=_read_texts(row["answer"]),
        answer_type="phrase",
        images=(row["image"],),
        family=row["question_type"],
        details={"dataset": row["dataset"]},
    )


def _convert_ai2d(row: Row) -> Draft:
    options = read_list(row["options"])
    number = int(row["answer"])
    if not 0 <= number < len(options):
        raise DataError(f"the answer {number} is not one of the {len(options)} options")
    return Draft(
        question=_ask(row["question"], options, ASK_LETTER),
        answers=(string.ascii_uppercase[number],),
        answer_type="letter",
        images=(row["image"],),
        family="all",
        options=options,
    )


BENCHMARKS: dict[str, BenchmarkSource] = {
    "mmmu": BenchmarkSource(hub_id="lmms-lab/MMMU", config=None, split="validation", convert=_convert_mmmu),
    "mmmu_pro_standard": BenchmarkSource(hub_id="MMMU/MMMU_Pro", config="standard (10 options)", split="test", convert=_convert_mmmu_pro),
    "mmmu_pro_vision": BenchmarkSource(hub_id="MMMU/MMMU_Pro", config="vision", split="test", convert=_convert_mmmu_pro),
    "mmbench": BenchmarkSource(hub_id="lmms-lab/MMBench", config="en", split="dev", convert=_convert_mmbench),
    "mme": BenchmarkSource(hub_id="lmms-lab/MME", config=None, split="test", convert=_convert_mme),
    "chartqa": BenchmarkSource(hub_id="lmms-lab/ChartQA", config=None, split="test", convert=_convert_chartqa),
    "mathvista": BenchmarkSource(hub_id="AI4Math/MathVista", config=None, split="testmini", convert=_convert_mathvista),
    "mmstar": BenchmarkSource(hub_id="Lin-Chen/MMStar", config=None, split="val", convert=_convert_mmstar),
    "textvqa": BenchmarkSource(hub_id="lmms-lab/textvqa", config=None, split="validation", convert=_convert_textvqa),
    "docvqa": BenchmarkSource(hub_id="lmms-lab/DocVQA", config="DocVQA", split="validation", convert=_convert_docvqa),
    "ocrbench": BenchmarkSource(hub_id="echo840/OCRBench", config=None, split="test", convert=_convert_ocrbench),
    "ai2d": BenchmarkSource(hub_id="lmms-lab/ai2d", config=None, split="test", convert=_convert_ai2d),
}
