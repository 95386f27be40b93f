"""Promotion, rollback and lineage over a project made by hand: stages with manifests, predictions, one small MLflow database."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from apps import models
from apps._agents import AgentsDesk
from flows import _champion
from flows._candidates import find_candidate, find_champion, find_champion_cycle, list_candidates
from flows._champion import list_history, list_reign, promote, roll_back
from flows._database import connect
from flows._folders import hash_input
from flows._layout import Layout, pool_inputs
from flows._lineage import trace_lineage
from flows._measured import find_measured
from flows._registry import CHAMPION, POOLS, REASONER, load_registered, register_model
from flows._tracking import open_run
from visloop.chat.weights import resolve_model
from visloop.config import Config, EvaluationConfig, PathsConfig, PromotionConfig, Serve
from visloop.errors import ConfigError, DataError, ModelError
from visloop.ids import hash_file
from visloop.prompts.render import PromptSet
from visloop.records.manifest import Manifest, write_manifest
from visloop.records.reasoning import Prediction
from visloop.records.shards import write_shard, write_text

Right = Sequence[bool]
BETTER, SAME, WORSE = [True] * 36 + [False] * 4, [True] * 24 + [False] * 16, [True] * 8 + [False] * 32


class Project:
    """A data folder with rounds and cycles, their evaluation, and the registry."""

    def __init__(self, root: Path) -> None:
        self.root, self.data, self.mlruns = root, root / "data", root / "mlruns"
        paths = PathsConfig(data=str(self.data), mlruns=str(self.mlruns))
        self.config = Config(paths=paths, evaluation=EvaluationConfig(bootstrap_samples=500))
        self.layout = Layout.from_config(self.config)

    def make_stage(self, folder: Path, stage: str, *, inputs: dict[str, Path] | None = None, config: Any = None, **files: str) -> Path:
        """A finished stage as the flows leave it. Files are given by name with ``__`` for a dot."""
        for name, text in files.items():
            write_text(folder / name.replace("__", "."), text)
        hashes = {path.relative_to(folder).as_posix(): hash_file(path) for path in sorted(folder.rglob("*")) if path.is_file()}
        hashes.pop("manifest.json", None)
        named = {role: hash_input(path) for role, path in (inputs or {}).items()}
        write_manifest(folder, Manifest(stage=stage, inputs=named, config=config or {}, code="c" * 64, files=hashes))
        return folder

    def make_model(self, number: int, *, weights: str = "", accepted: bool = True, before: Path | None = None) -> int:
        """Round ``number`` with all that it was made from, and its version in the registry."""
        layout, prompts = self.layout, {"prompts": PromptSet("compact").hash}
        raw = self.make_stage(layout.raw, "dataset", test__jsonl="questions\n")
        start = before or self.make_stage(layout.model("reasoner"), "sft reasoner", inputs={"raw": raw}, model__safetensors="start")
        folder = layout.round(number)
        inputs = {"model": start, "raw": raw}
        chains = self.make_stage(folder / "paths", f"round {number} paths", inputs=inputs, config=prompts, a__jsonl=f"chains {number}\n")
        judged = {"paths": chains, "raw": raw, "judge": Path(resolve_model("embedded/judge"))}
        assessed = self.make_stage(folder / "assessed", f"round {number} assessed", inputs=judged, a__jsonl=f"scores {number}\n")
        pairs = self.make_stage(folder / "pairs", f"round {number} pairs", inputs={"assessed": assessed}, p__jsonl=f"pairs {number}\n")
        made = {"pairs": pairs, "policy": start}
        model = self.make_stage(folder / "model", f"round {number} dpo", inputs=made, model__safetensors=weights or f"weights {number}")
        return self.register(REASONER, model, number, aliases=[f"m{number}"], accepted=accepted)

    def make_cycle(self, number: int) -> int:
        folder = self.layout.cycle(number)
        write_text(folder / "demonstrations" / "demonstrations.jsonl", f"demonstrations {number}\n")
        write_text(folder / "prompts" / "prompts.safetensors", f"prompts {number}")
        if number:
            write_text(folder / "judgements" / "judgements.json", f"judgements {number}\n")
        self.make_stage(folder, f"cycle {number}", traces__jsonl="runs\n")
        return self.register(POOLS, folder, number, aliases=[f"c{number}"])

    def register(self, name: str, folder: Path, number: int, *, aliases: Sequence[str], accepted: bool = True) -> int:
        with (
            open_run("sample", self.config, tags={"mlflow.source.git.commit": "0" * 40}) as run,
            run.open_child(folder.as_posix(), step=number) as child,
        ):
            tags = {"accepted": str(accepted).lower()}
            return register_model(child, name=name, folder=folder, aliases=aliases, tags=tags, data=self.data).version

    def measure(self, subject: Path, right: Right, *, name: str, role: str = "model", seed: int = 0) -> None:
        """An examination of a model or of pools on 40 questions of 20 scenes."""
        pools = role == "pools"
        folder = self.layout.assistant_evaluation / name if pools else self.layout.evaluation / name
        rows = [
            Prediction(
                sample_id=f"q{index}",
                system=name,
                family="count",
                group=f"s{index // 2}",
                answer="3",
                correct=good,
                status="ok",
                metrics={"path_score": 50.0 + good},
            )
            for index, good in enumerate(right)
        ]
        write_shard(folder / ("test.jsonl" if pools else "predictions.jsonl"), rows)
        examined = pool_inputs(subject) if pools else {"model": subject}
        inputs = {**examined, "tasks" if pools else "raw": self.layout.raw}
        self.make_stage(folder, f"examine {name}", inputs=inputs, config={"seed": seed, "name": name})

    def champion(self, name: str = REASONER) -> int | None:
        found = find_champion(name, mlruns=self.mlruns, data=self.data)
        return None if found is None else found.version

    def call(self, *arguments: str) -> int:
        return models.main([*arguments, f"paths.data={self.data}", f"paths.mlruns={self.mlruns}", "evaluation.bootstrap_samples=500"])


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database that is copied: making one takes seconds."""
    folder = tmp_path_factory.mktemp("empty") / "mlruns"
    connect(folder).search_experiments()
    return folder


