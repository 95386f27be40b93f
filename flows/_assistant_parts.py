"""What a reflect-and-learn cycle works with, made from the configuration: planner, tools, critic, sources of teaching, feedback."""

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from PIL import Image

from flows._folders import find_scratch
from flows._layout import Layout
from flows._mounts import mount_model
from flows._people import FrozenWords
from visloop.assistant.critics import open_critic, open_inference
from visloop.assistant.interpreter import Execution
from visloop.assistant.material import TeachingSources, adapt_tools, plan_tools
from visloop.assistant.planner import open_planner
from visloop.assistant.providers import DataProvider
from visloop.assistant.runs import CycleParts
from visloop.assistant.safety import Safety
from visloop.assistant.sources import LeftOut, NotedProvider, Shelf, open_drawn, open_regions, open_search
from visloop.chat.factory import cached_chat
from visloop.chat.timing import TimedChat
from visloop.config import Config
from visloop.config_assistant import AssistantConfig, CriticChoice, TaskSource
from visloop.datasets.images import store_picture
from visloop.evaluation.assistant import TaskScore, make_feedback, score_task
from visloop.evaluation.edit_check import open_clip_check
from visloop.evaluation.edit_scores import CheckCrop
from visloop.evaluation.people import judge_by_word
from visloop.ids import make_id, seed_for
from visloop.prompts.render import PromptSet
from visloop.reasoning.agents import sample_chains, summarize_chains
from visloop.reasoning.combine import group_chains
from visloop.records.assistant import Feedback, Instance, Task, TaskTruth, Trace
from visloop.records.reasoning import Sample
from visloop.records.shards import read_shard, write_bytes, write_shard
from visloop.scenes.tasks_tagging import FACTS
from visloop.scenes.workshop import BASE_VOCABULARY, BASE_WORDS
from visloop.tools.base import ToolCall
from visloop.tools.pictures import prepare_image
from visloop.tools.prompt_pool import PromptPool
from visloop.tools.signatures import LEARNABLE
from visloop.tools.toolbox import Toolbox, open_toolbox

REPLAY_PER_WORD = 10
"""Instances of each base word in the replay set of prompt tuning."""
PICTURES, MATERIAL = "pictures", "material"
LEFT_OUT = "left_out.jsonl"
"""What providers refused or skipped, with the reasons: beside the instances that they gave."""
_BY_ANNOTATIONS = ("LOC", "SEG", "VQA", "FILTER")


