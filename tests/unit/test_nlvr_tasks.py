"""NLVR's statements as a task set: parts by sentence, labels as truths, wordings known or new."""

from pathlib import Path

from tests.unit.test_nlvr import make_line, write_nlvr
from visloop.datasets.nlvr_tasks import read_nlvr_tasks

INPUTS = ("LEFT", "MIDDLE", "RIGHT")


def read(root: Path, out: Path, **counts: int) -> dict:
    wanted = {"stream": 100, "held_out": 100, "replay": 100, "base": 100, "test": 100} | counts
    return read_nlvr_tasks(root, out=out, image_prefix="tasks/pictures", inputs=INPUTS, counts=wanted)


def test_statements_become_tasks_with_labels_for_truths(tmp_path: Path) -> None:
    dev = [make_line(f"{sentence}-{picture}", label=("true", "false")[picture % 2]) for sentence in range(30) for picture in range(4)]
    test = [make_line("90-0", sentence="there are 3 YELLOW squares"), make_line("91-0", sentence="A wholly new statement.")]
    root = write_nlvr(tmp_path / "nlvr", {"dev": dev, "test": test})
    parts = read(root, tmp_path / "out", held_out=8, replay=4)
    sentences = {part: {task.instruction for task, _ in found} for part, found in parts.items()}
    assert sum(len(found) for found in parts.values()) == 122
    assert 0 < len(parts["held_out"]) <= 8 and len(parts["replay"]) <= 4
    learned = sentences["stream"] | sentences["held_out"] | sentences["replay"] | sentences["base"]
    assert sum(len(sentences[part]) for part in ("stream", "held_out", "replay", "base")) == len(learned) == 30, "no sentence in two parts"
    task, truth = parts["stream"][0]
    assert (task.kind, task.inputs, truth.task_id, truth.program) == ("multi_image", INPUTS, task.id, "")
    assert {entry.answer for _, entry in parts["stream"]} == {"true", "false"}
    assert all((tmp_path / "out" / image.removeprefix("tasks/pictures/")).is_file() for image in task.images)
    order = [task.group for task, _ in parts["stream"]]
    assert order != sorted(order), "statements come in a drawn order"
    assert [task.id for task, _ in read(root, tmp_path / "out", held_out=8, replay=4)["stream"]] == [task.id for task, _ in parts["stream"]]
    wordings = {task.instruction: task.wording for task, _ in parts["test"]}
    assert wordings["A wholly new statement."] == "new"
    known = "There are 3 yellow squares." in sentences["stream"]
    assert wordings["there are 3 YELLOW squares"] == ("base" if known else "new")


def test_counts_limit_every_part(tmp_path: Path) -> None:
    dev = [make_line(f"{sentence}-{picture}") for sentence in range(20) for picture in range(3)]
    root = write_nlvr(tmp_path / "nlvr", {"dev": dev, "test": [make_line(f"9{index}-0") for index in range(3)]})
    parts = read(root, tmp_path / "out", stream=9, test=2, base=0, replay=0, held_out=3)
    assert {part: len(found) for part, found in parts.items()} == {"stream": 9, "held_out": 3, "replay": 0, "base": 0, "test": 2}
