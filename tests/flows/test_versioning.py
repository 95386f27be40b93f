"""DVC in small projects of their own: what a run by hand leaves is recorded, and a clone gets the same bytes."""

import ast
import json
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flows._assistant_stages import CYCLE_CODE
from flows._checks import _ASSISTANT_RULES, _RULES
from flows._code import list_files
from flows._entry import compose_config
from flows._environment import PROJECT_ROOT
from flows._exams import EXAM_CODE
from flows._git_tags import tag_stages
from flows._versioning import (
    FLOW_STAGES,
    add_folders,
    called_by_dvc,
    find_project,
    read_overrides,
    record_flow,
    record_outs,
    run_dvc,
    set_scm,
)
from flows.assessment import ASSESS_CODE
from flows.sft import CHAIN_CODE
from visloop.config import Config
from visloop.errors import ConfigError, DataError
from visloop.ids import hash_tree

STAGES = """
stages:
  generation:
    cmd: '"{python}" flow.py raw ${{overrides}}'
    deps: [flow.py]
    outs:
      - data/raw:
          persist: true
  rounds:
    foreach:
      1: {{after: data/raw}}
      2: {{after: data/rounds/1}}
    do:
      cmd: '"{python}" flow.py rounds/${{key}} ${{overrides}}'
      deps:
        - flow.py
        - ${{item.after}}
      outs:
        - data/rounds/${{key}}:
            persist: true
"""

FLOW = """
import os, pathlib, sys
name = sys.argv[1]
folder = pathlib.Path("data") / name
folder.mkdir(parents=True, exist_ok=True)
for number in range(3):
    (folder / f"{number}.jsonl").write_text(f"{name} {number} {sys.argv[2:]}\\n")
with open("calls.log", "a") as log:
    print(name, os.environ.get("DVC_STAGE", "by hand"), file=log)
"""


GATE, ASSISTANT_GATE = ("visloop.records",), ("visloop.records", "visloop.assistant.checks")

STAGE_CODE = {
    "generation": (
        *("visloop.scenes.export", "visloop.datasets.readers", "visloop.reasoning.pool", "visloop.reasoning.agents"),
        *("visloop.reasoning.generate", "visloop.chat", *GATE),
    ),
    "assessment": (*ASSESS_CODE, "visloop.reasoning.sets", *GATE),
    "sft": ("visloop.training.sft", "visloop.reasoning.sets", *CHAIN_CODE, *GATE),
    "rounds": (
        *("visloop.reasoning.rounds", "visloop.reasoning.pairs", "visloop.training.dpo"),
        *(*CHAIN_CODE, *ASSESS_CODE, *EXAM_CODE, *GATE),
    ),
    "evaluation": ("visloop.evaluation", *EXAM_CODE, *GATE),
    "assistant_data": (
        *("visloop.scenes.workshop_tasks", "visloop.scenes.workshop_collection", "visloop.scenes.workshop_seeds"),
        "visloop.datasets.nlvr_tasks",
        *ASSISTANT_GATE,
    ),
    "cycles": (*CYCLE_CODE, "visloop.evaluation.people", *ASSISTANT_GATE),
    "assistant": (*CYCLE_CODE, "visloop.evaluation", "visloop.evaluation.direct", "visloop.chat", *ASSISTANT_GATE),
}
"""The code of the flows' stages and gates behind each DVC stage. What a round takes from people is not among it: that is frozen when the
round starts and stays, whatever becomes of the code."""


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments], cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A git repository with the project's own DVC settings and a flow of two kinds of stage."""
    root = tmp_path / "project"
    root.mkdir()
    shutil.copytree(PROJECT_ROOT / ".dvc", root / ".dvc", ignore=shutil.ignore_patterns("tmp", "cache", "config.local"))
    shutil.copy(PROJECT_ROOT / ".dvcignore", root / ".dvcignore")
    (root / "dvc.yaml").write_text(STAGES.format(python=sys.executable))
    (root / "params.yaml").write_text("overrides: ''\n")
    (root / "flow.py").write_text(FLOW)
    (root / ".gitignore").write_text("/data/\n/.dvc-remote/\ncalls.log\n")
    git(root, "init", "-q")
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "project")
    return root


def run_by_hand(root: Path, *names: str) -> None:
    for name in names:
        subprocess.run([sys.executable, "flow.py", name], cwd=root, check=True)


def read_calls(root: Path) -> list[str]:
    return (root / "calls.log").read_text().splitlines() if (root / "calls.log").is_file() else []


def read_status(root: Path) -> dict[str, object]:
    status: dict[str, object] = json.loads(run_dvc("status", "--json", root=root))
    return status


