"""The project's own ``dvc.yaml`` with a remote on S3: what a clone pulls has the same hashes and nothing is to be done again."""

import json
import subprocess
from pathlib import Path

import pytest

from flows._versioning import FLOW_STAGES, add_folders, record_outs, run_dvc
from tests.fixtures.servers import S3_KEYS, S3Server
from tests.fixtures.small_project import git, make_project, read_index
from visloop.errors import DataError
from visloop.ids import hash_tree


def point_at(server: S3Server, root: Path, *, bucket: str) -> None:
    """What docs/remotes.md says: the address belongs to the project, the endpoint to this machine, the keys to the environment."""
    run_dvc("remote", "add", "--force", "--default", "storage", f"s3://{bucket}/visloop", root=root)
    run_dvc("remote", "modify", "--local", "storage", "endpointurl", server.endpoint, root=root)


@pytest.mark.slow
def test_a_clone_pulls_from_s3_what_was_pushed(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in S3_KEYS.items():
        monkeypatch.setenv(name, value)
    root = make_project(tmp_path / "project")
    record_outs([*FLOW_STAGES["pipeline"], *FLOW_STAGES["clova"]], root=root)
    feedback = root / "data" / "feedback" / "cycles" / "05"
    feedback.mkdir(parents=True)
    (feedback / "feedback.jsonl").write_text('{"id": "f"}\n')
    add_folders([feedback], data=root / "data")
    point_at(s3, root, bucket="no-such-bucket")
    with pytest.raises(DataError, match=r"`dvc push` failed in .*bucket does not exist"):
        run_dvc("push", root=root)
    point_at(s3, root, bucket=s3.bucket)
    run_dvc("push", root=root)
    assert len(s3.list_keys("visloop/files/md5/")) > len(read_index(root)[0])
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "data")
    assert "test-secret" not in subprocess.run(["git", "grep", "-h", "."], cwd=root, capture_output=True, text=True, check=True).stdout

    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", str(root), str(clone))
    run_dvc("remote", "modify", "--local", "storage", "endpointurl", s3.endpoint, root=clone)
    run_dvc("pull", root=clone)
    places = [path for path in (root / "data").iterdir() if path.name != ".gitignore"]
    assert {path.name for path in places} >= {"raw", "models", "rounds", "cycles", "reports", "feedback"}
    for place in places:
        assert hash_tree([clone / "data" / place.name]) == hash_tree([place]), place.name
    assert json.loads(run_dvc("status", "--json", root=clone)) == {}
