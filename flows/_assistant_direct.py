"""The stage of the row without programs: a vision-language model answers the held-out instructions from their pictures."""

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from flows._assistant_stages import read_task_truths, read_tasks
from flows._assistant_systems import DIRECT
from flows._layout import Layout
from flows._mounts import chat_inputs, hash_prompts
from flows._stage import Shard, make_shards, run_sharded_stage
from flows._tracking import TrackedRun
from flows._workers import PART_SIZE, Lazy
from visloop.chat.factory import open_chat
from visloop.config import Backend, ChatConfig, Config
from visloop.errors import ModelError
from visloop.evaluation.assistant import ANSWERED
from visloop.evaluation.direct import answer_tasks, score_direct
from visloop.prompts.render import PromptSet
from visloop.records.assistant import Task
from visloop.records.reasoning import AgentAnswer
from visloop.records.shards import write_shard

_log = logging.getLogger(__name__)


def measure_direct(config: Config, layout: Layout, run: TrackedRun) -> Path | None:
    """The folder with the answers of ``assistant.direct``; None where no model is named, or no kind of task has an answer in words."""
    chat = config.assistant.direct
    if chat is None or not set(ANSWERED) & set(config.assistant.tasks.kinds):
        return None
    folder = layout.assistant_evaluation / "direct"
    run.log_stage(answer_pictures(config, layout, chat=chat, folder=folder))
    return folder


def answer_pictures(config: Config, layout: Layout, *, chat: ChatConfig, folder: Path) -> Any:
    """Stage: the answers of ``chat`` to the test tasks whose result can be said in words, one prediction each."""
    tasks = {task.id: task for task in read_tasks(layout, "test") if task.kind in ANSWERED}
    model = Lazy(partial(open_chat, chat))

    def work(shard: Shard[Sequence[str]], path: Path) -> dict[str, float]:
        asked = [tasks[task_id] for task_id in shard.payload]
        answers = answer_tasks(
            asked,
            model=model.get(),
            prompts=PromptSet(config.prompts),
            sampling=config.answer.direct_sampling,
            seed=config.seed,
            image_root=layout.root,
        )
        failed = [answer.raw for answer in answers if answer.status == "failed"]
        if failed:
            _log.warning("%s: %d of %d requests failed, first: %s", DIRECT, len(failed), len(answers), failed[0])
            _refuse_outage(asked, answers, chat=chat)
        predictions = score_direct(asked, answers, read_task_truths(layout), system=DIRECT)
        write_shard(path, predictions)
        return {
            "tasks": len(predictions),
            "correct": sum(item.correct for item in predictions),
            "unread": sum(item.status == "answer_missing" for item in predictions),
            "failed": len(failed),
        }

    return run_sharded_stage(
        f"examine {folder.name}",
        folder=folder,
        inputs={"tasks": layout.tasks, **chat_inputs("direct", chat)},
        config={
            "chat": chat,
            "sampling": config.answer.direct_sampling,
            "prompts": hash_prompts(config),
            "name": DIRECT,
            "seed": config.seed,
        },
        code=["visloop.evaluation.direct", "visloop.chat"],
        shards=[Shard(f"test-{shard.name}", shard.payload) for shard in make_shards(list(tasks), size=PART_SIZE)],
        work=work,
        resources=[model],
        retries=1,
        workers=config.workers,
    )


def _refuse_outage(tasks: Sequence[Task], answers: Sequence[AgentAnswer], *, chat: ChatConfig) -> None:
    """A model may not be able to take the pictures of a kind of task: that is its result. Anything else is no result of the model's.

    Raises:
        ModelError: some tasks of a kind failed and others did not, or nothing came back from an endpoint.
    """
    states: dict[str, set[bool]] = {}
    for task, answer in zip(tasks, answers, strict=True):
        states.setdefault(task.kind, set()).add(answer.status == "failed")
    mixed = sorted(kind for kind, failed in states.items() if len(failed) > 1)
    silent = chat.backend is Backend.openai and all(failed == {True} for failed in states.values())
    if mixed or silent:
        first = next(answer.raw for answer in answers if answer.status == "failed")
        what = f"only some tasks of {' and '.join(mixed)} were answered" if mixed else "no request was answered"
        raise ModelError(
            f"{DIRECT}, {chat.model}: {what} ({first}); run again when it is back, or leave the row out (assistant.direct=null)"
        )