def test_run_by_hand_leaves_nothing_to_repro(project: Path) -> None:
    """Outputs made without DVC are recorded: the status is clean, `dvc repro` calls nothing, git sees only the lock file."""
    run_by_hand(project, "raw", "rounds/1", "rounds/2")
    before = hash_tree([project / "data"])
    assert read_status(project)
    recorded = record_outs(["generation", "rounds"], root=project)
    assert recorded.state == "recorded" and recorded.stages == ("generation", "rounds")
    assert read_status(project) == {}
    run_dvc("repro", root=project)
    assert read_calls(project) == ["raw by hand", "rounds/1 by hand", "rounds/2 by hand"]
    assert hash_tree([project / "data"]) == before
    assert git(project, "status", "--porcelain").split() == ["??", "dvc.lock"]


def test_repro_from_fresh_then_rerun_by_hand_is_clean(project: Path) -> None:
    run_dvc("repro", root=project)
    assert read_calls(project) == ["raw generation", "rounds/1 rounds@1", "rounds/2 rounds@2"]
    lock = (project / "dvc.lock").read_bytes()
    run_by_hand(project, "raw")
    record_outs(["generation"], root=project)
    assert (project / "dvc.lock").read_bytes() == lock and read_status(project) == {}


def test_changed_output_is_recorded_and_what_follows_is_due(project: Path) -> None:
    run_by_hand(project, "raw", "rounds/1", "rounds/2")
    record_outs(["generation", "rounds"], root=project)
    (project / "data/raw/0.jsonl").write_text("other\n")
    assert set(read_status(project)) == {"generation", "rounds@1"}
    record_outs(["generation"], root=project)
    assert set(read_status(project)) == {"rounds@1"}
    run_dvc("repro", root=project)
    assert read_calls(project)[3:] == ["rounds/1 rounds@1"]


def test_clone_pulls_the_same_bytes(project: Path, tmp_path: Path) -> None:
    """The default remote is a folder of the project; a clone that is pointed at it gets every output back."""
    run_by_hand(project, "raw", "rounds/1", "rounds/2")
    record_outs(["generation", "rounds"], root=project)
    run_dvc("push", root=project)
    git(project, "add", "-A")
    git(project, "commit", "-q", "-m", "data")
    assert (project / ".dvc-remote/files/md5").is_dir()
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", str(project), str(clone))
    assert not (clone / "data").exists()
    run_dvc("config", "--local", "remote.local.url", str(project / ".dvc-remote"), root=clone)
    run_dvc("pull", root=clone)
    assert hash_tree([clone / "data"]) == hash_tree([project / "data"])
    assert read_status(clone) == {}
    run_dvc("repro", root=clone)
    assert read_calls(clone) == []


def test_project_without_git_is_recorded_too(project: Path) -> None:
    """An unpacked archive: DVC is told once, in the local settings, that there is no git; with git again the mark goes."""
    shared = (project / ".dvc/config").read_bytes()
    shutil.rmtree(project / ".git")
    run_by_hand(project, "raw", "rounds/1", "rounds/2")
    record_outs(["generation", "rounds"], root=project)
    assert read_status(project) == {} and "no_scm = true" in (project / ".dvc/config.local").read_text()
    git(project, "init", "-q")
    set_scm(project)
    assert "no_scm" not in (project / ".dvc/config.local").read_text()
    assert (project / ".dvc/config").read_bytes() == shared and read_status(project) == {}


