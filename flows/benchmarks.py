"""Public benchmarks from their official files: answers of every system, scored by the benchmark's own rules (Insight-V tables 1 and 2).

python -m flows.benchmarks benchmarks.files.chartqa=PATH benchmarks.files.docvqa=PATH
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from prefect import flow
from pydantic import TypeAdapter

from flows._entry import from_plain, run_flow
from flows._evaluation_stages import Reasoner, list_reasoners, name_file
from flows._exams import EXAM_CODE, make_exam
from flows._layout import Layout
from flows._mounts import chat_inputs, hash_prompts, mount_model
from flows._objective import log_rows
from flows._records import read_json, write_json
from flows._round_stages import hash_stage
from flows._run import open_flow_run
from flows._stage import Shard, make_shards, run_sharded_stage, run_stage
from flows._summary import open_console, show_tables, stage_rows
from flows._tracking import TrackedRun
from flows._workers import PART_SIZE, Jobs, Lazy, cut_parts
from visloop.chat.base import ChatModel
from visloop.chat.factory import open_chat
from visloop.config import ChatConfig, Config
from visloop.datasets.benchmark_fields import BENCHMARKS
from visloop.datasets.benchmarks import BenchmarkItem, read_benchmark
from visloop.errors import ConfigError, DataError
from visloop.evaluation.benchmarks.extraction import extract_answers
from visloop.evaluation.benchmarks.rules import JUDGED
from visloop.evaluation.benchmarks.scores import BenchmarkScore, average_benchmarks, list_averaged, score_benchmark
from visloop.evaluation.report import Report, read_report, write_report
from visloop.evaluation.systems import System, answer_system, list_systems
from visloop.evaluation.tables import build_metrics_table
from visloop.records.manifest import MANIFEST_NAME
from visloop.records.reasoning import AgentAnswer
from visloop.records.shards import read_shard, read_shards, write_shard

REPORT_NAME = "benchmarks.json"
TWO_AGENTS = "two agents"
_scores = TypeAdapter(list[BenchmarkScore])
_log = logging.getLogger(__name__)


@flow(name="benchmarks")
def benchmarks(values: dict[str, Any]) -> None:
    """The questions of every benchmark that is asked; then, one benchmark after the other, every system's answers and their scores."""
    config = from_plain(values)
    layout = Layout.from_config(config)
    files = find_files(config)
    with open_flow_run("benchmarks", config) as run:
        examinees = find_examinees(config, layout, reasoners=list_reasoners(config, layout))
        for name, folder in files.items():
            run.log_stage(read_questions(layout, name=name, files=folder))
        for name in files:
            for examinee in examinees:
                run.log_stage(answer_questions(config, layout, name=name, examinee=examinee))
            run.log_stage(score_answers(config, layout, name=name, examinees=examinees))
        scores = {name: _scores.validate_python(read_json(layout.benchmark(name) / "scores" / "scores.json")) for name in files}
        path = publish_report(layout, scores, examinees=examinees)
        run.log_json(path)
        show_scores(run, scores)
        open_console().print(f"report: {path}", markup=False)


@dataclass(frozen=True)
class Examinee:
    """A system and where the trained models of its roles lie; a role without a folder is the base."""

    system: System
    folders: Mapping[str, Path]


def find_files(config: Config) -> dict[str, Path]:
    """The folders of the benchmarks that are asked, by name.

    Raises:
        ConfigError: none is asked, or one that there is no reader for.
        DataError: a folder is not there.
    """
    asked = {name: Path(folder) for name, folder in config.benchmarks.files.items() if folder}
    for name in asked:
        if name not in BENCHMARKS:
            raise ConfigError(f"benchmarks.files.{name}: no benchmark of that name; known: {', '.join(BENCHMARKS)}")
    if not asked:
        known = ", ".join(BENCHMARKS)
        raise ConfigError(f"benchmarks.files is empty; name a folder for at least one (benchmarks.files.chartqa=PATH) of {known}")
    for name, folder in asked.items():
        if not folder.is_dir():
            raise DataError(f"benchmarks.files.{name}: there is no folder {folder}; {_describe_files(name)}")
    return asked


