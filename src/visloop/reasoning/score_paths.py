"""Path scores 1-100 (Insight-V 3.2): all chains of a question are scored in one call, so that scores are comparable."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from visloop.chat.base import ChatModel, ChatRequest
from visloop.config import Sampling
from visloop.errors import ConfigError, DataError
from visloop.ids import make_id, seed_for
from visloop.prompts.render import PromptSet
from visloop.reasoning.asking import ask_model, open_dialogue
from visloop.reasoning.replies import ReadScore, read_scores
from visloop.records.chains import format_chain
from visloop.records.reasoning import GroundTruth, ReasoningPath, Sample
from visloop.scenes.export import parse_scene
from visloop.scenes.verify import verify_steps


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringTask:
    """The chains of one question that are to be scored together."""

    sample: Sample
    paths: tuple[ReasoningPath, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PathScore:
    """What a scorer said of one path: one score per pass (None: nothing usable came), the first wrong step counted from 1
    in the passes that named one, and the raw replies in which the path was asked."""

    by_pass: tuple[float | None, ...]
    errors: tuple[int, ...] = ()
    replies: tuple[str, ...] = ()


class PathScorer(Protocol):
    """Anything that scores chains. Every path of every task has an entry in the result, by path id.

    ``sees_answer`` says that the ground truth plays a part in the scores: such a scorer is for making data and for
    measuring, never for choosing an answer.
    """

    name: str
    sees_answer: bool

    def score(self, tasks: Sequence[ScoringTask], *, seed: int, image_root: Path) -> dict[str, PathScore]: ...


@dataclass(slots=True)
class _Entry:
    """One distinct chain text of a question in one pass, with the ids of all paths that share the text."""

    chain: str
    steps: int
    path_ids: list[str]
    read: ReadScore | None = None
    replies: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Call:
    """One request: some chains of one question, numbered 1..k in a shuffled order."""

    key: str
    sample: Sample
    entries: list[_Entry]


class ChatScorer:
    """A vision-language judge: sees pictures, question, the true answer (if ``show_answer``) and the chains.

    The chains of a question go into as few calls as ``max_paths_per_call`` allows, of nearly equal size, in an order that
    is shuffled anew in every pass. Chains with the same text are shown once. Ids that are missing or refused in a reply
    are asked again, up to ``max_reasks`` times and alone, renumbered from 1; all calls of all questions are one batch.
    """

    def __init__(
        self,
        model: ChatModel,
        *,
        prompts: PromptSet,
        sampling: Sampling,
        show_answer: bool = True,
        passes: int = 1,
        max_reasks: int = 2,
        max_paths_per_call: int = 8,
    ) -> None:
        if passes < 1 or max_paths_per_call < 1 or max_reasks < 0:
            raise ConfigError("assess: passes and max_paths_per_call must be at least 1, max_reasks at least 0")
        self.name, self.sees_answer = model.name, show_answer
        self._model, self._prompts, self._sampling = model, prompts, sampling
        self._passes, self._max_reasks, self._max_paths = passes, max_reasks, max_paths_per_call

    def score(self, tasks: Sequence[ScoringTask], *, seed: int, image_root: Path) -> dict[str, PathScore]:
        """Scores by path id.

        Raises:
            ModelError: the backend did not give one reply per request.
        """
        passes = [[_group_texts(task) for task in tasks] for _ in range(self._passes)]
        calls = [
            call
            for number, groups in enumerate(passes)
            for task, entries in zip(tasks, groups, strict=True)
            for call in self._split_calls(task.sample, entries, number=number, seed=seed)
        ]
        for attempt in range(self._max_reasks + 1):
            calls = [call for call in calls if call.entries]
            requests = [self._make_request(call, attempt=attempt, seed=seed, image_root=image_root) for call in calls]
            for call, reply in zip(calls, ask_model(requests, model=self._model, sampling=self._sampling), strict=True):
                raw = f"error: {reply.error}" if reply.finish == "error" else reply.text
                counts = {number: entry.steps for number, entry in enumerate(call.entries, start=1)}
                found = {} if reply.finish == "error" else read_scores(reply.text, step_counts=counts)
                for number, entry in enumerate(call.entries, start=1):
                    entry.replies.append(raw)
                    entry.read = found.get(number)
                call.entries = [entry for entry in call.entries if entry.read is None]
        return _collect_scores(passes)

    def _split_calls(self, sample: Sample, entries: list[_Entry], *, number: int, seed: int) -> list[_Call]:
        order = list(entries)
        random.Random(seed_for(seed, sample.id, "score", number)).shuffle(order)
        count = -(-len(order) // self._max_paths)
        return [_Call(make_id(sample.id, "score", number, part), sample, order[part::count]) for part in range(count)]

    def _make_request(self, call: _Call, *, attempt: int, seed: int, image_root: Path) -> ChatRequest:
        text = self._prompts.render(
            "score_paths",
            question=call.sample.question,
            answer=call.sample.answer if self.sees_answer else "",
            paths=[{"id": number, "chain": entry.chain} for number, entry in enumerate(call.entries, start=1)],
        )
        messages = open_dialogue(call.sample, text, image_root=image_root)
        return ChatRequest(id=call.key, messages=messages, seed=seed_for(seed, call.key, attempt))


def _group_texts(task: ScoringTask) -> list[_Entry]:
    entries: dict[str, _Entry] = {}
    for path in task.paths:
        chain = format_chain(path.steps, path.answer or "")
        entries.setdefault(chain, _Entry(chain, len(path.steps), [])).path_ids.append(path.id)
    return list(entries.values())


def _collect_scores(passes: Sequence[Sequence[Sequence[_Entry]]]) -> dict[str, PathScore]:
    by_path: dict[str, list[_Entry]] = {}
    for groups in passes:
        for entry in (entry for entries in groups for entry in entries):
            for path_id in entry.path_ids:
                by_path.setdefault(path_id, []).append(entry)
    return {
        path_id: PathScore(
            by_pass=tuple(entry.read.score if entry.read else None for entry in entries),
            errors=tuple(entry.read.error for entry in entries if entry.read and entry.read.error is not None),
            replies=tuple(reply for entry in entries for reply in entry.replies),
        )
        for path_id, entries in by_path.items()
    }


class VerifierScorer:
    """The exact verifier of the embedded world as a scorer: a measuring instrument, chosen by config, never a hidden help.

    Args:
        truths: the ground truth by sample id.
    """

    name = "verifier"
    sees_answer = True

    def __init__(self, truths: Mapping[str, GroundTruth]) -> None:
        self._truths = truths

    def score(self, tasks: Sequence[ScoringTask], *, seed: int, image_root: Path) -> dict[str, PathScore]:
        """Exact scores by path id; ``seed`` and ``image_root`` play no part.

        Raises:
            DataError: a sample has no ground truth, or an unreadable one.
        """
        scores = {}
        for task in tasks:
            truth = self._truths.get(task.sample.id)
            if truth is None:
                raise DataError(
                    f"sample {task.sample.id}: no ground truth; the verifier scores the embedded world only, choose assess.scorer=judge"
                )
            scene = parse_scene(truth.scene)
            for path in task.paths:
                check = verify_steps(scene, gold_steps=truth.steps, gold_answer=task.sample.answer, steps=path.steps, answer=path.answer)
                errors = () if check.first_error_step is None else (check.first_error_step,)
                scores[path.id] = PathScore(by_pass=(check.score,), errors=errors)
        return scores