def test_tags_are_set_beside_the_branch_also_where_git_knows_no_user(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tag stays on the same outputs and moves to others, whose commit keeps the former; branch and index are as they were."""
    for name in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"):
        monkeypatch.setenv(name, "/dev/null")
    git(project, "config", "user.useConfigOnly", "true")
    head = git(project, "rev-parse", "HEAD")

    def tag(outs: str, root: Path = project) -> list[str]:
        (root / "dvc.lock").write_text(f"stages: {{rounds@1: {{outs: [{outs}]}}, rounds@2: {{outs: []}}}}\n")
        return tag_stages({"rounds@1": "round/1", "nothing": "round/x"}, root=root)

    assert tag("a") == ["round/1"] and tag("a") == []
    first = git(project, "rev-parse", "round/1^{commit}")
    assert git(project, "log", "-1", "--format=%an %ce %s", "round/1").strip() == "visloop visloop@localhost rounds@1 as DVC recorded it"
    monkeypatch.setenv("GIT_AUTHOR_NAME", "me")
    assert tag("b") == ["round/1"]
    assert git(project, "show", "round/1:dvc.lock").startswith("stages: {rounds@1: {outs: [b]}")
    assert git(project, "log", "-1", "--format=%P %an", "round/1").split() == [head.strip(), first.strip(), "me"]
    assert git(project, "rev-parse", "HEAD") == head and git(project, "status", "--porcelain").split() == ["??", "dvc.lock"]
    (tmp_path / "no git").mkdir()
    assert tag("a", root=tmp_path / "no git") == []


def test_missing_output_and_unknown_stage_are_named(project: Path) -> None:
    run_by_hand(project, "raw", "rounds/1")
    with pytest.raises(DataError, match="rounds/2"):
        record_outs(["rounds"], root=project)
    with pytest.raises(DataError, match="nonsense"):
        record_outs(["nonsense"], root=project)


def test_quarantine_and_work_in_progress_are_not_versioned(project: Path) -> None:
    run_by_hand(project, "raw", "rounds/1", "rounds/2")
    record_outs(["generation", "rounds"], root=project)
    for name in ("quarantine/pairs.jsonl", ".stage/build/x"):
        path = project / "data/rounds/1" / name
        path.parent.mkdir(parents=True)
        path.write_text("x")
    assert read_status(project) == {}


def test_another_dvc_process_is_waited_for(project: Path) -> None:
    """While `dvc repro` works on the same stage, recording waits for it and does not fail."""
    slow = (project / "flow.py").read_text() + "\nimport time; time.sleep(4)\n"
    (project / "flow.py").write_text(slow)
    thread = threading.Thread(target=lambda: run_dvc("repro", "generation", root=project))
    thread.start()
    while not read_calls(project):
        time.sleep(0.1)
    started = time.perf_counter()
    record_outs(["generation"], root=project)
    waited = time.perf_counter() - started
    thread.join()
    assert waited > 3 and set(read_status(project)) == {"rounds@1", "rounds@2"}


def test_flow_is_recorded_only_with_the_settings_of_repro(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    config = compose_config()
    run_by_hand(project, "raw", "rounds/1", "rounds/2")
    assert record_flow("generation", config).stages == ("generation",)
    one = replace(config, rounds=replace(config.rounds, only=1))
    assert record_flow("dpo_rounds", one).stages == ("rounds@1",)
    assert set(read_status(project)) == {"rounds@2"}

    other = record_flow("dpo_rounds", replace(config, seed=7))
    assert other.state == "other_settings" and "params.yaml" in other.message
    assert set(read_status(project)) == {"rounds@2"}
    (project / "params.yaml").write_text("overrides: seed=7\n")
    assert record_flow("dpo_rounds", replace(config, seed=7)).state == "recorded"
    assert record_flow("dpo_rounds", config).state == "other_settings"
    assert "seed=7" in (project / "dvc.lock").read_text()


def test_flow_called_by_dvc_leaves_the_recording_to_it(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    monkeypatch.setenv("DVC_STAGE", "generation")
    assert called_by_dvc()
    assert record_flow("generation", compose_config()).state == "by_dvc"
    assert not (project / "dvc.lock").exists()


def test_folder_outside_of_a_project_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_project(tmp_path) is None
    assert record_flow("generation", Config()).state == "no_project"
    assert list(tmp_path.iterdir()) == []


def test_unreadable_params_are_named(project: Path) -> None:
    for text in ("", "other: 1\n", "overrides: [a\n", "overrides: 3\n", 'overrides: "\'"\n'):
        (project / "params.yaml").write_text(text)
        with pytest.raises(ConfigError, match=r"params\.yaml"):
            read_overrides(project)
    (project / "params.yaml").write_text("overrides: experiment=smoke 'data.root=a b'\n")
    assert read_overrides(project) == ["experiment=smoke", "data.root=a b"]


def test_repro_keeps_what_a_stage_had_finished(project: Path) -> None:
    """DVC calls a stage again without deleting its outputs first: the flow finds its finished shards."""
    run_dvc("repro", "generation", root=project)
    (project / "flow.py").write_text("import pathlib; assert len(list(pathlib.Path('data/raw').iterdir())) == 3\n")
    run_dvc("repro", "generation", root=project)
    assert set(read_status(project)) == {"rounds@1", "rounds@2"}


def test_stages_of_the_project_are_those_of_the_flows() -> None:
    """``dvc.yaml`` resolves, every stage calls its flow, outputs outlive a call, and the rounds are those of the config."""
    listed = read_stages()
    assert {name.split("@")[0] for name in listed} == {*FLOW_STAGES["pipeline"], *FLOW_STAGES["clova"]}
    config = compose_config(read_overrides(PROJECT_ROOT))
    numbered = [f"rounds@{number}" for number in range(config.rounds.rounds + 1)]
    numbered += [f"cycles@{number}" for number in range(1, config.assistant.tasks.cycles + 1)]
    assert sorted(name for name in listed if "@" in name) == sorted(numbered)
    own = FLOW_STAGES | {"pipeline": (), "clova": ("assistant",)}  # these two record the stages of flows that they call as well
    for flow, stages in own.items():
        for stage in stages:
            found = [entry for name, entry in listed.items() if name.split("@")[0] == stage]
            assert found and all(entry["cmd"].startswith(f"python -m flows.{flow}") for entry in found)
    assert all(entry["persist"] for entry in listed.values())


def test_dependencies_of_the_project_exist_or_are_made() -> None:
    """A stage depends on tracked sources and on outputs of stages, nothing else: a renamed package would be noticed here."""
    listed = read_stages()
    made = [out for entry in listed.values() for out in entry["outs"]]
    for name, entry in listed.items():
        for path in entry["deps"]:
            known = (PROJECT_ROOT / path).exists() and not path.startswith("data/")
            assert known or any(path == out or path.startswith(f"{out}/") for out in made), f"{name}: {path}"


def test_stages_depend_on_all_the_code_that_their_manifests_hash() -> None:
    """Where a manifest would have a stage run again, `dvc repro` may not say that there is nothing to do."""
    listed = read_stages()
    assert {name.split("@")[0] for name in listed} == set(STAGE_CODE)
    for name, entry in listed.items():
        code = STAGE_CODE[name.split("@")[0]]
        rules = _ASSISTANT_RULES if "visloop.assistant.checks" in code else _RULES
        needed = [path.relative_to(PROJECT_ROOT).as_posix() for path in (*list_files(code), *rules)]
        missing = [path for path in needed if not any(path == dep or path.startswith(f"{dep}/") for dep in entry["deps"])]
        assert not missing, name


def test_no_code_of_a_flow_is_left_out_of_the_table() -> None:
    """Every module that a stage of a flow names as its code is in ``STAGE_CODE``, so that the test above looks at it."""
    named = {name: path.name for path in find_flow_files() for name in find_code(path)}
    assert len(named) > 15
    known = {name for code in STAGE_CODE.values() for name in code}
    assert {name: file for name, file in named.items() if name not in known} == {}
    assert known <= set(named), "the table names nothing that no flow names"


def find_flow_files() -> list[Path]:
    """The modules of ``flows`` that the commands of ``dvc.yaml`` import, without the one whose code enters a run's key."""
    waiting = {entry["cmd"].split()[2] for entry in read_stages().values()}
    seen = {"flows._tracking"}
    while waiting - seen:
        name = (waiting - seen).pop()
        seen.add(name)
        nodes = ast.walk(ast.parse((PROJECT_ROOT / f"{name.replace('.', '/')}.py").read_text()))
        waiting |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("flows.")}
    return [PROJECT_ROOT / f"{name.replace('.', '/')}.py" for name in sorted(seen - {"flows._tracking"})]