def find_examinees(config: Config, layout: Layout, *, reasoners: Sequence[Reasoner]) -> list[Examinee]:
    """The systems that ``benchmarks.systems`` names, as far as their models lie in the data folder.

    Raises:
        ConfigError: an unknown system, or no system whose models are there.
    """
    accepted = [reasoner for reasoner in reasoners if reasoner.accepted]
    rows = list_systems(rounds=[reasoner.name for reasoner in accepted[1:]])
    known = {row.name: row for row in rows if row.kind != "two_agents"} | {TWO_AGENTS: rows[-1]}
    folders = {name: layout.model(name) for name in ("summarizer", "direct_sft", "multi_turn")}
    folders |= {reasoner.name: reasoner.folder for reasoner in accepted}
    found = []
    for name in config.benchmarks.systems:
        if name not in known:
            raise ConfigError(f"benchmarks.systems: no system {name!r}; known: {', '.join(known)}")
        system = known[name]
        own = {role: folders[role] for role in (system.model, system.summarizer) if role in folders}
        lost = [folder for folder in own.values() if not (folder / MANIFEST_NAME).is_file()]
        if lost:
            _log.warning("%s is left out: there is no finished model in %s (flows.sft makes it)", name, ", ".join(map(str, lost)))
        else:
            found.append(Examinee(system, own))
    if not found:
        raise ConfigError(f"benchmarks.systems={config.benchmarks.systems}: for none of them are the models in {layout.root}")
    return found


def read_questions(layout: Layout, *, name: str, files: Path) -> Any:
    """Stage: the official files as questions with their gold answers, and their pictures."""
    folder = layout.benchmark(name) / "questions"

    def work(place: Path) -> dict[str, float]:
        prefix = (folder / "images").relative_to(layout.root).as_posix()
        try:
            items, report = read_benchmark(name, root=files, out=place / "images", image_prefix=prefix)
        except DataError as error:
            raise DataError(f"benchmarks.files.{name}={files}: {error}; {_describe_files(name)}") from error
        write_shard(place / "items.jsonl", items)
        write_json(place / "report.json", report)
        return {"questions": len(items), "rows": report.read, "skipped": len(report.skipped)}

    return run_stage(
        f"{name} questions", folder=folder, inputs={"files": files}, config={}, code=["visloop.datasets.benchmarks"], work=work
    )


def _describe_files(name: str) -> str:
    source = BENCHMARKS[name]
    part = ", ".join(filter(None, (source.config, source.split)))
    return f"wanted are the parquet or jsonl files of one split, with the columns of {source.hub_id} ({part})"


def answer_questions(config: Config, layout: Layout, *, name: str, examinee: Examinee) -> Any:
    """Stage: the final answers of one system, by shards of questions."""
    system, place = examinee.system, layout.benchmark(name)
    samples = {item.sample.id: item.sample for item in read_items(layout, name)}
    models = {role: Lazy(partial(open_chat, _mount(config.base, examinee, role))) for role in (system.model, system.summarizer) if role}

    def work(shard: Shard[Sequence[str]], path: Path) -> dict[str, float]:
        exam = make_exam(config, layout, [samples[sample_id] for sample_id in shard.payload])
        opened = {role: model.get() for role, model in models.items()}
        answers = answer_system(system, exam, models=opened, generate=config.generate)
        write_shard(path, answers)
        return {"answers": len(answers), "ok": sum(answer.status == "ok" for answer in answers)}

    return run_sharded_stage(
        f"{name} {system.name}",
        folder=place / name_file(system),
        inputs={"questions": place / "questions", **examinee.folders, **chat_inputs("base", config.base)},
        config={
            "system": system,
            "base": config.base,
            "answer": config.answer,
            "generate": config.generate if system.kind == "step_by_step" else None,
            "prompts": hash_prompts(config),
            "seed": config.seed,
        },
        code=EXAM_CODE,
        shards=make_shards(list(samples), size=PART_SIZE),
        work=work,
        resources=list(models.values()),
        retries=1,
        workers=config.workers,
    )


def _mount(base: ChatConfig, examinee: Examinee, role: str) -> ChatConfig:
    return mount_model(base, examinee.folders[role]) if role in examinee.folders else base


def read_items(layout: Layout, name: str) -> list[BenchmarkItem]:
    """The questions of a benchmark, as ``read_questions`` left them."""
    return read_shard(layout.benchmark(name) / "questions" / "items.jsonl", BenchmarkItem)


