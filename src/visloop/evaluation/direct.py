"""The assistant's tasks without programs: a vision-language model sees the pictures and the instruction in one message, and answers.

A baseline of CLOVA's experiments. Only what can be said in words is asked and scored: edited pictures and boxes are no answers.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from visloop.chat.base import ChatModel
from visloop.config import Sampling
from visloop.errors import DataError
from visloop.evaluation.assistant import ANSWERED, score_answer
from visloop.prompts.render import PromptSet
from visloop.reasoning.agents import answer_directly
from visloop.records.assistant import Task, TaskTruth
from visloop.records.reasoning import AgentAnswer, Prediction, Sample

_QUESTIONS = PromptSet(str(Path(__file__).parent / "prompts"))


def ask_question(task: Task) -> str:
    """The instruction as a question: a statement about pictures is asked for its truth.

    Raises:
        DataError: the kind of task has no answer in words.
    """
    if task.kind not in ANSWERED:
        raise DataError(f"task {task.id} is of the kind {task.kind}, which has no answer in words; tasks of {' and '.join(ANSWERED)} have")
    return _QUESTIONS.render("statement", statement=task.instruction) if task.kind == "multi_image" else task.instruction


def answer_tasks(
    tasks: Sequence[Task], *, model: ChatModel, prompts: PromptSet, sampling: Sampling, seed: int, image_root: Path
) -> list[AgentAnswer]:
    """The model's answers in the order of the tasks, one batch. A model that cannot take a task's pictures leaves ``failed``, with its
    reason in ``raw``.

    Raises:
        DataError: a task has no answer in words.
        ModelError: the backend did not give one reply per request.
    """
    samples = [
        Sample(
            id=task.id,
            images=task.images,
            question=ask_question(task),
            answer="",  # no model is near the truth
            answer_type="phrase",
            family=task.family,
            split=task.split,
            source=task.source,
            group=task.group,
        )
        for task in tasks
    ]
    return answer_directly(samples, model=model, prompts=prompts, sampling=sampling, seed=seed, image_root=image_root)


def score_direct(
    tasks: Sequence[Task], answers: Sequence[AgentAnswer], truths: Mapping[str, TaskTruth], *, system: str
) -> list[Prediction]:
    """Predictions by the same normalised exact match as the results of programs.

    Raises:
        DataError: tasks and answers do not belong together, or a truth has no answer.
    """
    if [task.id for task in tasks] != [answer.sample_id for answer in answers]:
        raise DataError(f"system {system}: {len(answers)} answers do not belong to the {len(tasks)} tasks, in order")
    return [
        Prediction(
            sample_id=task.id,
            system=system,
            family=task.family,
            group=task.group,
            answer=answer.answer,
            correct=score_answer(answer.answer, _find_answer(task, truths)),
            status=answer.status,
        )
        for task, answer in zip(tasks, answers, strict=True)
    ]


def _find_answer(task: Task, truths: Mapping[str, TaskTruth]) -> str:
    truth = truths.get(task.id)
    if truth is None or truth.answer is None:
        raise DataError(f"task {task.id}: the truth of a {task.kind} task must have an answer")
    return truth.answer


def drop_failed(predictions: Sequence[Prediction], kinds: Mapping[str, str]) -> list[Prediction]:
    """Without the kinds (by task id) of which every request failed: a model that takes one picture has no accuracy on three."""
    served = {kinds[item.sample_id] for item in predictions if item.status != "failed"}
    return [item for item in predictions if kinds[item.sample_id] in served]