def find_code(path: Path) -> set[str]:
    """Modules of the project in arguments and variables called ``code``, ``..._CODE`` or the like."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        named = node.arg if isinstance(node, ast.keyword) else node.targets[0].id if _is_plain(node) else ""
        if (named or "").lower().endswith("code"):
            words = (part.value for part in ast.walk(node.value) if isinstance(part, ast.Constant))
            found |= {word for word in words if isinstance(word, str) and word.startswith("visloop.")}
    return found


def _is_plain(node: ast.AST) -> bool:
    return isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)


def read_stages() -> dict[str, dict[str, Any]]:
    """Command, dependencies and outputs of every stage of the project, as DVC resolves them."""
    script = """if True:
        import json
        from dvc.repo import Repo
        stages = Repo(".").index.stages
        print(json.dumps({stage.name: {
            "cmd": stage.cmd,
            "deps": [dep.def_path for dep in stage.deps],
            "outs": [out.def_path for out in stage.outs],
            "persist": all(out.persist for out in stage.outs),
        } for stage in stages}))"""
    done = subprocess.run([sys.executable, "-c", script], cwd=PROJECT_ROOT, capture_output=True, text=True, check=True)
    stages: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return stages


def test_what_people_said_is_versioned_by_pointers_that_git_sees(project: Path, tmp_path: Path) -> None:
    """Folders of no stage: git is shown the pointers and nothing else of the data; the bytes come back, also in a clone."""
    shutil.copy(PROJECT_ROOT / ".gitignore", project / ".gitignore")
    folder = project / "data" / "feedback" / "cycles" / "05"
    folder.mkdir(parents=True)
    (folder / "feedback.jsonl").write_text("{}\n")
    recorded = add_folders([folder], data=project / "data")
    assert (recorded.state, recorded.stages) == ("recorded", ("data/feedback/cycles/05",))
    new = git(project, "status", "--porcelain", "--untracked-files=all", "data").split()[1::2]
    assert new == ["data/feedback/cycles/05.dvc"]
    shutil.rmtree(folder)
    run_dvc("checkout", "data/feedback/cycles/05.dvc", root=project)
    assert (folder / "feedback.jsonl").read_text() == "{}\n"
    run_by_hand(project, "rounds/1")
    assert add_folders([project / "data" / "rounds" / "1"], data=project / "data").stages == ()  # a stage's output is left to its stage
    assert add_folders([folder], data=tmp_path / "elsewhere").state == "no_project"