class Workbench:
    """The parts of one configuration: models and tools are opened once, on first use, and shared by all cycles and evaluations.

    ``folder`` takes the pictures that runs leave and those that tools are taught with; records name them by ``shown``, its path
    relative to the data folder: a stage writes into a folder that is moved when it is finished. ``people`` judge their own tasks;
    ``truths`` all others.
    """

    def __init__(
        self,
        config: Config,
        layout: Layout,
        *,
        truths: Mapping[str, TaskTruth],
        folder: Path,
        shown: str,
        people: FrozenWords | None = None,
    ) -> None:
        self.config, self.layout, self.truths, self.folder, self.shown = config, layout, truths, folder, shown
        self.people = people

    @property
    def assistant(self) -> AssistantConfig:
        return self.config.assistant

    @property
    def lessons(self) -> Path:
        """Stands for the data folder while tools are taught: instances name pictures by where these will lie."""
        return find_scratch(self.folder) / "lessons"

    @property
    def material_name(self) -> str:
        """The folder of the pictures that tools are taught with, by content hash, relative to the data folder."""
        return f"{self.shown}/{MATERIAL}"

    @property
    def material(self) -> Path:
        """Where they lie while the cycle runs."""
        return self.lessons / self.material_name

    def keep_material(self, instances: Iterable[Instance]) -> None:
        """Copy what instances name, and no more, to where they name it; beside it, what their providers left out."""
        for name in sorted({name for instance in instances for name in (instance.image, instance.mask) if name}):
            write_bytes(self.folder / Path(name).relative_to(self.shown), (self.lessons / name).read_bytes(), sync=False)
        write_shard(self.folder / LEFT_OUT, self._read_left_out())

    def note_left_out(self, found: Sequence[LeftOut]) -> None:
        """Add to what was left out, each once. A run that is killed leaves it: one that goes on does not ask for its words again."""
        write_shard(find_scratch(self.folder) / LEFT_OUT, dict.fromkeys([*self._read_left_out(), *found]))

    def _read_left_out(self) -> list[LeftOut]:
        path = find_scratch(self.folder) / LEFT_OUT
        return read_shard(path, LeftOut) if path.is_file() else []

    @cached_property
    def chat(self) -> TimedChat | None:
        """The LLM of planner, critic, LIST and the search for negatives, where one of them needs it."""
        return TimedChat(cached_chat(self.config.llm)) if self.assistant.asks_llm() else None

    @cached_property
    def tools(self) -> Toolbox:
        """The toolbox with an empty pool, tuned as the ablations of ``learning`` want it."""
        tools = adapt_tools(self.assistant.tools, learning=self.assistant.learning)
        drawn = self.assistant.tasks.name is TaskSource.workshop  # the drawn world has sets and flags of its own
        facts = tools.facts or (FACTS.as_posix() if drawn else "")
        return open_toolbox(
            replace(tools, facts=facts),
            pool=PromptPool(),
            chat=self.chat,
            answer=self.ask_agents,
            open_check=self.safety.open_check if self.safety.checks_pictures else None,
            root=self.lessons,
        )

    @cached_property
    def safety(self) -> Safety:
        """What is never taken; its classifier is loaded when a picture is first fetched or painted."""
        return Safety(self.assistant.safety)

    def ask_agents(self, questions: Sequence[tuple[str, Image.Image]]) -> list[str]:
        """Answers of the two agents of Insight-V (``tools.vqa=agents``): the trained reasoner's chain, then the summarizer's answer."""
        with tempfile.TemporaryDirectory() as folder:
            return self._ask_agents([_make_sample(question, image, root=Path(folder)) for question, image in questions], Path(folder))

    def _ask_agents(self, samples: Sequence[Sample], root: Path) -> list[str]:
        style, seed, answer = PromptSet(self.config.prompts), self.config.seed, self.config.answer
        reasoner, summarizer = (cached_chat(mount_model(self.config.base, self.layout.model(name))) for name in ("reasoner", "summarizer"))
        chains = sample_chains(
            samples, model=reasoner, prompts=style, samples_per_question=1, sampling=answer.reason_sampling, seed=seed, image_root=root
        )
        given = summarize_chains(
            samples,
            group_chains(chains),
            model=summarizer,
            prompts=style,
            sampling=answer.summary_sampling,
            seed=seed,
            image_root=root,
        )
        return [item.answer or "" for item in given]

    def open_parts(self) -> CycleParts:
        """Everything for ``visloop.assistant.cycle``."""
        assistant, prompts = self.assistant, PromptSet("full")
        learning = assistant.learning
        return CycleParts(
            planner=open_planner(assistant.planner, chat=self.chat, prompts=prompts, vocabulary=BASE_VOCABULARY, tools=self.tools),
            tools=self.tools,
            critic=open_critic(assistant.reflection, chat=self.chat, prompts=prompts),
            sources=TeachingSources(
                providers=self._open_providers(),
                find_replay=lambda tool: self.replay,
                inference=open_inference(assistant.reflection, chat=self.chat, prompts=prompts),
                out=self.material,
                prefix=self.material_name,
                safety=self.safety,
            ),
            plan=plan_tools(assistant.tools, validate=learning.validate),
            give_feedback=self.give_feedback,
            load_inputs=self.load_inputs,
            describe_image=self.describe_image,
            save_image=self.save_image,
            reflection=assistant.reflection,
            learning=learning,
            use_failures=assistant.planner.use_failures,
            batch=assistant.tasks.batch,
            seed=self.config.seed,
        )

    def _open_providers(self) -> dict[str, Sequence[DataProvider]]:
        """CLOVA 3.4: LOC and SEG learn from an open-vocabulary set, SELECT, CLASSIFY and REPLACE from image search; VQA infers the
        answer and finds more pictures of it as LOC does. Where one source has too little, the other is asked."""
        providers, shelf = self.assistant.providers, self._shelf
        annotated = open_regions(providers, shelf, drawn=self.drawn)
        searched = open_search(
            providers, shelf, collection=self.layout.collection, chat=self.chat, prompts=PromptSet("full"), seed=self.config.seed
        )
        return {tool: (annotated, searched) if tool in _BY_ANNOTATIONS else (searched, annotated) for tool in (*LEARNABLE, "FILTER")}

    @property
    def _shelf(self) -> Shelf:
        return Shelf(out=self.material, prefix=self.material_name, note=self.note_left_out, safety=self.safety)

    @cached_property
    def drawn(self) -> NotedProvider:
        """The drawn set of regions: it alone has the words that the shipped tools were trained with."""
        return open_drawn(self.layout.collection, self._shelf)

    @cached_property
    def replay(self) -> tuple[Instance, ...]:
        """Instances of the words that the shipped tools know: no new prompt may cost them."""
        return tuple(
            instance
            for words in BASE_WORDS.values()
            for word in words
            for instance in self.drawn.collect(
                word, tool="LOC", positives=REPLAY_PER_WORD, negatives=0, seed=seed_for(self.config.seed, "replay", word)
            )
        )

    def load_inputs(self, task: Task) -> dict[str, Image.Image]:
        """A task's pictures by variable."""
        side = self.assistant.tools.max_image_side
        return {name: prepare_image(self.layout.root / image, max_side=side) for name, image in zip(task.inputs, task.images, strict=True)}

    def describe_image(self, image: Image.Image) -> str:
        """A caption for critics that read: what the tools see in the picture. Without an LLM nobody reads it."""
        if self.assistant.reflection.critic is not CriticChoice.llm:
            return f"a picture of {image.width}x{image.height} pixels"
        [result] = self.tools.run("SEG", [ToolCall(tool="SEG", arguments={"image": image})])
        labels = [getattr(entry, "label", "") for entry in result.value] if isinstance(result.value, tuple) else []
        return "a picture of " + (", ".join(label for label in labels if label) or "nothing that the tools know")

    def save_image(self, image: Image.Image) -> str:
        """Keep a result's picture; its path relative to the data folder."""
        stored = store_picture(image.convert("RGB"), out=self.folder / PICTURES)
        return f"{self.shown}/{PICTURES}/{stored.name}"

    @cached_property
    def check_crop(self) -> CheckCrop:
        """What the frozen CLIP says of new objects in edited pictures, beside ground truth."""
        return open_clip_check(self.tools, config=self.assistant.tools)

    def score(self, task: Task, trace: Trace) -> TaskScore:
        """The score of a run by ground truth. The result's picture is still in ``folder``."""
        if trace.result_image is not None:
            trace = replace(trace, result_image=(self.folder / Path(trace.result_image).relative_to(self.shown)).resolve().as_posix())
        return score_task(trace, self.truths[task.id], task=task, data=self.layout.root, check=self.check_crop)

    def give_feedback(self, execution: Execution, trace: Trace) -> Feedback:
        """What is said of a run: by a person's word where one judged this task, else by ground truth, which enters a cycle here only."""
        task = execution.job.task
        if self.people is not None and task.id in self.people.words:
            return judge_by_word(execution, trace, word=self.people.words[task.id], seen=self.people.seen[task.id])
        return make_feedback(trace, self.truths[task.id], score=self.score(task, trace))


def _make_sample(question: str, image: Image.Image, *, root: Path) -> Sample:
    """A question of the VQA tool as the agents read one, its picture below ``root``."""
    stored = store_picture(image.convert("RGB"), out=root).name
    return Sample(
        id=make_id("vqa", question, stored),
        images=(stored,),
        question=question,
        answer="",
        answer_type="phrase",
        family="vqa",
        split="test",
        source="assistant",
        group=stored,
    )
