"""The history elsewhere: in PostgreSQL with artifacts on S3, by two settings; refused where it would fall apart or leak a password."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from flows._database import connect
from flows._registry import load_registered, register_model
from flows._tracking import open_run
from flows._tracking_place import PLACE_NAME, TrackingPlace, bind_place, find_place
from tests.fixtures.servers import S3_KEYS, PostgresServer, S3Server, find_postgres, serve_postgres
from visloop.config import Config, PathsConfig, TrackingConfig
from visloop.errors import ConfigError, DataError


def make_config(mlruns: Path, *, uri: str = "", artifacts: str = "") -> Config:
    return Config(paths=PathsConfig(mlruns=str(mlruns)), tracking=TrackingConfig(uri=uri, artifacts=artifacts))


def test_by_default_the_history_is_in_the_folder(tmp_path: Path) -> None:
    place = bind_place(make_config(tmp_path / "mlruns"))
    assert place == find_place(tmp_path / "mlruns") and place.is_local
    assert place.uri == f"sqlite:///{tmp_path}/mlruns/mlflow.db" and place.artifacts == (tmp_path / "mlruns/artifacts").as_uri()
    assert not (tmp_path / "mlruns").exists(), "nothing to remember"


def test_a_folder_keeps_to_one_history(tmp_path: Path) -> None:
    mlruns = tmp_path / "mlruns"
    elsewhere = make_config(mlruns, uri=f"sqlite:///{tmp_path}/other.db", artifacts=str(tmp_path / "store/"))
    place = bind_place(elsewhere)
    assert place == TrackingPlace(uri=f"sqlite:///{tmp_path}/other.db", artifacts=f"file://{tmp_path}/store")
    assert find_place(mlruns) == bind_place(elsewhere) == place
    with pytest.raises(ConfigError, match=r"is kept in sqlite.*other\.db .*the settings say sqlite.*mlflow\.db .*conf/config\.yaml"):
        bind_place(make_config(mlruns))
    (mlruns / PLACE_NAME).write_text("{")
    with pytest.raises(DataError, match=r"tracking\.json cannot be read"):
        find_place(mlruns)


@pytest.mark.parametrize(
    ("uri", "artifacts"),
    [
        ("postgresql://me:s3cret@db/mlflow", ""),
        ("postgresql://me@db/mlflow?password=s3cret", ""),
        ("https://me:s3cret@mlflow.example.org", ""),
        ("", "s3://key:s3cret@bucket/x"),
    ],
)
def test_a_password_is_refused_and_not_repeated(uri: str, artifacts: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds a password") as caught:
        bind_place(make_config(tmp_path, uri=uri, artifacts=artifacts))
    assert "s3cret" not in str(caught.value) and "PGPASSWORD" in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "named"),
    [
        ("postgresql://me@127.0.0.1:9/mlflow", "cannot be opened: .*refused"),
        ("http://127.0.0.1:9", "no MLflow server answers"),
        ("mlflow.db", "give an address"),
    ],
)
def test_what_cannot_be_reached_is_said_at_once(uri: str, named: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=named):
        bind_place(make_config(tmp_path, uri=uri))
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    programs = find_postgres()
    if programs is None:
        pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
    with serve_postgres(programs) as server:
        yield server


@pytest.mark.slow
def test_runs_in_postgresql_and_artifacts_on_s3(
    s3: S3Server, postgres: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By two settings; the password comes from the environment. A second start finds the run, the registry finds the model."""
    for name, value in (*S3_KEYS.items(), ("AWS_ENDPOINT_URL", s3.endpoint), ("MLFLOW_S3_ENDPOINT_URL", s3.endpoint)):
        monkeypatch.setenv(name, value)
    mlruns = tmp_path / "mlruns"
    config = make_config(mlruns, uri=postgres.uri, artifacts=f"s3://{s3.bucket}/history")
    monkeypatch.setenv("PGPASSWORD", "wrong")
    with pytest.raises(ConfigError, match="password authentication failed"), open_run("pipeline", config):
        pass
    monkeypatch.setenv("PGPASSWORD", postgres.password)
    model = tmp_path / "data" / "models" / "reasoner"
    model.mkdir(parents=True)
    save_file({"w": np.ones(3, dtype=np.float32)}, model / "model.safetensors")
    (model / "config.json").write_text("{}")

    for origin in ("new", "finished"):
        with open_run("pipeline", config) as run:
            assert run.origin == origin
            run.client.log_dict(run.run_id, {"rows": [1]}, "reports/insight_v.json")
            with run.open_child("M_1", step=1) as child:
                child.log_round({"accuracy": 0.5})
                register_model(child, name="reasoner", folder=model, aliases=["m1"])

    client = connect(mlruns)  # whoever knows the folder only
    experiment = client.get_experiment_by_name("pipeline")
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(entry.info.run_name for entry in runs) == ["M_1", "pipeline"] and {entry.info.status for entry in runs} == {"FINISHED"}
    assert {entry.data.metrics["accuracy"] for entry in runs} == {0.5}
    assert load_registered("reasoner", mlruns=mlruns, alias="m1") == model
    assert not (mlruns / "mlflow.db").exists() and not (mlruns / "artifacts").exists()
    keys = s3.list_keys("history/pipeline/")
    assert {key.rpartition("/")[2] for key in keys} == {"config.json", "insight_v.json", "weights.json"}
    said = (mlruns / PLACE_NAME).read_text() + json.dumps([[entry.data.params, entry.data.tags] for entry in runs])
    assert postgres.password not in said and S3_KEYS["AWS_SECRET_ACCESS_KEY"] not in said
