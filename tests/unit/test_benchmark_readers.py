"""Every benchmark's rows become samples with the fields that its scorer needs; broken rows are counted, not guessed."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from visloop.datasets.benchmark_fields import BENCHMARKS, MMBENCH_STEP, read_list
from visloop.datasets.benchmarks import read_benchmark
from visloop.errors import ConfigError, DataError
from visloop.evaluation.benchmarks.scores import score_benchmark


def make_picture(number: int = 0) -> dict:
    buffer = io.BytesIO()
    Image.new("RGB", (12, 10), (number * 20 % 256, 40, 60)).save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": f"{number}.png"}


ANIMALS = {"question": "Which?", "A": "cat", "B": "dog", "D": None, "category": "animal"}
ROWS = {
    "mmmu": [
        {"id": "validation_Art_1", "options": "['x', \"it's\"]", "answer": "B", "question_type": "multiple-choice"},
        {"id": "validation_Math_2", "options": "[]", "answer": "['24.5', '24.50']", "question_type": "open"},
    ],
    "mmmu_pro_standard": [{"id": "test_Art_1", "options": str([f"o{n}" for n in range(10)]), "answer": "J", "subject": "Art"}],
    "mmmu_pro_vision": [{"id": "test_Art_1", "options": "['x', 'y']", "answer": "A", "subject": "Art"}],
    "mmbench": [
        {"index": 7, "hint": "Look.", "C": "cow", "answer": "C", **ANIMALS},
        {"index": 8, "hint": "nan", "C": "nan", "answer": "A", **ANIMALS},
    ],
    "mme": [
        {"question_id": "count/1.png", "question": "Is it? Please answer yes or no.", "answer": "Yes", "category": "count"},
        {"question_id": "count/1.png", "question": "Is it not? Please answer yes or no.", "answer": "No", "category": "count"},
    ],
    "chartqa": [
        {"question": "How many?", "answer": "14", "type": "human_test"},
        {"question": "Which?", "answer": "red", "type": "augmented_test"},
    ],
    "mathvista": [
        {"pid": "1", "question": "How far?", "choices": None, "unit": "cm", "precision": 1.0, "answer": "1.2", "answer_type": "float"},
        {"pid": "2", "question": "Which?", "choices": ["4", "5"], "unit": None, "precision": None, "answer": "5", "answer_type": "text"},
    ],
    "mmstar": [{"index": 0, "question": "Which?\nA: x, B: y", "answer": "B", "category": "math", "l2_category": "geometry"}],
    "textvqa": [{"question_id": 3, "question": "What?", "answers": ["stop"] * 6 + ["halt"] * 4}],
    "docvqa": [{"questionId": "9", "question": "What?", "answers": ["Invoice 12", "12"]}],
    "ocrbench": [{"dataset": "IIIT5K", "question_type": "Regular Text Recognition", "question": "What is written?", "answer": ["CENTRE"]}],
    "ai2d": [{"question": "Which?", "options": ["leaf", "root", "stem"], "answer": "2"}],
}
for row in [*ROWS["mmmu"], *ROWS["mmmu_pro_standard"]]:
    row["question"] = "How much is <image 1>?"
PICTURE_FIELDS = {"mathvista": "decoded_image", "mmmu": "image_1", "mmmu_pro_standard": "image_1"}
RIGHT = {
    "mmmu": ["(B)", "The answer is 24.5"],
    "mmmu_pro_standard": ["(J)"],
    "mmmu_pro_vision": ["A"],
    "mmbench": ["C", "B", "A", "A", "B"],
    "mme": ["Yes", "no."],
    "chartqa": ["14.5", "Red"],
    "mathvista": ["about 1.21 cm", "B"],
    "mmstar": ["B"],
    "textvqa": ["Stop"],
    "docvqa": ["invoice 12"],
    "ocrbench": ["it says centre"],
    "ai2d": ["C."],
}


def fill_rows(name: str) -> list[dict]:
    return [{**row, PICTURE_FIELDS.get(name, "image"): make_picture(number)} for number, row in enumerate(ROWS[name])]


def write_parquet(folder: Path, rows: list[dict]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "test-00000-of-00001.parquet")
    return folder


def test_every_benchmark_has_a_case_here():
    assert set(ROWS) == set(RIGHT) == set(BENCHMARKS)


@pytest.mark.parametrize("name", sorted(BENCHMARKS))
def test_rows_become_items_that_right_replies_score_full(name, tmp_path):
    root = write_parquet(tmp_path / "rows", fill_rows(name))
    items, report = read_benchmark(name, root=root, out=tmp_path / "images", image_prefix="raw/images")
    assert (report.read, report.kept) == (len(ROWS[name]), len(ROWS[name]))
    for item in items:
        assert item.sample.source == name
        assert item.sample.split == "test"
        assert (tmp_path / "images" / item.sample.images[0].removeprefix("raw/images/")).is_file()
    assert len({item.sample.id for item in items}) == len(items)
    replies = {item.sample.id: reply for item, reply in zip(items, RIGHT[name], strict=True)}
    result = score_benchmark(items, replies, system="s", bootstrap_samples=50)
    # two annotators of ten would not be enough: TextVQA's six are
    full = {"mme": 200.0, "ocrbench": 1000.0}.get(name, 1.0)
    assert result.rows[0].value == pytest.approx(full)
    assert (result.parse_failures, result.missing) == (0, 0)
    wrong = {item.sample.id: "zzz" if len(item.answers[0]) > 1 else "(A)" if item.answers[0] != "A" else "(B)" for item in items}
    assert score_benchmark(items, wrong, system="s", bootstrap_samples=50).rows[0].value == 0.0


def test_questions_carry_options_and_the_wished_format(tmp_path):
    items, _ = read_benchmark("ai2d", root=write_parquet(tmp_path / "rows", fill_rows("ai2d")), out=tmp_path / "images")
    assert items[0].sample.question == "Which?\nA. leaf\nB. root\nC. stem\nAnswer with the letter of the right option only."
    assert (items[0].sample.answer, items[0].sample.answer_type) == ("C", "letter")


def test_mmbench_rotations_keep_the_right_text_right(tmp_path):
    root = write_parquet(tmp_path / "rows", fill_rows("mmbench"))
    items, report = read_benchmark("mmbench", root=root, out=tmp_path / "images")
    assert (report.kept, len(items)) == (2, 3 + 2)
    first = items[:3]
    assert {item.options["ABC".index(item.sample.answer)] for item in first} == {"cow"}
    assert [item.sample.answer for item in first] == ["C", "B", "A"]
    assert [item.details["key"] for item in first] == ["7", str(7 + MMBENCH_STEP), str(7 + 2 * MMBENCH_STEP)]
    assert "A. dog\nB. cow\nC. cat" in first[1].sample.question
    assert first[1].sample.question.startswith("Look.\nWhich?")
    assert len({item.sample.group for item in first}) == 1
    single, _ = read_benchmark("mmbench", root=root, out=tmp_path / "images", circular=False)
    assert len(single) == 2


def test_rotations_that_the_data_holds_are_not_made_again(tmp_path):
    rows = fill_rows("mmbench")[:1]
    rows.append({**rows[0], "index": 7 + MMBENCH_STEP, "A": "dog", "B": "cow", "C": "cat", "answer": "B"})
    items, _ = read_benchmark("mmbench", root=write_parquet(tmp_path / "rows", rows), out=tmp_path / "images")
    assert [item.sample.answer for item in items] == ["C", "B"]


def test_questions_about_one_picture_form_a_group(tmp_path):
    rows = [{"question": f"How many {number}?", "answer": "1", "type": "human_test", "image": make_picture()} for number in range(3)]
    items, _ = read_benchmark("chartqa", root=write_parquet(tmp_path / "rows", rows), out=tmp_path / "images")
    assert len({item.sample.group for item in items}) == 1
    assert len({item.sample.id for item in items}) == 3


def test_jsonl_with_pictures_beside_it(tmp_path):
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "a.png").write_bytes(make_picture()["bytes"])
    (folder / "test.jsonl").write_text(json.dumps({**ROWS["docvqa"][0], "image": "a.png"}) + "\n")
    [item], _ = read_benchmark("docvqa", root=folder, out=tmp_path / "images")
    assert item.answers == ("Invoice 12", "12")


def damage(**values):
    return lambda row: {**row, **values}


def drop(field):
    return lambda row: {key: value for key, value in row.items() if key != field}


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("docvqa", drop("answers"), "no field 'answers'"),
        ("docvqa", damage(answers=[]), "no gold answer"),
        ("docvqa", damage(answers=[""]), "no gold answer"),
        ("docvqa", damage(question=" "), "question is empty"),
        ("docvqa", damage(question=None), "unexpected type"),
        ("docvqa", damage(image="../outside.png"), "outside the data's folder"),
        ("docvqa", damage(image="missing.png"), "cannot be read"),
        ("docvqa", damage(image=None), "must be bytes"),
        ("mmmu", damage(options="['x'"), "not a list"),
        ("mmmu", damage(answer="C"), "not one of the 2 options"),
        ("ai2d", damage(answer="7"), "not one of the 3 options"),
        ("ai2d", damage(answer="?"), "invalid literal"),
        ("mme", damage(answer="maybe"), "neither yes nor no"),
        ("mmbench", damage(answer="D"), "not one of the 3 options"),
    ],
)
def test_a_broken_row_is_counted_with_its_reason(tmp_path, name, change, reason):
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "a.png").write_bytes(make_picture()["bytes"])
    (tmp_path / "outside.png").write_bytes(make_picture()["bytes"])
    good = {**ROWS[name][0], PICTURE_FIELDS.get(name, "image"): "a.png"}
    keys = {"docvqa": "questionId", "mmmu": "id", "mme": "question", "mmbench": "index"}
    other = {**good, keys[name]: f"{good[keys[name]]}1"} if name in keys else good
    (folder / "test.jsonl").write_text("\n".join(map(json.dumps, [change(good), other])) + "\n")
    items, report = read_benchmark(name, root=folder, out=tmp_path / "images", max_skip_rate=0.5, circular=False)
    [skip] = report.skipped
    assert skip.where.endswith("test.jsonl:1")
    assert reason in skip.reason
    assert (len(items), report.kept) == (1, 1)
    with pytest.raises(DataError, match="1 of 2 rows cannot be used"):
        read_benchmark(name, root=folder, out=tmp_path / "images")


def test_a_question_twice_is_refused(tmp_path):
    rows = fill_rows("docvqa") * 2
    with pytest.raises(DataError, match="question 9 occurs twice"):
        read_benchmark("docvqa", root=write_parquet(tmp_path / "rows", rows), out=tmp_path / "images")


def test_nothing_is_fetched_unasked(tmp_path):
    with pytest.raises(ConfigError, match="name a folder with its parquet or jsonl files"):
        read_benchmark("mmstar", out=tmp_path)
    with pytest.raises(ConfigError, match="no benchmark 'gqa'"):
        read_benchmark("gqa", out=tmp_path, root=tmp_path)


def test_a_published_dataset_is_read_with_its_picture_column(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "published"
    folder.mkdir()
    rows = datasets.Dataset.from_list(fill_rows("ai2d")).cast_column("image", datasets.Image())
    rows.to_parquet(folder / "test.parquet")
    monkeypatch.setitem(BENCHMARKS, "ai2d", replace(BENCHMARKS["ai2d"], hub_id=str(folder)))
    [item], _ = read_benchmark("ai2d", out=tmp_path / "images", allow_download=True)
    assert item.options == ("leaf", "root", "stem")
    assert (tmp_path / "images" / item.sample.images[0]).read_bytes() == make_picture()["bytes"]
    monkeypatch.setitem(BENCHMARKS, "ai2d", replace(BENCHMARKS["ai2d"], hub_id=str(tmp_path / "nowhere")))
    with pytest.raises(DataError, match="cannot be loaded"):
        read_benchmark("ai2d", out=tmp_path / "images", allow_download=True)


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"no \*\.parquet"):
        read_benchmark("docvqa", root=tmp_path, out=tmp_path / "images")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(DataError, match=r"a\.parquet: not a readable parquet file"):
        read_benchmark("docvqa", root=tmp_path, out=tmp_path / "images")
    (tmp_path / "a.parquet").unlink()
    (tmp_path / "b.jsonl").write_text("{}\n[1]\n")
    with pytest.raises(DataError, match=r"b\.jsonl:2: a JSON object per line"):
        read_benchmark("docvqa", root=tmp_path, out=tmp_path / "images")


def test_a_limit_reads_the_first_rows_only(tmp_path):
    rows = [{**fill_rows("docvqa")[0], "questionId": str(number)} for number in range(5)]
    items, report = read_benchmark("docvqa", root=write_parquet(tmp_path / "rows", rows), out=tmp_path / "images", limit=2)
    assert [item.details["key"] for item in items] == ["0", "1"]
    assert report.read == 2


@pytest.mark.parametrize(
    ("value", "texts"),
    [("['a', 'b']", ("a", "b")), (["a", 1], ("a", "1")), ("plain", ("plain",)), (("a",), ("a",))],
)
def test_lists_are_read_from_lists_and_from_text(value, texts):
    assert read_list(value) == texts


def test_a_list_in_text_is_never_run_as_code():
    with pytest.raises(DataError, match="not a list"):
        read_list("[__import__('os').getcwd()]")
