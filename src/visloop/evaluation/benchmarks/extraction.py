"""A text judge that reads the answer out of a wordy reply, for the two benchmarks whose official scoring has one.

Rules come first; only what they cannot read is put to the judge. The judge sees question, options and reply, never the gold
answer, so it cannot correct a reply. What it cannot read either stays a counted parse failure.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from visloop.answers import read_letter
from visloop.chat.base import ChatModel, ChatRequest, Message
from visloop.config import Sampling
from visloop.datasets.benchmarks import BenchmarkItem
from visloop.errors import ConfigError
from visloop.evaluation.benchmarks.choices import infer_option, list_letters
from visloop.evaluation.benchmarks.open_answers import extract_mathvista
from visloop.evaluation.benchmarks.rules import JUDGED
from visloop.ids import make_id, seed_for
from visloop.prompts.render import PromptSet
from visloop.reasoning.asking import ask_model

_WANTED = {"integer": "an integer", "float": "a decimal number", "list": "a list in square brackets", "text": "a word or a short phrase"}


def extract_answers(
    items: Sequence[BenchmarkItem],
    replies: Mapping[str, str | None],
    *,
    judge: ChatModel,
    sampling: Sampling,
    seed: int = 0,
    tries: int = 3,
    prompts: PromptSet | None = None,
) -> dict[str, str]:
    """Answers by sample id that the judge read, for ``score_benchmark(..., extractions=...)``.

    A reply of the judge that cannot be read is asked again, with another seed, up to ``tries`` times; one batch per try. A
    clear "none" is not asked again.

    Args:
        prompts: a style with the template ``extract_answer``; None is the shipped one.

    Raises:
        ConfigError: a benchmark that has no judge in its official scoring.
        ModelError: the backend did not give one reply per request.
    """
    strangers = sorted({item.benchmark for item in items} - JUDGED)
    if strangers:
        raise ConfigError(f"{strangers[0]} is scored by rules alone; a judge is used for {', '.join(sorted(JUDGED))}")
    prompts = prompts or PromptSet(str(Path(__file__).parent / "prompts"))
    given = {item.sample.id: replies.get(item.sample.id) or "" for item in items}
    waiting = {item.sample.id: item for item in items if given[item.sample.id] and not _is_readable(item, given[item.sample.id])}
    found: dict[str, str] = {}
    for attempt in range(tries):
        if not waiting:
            break
        requests = [
            ChatRequest(
                id=make_id(sample_id, "extract", attempt),
                messages=(Message(role="user", text=_ask(item, given[sample_id], prompts=prompts)),),
                seed=seed_for(seed, "extract", sample_id, attempt),
            )
            for sample_id, item in waiting.items()
        ]
        for (sample_id, item), reply in zip(list(waiting.items()), ask_model(requests, model=judge, sampling=sampling), strict=True):
            text = "" if reply.finish == "error" else reply.text.strip()
            if text.lower().rstrip(".") == "none":
                del waiting[sample_id]
            elif answer := _read(item, text):
                found[sample_id] = answer
                del waiting[sample_id]
    return found


def _is_readable(item: BenchmarkItem, reply: str) -> bool:
    if item.benchmark == "mmbench":
        return not infer_option(reply, options=item.options, seed=0).guessed
    return extract_mathvista(reply, kind=item.details["answer_type"], choices=item.options) is not None  # type: ignore[arg-type]


def _ask(item: BenchmarkItem, reply: str, *, prompts: PromptSet) -> str:
    options = [{"letter": letter, "text": text} for letter, text in zip(list_letters(item.options), item.options, strict=True)]
    question = item.sample.question.split("\nA. ", 1)[0] if options else item.sample.question
    wanted = _WANTED.get(item.details.get("answer_type", ""), _WANTED["text"])
    return prompts.render("extract_answer", question=question, options=options, wanted=wanted, reply=reply)


def _read(item: BenchmarkItem, text: str) -> str | None:
    if not item.options:
        return text or None
    letter = read_letter(text)
    return letter if letter in list_letters(item.options) else None