@pytest.fixture
def project(database: Path, tmp_path: Path) -> Project:
    shutil.copytree(database, tmp_path / "mlruns")
    return Project(tmp_path)


@pytest.fixture
def rounds(project: Project) -> Callable[..., list[int]]:
    """Rounds with these right answers each, in order, each trained from the one before."""

    def make(*marks: Right) -> list[int]:
        before, versions = None, []
        for number, right in enumerate(marks, start=1):
            versions.append(project.make_model(number, before=before))
            before = project.layout.round(number) / "model"
            project.measure(before, right, name=f"M_{number}")
        return versions

    return make


def test_promotion_needs_evidence_and_rollback_undoes_it(project: Project, rounds: Callable[..., list[int]]) -> None:
    first, second, third = rounds(SAME, BETTER, SAME)
    crowned = promote(project.config, name=REASONER, which="m1")
    assert (crowned.outcome, project.champion()) == ("promoted", first) and "accuracy 0.6 [" in crowned.reason
    better = promote(project.config, name=REASONER, which="m2")
    assert (better.outcome, better.before, project.champion()) == ("promoted", first, second)
    assert better.test is not None and (better.test.wins, better.test.losses) == (12, 0)
    assert better.test.p == pytest.approx(2 / 2**12) and better.test.groups == 20
    refused = promote(project.config, name=REASONER, which=str(third))
    assert (refused.outcome, project.champion()) == ("refused", second)
    assert (
        "difference -30.0" in refused.reason
        and "0 won, 12 lost of 40 samples in 20 scenes" in refused.reason
        and "interval" in refused.reason
    )
    again = promote(project.config, name=REASONER, which="champion")
    assert (again.outcome, again.reason) == ("refused", "it is the champion already")
    back = roll_back(project.config, name=REASONER)
    assert (back.outcome, back.version, back.before, project.champion()) == ("rolled_back", first, second, first)
    with pytest.raises(ModelError, match="first champion"):
        roll_back(project.config, name=REASONER)
    history = list_history(REASONER, mlruns=project.mlruns)
    assert [run.data.tags["visloop.outcome"] for run in history] == ["promoted", "promoted", "refused", "rolled_back"]
    figures = history[1].data.metrics
    assert (figures["wins"], figures["n"], figures["difference"]) == (12, 40, pytest.approx(0.3))
    assert {"low", "high", "p", "candidate_value", "champion_value"} <= set(figures)
    assert load_registered(REASONER, mlruns=project.mlruns, alias=CHAMPION) == project.layout.round(1) / "model"


