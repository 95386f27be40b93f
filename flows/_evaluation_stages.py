"""The stages that examine models: chains of every reasoner, answers of every system."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from flows._layout import Layout
from flows._mounts import chat_inputs, hash_prompts, mount_model
from flows._records import read_json, read_split
from flows._round_stages import read_reports
from flows._stage import Lazy, run_stage
from flows.assessment import ASSESS_CODE, Judges
from flows.sft import CHAIN_CODE
from visloop.chat.base import ChatModel
from visloop.chat.factory import open_chat
from visloop.config import Combine, Config
from visloop.evaluation.systems import Exam, System, list_systems, measure_reasoner, run_system, write_chains
from visloop.prompts.render import PromptSet
from visloop.records.reasoning import Prediction, ReasoningPath
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


def make_exam(config: Config, layout: Layout) -> Exam:
    """The held-out questions and the conditions, the same for every system."""
    return Exam(
        samples=read_split(layout, "test"),
        prompts=PromptSet(config.prompts),
        answer=config.answer,
        sampled=config.rounds.sampling,
        seed=config.seed,
        image_root=layout.root,
    )


def examine_reasoner(config: Config, layout: Layout, *, reasoner: Reasoner, folder: Path | None = None) -> Any:
    """Stage: greedy and sampled chains of M_t on the test split, with accuracies and path scores."""
    measuring = replace(config, assess=replace(config.assess, scorer=config.evaluation.scorer))
    judges = Judges(measuring, layout)
    chat = Lazy(partial(open_chat, mount_model(config.base, reasoner.folder)))
    count = config.evaluation.sampled_chains

    def work(place: Path) -> dict[str, float]:
        exam = make_exam(config, layout)
        greedy = write_chains(exam, model=chat.get())
        sampled = write_chains(exam, model=chat.get(), count=count, sampled=True)
        predictions = measure_reasoner(exam, name=reasoner.name, greedy=greedy, sampled=sampled, scorer=judges.open_scorer())
        write_shard(place / "greedy.jsonl", greedy)
        write_shard(place / "sampled.jsonl", sampled)
        write_shard(place / "predictions.jsonl", predictions)
        return {"questions": len(predictions), "greedy": sum(item.correct for item in predictions) / len(predictions)}

    return run_stage(
        f"examine {reasoner.name}",
        folder=folder or layout.evaluation / reasoner.name,
        inputs={"model": reasoner.folder, "raw": layout.raw, **judges.inputs()},
        config={
            "assess": measuring.assess,
            "answer": config.answer.reason_sampling,
            "sampling": config.rounds.sampling,
            "samples": count,
            "prompts": hash_prompts(config),
            "seed": config.seed,
        },
        code=["visloop.evaluation.systems", *ASSESS_CODE, *CHAIN_CODE],
        work=work,
        resources=[chat, *judges.resources],
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

    def work(place: Path) -> dict[str, float]:
        exam = make_exam(config, layout)
        models = _OnDemand(lazies)
        sampled: list[ReasoningPath] | None = None
        for system in systems:
            chains: Sequence[ReasoningPath] | None = None
            if system.kind == "two_agents" and system.chains == 1:
                chains = read_shard(layout.evaluation / system.model / "greedy.jsonl", ReasoningPath)
            elif system.kind == "two_agents":
                sampled = sampled or write_chains(exam, model=models[system.model], count=system.chains, sampled=True)
                chains = sampled
            scorer = judges.open_judge(show_answer=False) if system.combine is Combine.best_of_n else None
            predictions = run_system(system, exam, models=models, generate=config.generate, scorer=scorer, chains=chains)
            write_shard(place / f"{name_file(system)}.jsonl", predictions)
        return {"systems": len(systems), "questions": len(exam.samples)}

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
            "answer": config.answer,
            "sampling": config.rounds.sampling,
            "generate": config.generate,
            "assess": config.assess,
            "vote_chains": config.evaluation.vote_chains,
            "systems": [system.name for system in systems],
            "prompts": hash_prompts(config),
            "seed": config.seed,
        },
        code=["visloop.evaluation.systems", *ASSESS_CODE, *CHAIN_CODE],
        work=work,
        resources=[*lazies.values(), *judges.resources],
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
