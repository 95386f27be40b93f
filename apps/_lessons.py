"""What became of people's words: waiting, learned in which cycle, or not learned and why."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flows._layout import Layout
from flows._people import is_played, list_consumed, list_frozen, list_question_folders, read_frozen, read_questions
from flows._records import read_json
from flows._traces import read_new_feedback
from flows._words import AGENTS_EXPERIMENT, PageQuestion, PageRun, Refusal, load_run, read_words
from visloop.records.assistant import Feedback, UpdateOutcome
from visloop.records.manifest import MANIFEST_NAME
from visloop.records.reasoning import PreferencePair
from visloop.records.shards import read_shard

LessonState = Literal["waiting", "learned", "confirmed", "not learned", "refused", "prompt"]


@dataclass(frozen=True, kw_only=True)
class LessonRow:
    """One word of a person and what came of it. ``run`` is the page's run that it was about, where it was one."""

    text: str
    said: str
    answer: str
    state: LessonState
    note: str
    run: str | None


def list_lessons(layout: Layout, *, mlruns: Path) -> list[LessonRow]:
    """All words on the assistant's runs, the newest first."""
    frozen = list_frozen(layout)
    rows = [row for number in frozen for row in _read_batch(layout, number)]
    words, refused = read_words(layout, mlruns=mlruns, consumed=list_consumed(layout.feedback(number) for number in frozen))
    rows += [
        _describe(layout, word.feedback, word.run.task.instruction, "waiting", "the next `python -m flows.reflect_learn` learns from it")
        for word in words
    ]
    rows += [_describe_refusal(layout, item) for item in refused]
    return rows[::-1]


def _read_batch(layout: Layout, number: int) -> list[LessonRow]:
    batch, refused = read_frozen(layout.feedback(number)), read_shard(layout.feedback(number) / "refused.jsonl", Refusal)
    played = is_played(layout, number)
    given: dict[str, list[Feedback]] = {}
    outcomes: dict[str, list[UpdateOutcome]] = {}
    if played:
        for entry in read_shard(layout.cycle(number) / "feedback.jsonl", Feedback):
            given.setdefault(entry.task_id, []).append(entry)
        for outcome in read_shard(layout.cycle(number) / "outcomes.jsonl", UpdateOutcome):
            outcomes.setdefault(outcome.feedback_id, []).append(outcome)
    rows = []
    for task in batch.tasks:
        word = batch.words[task.id]
        state: LessonState = "waiting"
        note = f"cycle {number} is at work on it, or was stopped: run `python -m flows.reflect_learn` again"
        if played:
            tried = [outcome for entry in given.get(task.id, ()) for outcome in outcomes.get(entry.id, ())]
            state, note = _tell(tried, given.get(task.id, []), number=number, concepts=_list_concepts(layout, number))
        rows.append(_describe(layout, word, task.instruction, state, note))
    return rows + [_describe_refusal(layout, item) for item in refused]


def _tell(tried: list[UpdateOutcome], given: list[Feedback], *, number: int, concepts: str) -> tuple[LessonState, str]:
    solved = [outcome for outcome in tried if outcome.solved]
    if solved:
        kinds = {"prompt": f"new prompts{concepts}", "plan_demonstration": "a new plan", "program_demonstration": "a new program", None: ""}
        what = ", ".join(dict.fromkeys(kinds[outcome.kind] for outcome in solved if outcome.kind)) or "what it learned beside this"
        return "learned", f"cycle {number}: right after learning, by {what}"
    if given and given[0].accepted:
        return "confirmed", f"cycle {number}: right at first, kept as a demonstration"
    reason = tried[-1].reason if tried else "nothing was tried"
    return "not learned", f"cycle {number}: {reason}"


def _list_concepts(layout: Layout, number: int) -> str:
    """The words that the prompts of a cycle brought in."""
    reports = [read_json(layout.cycle(index) / "report.json").get("concepts", {}) for index in (number - 1, number)]
    before, after = ({word for words in report.values() for word in words} for report in reports)
    return f" for {', '.join(sorted(after - before))}" if after - before else ""


def list_question_lessons(layout: Layout, *, mlruns: Path) -> list[LessonRow]:
    """All words on the two agents' answers, the newest first."""
    rows: list[LessonRow] = []
    folders = [folder for folder in list_question_folders(layout) if (folder / MANIFEST_NAME).is_file()]
    for folder in folders:
        number, samples = int(folder.parent.name), read_questions(folder)
        pairs_file = folder.parent / "pairs" / "pairs.jsonl"
        pairs = read_shard(pairs_file, PreferencePair) if pairs_file.is_file() else []
        counts = {sample.question: sum(pair.sample_id == sample.id for pair in pairs) for sample in samples}
        for entry in read_shard(folder / "feedback.jsonl", Feedback):
            text = _find_question(layout, entry)
            if entry.accepted or text not in counts:
                rows.append(_describe(layout, entry, text, "confirmed", f"round {number}: noted; only refused answers become prompts"))
                continue
            came = f"{counts[text]} preference pair(s) came of it" if pairs_file.is_file() else "its chains are not paired yet"
            rows.append(_describe(layout, entry, text, "prompt", f"round {number}: among the prompts; {came}"))
        rows += [_describe_refusal(layout, item) for item in read_shard(folder / "refused.jsonl", Refusal)]
    for entry in read_new_feedback(AGENTS_EXPERIMENT, mlruns=mlruns, consumed=list_consumed(folders)):
        rows.append(_describe(layout, entry, _find_question(layout, entry), "waiting", "the next round of `python -m flows.dpo_rounds`"))
    return rows[::-1]


def _find_question(layout: Layout, entry: Feedback) -> str:
    question: PageQuestion | None = load_run(layout, PageQuestion, entry.trace_id)
    return "" if question is None else question.sample.question


def _describe_refusal(layout: Layout, item: Refusal) -> LessonRow:
    run: PageRun | None = load_run(layout, PageRun, item.feedback.trace_id)
    text = run.task.instruction if run is not None else _find_question(layout, item.feedback)
    return _describe(layout, item.feedback, text, "refused", item.reason)


def _describe(layout: Layout, entry: Feedback, text: str, state: LessonState, note: str) -> LessonRow:
    known: Iterable[type] = (PageRun, PageQuestion)
    asked = any(load_run(layout, kind, entry.trace_id) is not None for kind in known)
    return LessonRow(
        text=text or f"run {entry.trace_id}",
        said="right" if entry.accepted else "wrong",
        answer="; ".join(part for part in (entry.answer, entry.text) if part),
        state=state,
        note=note,
        run=entry.trace_id if asked else None,
    )