def test_the_champion_is_compared_with_when_its_own_evaluation_is_gone(project: Project, rounds: Callable[..., list[int]]) -> None:
    """Its promotion kept the predictions; but not under other conditions."""
    rounds(SAME, BETTER)
    promote(project.config, name=REASONER, which="m1")
    shutil.rmtree(project.layout.evaluation / "M_1")
    assert promote(project.config, name=REASONER, which="m2").outcome == "promoted"
    version = project.make_model(3, before=project.layout.round(2) / "model")
    with pytest.raises(DataError, match=r"no held-out predictions.*flows\.evaluation"):
        promote(project.config, name=REASONER, which=str(version))
    project.measure(project.layout.round(3) / "model", BETTER, name="M_3", seed=1)
    with pytest.raises(DataError, match=r"not measured under the same conditions \(setting seed differ\)"):
        promote(project.config, name=REASONER, which=str(version))


def test_what_cannot_be_promoted(project: Project, rounds: Callable[..., list[int]]) -> None:
    rounds(SAME, BETTER)
    with pytest.raises(ModelError, match=r"no version or alias 'm7'.*registered are: 2 \(m2, newest\); 1 \(m1\)"):
        promote(project.config, name=REASONER, which="m7")
    with pytest.raises(ModelError, match="nothing is registered"):
        promote(project.config, name=POOLS, which="c1")
    with pytest.raises(ModelError, match="nothing to roll back"):
        roll_back(project.config, name=REASONER)
    rejected = project.make_model(3, accepted=False)
    with pytest.raises(ModelError, match="failed the guards"):
        promote(project.config, name=REASONER, which=str(rejected))
    weights = project.layout.round(2) / "model" / "model.safetensors"
    weights.write_text("others")
    with pytest.raises(DataError, match="not those of"):
        promote(project.config, name=REASONER, which="m2")
    (project.layout.evaluation / "M_1" / "predictions.jsonl").write_text("")
    with pytest.raises(DataError, match=r"M_1 is damaged"):
        promote(project.config, name=REASONER, which="m1")
    assert project.champion() is None and list_history(REASONER, mlruns=project.mlruns) == []


