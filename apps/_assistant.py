"""The assistant behind the page: plans and runs one instruction with the newest pools, by the code that the flows run."""

import threading
from collections.abc import Sequence
from typing import get_args

from PIL import Image

from apps._pictures import Picture, PictureStore, draw_regions
from flows._assistant_parts import Workbench
from flows._assistant_stages import read_tasks
from flows._candidates import find_champion_cycle
from flows._cycle_history import check_cycle_files
from flows._layout import Layout
from flows._people import find_newest_cycle
from flows._traces import log_traces
from flows._tracking import TrackedRun
from flows._words import PageRun, load_run, save_run
from visloop.assistant.interpreter import ExecutedStep, Execution, Job, run_programs
from visloop.assistant.pools import POOL_NAMES, Pools, read_pools
from visloop.assistant.program import TASK_INPUTS
from visloop.assistant.runs import CycleParts, propose_programs, teach_planner
from visloop.assistant.traces import make_trace
from visloop.config import Config, Serve
from visloop.errors import ConfigError, DataError
from visloop.ids import hash_file, make_id
from visloop.records.assistant import Task, TaskKind
from visloop.records.manifest import MANIFEST_NAME
from visloop.tools.values import Box, VisualObject

MAX_TEXT = 300
"""Characters of an instruction or a question."""
SAMPLES_PER_KIND = 3
SHOWN_DEMONSTRATIONS = 3


class AssistantDesk:
    """Answers instructions, one at a time. Models are opened at the first one; pools are read again when a newer cycle is there."""

    def __init__(self, config: Config, layout: Layout, *, pictures: PictureStore) -> None:
        self.config, self.layout, self.pictures = config, layout, pictures
        shown = layout.page.relative_to(layout.root).as_posix()
        self._bench = Workbench(config, layout, truths={}, folder=layout.page, shown=shown)
        self._parts: CycleParts | None = None
        self._pools: tuple[str, Pools] | None = None
        self._lock, self._records = threading.Lock(), threading.Lock()

    def find_version(self) -> int | None:
        """The cycle whose pools the next answer uses: the champion's where there is one and the settings want it, else the newest. None
        before there are any."""
        champion = find_champion_cycle(self.config, self.layout) if self.config.promotion.serve is Serve.champion else None
        return find_newest_cycle(self.layout) if champion is None else champion

    def list_samples(self) -> list[Task]:
        """Instructions of the stream, to choose a picture from: none of them is held out."""
        if not (self.layout.tasks / "stream.jsonl").is_file():
            return []
        tasks = read_tasks(self.layout, "stream")
        return [task for kind in get_args(TaskKind) for task in [task for task in tasks if task.kind == kind][:SAMPLES_PER_KIND]]

    def ask(self, text: str, *, kind: str, pictures: Sequence[Picture], tracked: TrackedRun) -> PageRun:
        """Plan and run an instruction, keep the run, and log it as a trace. The same one with the same pools is the same run.

        Raises:
            ConfigError: no instruction, too long a one, an unknown kind, or not as many pictures as the kind has.
            DataError: there are no pools yet, their files are not as they were written, or MLflow did not keep the trace.
        """
        task = make_task(text, kind=kind, pictures=pictures)
        with self._lock:
            cycle, pools = self._open_pools()
            run = self._run(task, pools=pools, cycle=cycle, uploads=tuple(picture.upload for picture in pictures))
        # Writing down takes longer than answering: meanwhile the models are free for the next person.
        with self._records:
            save_run(self.layout, run)
            tracked.step = cycle
            log_traces([run.trace], {}, tracked=tracked, tasks={task.id: task}, llm=self.config.llm)
        return run

    def load(self, run_id: str) -> PageRun | None:
        """A run that was asked for before."""
        run: PageRun | None = load_run(self.layout, PageRun, run_id)
        return run

    def _open_pools(self) -> tuple[int, Pools]:
        cycle = self.find_version()
        if cycle is None:
            raise DataError(
                f"the assistant has no pools in {self.layout.cycle(0).parent} yet: run `python -m flows.reflect_learn "
                "assistant.tasks.only=0` (a minute) or `make demo-clova`, then ask again"
            )
        # Not by number alone: after a rollback the same number may be played again.
        digest = hash_file(self.layout.cycle(cycle) / MANIFEST_NAME)
        if self._pools is None or self._pools[0] != digest:
            check_cycle_files(self.layout, cycle, parts=POOL_NAMES)
            self._pools = digest, read_pools(self.layout.cycle(cycle))
        return cycle, self._pools[1]

    def _run(self, task: Task, *, pools: Pools, cycle: int, uploads: tuple[str, ...]) -> PageRun:
        if self._parts is None:
            self._parts = self._bench.open_parts()
        parts = teach_planner(self._parts, pools)
        [proposal] = propose_programs([task], pools=pools, parts=parts)
        job = Job(task, proposal, parts.load_inputs(task))
        [execution] = run_programs([job], tools=parts.tools.with_pool(pools.prompts))
        trace = make_trace(execution, describe_image=parts.describe_image, save_image=parts.save_image, key=f"page cycle {cycle}")
        used = {prompt for step in trace.steps for prompt in step.prompts}
        entries = {prompt.entry.id: prompt.entry for prompt in pools.prompts.prompts if prompt.entry.id in used}
        known = {entry.id: entry.instruction for entry in pools.demonstrations.entries}
        shown = dict.fromkeys(known[key] for key in proposal.demonstrations if key in known)
        return PageRun(
            task=task,
            trace=trace,
            uploads=uploads,
            views=tuple(self._draw_step(step, execution) for step in execution.steps),
            learned={key: f"{entry.concept} ({entry.tool}, cycle {entry.cycle})" for key, entry in sorted(entries.items())},
            shown=tuple(shown)[:SHOWN_DEMONSTRATIONS],
            cycle=cycle,
        )

    def _draw_step(self, step: ExecutedStep, execution: Execution) -> str | None:
        """A picture of what a step gave: its own, or its boxes on the picture that it saw."""
        if isinstance(step.value, Image.Image):
            return self.pictures.keep(step.value)
        regions = [entry for entry in step.value if isinstance(entry, Box | VisualObject)] if isinstance(step.value, tuple) else []
        seen = None if step.call is None else step.call.arguments.get("image")
        inputs = list(execution.job.inputs.values())
        if seen is None and len(inputs) == 1:
            seen = inputs[0]
        return self.pictures.keep(draw_regions(seen, regions)) if regions and isinstance(seen, Image.Image) else None