def score_answers(config: Config, layout: Layout, *, name: str, examinees: Sequence[Examinee]) -> Any:
    """Stage: every system's predictions and official figures. Where the official scoring has a judge, ``assess.text_judge`` reads what the
    rules cannot; without one the rules stand alone, and the figures say so."""
    place, text_judge = layout.benchmark(name), config.assess.text_judge if name in JUDGED else None
    judge = None if text_judge is None else Lazy(partial(open_chat, text_judge))
    answered = {name_file(examinee.system): place / name_file(examinee.system) for examinee in examinees}
    options: dict[str, Any] = {
        "confidence": config.evaluation.confidence,
        "bootstrap_samples": config.evaluation.bootstrap_samples,
        "seed": config.seed,
    }

    def work(build: Path) -> dict[str, float]:
        items = read_items(layout, name)
        scores = []
        for examinee in examinees:
            stem = name_file(examinee.system)
            replies = {answer.sample_id: answer.answer for answer in read_shards(answered[stem], AgentAnswer)}
            extractions = None if judge is None else _extract(config, items, replies, judge=judge)
            score = score_benchmark(items, replies, system=examinee.system.name, extractions=extractions, **options)
            write_shard(build / f"{stem}.jsonl", score.predictions)
            scores.append(replace(score, predictions=()))
        write_json(build / "scores.json", _scores.dump_python(scores, mode="json"))
        return {
            "questions": len(items),
            "unreadable": sum(score.parse_failures for score in scores),
            "missing": sum(score.missing for score in scores),
        }

    return run_stage(
        f"{name} scores",
        folder=place / "scores",
        inputs={"questions": place / "questions", **answered, **({} if text_judge is None else chat_inputs("judge", text_judge))},
        config={
            **options,
            "systems": [examinee.system.name for examinee in examinees],
            "judge": text_judge,
            "sampling": config.assess.judge_sampling if text_judge else None,
            "part_size": PART_SIZE if text_judge else None,
        },
        code=["visloop.evaluation.benchmarks"],
        work=work,
        resources=[] if judge is None else [judge],
        retries=1,
    )


def _extract(
    config: Config, items: Sequence[BenchmarkItem], replies: Mapping[str, str | None], *, judge: Lazy[ChatModel]
) -> dict[str, str]:
    def read(part: Sequence[BenchmarkItem]) -> dict[str, str]:
        return extract_answers(part, replies, judge=judge.get(), sampling=config.assess.judge_sampling, seed=config.seed)

    with Jobs(read, cut_parts(items), workers=config.workers, resources=[judge]) as jobs:
        return {sample_id: text for part in jobs.take_all() for sample_id, text in part.items()}


def publish_report(layout: Layout, scores: Mapping[str, Sequence[BenchmarkScore]], *, examinees: Sequence[Examinee]) -> Path:
    """``reports/benchmarks.json``: the rows of the benchmarks that were asked, with the seconds of the stages that ran last."""
    target = layout.reports / REPORT_NAME
    before = read_report(target).seconds if target.is_file() else {}
    seconds = {row.stage: round(row.seconds, 2) for row in stage_rows() if row.state != "skipped"}
    models = {role: folder for examinee in examinees for role, folder in examinee.folders.items()}
    report = Report(
        rows=[row for name in scores for score in scores[name] for row in score.rows],
        paired=[],
        seconds={**before, **seconds},
        hashes={
            **{name: hash_stage(layout.benchmark(name) / "questions") for name in scores},
            **{role: hash_stage(folder) for role, folder in models.items()},
        },
    )
    write_report(target, report)
    return target


def show_scores(run: TrackedRun, scores: Mapping[str, Sequence[BenchmarkScore]]) -> None:
    """Print and record the official figures, how answers were read, and the averages over what was asked."""
    rows = [score.rows[0] for found in scores.values() for score in found]
    log_rows(run, rows, prefix="benchmarks")
    show_tables([build_metrics_table(rows, title="Benchmarks, by their own rules")])
    console = open_console()
    for name, found in scores.items():
        if name in JUDGED:
            by = "what rules cannot read, the judge reads" if found[0].mode == "judge" else "rules alone; assess.text_judge mounts a judge"
            console.print(f"{name}: {by}", markup=False)
        for score in found:
            if score.parse_failures or score.missing:
                lost = f"{score.parse_failures} replies without a readable answer, {score.missing} questions without a reply"
                console.print(f"{name}, {score.rows[0].name}: {lost}", markup=False)
    averaged = list_averaged(list(scores))
    if len(averaged) < 2:
        return
    for several in zip(*scores.values(), strict=True):
        average, system = average_benchmarks(several, benchmarks=averaged), several[0].rows[0].name
        values = {"without_mme": average.without_mme, "with_mme": average.with_mme}
        run.log_metrics({f"benchmarks.{system}.average_{key}": value for key, value in values.items()})
        text = ", ".join(f"{key.replace('_', ' ')} {value:.1f}" for key, value in values.items() if value is not None)
        console.print(f"average of {', '.join(averaged)}, 0-100, {system}: {text}", markup=False)


if __name__ == "__main__":
    run_flow(benchmarks, doc=__doc__ or "")
