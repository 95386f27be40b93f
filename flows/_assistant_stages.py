"""The stages of the assistant: tasks, learning data, the pools it starts with, one cycle, one evaluation of pools."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args

from flows._assistant_context import open_signatures
from flows._assistant_parts import Workbench
from flows._folders import find_scratch
from flows._layout import Layout, pool_inputs
from flows._mounts import hash_prompts
from flows._people import PEOPLE_CODE, read_frozen
from flows._progress import StageProgress
from flows._records import read_json, write_json
from flows._stage import run_stage
from visloop.assistant.cycle import run_cycle
from visloop.assistant.cycle_state import CycleState, load_state, save_state
from visloop.assistant.demonstrations import DemonstrationPool
from visloop.assistant.pools import Pools, read_pools, save_pools
from visloop.assistant.program import TASK_INPUTS
from visloop.assistant.runs import run_tasks, teach_planner
from visloop.assistant.seed_files import add_seed_file
from visloop.assistant.sources import list_files
from visloop.chat.weights import resolve_model
from visloop.config import Config
from visloop.config_assistant import AssistantConfig, ListBackend, PlannerChoice, TasksConfig, TaskSource, VqaBackend, WriterChoice
from visloop.datasets.nlvr_tasks import read_nlvr_tasks
from visloop.errors import ConfigError
from visloop.evaluation.assistant import make_prediction
from visloop.ids import seed_for
from visloop.prompts.render import PromptSet
from visloop.records.assistant import Task, TaskKind, TaskTruth
from visloop.records.reasoning import Prediction, Split
from visloop.records.shards import read_shard, read_shards, write_shard
from visloop.scenes.workshop_collection import export_collection
from visloop.scenes.workshop_seeds import seed_demonstrations
from visloop.scenes.workshop_tasks import list_families, make_tasks
from visloop.tools.plugins import find_source

PARTS: dict[str, Split] = {"stream": "train", "held_out": "validation", "replay": "validation", "test": "test", "base": "test"}
"""The parts of a task set and the split that their scenes are of. The gate of a cycle reads ``held_out`` and ``replay``; ``test`` and
``base`` only measure."""
_KNOWN_PARTS = ("replay", "base")
"""Parts of base words, known families and known wordings: what must not be forgotten."""
RECORDS = ("traces", "feedback", "critiques", "instances", "outcomes")
CYCLE_CODE = (
    *("visloop.assistant", "visloop.tools", "visloop.evaluation.assistant", "visloop.evaluation.edit_check"),
    *("visloop.reasoning.agents", "visloop.reasoning.combine"),  # where the agents answer for VQA
)


def draw_tasks(config: Config, layout: Layout) -> Any:
    """Stage: the stream of instructions with feedback, the gate's tasks, the test set, and their truths."""
    tasks = config.assistant.tasks
    unknown = sorted(set(tasks.kinds) - set(get_args(TaskKind)))
    if unknown or not tasks.kinds:
        raise ConfigError(f"assistant.tasks.kinds: {unknown or 'empty'}; known are {', '.join(get_args(TaskKind))}")

    root = _find_statements(tasks)

    def work(place: Path) -> dict[str, float]:
        truths: list[TaskTruth] = []
        counts: dict[str, float] = {}
        parts = _read_statements(tasks, place=place, layout=layout) if root is not None else {}
        for part in PARTS:
            if root is None:
                drawn = [_draw_part(part, kind, tasks, seed=config.seed, place=place, layout=layout) for kind in tasks.kinds]
            else:
                drawn = [([task for task, _ in parts[part]], [truth for _, truth in parts[part]])]
            # Kinds take turns, as they would in a stream of people's instructions.
            longest = max(len(found) for found, _ in drawn)
            records = [found[index] for index in range(longest) for found, _ in drawn if index < len(found)]
            truths += [truth for _, given in drawn for truth in given]
            write_shard(place / f"{part}.jsonl", records)
            counts[part] = len(records)
        write_shard(place / "truth.jsonl", truths)
        return counts

    return run_stage(
        "tasks",
        folder=layout.tasks,
        inputs={} if root is None else {"nlvr": root},
        config={"tasks": _only_data(tasks), "seed": config.seed},
        code=["visloop.scenes.workshop_tasks" if root is None else "visloop.datasets.nlvr_tasks"],
        work=work,
    )


