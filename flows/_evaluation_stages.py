"""The stages that examine models: chains of every reasoner, answers of every system."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from flows._exams import EXAM_CODE, Examination, make_exam
from flows._layout import Layout
from flows._mounts import chat_inputs, hash_prompts, mount_model
from flows._records import read_json, read_split
from flows._round_stages import read_reports
from flows._stage import run_stage
from flows._workers import PART_SIZE, Jobs, Lazy, cut_parts
from flows.assessment import Judges
from visloop.chat.base import ChatModel
from visloop.chat.factory import open_chat
from visloop.config import Combine, Config
from visloop.evaluation.systems import System, list_systems, run_system, write_chains
from visloop.records.reasoning import Prediction, ReasoningPath, Sample
from visloop.records.shards import read_shard, write_shard

CHAIN_METRICS = ("greedy_accuracy", "sampled_accuracy", "path_score", "malformed", "chain_tokens")


@dataclass(frozen=True)
class Reasoner:
    """A model M_t of the loop. ``accepted`` is False for a round that its guards rejected."""

    name: str
    round: int
    folder: Path
    accepted: bool


def list_reasoners(config: Config, layout: Layout) -> list[Reasoner]:
    """M_0 and the model of every round that was played."""
    played = read_reports(layout, before=config.rounds.rounds + 1)
    models = [Reasoner(f"M_{report.round}", report.round, layout.round(report.round) / "model", report.accepted) for report in played]
    return [Reasoner("M_0", 0, layout.model("reasoner"), True), *models]


def examine_reasoner(config: Config, layout: Layout, *, reasoner: Reasoner, folder: Path | None = None) -> Any:
    """Stage: greedy and sampled chains of M_t on the test split, with accuracies and path scores."""
    measuring = replace(config, assess=replace(config.assess, scorer=config.evaluation.scorer))
    count = config.evaluation.sampled_chains
    examination = Examination(measuring, layout, name=reasoner.name, model=reasoner.folder, split="test", count=count)

    def work(place: Path) -> dict[str, float]:
        found = examination.run()
        write_shard(place / "greedy.jsonl", found.greedy)
        write_shard(place / "sampled.jsonl", found.sampled)
        write_shard(place / "predictions.jsonl", found.predictions)
        return {"questions": len(found.predictions), "greedy": fmean(item.correct for item in found.predictions)}

    return run_stage(
        f"examine {reasoner.name}",
        folder=folder or layout.evaluation / reasoner.name,
        inputs=examination.inputs(),
        config=examination.settings(),
        code=EXAM_CODE,
        work=work,
        resources=examination.resources,
    )


def answer_systems(config: Config, layout: Layout, *, reasoners: Sequence[Reasoner]) -> Any:
    """Stage: the predictions of every row of the ablation table. Each model is opened once."""
    accepted = [reasoner for reasoner in reasoners if reasoner.accepted]
    votes = (Combine.self_consistency, Combine.best_of_n)
    systems = list_systems(rounds=[reasoner.name for reasoner in accepted[1:]], vote_chains=config.evaluation.vote_chains, votes_by=votes)
    folders = {
        **{reasoner.name: reasoner.folder for reasoner in accepted},
        **{name: layout.model(name) for name in ("summarizer", "direct_sft", "multi_turn")},
    }
    lazies = {"base": Lazy(partial(open_chat, config.base))}
    lazies |= {role: Lazy(partial(open_chat, mount_model(config.base, folder))) for role, folder in folders.items()}
    judges = Judges(config, layout)
    resources = [*lazies.values(), *judges.resources]

    def answer(samples: Sequence[Sample]) -> list[list[Prediction]]:
        """Every system's answers to a part of the questions."""
        exam = make_exam(config, layout, samples)
        asked = {sample.id for sample in samples}
        models = _OnDemand(lazies)
        sampled: list[ReasoningPath] | None = None
        predictions = []
        for system in systems:
            chains: Sequence[ReasoningPath] | None = None
            if system.kind == "two_agents" and system.chains == 1:
                written = read_shard(layout.evaluation / system.model / "greedy.jsonl", ReasoningPath)
                chains = [path for path in written if path.sample_id in asked]
            elif system.kind == "two_agents":
                sampled = sampled or write_chains(exam, model=models[system.model], count=system.chains, sampled=True)
                chains = sampled
            scorer = judges.open_judge(show_answer=False) if system.combine is Combine.best_of_n else None
            predictions.append(run_system(system, exam, models=models, generate=config.generate, scorer=scorer, chains=chains))
        return predictions

    def work(place: Path) -> dict[str, float]:
        samples = read_split(layout, "test")
        with Jobs(answer, cut_parts(samples), workers=config.workers, resources=resources) as jobs:
            parts = jobs.take_all()
        for number, system in enumerate(systems):
            write_shard(place / f"{name_file(system)}.jsonl", [item for part in parts for item in part[number]])
        return {"systems": len(systems), "questions": len(samples)}

    return run_stage(
        "systems",
        folder=layout.evaluation / "systems",
        inputs={
            "raw": layout.raw,
            **folders,
            **chat_inputs("base", config.base),
            **chat_inputs("judge", config.assess.judge),
            **{f"chains {reasoner.name}": layout.evaluation / reasoner.name for reasoner in accepted},
        },
        config={
            "chat": config.base,
            "answer": config.answer,
            "sampling": config.rounds.sampling,
            "generate": config.generate,
            "assess": config.assess,
            "vote_chains": config.evaluation.vote_chains,
            "systems": [system.name for system in systems],
            "part_size": PART_SIZE,
            "prompts": hash_prompts(config),
            "seed": config.seed,
        },
        code=EXAM_CODE,
        work=work,
        resources=resources,
    )


class _OnDemand(Mapping[str, ChatModel]):
    """Models by role, each opened when it is first asked for."""

    def __init__(self, lazies: Mapping[str, Lazy[ChatModel]]) -> None:
        self._lazies = lazies

    def __getitem__(self, role: str) -> ChatModel:
        return self._lazies[role].get()

    def __iter__(self) -> Any:
        return iter(self._lazies)

    def __len__(self) -> int:
        return len(self._lazies)


def name_file(system: System) -> str:
    """The file stem of a system's predictions."""
    return "".join(letter if letter.isalnum() else "_" for letter in system.name.lower())


def read_systems(layout: Layout) -> dict[str, list[Prediction]]:
    """The predictions of every system by its name, in the order of the table."""
    folder = layout.evaluation / "systems"
    order = {name: index for index, name in enumerate(read_json(folder / "manifest.json")["config"]["systems"])}
    read = [read_shard(path, Prediction) for path in sorted(folder.glob("*.jsonl"))]
    return {items[0].system: items for items in sorted(read, key=lambda items: order[items[0].system])}
