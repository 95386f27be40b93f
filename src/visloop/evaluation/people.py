"""What a person's word on one run says about other runs of the same task: is this result the right one?

A person judges the run that they saw. In a cycle the task is run again, with other programs and taught tools, and each result must be
accepted or not by the same word. What the word does not tell is not accepted: a lesson is kept only on a proof.
"""

from collections import Counter
from dataclasses import replace
from pathlib import PurePosixPath

from PIL import Image

from visloop.answers import normalize_answer, read_boolean, read_number
from visloop.assistant.interpreter import Execution
from visloop.evaluation.assistant import ANSWERED, score_answer
from visloop.ids import make_id
from visloop.records.assistant import Feedback, Task, Trace


def imply_answer(word: Feedback, *, result: str | None) -> Feedback:
    """A person's word with the right answer that it implies: an accepted answer is the right one, and of yes and no the refused one is
    wrong. Elsewhere the word stays as it is.

    Args:
        result: the answer in words that the person judged; None where there was none.
    """
    if word.answer is not None or result is None:
        return word
    if word.accepted:
        return replace(word, answer=result)
    said = read_boolean(result)
    return word if said is None else replace(word, answer="no" if said else "yes")


def complete_word(word: Feedback, *, task: Task, seen: Trace) -> Feedback:
    """``imply_answer`` for a run of the assistant; a picture implies none.

    Args:
        seen: the run that the person judged.
    """
    return imply_answer(word, result=seen.result) if task.kind in ANSWERED else word


def judge_by_word(execution: Execution, trace: Trace, *, word: Feedback, seen: Trace) -> Feedback:
    """The feedback on a run by what a person said of another run of its task.

    Answers are compared with the right one. A tagged picture needs as many tags as the person says, or the labels that they list; an
    edited one as many edited objects, and to differ from the refused picture: what a person can say in a word, not all that could be
    wrong. Without a right answer an accepted result is right when it comes again, and nothing else is accepted.

    Args:
        word: completed by ``complete_word``; its ``answer`` is the answer, a number of objects, or labels with commas between them.
        seen: the run that the person judged.
    """
    task, notes = execution.job.task, list[str]()
    if trace.status != "finished":
        right = False
        notes.append(f"The program did not run to its end: {trace.error or trace.status}.")
    elif task.kind in ANSWERED:
        right = word.answer is not None and score_answer(trace.result, word.answer)
    elif word.accepted:
        right = _is_same(trace, seen)
    elif word.answer is None or _is_same(trace, seen):
        right = False
    elif task.kind == "tagging":
        right = _match_labels([box.label for box in trace.result_boxes], word.answer)
    else:
        right = _match_labels([""] * count_edited(execution), word.answer)
    if not right:
        notes += _explain(word, task)
    return Feedback(
        id=make_id("feedback", "person", word.id, trace.id),
        task_id=task.id,
        trace_id=trace.id,
        accepted=right,
        # Critics compare results with the answer: only where it is one, not a number of objects.
        answer=word.answer if task.kind in ANSWERED else None,
        text=" ".join(notes),
        source="person",
    )


def count_edited(execution: Execution) -> int:
    """How many objects the tools were given that changed the picture: the ``object`` argument of every step that gave one."""
    given = [step.call.arguments.get("object") for step in execution.steps if step.call is not None and isinstance(step.value, Image.Image)]
    return sum(len(objects) for objects in given if isinstance(objects, tuple))


def _is_same(trace: Trace, seen: Trace) -> bool:
    """Whether two runs of one task left the same result; a picture's name is the hash of its bytes."""
    if trace.result_image is not None and seen.result_image is not None:
        return PurePosixPath(trace.result_image).name == PurePosixPath(seen.result_image).name
    return seen.status == "finished" and (trace.result, trace.result_boxes) == (seen.result, seen.result_boxes)


def _match_labels(labels: list[str], answer: str) -> bool:
    """Whether there are as many labels as the answer's number, or those that it lists."""
    number = read_number(answer)
    if number is not None:
        return len(labels) == number
    return Counter(map(normalize_answer, labels)) == Counter(normalize_answer(part) for part in answer.split(",") if part.strip())


def _explain(word: Feedback, task: Task) -> list[str]:
    notes = [word.text] if word.text else []
    if word.answer is not None:
        what = {"tagging": "The right tags: ", "editing": "Objects to edit: "}.get(task.kind, "The correct answer should be ")
        notes.append(f"{what}{word.answer}.")
    return notes