def _find_statements(tasks: TasksConfig) -> Path | None:
    """The folder of the statements that are the tasks; None where they are drawn.

    Raises:
        ConfigError: it is not named, or other kinds of tasks are asked for.
    """
    if tasks.name is TaskSource.workshop:
        return None
    if not tasks.root:
        raise ConfigError("assistant.tasks.root is empty; name the folder with NLVR's dev/ and test/ (data.root=PATH)")
    if tasks.kinds != ["multi_image"]:
        raise ConfigError(f"assistant.tasks.kinds: {tasks.kinds}; NLVR's statements are multi_image tasks, use [multi_image]")
    return Path(tasks.root)


def _read_statements(tasks: TasksConfig, *, place: Path, layout: Layout) -> dict[str, list[tuple[Task, TaskTruth]]]:
    prefix = f"{layout.tasks.relative_to(layout.root).as_posix()}/pictures"
    counts = {part: getattr(tasks, part) for part in PARTS}
    first, second, third = TASK_INPUTS["multi_image"]
    return read_nlvr_tasks(Path(tasks.root), out=place / "pictures", image_prefix=prefix, inputs=(first, second, third), counts=counts)


def _draw_part(part: str, kind: Any, tasks: TasksConfig, *, seed: int, place: Path, layout: Layout) -> tuple[list[Task], list[TaskTruth]]:
    """One kind's share of a part."""
    count: int = getattr(tasks, part)
    replay = part in _KNOWN_PARTS
    return make_tasks(
        place / "pictures",
        seed=seed_for(seed, part) if part in ("held_out", "base") else seed,
        kind=kind,
        count=count,
        split=PARTS[part],
        novel_share=0.0 if replay else tasks.novel_share,
        new_wording_share=0.0 if replay else tasks.new_wording_share,
        families=list_families(kind, held_out=False) if replay else None,
        image_prefix=f"{layout.tasks.relative_to(layout.root).as_posix()}/pictures",
    )


def _only_data(tasks: TasksConfig) -> dict[str, Any]:
    """The part of the task settings that decides which tasks there are."""
    return {
        key: value for key, value in asdict(tasks).items() if key not in ("root", "cycles", "only", "back_to", "tag", "ablations", "batch")
    }


def draw_collection(config: Config, layout: Layout) -> Any:
    """Stage: where tools can learn words from: an open-vocabulary set and image-search folders."""

    def work(place: Path) -> dict[str, float]:
        report = export_collection(place, seed=config.seed)
        write_json(place / "report.json", report)
        return {"pictures": report.pictures, "annotations": report.annotations, "found": sum(report.found.values())}

    return run_stage(
        "collection",
        folder=layout.collection,
        inputs={},
        config={"seed": config.seed},
        code=["visloop.scenes.workshop_collection"],
        work=work,
    )


def start_pools(config: Config, layout: Layout) -> Any:
    """Stage: cycle 0, the seed demonstrations, those of ``planner.seeds`` behind them, and an empty prompt pool."""
    seeds, signatures = config.assistant.planner.seeds, open_signatures(config.assistant.tools)
    pool = add_seed_file(DemonstrationPool().add(seed_demonstrations()), seeds, find_signature=signatures)
    inputs = {"seeds": Path(seeds)} if seeds else {}

    def work(place: Path) -> dict[str, float]:
        save_pools(Pools(demonstrations=pool), place)
        write_json(place / "report.json", {"cycle": 0, "known": []})
        return {"demonstrations": len(pool.entries)}

    return run_stage("cycle 0", folder=layout.cycle(0), inputs=inputs, config={}, code=["visloop.scenes.workshop_seeds"], work=work)


def read_tasks(layout: Layout, part: str) -> list[Task]:
    return read_shard(layout.tasks / f"{part}.jsonl", Task)


def read_task_truths(layout: Layout) -> dict[str, TaskTruth]:
    """For feedback and measuring only."""
    return {truth.task_id: truth for truth in read_shard(layout.tasks / "truth.jsonl", TaskTruth)}


