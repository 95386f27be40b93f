"""The two agents behind the page: the reasoner of the last accepted round writes a chain, the summarizer answers."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from apps._assistant import check_text
from apps._pictures import Picture
from flows._answer_traces import log_question
from flows._layout import Layout
from flows._mounts import mount_model
from flows._records import read_json, read_split
from flows._registry import load_registered
from flows._tracking import TrackedRun
from flows._words import PageQuestion, load_run, save_run
from flows.dpo_rounds import REGISTERED_NAME
from visloop.chat.factory import cached_chat
from visloop.config import Config
from visloop.errors import ConfigError, DataError
from visloop.ids import make_id
from visloop.prompts.render import PromptSet
from visloop.reasoning.agents import sample_chains, summarize_chains
from visloop.reasoning.combine import group_chains
from visloop.records.manifest import MANIFEST_NAME, read_manifest
from visloop.records.reasoning import Sample

SAMPLES = 8


@dataclass(frozen=True, kw_only=True)
class Agents:
    """The models in use: ``name`` is the reasoner's, M_t."""

    name: str
    key: str
    reasoner: Path
    summarizer: Path


class AgentsDesk:
    """Answers questions, one at a time, with the newest accepted reasoner."""

    def __init__(self, config: Config, layout: Layout) -> None:
        self.config, self.layout = config, layout
        self._agents: Agents | None = None
        self._lock = threading.Lock()

    def find_version(self) -> int | None:
        """The round of the last accepted reasoner; None before there is one."""
        heads = sorted(self.layout.round(0).parent.glob(f"[0-9]*/report/{MANIFEST_NAME}"))
        trained = heads and (self.layout.model("summarizer") / MANIFEST_NAME).is_file()
        return int(read_json(heads[-1].parent / "head.json")["round"]) if trained else None

    def list_samples(self) -> list[Sample]:
        """Training questions, to choose a picture from, one per picture."""
        if not (self.layout.raw / "train.jsonl").is_file():
            return []
        by_picture = {sample.images: sample for sample in reversed(read_split(self.layout, "train")) if len(sample.images) == 1}
        return list(reversed(by_picture.values()))[:SAMPLES]

    def ask(self, text: str, *, kind: str, pictures: Sequence[Picture], tracked: TrackedRun) -> PageQuestion:
        """A greedy chain and the answer; kept, and logged as a trace. The same question to the same models is the same run.

        Raises:
            ConfigError: no question, too long a one, or not one picture.
            DataError: no agents have been trained yet, their files are other than registered, or MLflow did not keep the trace.
            ModelError: the reasoner is not in the registry.
        """
        text = check_text(text, what="a question")
        if len(pictures) != 1:
            raise ConfigError(f"one picture is needed, got {len(pictures)}: choose or upload one")
        [picture] = pictures
        sample = Sample(
            id=make_id("page", "question", text, picture.sha256),
            images=(picture.path,),
            question=text,
            answer="",
            answer_type="phrase",
            family="page",
            split="train",
            source="page",
            group=make_id("page", picture.sha256),
            image_hashes=(picture.sha256,),
        )
        with self._lock:
            asked = self._answer(sample, self._open_agents(), upload=picture.upload)
            save_run(self.layout, asked)
            log_question(asked, tracked=tracked)
        return asked

    def load(self, run_id: str) -> PageQuestion | None:
        """A question that was asked before."""
        question: PageQuestion | None = load_run(self.layout, PageQuestion, run_id)
        return question

    def _open_agents(self) -> Agents:
        number = self.find_version()
        if number is None:
            raise DataError(f"no agents have been trained in {self.layout.root} yet: run `make demo` (or `python -m flows.pipeline`) first")
        if self._agents is None or self._agents.name != f"M_{number}":
            summarizer = self.layout.model("summarizer")
            reasoner = load_registered(REGISTERED_NAME, mlruns=Path(self.config.paths.mlruns), alias=f"m{number}")
            manifest = read_manifest(summarizer)
            key = make_id(reasoner, number, manifest.key if manifest else "")
            self._agents = Agents(name=f"M_{number}", key=key, reasoner=reasoner, summarizer=summarizer)
        return self._agents

    def _answer(self, sample: Sample, agents: Agents, *, upload: str) -> PageQuestion:
        started = time.perf_counter()
        config, style, root = self.config, PromptSet(self.config.prompts), self.layout.root
        reasoner, summarizer = (cached_chat(mount_model(config.base, folder)) for folder in (agents.reasoner, agents.summarizer))
        sampling = config.answer.reason_sampling
        [chain] = sample_chains(
            [sample], model=reasoner, prompts=style, samples_per_question=1, sampling=sampling, seed=config.seed, image_root=root
        )
        [answer] = summarize_chains(
            [sample],
            group_chains([chain]),
            model=summarizer,
            prompts=style,
            sampling=config.answer.summary_sampling,
            seed=config.seed,
            image_root=root,
        )
        return PageQuestion(
            id=make_id("question", sample.id, agents.key, style.hash, config.seed),
            sample=sample,
            chain=chain,
            answer=answer,
            model=agents.name,
            seconds=round(time.perf_counter() - started, 3),
            uploads=(upload,),
        )