def test_a_killed_promotion_moved_nothing(project: Project, rounds: Callable[..., list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = rounds(SAME, BETTER)
    promote(project.config, name=REASONER, which="m1")
    monkeypatch.setattr(_champion, "_keep", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        promote(project.config, name=REASONER, which="m2")
    assert project.champion() == first and list_reign(REASONER, mlruns=project.mlruns) == [first]
    monkeypatch.undo()
    promote(project.config, name=REASONER, which="m2")
    # The alias was moved in MLflow's own pages: rolling back still finds the last champion that was promoted.
    connect(project.mlruns).set_registered_model_alias(REASONER, CHAMPION, "1")
    assert roll_back(project.config, name=REASONER).version == second
    with pytest.raises(ModelError, match="version 9 was not champion before"):
        roll_back(project.config, name=REASONER, to=9)


def test_pools_are_candidates_like_models(project: Project) -> None:
    project.make_stage(project.layout.raw, "tasks", t__jsonl="tasks\n")
    versions = [project.make_cycle(number) for number in (0, 1)]
    for number, right in ((0, WORSE), (1, SAME)):
        project.measure(project.layout.cycle(number), right, name=f"cycle_{number:02d}", role="pools")
    project.measure(project.layout.cycle(0), BETTER, name="another_planner", role="pools", seed=5)
    assert [one.kind for one in list_candidates(POOLS, mlruns=project.mlruns, data=project.data)] == ["pools", "pools"]
    shared = project.layout.cycle(0)  # an examination with more pools than these is not of these
    extra = {**pool_inputs(shared), "judgements": project.layout.raw, "tasks": project.layout.raw}
    more = project.layout.assistant_evaluation / "more"
    project.make_stage(more, "examine more", inputs=extra, config={"seed": 0, "name": "more"}, test__jsonl="")
    [first] = [one for one in list_candidates(POOLS, mlruns=project.mlruns, data=project.data) if one.folder == shared]
    assert more not in [found.folder for found in find_measured(first)]
    promote(project.config, name=POOLS, which="c0")
    assert find_champion_cycle(project.config, project.layout) == 0
    done = promote(project.config, name=POOLS, which="c1")
    assert (done.outcome, project.champion(POOLS)) == ("promoted", versions[1])
    assert done.test is not None and (done.test.wins, done.test.losses) == (16, 0), "compared where the conditions are the same"
    assert find_champion_cycle(project.config, project.layout) == 1
    other = Config(paths=PathsConfig(data=str(project.data), mlruns=str(project.mlruns), cycles="cycles-other"))
    assert find_champion_cycle(other, Layout.from_config(other)) is None, "another line of cycles has pools of its own"
    for part in ("prompts/prompts.safetensors", "judgements/judgements.json"):
        path = project.layout.cycle(1) / part
        kept = path.read_bytes()
        path.write_text("changed")
        with pytest.raises(DataError, match="not those of"):
            load_registered(POOLS, mlruns=project.mlruns, alias="c1")
        path.write_bytes(kept)
    load_registered(POOLS, mlruns=project.mlruns, alias="c1")


def test_the_page_answers_with_the_champion(project: Project, rounds: Callable[..., list[int]]) -> None:
    first, second = rounds(BETTER, SAME)
    desk = AgentsDesk(project.config, project.layout)
    assert desk.find_version() is None, "no summarizer yet"
    project.make_stage(project.layout.model("summarizer"), "sft summarizer", model__safetensors="s")
    project.make_stage(project.layout.round(2) / "report", "round 2", head__json='{"round": 2, "model": "rounds/02/model"}')
    assert desk._choose_version() == (2, second), "the last accepted round before there is a champion"
    promote(project.config, name=REASONER, which="m1")
    assert desk._choose_version() == (1, first) and desk.find_version() == 1
    newest = replace(project.config, promotion=PromotionConfig(serve=Serve.newest))
    assert AgentsDesk(newest, project.layout).find_version() == 2
    elsewhere = replace(project.config, paths=replace(project.config.paths, data=str(project.root / "other")))
    assert AgentsDesk(elsewhere, Layout.from_config(elsewhere)).find_version() is None, "another data folder has agents of its own"


def test_lineage_follows_every_hop_by_hash(project: Project, rounds: Callable[..., list[int]]) -> None:
    rounds(SAME, BETTER)
    version = find_candidate(REASONER, "m2", mlruns=project.mlruns, data=project.data)
    hops = trace_lineage(version, mlruns=project.mlruns)
    shown = [(hop.depth, hop.role, hop.what, hop.state) for hop in hops]
    assert shown == [
        (0, "version", "visloop-reasoner version 2 (m2, newest)", "intact"),
        (1, "made by", "round 2 dpo", "intact"),
        (2, "pairs", "round 2 pairs", "intact"),
        (3, "assessed", "round 2 assessed", "intact"),
        (4, "judge", "files", "intact"),
        (4, "paths", "round 2 paths", "intact"),
        (5, "prompts", "templates compact", "intact"),
        (5, "model", "round 1 dpo", "intact"),
        (6, "pairs", "round 1 pairs", "intact"),
        (7, "assessed", "round 1 assessed", "intact"),
        (8, "judge", "files", "intact"),
        (8, "paths", "round 1 paths", "intact"),
        (9, "prompts", "templates compact", "intact"),
        (9, "model", "sft reasoner", "intact"),
        (10, "raw", "dataset", "intact"),
        (9, "raw", "dataset", "seen"),
        (8, "raw", "dataset", "seen"),
        (6, "policy", "sft reasoner", "seen"),
        (5, "raw", "dataset", "seen"),
        (4, "raw", "dataset", "seen"),
        (2, "policy", "round 1 dpo", "seen"),
        (1, "commit", "git", "missing"),
    ]
    assert "does not have the commit" in hops[-1].note
    (project.layout.round(2) / "paths" / "a.jsonl").write_text("edited\n")
    project.make_stage(project.layout.round(1) / "pairs", "round 1 pairs", p__jsonl="drawn again\n")
    broken = {hop.role: hop for hop in trace_lineage(version, mlruns=project.mlruns) if hop.is_broken}
    assert broken["paths"].state == "changed" and "1 of 1 files are missing or changed, e.g. a.jsonl" in broken["paths"].note
    assert broken["pairs"].state == "missing" and "made anew" in broken["pairs"].note
    shutil.rmtree(project.layout.round(2) / "model")
    assert trace_lineage(version, mlruns=project.mlruns)[0].state == "missing"


def test_the_command_says_what_it_does(
    project: Project, rounds: Callable[..., list[int]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project.root)
    assert project.call("list") == 0
    assert "nothing registered" in capsys.readouterr().out
    rounds(SAME, BETTER, SAME)
    assert project.call("promote", "reasoner", "m2") == 0
    assert project.call("promote", "reasoner", "m3") == 1
    assert project.call("rollback", "reasoner") == 1
    said = capsys.readouterr()
    assert "promoted: visloop-reasoner version 2: the first champion: accuracy 0.9" in said.out
    assert "refused: visloop-reasoner version 3 (champion until then: version 2): accuracy: version 3 60.0, version 2 90.0" in said.out
    assert "ModelError" in said.err and "Traceback" not in said.err
    assert project.call("list") == 0
    listed = capsys.readouterr().out
    assert "champion, m2" in listed and "90.0" in listed and "data/rounds/02/model" in listed and "refused: " in listed
    assert project.call("lineage", "reasoner", "champion") == 1
    shown = capsys.readouterr().out
    assert "made by: round 2 dpo" in shown and "21 of 22 hops hold; broken: commit git 000000000000" in shown
    assert project.call("promote", "reasoner", "m1", "promotion.metric=path_score") == 1
    assert "version 1 50.6, version 2 50.9" in capsys.readouterr().out
    assert models.main(["promote", "reasoner", "m1", "promotion.metrik=x"]) == 1
    assert ConfigError.__name__ in capsys.readouterr().err


def test_versions_of_one_model_are_shown_once(project: Project) -> None:
    project.make_model(1)
    with open_run("another", project.config) as run:
        register_model(run, name=REASONER, folder=project.layout.round(1) / "model", aliases=["head"], data=project.data)
    [one] = list_candidates(REASONER, mlruns=project.mlruns, data=project.data)
    assert one.version == 2 and set(one.aliases) == {"head", "newest", "m1"}
    stored = json.loads((load_registered(REASONER, mlruns=project.mlruns, version=2) / "manifest.json").read_text())
    assert stored["stage"] == "round 1 dpo"