def take_stream(config: Config, layout: Layout, number: int) -> list[Task]:
    """The tasks of one cycle: an equal share of the stream, in order."""
    stream, cycles = read_tasks(layout, "stream"), config.assistant.tasks.cycles
    if not 1 <= number <= cycles:
        raise ConfigError(f"cycle {number}: assistant.tasks.cycles is {cycles}; for `dvc repro`, dvc.yaml has to list as many cycles")
    return stream[len(stream) * (number - 1) // cycles : len(stream) * number // cycles]


def tool_inputs(assistant: AssistantConfig) -> dict[str, Path]:
    """What the tools read from disk: the folders of their vision models (a hub id is named by the configuration), LIST's facts, and the
    modules of plugins."""
    tools = assistant.tools
    sources = {role: Path(resolve_model(model.model)) for role, model in tools.list_models().items()}
    inputs = {role: source for role, source in sources.items() if source.is_dir()}
    if tools.names is ListBackend.facts and tools.facts:
        inputs["facts"] = Path(tools.facts)
    return {**inputs, **{f"plugin {name}": source for name in tools.plugins if (source := find_source(name)) is not None}}


def part_inputs(config: Config, layout: Layout) -> dict[str, Path]:
    """What a stage that plans and runs programs reads besides tasks and pools: the tools', the classifier of pictures, the scorer or task
    pack of the program search, the LM that writes programs, and the two agents where they answer for VQA."""
    planner, inputs = config.assistant.planner, tool_inputs(config.assistant)
    if planner.choice is PlannerChoice.search and planner.scorer:
        inputs["scorer"] = Path(planner.scorer)
    if planner.choice is PlannerChoice.search and not planner.scorer and Path(planner.pack).is_dir():
        inputs["pack"] = Path(planner.pack)
    if planner.asks(WriterChoice.embedded) and (source := Path(resolve_model(planner.lm))).is_dir():
        inputs["planner"] = source
    if (classifier := config.assistant.safety.classifier) and (source := Path(resolve_model(classifier))).is_dir():
        inputs["safety"] = source
    if config.assistant.tools.vqa is VqaBackend.agents:
        inputs |= {role: layout.model(role) for role in ("reasoner", "summarizer")}
    return inputs


def _learning_config(config: Config) -> dict[str, Any]:
    assistant = asdict(config.assistant)
    parts = {key: assistant[key] for key in ("tools", "planner", "reflection", "learning", "providers", "safety")}
    agents = {"base": asdict(config.base), "answer": asdict(config.answer), "prompts": hash_prompts(config)}
    return {
        **parts,
        "llm": asdict(config.llm) if config.assistant.asks_llm() else None,
        "agents": agents if config.assistant.tools.vqa is VqaBackend.agents else None,
        "prompts": PromptSet("full").hash,
    }


def play_cycle(
    config: Config,
    layout: Layout,
    *,
    number: int,
    folder: Path | None = None,
    before: Path | None = None,
    people: Path | None = None,
    on_chat: Callable[[float], None] | None = None,
) -> Any:
    """Stage: one cycle over its share of the stream, or over what people said (``people``, their frozen feedback). It goes on from the
    last task that a killed run finished. ``on_chat`` is told how many seconds this call of it waited for the LLM, if there is one."""
    target, start = folder or layout.cycle(number), before or layout.cycle(number - 1)

    def work(place: Path) -> dict[str, float]:
        words = None if people is None else read_frozen(people)
        shown = target.relative_to(layout.root).as_posix()
        bench = Workbench(config, layout, truths=read_task_truths(layout), folder=place, shown=shown, people=words)
        tasks = take_stream(config, layout, number) if words is None else list(words.tasks)
        pools, states = read_pools(start), find_scratch(place) / "states"
        progress = StageProgress(f"cycle {number}")

        def keep(state: CycleState) -> None:
            save_state(state, states, tasks=tasks)
            progress(state.position / len(tasks))

        result = run_cycle(
            tasks,
            parts=bench.open_parts(),
            pools=pools,
            cycle=number,
            replay=read_tasks(layout, "replay"),
            held_out=read_tasks(layout, "held_out"),
            known=frozenset((owner, word) for owner, word in read_json(start / "report.json")["known"]),
            state=load_state(states, tasks=tasks),
            on_state=keep,
        )
        if on_chat is not None and bench.chat is not None:
            on_chat(bench.chat.seconds)
        save_pools(result.pools, place)
        bench.keep_material(result.records.instances)
        for name in RECORDS:
            write_shard(place / f"{name}.jsonl", getattr(result.records, name))
        write_json(
            place / "report.json",
            {
                "cycle": number,
                "counts": result.counts,
                "gate": asdict(result.gate),
                "known": sorted(result.known),
                "concepts": result.pools.prompts.list_learned(),
                "demonstrations": len(result.pools.demonstrations.entries),
                "prompts": len(result.pools.prompts.prompts),
                "judgements": len(result.pools.judgements.entries),
                "pools": result.pools.list_hashes(),
            },
        )
        gate = {key: value for key, value in asdict(result.gate).items() if isinstance(value, float)}
        return {**{key: value for key, value in result.counts.items() if "/" not in key}, **gate}

    return run_stage(
        f"cycle {number}" if folder is None else f"cycle {number} {target.parent.name}",
        folder=target,
        inputs={
            "tasks": layout.tasks,
            "collection": layout.collection,
            **pool_inputs(start),
            "known": start / "report.json",
            **part_inputs(config, layout),
            **list_files(config.assistant.providers),
            **({} if people is None else {"people": people}),
        },
        config={
            "assistant": _learning_config(config),
            **({"cycles": config.assistant.tasks.cycles} if people is None else {}),
            "batch": config.assistant.tasks.batch,
            "number": number,
            "seed": config.seed,
        },
        code=CYCLE_CODE if people is None else (*CYCLE_CODE, PEOPLE_CODE),
        work=work,
        resumable=True,
    )


def examine_pools(config: Config, layout: Layout, *, name: str, pools: Path, parts: Sequence[str], folder: Path) -> Any:
    """Stage: plan and run the held-out tasks of ``parts`` with a snapshot of pools; a prediction per task."""

    def work(place: Path) -> dict[str, float]:
        bench = Workbench(config, layout, truths=read_task_truths(layout), folder=place, shown=folder.relative_to(layout.root).as_posix())
        snapshot, counts = read_pools(pools), {}
        parts_of_cycle = teach_planner(bench.open_parts(), snapshot)
        for part in parts:
            tasks = read_tasks(layout, part)
            runs = run_tasks(tasks, pools=snapshot, parts=parts_of_cycle, cycle=0)
            predictions = [
                make_prediction(task, run.trace, score=bench.score(task, run.trace), system=name)
                for task, run in zip(tasks, runs, strict=True)
            ]
            write_shard(place / f"{part}.jsonl", predictions)
            write_shard(place / f"{part}_traces.jsonl", [run.trace for run in runs])
            counts[part] = sum(item.correct for item in predictions) / max(len(predictions), 1)
        return counts

    return run_stage(
        f"examine {folder.name}",
        folder=folder,
        inputs={"tasks": layout.tasks, "collection": layout.collection, **pool_inputs(pools), **part_inputs(config, layout)},
        config={"assistant": _learning_config(config), "parts": list(parts), "name": name, "seed": config.seed},
        code=CYCLE_CODE,
        work=work,
    )


def read_predictions(folder: Path, part: str) -> list[Prediction]:
    """Those of one part: in one file, or in shards ``<part>-00000.jsonl``, ..."""
    return read_shards(sorted(folder.glob(f"{part}-*.jsonl")) or [folder / f"{part}.jsonl"], Prediction)


def find_next_cycle(config: Config, layout: Layout) -> int | None:
    """The first cycle that has not been played; None after the last."""
    number = layout.find_last_cycle() + 1
    return number if number <= config.assistant.tasks.cycles else None


def change_assistant(config: Config, **parts: Any) -> Config:
    """The configuration with parts of the assistant's replaced."""
    return replace(config, assistant=replace(config.assistant, **parts))
