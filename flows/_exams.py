"""Examining models: questions are cut into parts of a fixed size, which the worker processes share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from flows._layout import Layout
from flows._mounts import hash_prompts, mount_model
from flows._records import read_split
from flows._workers import PART_SIZE, Jobs, Lazy, cut_parts
from flows.assessment import ASSESS_CODE, Judges
from flows.sft import CHAIN_CODE
from visloop.chat.factory import open_chat
from visloop.config import Config
from visloop.evaluation.systems import Exam, measure_reasoner, write_chains
from visloop.prompts.render import PromptSet
from visloop.records.reasoning import Prediction, ReasoningPath, Sample, Split

EXAM_CODE = ("visloop.evaluation.systems", *ASSESS_CODE, *CHAIN_CODE)


@dataclass(frozen=True)
class Examined:
    """A reasoner's greedy and sampled chains, and what they are worth by question."""

    greedy: list[ReasoningPath]
    sampled: list[ReasoningPath]
    predictions: list[Prediction]


def make_exam(config: Config, layout: Layout, samples: Sequence[Sample]) -> Exam:
    """Questions and the conditions, the same for every model."""
    return Exam(
        samples=samples,
        prompts=PromptSet(config.prompts),
        answer=config.answer,
        sampled=config.rounds.sampling,
        seed=config.seed,
        image_root=layout.root,
    )


class Examination:
    """One reasoner in front of one split: what a stage that examines it needs to know and to do."""

    def __init__(self, config: Config, layout: Layout, *, name: str, model: Path, split: Split, count: int) -> None:
        self.config, self.layout, self.name, self.model, self.split, self.count = config, layout, name, model, split, count
        self.judges = Judges(config, layout)
        self.chat = Lazy(partial(open_chat, mount_model(config.base, model)))

    @property
    def resources(self) -> list[Lazy[Any]]:
        return [self.chat, *self.judges.resources]

    def inputs(self) -> Mapping[str, Path]:
        return {"model": self.model, "raw": self.layout.raw, **self.judges.inputs()}

    def settings(self) -> Mapping[str, Any]:
        """The part of the configuration that decides what comes out."""
        return {
            "chat": mount_model(self.config.base, Path()),
            "assess": self.config.assess,
            "answer": self.config.answer.reason_sampling,
            "sampling": self.config.rounds.sampling,
            "samples": self.count,
            "part_size": PART_SIZE,
            "prompts": hash_prompts(self.config),
            "seed": self.config.seed,
        }

    def run(self) -> Examined:
        """Write the chains and measure them."""
        samples = read_split(self.layout, self.split)
        with Jobs(self._run_part, cut_parts(samples), workers=self.config.workers, resources=self.resources) as jobs:
            parts = jobs.take_all()
        found = Examined([], [], [])
        for part in parts:
            found.greedy.extend(part.greedy)
            found.sampled.extend(part.sampled)
            found.predictions.extend(part.predictions)
        return found

    def _run_part(self, samples: Sequence[Sample]) -> Examined:
        exam = make_exam(self.config, self.layout, samples)
        greedy = write_chains(exam, model=self.chat.get())
        sampled = write_chains(exam, model=self.chat.get(), count=self.count, sampled=True)
        scorer = self.judges.open_scorer()
        return Examined(greedy, sampled, measure_reasoner(exam, name=self.name, greedy=greedy, sampled=sampled, scorer=scorer))