def make_task(instruction: str, *, kind: str, pictures: Sequence[Picture]) -> Task:
    """What a person asks, as a task of the train split. Its id follows from its words and pictures.

    Raises:
        ConfigError: as ``AssistantDesk.ask``.
    """
    text = check_text(instruction, what="an instruction")
    if kind not in TASK_INPUTS:
        raise ConfigError(f"kind {kind[:40]!r}: one of {', '.join(TASK_INPUTS)} is needed")
    inputs = TASK_INPUTS[kind]
    if len(pictures) != len(inputs):
        raise ConfigError(f"{kind.replace('_', ' ')} needs {len(inputs)} picture(s), got {len(pictures)}: choose or upload as many")
    digests = tuple(picture.sha256 for picture in pictures)
    return Task(
        id=make_id("page", kind, text, *digests),
        kind=kind,  # type: ignore[arg-type]
        instruction=text,
        images=tuple(picture.path for picture in pictures),
        inputs=inputs,
        family="page",
        wording="new",
        split="train",
        group=make_id("page", *digests),
        source="page",
        image_hashes=digests,
    )


def check_text(text: str, *, what: str) -> str:
    """The text on one line, without characters that no file can hold.

    Raises:
        ConfigError: it is empty or too long.
    """
    line = " ".join(text.encode("utf-8", "replace").decode().split())
    if not line or len(line) > MAX_TEXT:
        raise ConfigError(f"type {what} of 1 to {MAX_TEXT} characters; this one has {len(line)}")
    return line
