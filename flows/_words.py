"""What people say of runs: found again with the run that it is about, and written down as an assessment on the run's MLflow trace."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from flows._assistant_context import fold_text
from flows._database import call_patiently, connect
from flows._layout import Layout
from flows._records import SPLITS, read_json, read_split, write_json
from flows._traces import ANSWER, TRACE_TAG, VERDICT, read_new_feedback, read_people
from visloop.errors import ConfigError, DataError
from visloop.evaluation.assistant import ANSWERED, score_answer
from visloop.records.assistant import Feedback, Task, Trace
from visloop.records.reasoning import AgentAnswer, ReasoningPath, Sample
from visloop.records.shards import read_shard

PAGE_EXPERIMENT, AGENTS_EXPERIMENT = "page", "page_agents"
ASSISTANT_EXPERIMENTS = (PAGE_EXPERIMENT, "reflect_learn", "clova")
"""Where runs of the assistant are traced: people may judge those of the page and those of the cycles."""
MAX_ANSWER, MAX_COMMENT = 100, 1000
"""Characters of a right answer and of a comment."""
_TRUTHS = "truth.jsonl"


@dataclass(frozen=True, kw_only=True)
class PageRun:
    """One instruction on the page with its run. ``uploads`` are the SHA-256 of the files as they came (stored pictures are encoded anew);
    ``views`` has a picture per step, or None. ``learned`` tells the learned prompts that were used, by id, and ``shown`` are the
    instructions of the demonstrations that the program was made after."""

    task: Task
    trace: Trace
    uploads: tuple[str, ...] = ()
    views: tuple[str | None, ...] = ()
    learned: dict[str, str] = field(default_factory=dict)
    shown: tuple[str, ...] = ()
    cycle: int = 0

    @property
    def key(self) -> str:
        """What the run is found by."""
        return self.trace.id

    @property
    def asked(self) -> Task:
        """What was asked, with its pictures."""
        return self.task

    @property
    def result(self) -> str | None:
        """The answer in words; None for a picture, and for a run that did not finish."""
        return self.trace.result if self.task.kind in ANSWERED else None


@dataclass(frozen=True, kw_only=True)
class PageQuestion:
    """One question to the two agents on the page with what they said; ``model`` names the reasoner (M_t)."""

    id: str
    sample: Sample
    chain: ReasoningPath
    answer: AgentAnswer
    model: str
    seconds: float
    uploads: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """What the run is found by."""
        return self.id

    @property
    def asked(self) -> Sample:
        """What was asked, with its picture."""
        return self.sample

    @property
    def result(self) -> str | None:
        """The answer; None where none could be read."""
        return self.answer.answer


@dataclass(frozen=True, kw_only=True)
class Word:
    """What one person said, with the run that it is about."""

    feedback: Feedback
    run: PageRun


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """What a person said that nothing is learned from, and why."""

    feedback: Feedback
    reason: str


def save_run(layout: Layout, run: PageRun | PageQuestion) -> None:
    """Keep a run of the page, so that what is said of it later can be learned from."""
    write_json(layout.page / _folder_of(type(run)) / f"{run.key}.json", run)


def load_run(layout: Layout, kind: type[Any], key: str) -> Any:
    """The run of the page with this id, or None.

    Raises:
        DataError: its file is damaged.
    """
    path = layout.page / _folder_of(kind) / f"{key}.json"
    if not re.fullmatch(r"[0-9a-f]{1,64}", key) or not path.is_file():
        return None
    try:
        return TypeAdapter(kind).validate_python(read_json(path))
    except (ValidationError, DataError) as error:
        raise DataError(f"{path}: not a run of the page: {error}") from error


def _folder_of(kind: type[Any]) -> str:
    return "questions" if kind is PageQuestion else "runs"


class RunFinder:
    """Finds the run behind an assessment: one of the page, or of a cycle."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._cycles: dict[str, PageRun] | None = None

    def find(self, trace_id: str) -> PageRun | None:
        run = load_run(self._layout, PageRun, trace_id)
        if run is not None:
            return run  # type: ignore[no-any-return]
        if self._cycles is None:
            self._cycles = self._read_cycles()
        return self._cycles.get(trace_id)

    def _read_cycles(self) -> dict[str, PageRun]:
        layout = self._layout
        shards = [*layout.tasks.glob("*.jsonl"), *layout.feedback(0).parent.glob("*/tasks.jsonl")]
        tasks = {task.id: task for shard in shards if shard.name != _TRUTHS for task in read_shard(shard, Task)}
        shards = [*layout.undone.glob("*/*/traces.jsonl"), *layout.cycle(0).parent.glob("*/traces.jsonl")]
        traces = [trace for shard in shards for trace in read_shard(shard, Trace)]
        return {trace.id: PageRun(task=tasks[trace.task_id], trace=trace) for trace in traces if trace.task_id in tasks}


def read_words(layout: Layout, *, mlruns: Path, consumed: Collection[str]) -> tuple[list[Word], list[Refusal]]:
    """What people said of the assistant's runs and no cycle has learned from yet, the oldest first; what nothing may be learned from is
    beside it. Of several words on one task the last counts."""
    held_out, finder = HeldOut(layout), RunFinder(layout)
    words: dict[str, Word] = {}
    refused: list[Refusal] = []
    for experiment in ASSISTANT_EXPERIMENTS:
        for entry in read_new_feedback(experiment, mlruns=mlruns, consumed=consumed):
            run = finder.find(entry.trace_id)
            reason = "its run is not stored in this data folder" if run is None else held_out.find_task(run)
            if run is not None and reason is None:
                reason = find_contradiction(entry, result=run.result)
            if run is None or reason is not None:
                refused.append(Refusal(feedback=entry, reason=reason or ""))
                continue
            earlier = words.pop(run.task.id, None)
            if earlier is not None:
                refused.append(Refusal(feedback=earlier.feedback, reason="a later word is about the same instruction"))
            words[run.task.id] = Word(feedback=entry, run=run)
    return list(words.values()), refused


