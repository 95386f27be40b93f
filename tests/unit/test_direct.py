"""Tasks that a vision-language model answers without programs: what it is asked, how its words are scored, and what is no answer."""

from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.scripted_chat import ScriptedChat, broken, cut
from visloop.chat.base import ChatRequest
from visloop.config import Sampling
from visloop.errors import DataError
from visloop.evaluation.direct import answer_tasks, drop_failed, score_direct
from visloop.prompts.render import PromptSet
from visloop.records.assistant import Task, TaskKind, TaskTruth

ROOT = Path("/pictures")


def make_task(name: str, kind: TaskKind, pictures: int = 1, instruction: str = "What color is the star?") -> Task:
    images = tuple(f"{name}-{number}.png" for number in range(pictures))
    inputs = ("IMAGE",) if pictures == 1 else ("LEFT", "MIDDLE", "RIGHT")
    places: dict[str, Any] = {"images": images, "inputs": inputs, "family": f"family of {kind}", "group": name}
    return Task(id=name, kind=kind, instruction=instruction, wording="base", split="test", source="test", **places)


TASKS = [make_task("q", "vqa"), make_task("s", "multi_image", 3, "All three pictures contain a star.")]
TRUTHS = {name: TaskTruth(task_id=name, program="", answer=answer) for name, answer in (("q", "red"), ("s", "true"))}


def ask(chat: ScriptedChat, tasks: list[Task] = TASKS) -> Any:
    return answer_tasks(tasks, model=chat, prompts=PromptSet("compact"), sampling=Sampling(max_new_tokens=16), seed=0, image_root=ROOT)


def test_every_task_is_one_message_with_all_of_its_pictures() -> None:
    chat = ScriptedChat(lambda request: "Yes" if len(request.messages[0].images) == 3 else "red")
    answers = ask(chat)
    (batch,) = chat.batches
    assert [len(request.messages) for request in batch] == [1, 1]
    assert [request.messages[0].images for request in batch] == [
        (ROOT / "q-0.png",),
        (ROOT / "s-0.png", ROOT / "s-1.png", ROOT / "s-2.png"),
    ]
    assert [request.messages[0].text for request in batch] == [
        "answer What color is the star?",
        "answer Is this true of the pictures: All three pictures contain a star.",
    ]
    found = score_direct(TASKS, answers, TRUTHS, system="direct VLM")
    assert [(item.correct, item.status, item.answer) for item in found] == [(True, "ok", "red"), (True, "ok", "Yes")], "yes is true"
    assert [(item.sample_id, item.family, item.group, item.system) for item in found] == [
        (task.id, task.family, task.group, "direct VLM") for task in TASKS
    ]


def test_what_is_no_answer_is_wrong_and_says_why() -> None:
    def refuse(request: ChatRequest) -> Any:
        return broken("at most 1 image") if len(request.messages[0].images) > 1 else cut("re")

    answers = ask(ScriptedChat(refuse))
    found = score_direct(TASKS, answers, TRUTHS, system="direct VLM")
    assert [(item.correct, item.status, item.answer) for item in found] == [(False, "answer_missing", None), (False, "failed", None)]
    assert answers[1].raw == "error: at most 1 image"
    kinds = {task.id: task.kind for task in TASKS}
    assert [item.sample_id for item in drop_failed(found, kinds)] == ["q"], "a kind that the model cannot be asked has no figure"
    assert drop_failed(found, dict.fromkeys(kinds, "vqa")) == found, "single failures count"


def test_a_task_without_an_answer_in_words_is_refused() -> None:
    with pytest.raises(
        DataError, match=r"^task e is of the kind editing, which has no answer in words; tasks of vqa and multi_image have$"
    ):
        ask(ScriptedChat(lambda request: "red"), [make_task("e", "editing")])
    answers = ask(ScriptedChat(lambda request: "red"))
    with pytest.raises(DataError, match="2 answers do not belong to the 1 tasks"):
        score_direct(TASKS[:1], answers, TRUTHS, system="direct VLM")
    with pytest.raises(DataError, match="the truth of a multi_image task must have an answer"):
        score_direct(TASKS, answers, {"q": TRUTHS["q"]}, system="direct VLM")
