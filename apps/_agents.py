"""The two agents behind the page: the champion, or the reasoner of the last accepted round, writes a chain, the summarizer answers."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from apps._assistant import check_text
from apps._pictures import Picture
from flows._answer_traces import log_question
from flows._candidates import find_champion
from flows._layout import Layout
from flows._mounts import mount_model
from flows._records import read_json, read_split
from flows._registry import REASONER, find_version, load_registered
from flows._tracking import TrackedRun
from flows._words import PageQuestion, load_run, save_run
from visloop.chat.factory import cached_chat
from visloop.config import Config, Serve
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
    """Answers questions, one at a time."""

    def __init__(self, config: Config, layout: Layout) -> None:
        self.config, self.layout = config, layout
        self._agents: Agents | None = None
        self._chosen: tuple[int, int | None] | None = None
        self._lock, self._records = threading.Lock(), threading.Lock()

    def find_version(self) -> int | None:
        """The round of the reasoner that answers next; None before there is one."""
        chosen = self._choose_version()
        return None if chosen is None else chosen[0]

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
        # Writing down takes longer than answering: meanwhile the models are free for the next person.
        with self._records:
            save_run(self.layout, asked)
            log_question(asked, tracked=tracked)
        return asked

    def load(self, run_id: str) -> PageQuestion | None:
        """A question that was asked before."""
        question: PageQuestion | None = load_run(self.layout, PageQuestion, run_id)
        return question

    def _open_agents(self) -> Agents:
        chosen = self._choose_version()
        if chosen is None:
            raise DataError(f"no agents have been trained in {self.layout.root} yet: run `make demo` (or `python -m flows.pipeline`) first")
        if self._agents is None or self._chosen != chosen:
            number, version = chosen
            summarizer = self.layout.model("summarizer")
            reasoner = load_registered(REASONER, mlruns=Path(self.config.paths.mlruns), alias=f"m{number}", version=version)
            manifest = read_manifest(summarizer)
            key = make_id(reasoner, number, manifest.key if manifest else "")
            self._agents, self._chosen = Agents(name=f"M_{number}", key=key, reasoner=reasoner, summarizer=summarizer), chosen
        return self._agents

    def _choose_version(self) -> tuple[int, int | None] | None:
        """Round and version of the reasoner: the champion of this data folder where there is one and the settings want it, else the last
        accepted round. Version None: only the alias tells (registered before folders were kept)."""
        if not (self.layout.model("summarizer") / MANIFEST_NAME).is_file():
            return None
        mlruns = Path(self.config.paths.mlruns)
        if self.config.promotion.serve is Serve.champion:
            champion = find_champion(REASONER, mlruns=mlruns, data=self.layout.root)
            if champion is not None and champion.data.resolve() == self.layout.root.resolve():
                return champion.round, champion.version
        heads = sorted(self.layout.round(0).parent.glob(f"[0-9]*/report/{MANIFEST_NAME}"))
        if not heads:
            return None
        number = int(read_json(heads[-1].parent / "head.json")["round"])
        folder = self.layout.model("reasoner") if number == 0 else self.layout.round(number) / "model"
        found = find_version(REASONER, mlruns=mlruns, folder=folder)
        return number, None if found is None else int(found.version)

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