class HeldOut:
    """What training must not see: pictures and instructions of validation and test, of both loops."""

    def __init__(self, layout: Layout) -> None:
        tasks = [task for shard in sorted(layout.tasks.glob("*.jsonl")) if shard.name != _TRUTHS for task in read_shard(shard, Task)]
        samples = [sample for name in SPLITS if (layout.raw / f"{name}.jsonl").is_file() for sample in read_split(layout, name)]
        apart = [task for task in tasks if task.split != "train"]
        self._sets = {frozenset(sample.image_hashes) for sample in samples if sample.split != "train"}
        shared = {digest for sample in samples if sample.split == "train" for digest in sample.image_hashes}
        # A box of a statement's picture may occur in training too; what occurs in the evaluation only is refused alone as well.
        self._pictures = {digest for digests in self._sets for digest in digests} - shared
        self._pictures |= {digest for task in apart for digest in task.image_hashes}
        taught = {fold_text(task.instruction) for task in tasks if task.split == "train"}
        self._instructions = {fold_text(task.instruction) for task in apart} - taught

    def find_task(self, run: PageRun) -> str | None:
        """Why nothing may be learned from this run; None where it may."""
        if self._has_picture((*run.task.image_hashes, *run.uploads)):
            return "its picture belongs to the evaluation, which nothing is learned from"
        if run.task.split != "train":
            return "it is a held-out task of the evaluation, which nothing is learned from"
        if fold_text(run.task.instruction) in self._instructions:
            return "its instruction belongs to held-out tasks only, which nothing is learned from"
        return None

    def find_question(self, question: PageQuestion) -> str | None:
        """As ``find_task``, for a question to the two agents."""
        if self._has_picture((*question.sample.image_hashes, *question.uploads)):
            return "its picture belongs to the evaluation, which nothing is trained on"
        return None

    def _has_picture(self, digests: Sequence[str]) -> bool:
        alone = any(digest in self._pictures or frozenset({digest}) in self._sets for digest in digests)
        return alone or any(digests_of <= set(digests) for digests_of in self._sets)


def find_contradiction(entry: Feedback, *, result: str | None) -> str | None:
    """Why a word cannot be meant as it stands; None where it can. ``result`` is the answer that it is about; None for a picture."""
    answer = entry.answer or ""
    if len(answer) > MAX_ANSWER:
        return f"the right answer may have {MAX_ANSWER} characters; this one has {len(answer)}"
    if not answer or result is None:
        return None
    if score_answer(result, answer) == entry.accepted:
        return None
    if entry.accepted:
        return f"the result {result!r} is called right, and {answer!r} the right answer; choose wrong, or leave the answer empty"
    return f"the result is called wrong, and {answer!r} is what it says; choose right, or give the answer that it should be"


def say_word(
    run: PageRun | PageQuestion,
    *,
    mlruns: Path,
    accepted: bool,
    answer: str = "",
    comment: str = "",
    person: str = "person",
) -> bool:
    """Write down what a person says of a run, as assessments on its MLflow trace; False where their last word was the same.

    Args:
        answer: the right answer; empty where the person gives none.

    Raises:
        ConfigError: a text is too long, the name of the person is none, or the answer contradicts the verdict.
        DataError: MLflow has no trace of the run.
    """
    import mlflow
    from mlflow.entities import AssessmentSource
    from mlflow.tracing.assessment import delete_assessment

    answer, comment, person = " ".join(answer.split()), comment.strip(), person.strip() or "person"
    if len(answer) > MAX_ANSWER or len(comment) > MAX_COMMENT:
        raise ConfigError(f"the right answer may have {MAX_ANSWER} characters, a comment {MAX_COMMENT}; shorten it")
    if not re.fullmatch(r"[\w .@-]{1,60}", person):
        raise ConfigError(f"name {person[:60]!r}: use up to 60 letters, digits, spaces and . @ - _")
    meant = Feedback(id="", task_id="", trace_id=run.key, accepted=accepted, answer=answer or None, text=comment, source="person")
    contradiction = find_contradiction(meant, result=run.result)
    if contradiction is not None:
        raise ConfigError(contradiction)
    client = connect(mlruns)
    found = client.get_experiment_by_name(PAGE_EXPERIMENT if isinstance(run, PageRun) else AGENTS_EXPERIMENT)
    query = f"tag.`{TRACE_TAG}` = '{run.key}'"
    known = [] if found is None else client.search_traces(locations=[found.experiment_id], filter_string=query, include_spans=False)
    if not known:
        raise DataError(f"MLflow has no trace of run {run.key} in {mlruns}; ask again, then say what was wrong")
    info = known[0].info
    before = {name: entry for name, _, entry in read_people(info, client)}
    last = before.get(person)
    if last is not None and (last.accepted, last.answer or "", last.text) == (accepted, answer, comment):
        return False
    named: dict[str, Any] = {"trace_id": info.trace_id, "source": AssessmentSource(source_type="HUMAN", source_id=person)}
    if answer:
        call_patiently(lambda: mlflow.log_expectation(name=ANSWER, value=answer, **named))
    elif last is not None and last.answer:
        for item in info.assessments:
            if item.name == ANSWER and item.source.source_id == person:
                delete_assessment(info.trace_id, item.assessment_id)
    # Last: a word without a verdict counts as not said.
    call_patiently(lambda: mlflow.log_feedback(name=VERDICT, value=accepted, rationale=comment or None, **named))
    return True
