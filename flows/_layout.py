"""Where everything lies under the data folder: the one place that knows names of folders."""

from dataclasses import dataclass
from pathlib import Path

from visloop.assistant.pools import POOL_NAMES
from visloop.config import Config
from visloop.records.manifest import MANIFEST_NAME

DEFAULT_ROUNDS, DEFAULT_CYCLES = "rounds", "cycles"


@dataclass(frozen=True)
class Layout:
    """Folders of one project. ``root`` is the data folder, to which image paths inside records are relative.

    What is measured and checked of rounds or cycles in a folder of their own (``paths.rounds``, ``paths.cycles``: a job of a sweep)
    lies apart as well, so that jobs can run side by side and can be compared afterwards.
    """

    root: Path
    dataset: str
    rounds: str = DEFAULT_ROUNDS
    tasks_name: str = "workshop"
    cycles: str = DEFAULT_CYCLES

    @classmethod
    def from_config(cls, config: Config) -> "Layout":
        return cls(Path(config.paths.data), config.data.name, config.paths.rounds, config.assistant.tasks.name.value, config.paths.cycles)

    @property
    def raw(self) -> Path:
        return self.root / "raw" / self.dataset

    @property
    def reasoning(self) -> Path:
        return self.root / "reasoning"

    @property
    def pool(self) -> Path:
        return self.reasoning / "pool"

    @property
    def paths(self) -> Path:
        return self.reasoning / "paths"

    @property
    def assessed(self) -> Path:
        return self.reasoning / "assessed"

    @property
    def agent_paths(self) -> Path:
        return self.reasoning / "agent_paths"

    def training_set(self, name: str) -> Path:
        return self.reasoning / "sets" / name

    def model(self, name: str) -> Path:
        return self.root / "models" / name

    def round(self, number: int) -> Path:
        return self.root / self.rounds / f"{number:02d}"

    @property
    def assistant(self) -> Path:
        return self.root / "assistant"

    @property
    def tasks(self) -> Path:
        return self.assistant / "tasks" / self.tasks_name

    @property
    def collection(self) -> Path:
        return self.assistant / "collection"

    @property
    def assistant_evaluation(self) -> Path:
        return self.assistant / "evaluation"

    def cycle(self, number: int) -> Path:
        return self.root / self.cycles / f"{number:02d}"

    def find_last_cycle(self) -> int:
        """The cycle whose pools are the assistant's: the last of those that are finished, one after the other."""
        number = 0
        while (self.cycle(number + 1) / MANIFEST_NAME).is_file():
            number += 1
        return number

    @property
    def undone(self) -> Path:
        """Cycles that were taken back, by rollback."""
        return self.root / self.cycles / "undone"

    @property
    def exports(self) -> Path:
        """What was written for others to learn from."""
        return self.root / _part_line("exports", self.cycles, DEFAULT_CYCLES)

    @property
    def ablations(self) -> Path:
        return self.assistant / "ablations"

    def feedback(self, number: int) -> Path:
        """What people said that cycle ``number`` learns from."""
        return self.root / "feedback" / self.cycles / f"{number:02d}"

    def questions(self, number: int) -> Path:
        """People's questions among the prompts of round ``number``."""
        return self.round(number) / "people"

    @property
    def page(self) -> Path:
        """What was asked on the page: a file per run, and the pictures."""
        return self.root / "page"

    def gate(self, name: str) -> Path:
        return self.root / "gates" / name

    def cycle_gate(self, number: int, suite: str) -> Path:
        """The result of a gate behind a cycle."""
        return self.root / _part_line("gates", self.cycles, DEFAULT_CYCLES) / f"cycle_{number:02d}_{suite}"

    @property
    def predictions_gate(self) -> Path:
        return self.root / _part_line("gates", self.rounds, DEFAULT_ROUNDS) / "predictions"

    @property
    def evaluation(self) -> Path:
        return self.root / _part_line("evaluation", self.rounds, DEFAULT_ROUNDS)

    def benchmark(self, name: str) -> Path:
        """A public benchmark's questions, answers and scores."""
        return self.root / _part_line("benchmarks", self.rounds, DEFAULT_ROUNDS) / name

    @property
    def reports(self) -> Path:
        return self.root / _part_line("reports", self.rounds, DEFAULT_ROUNDS)


def _part_line(name: str, line: str, default: str) -> str:
    """``evaluation``, or ``evaluation-<line>`` for rounds or cycles in a folder that is not the default one."""
    return name if line == default else f"{name}-{line.replace('/', '-')}"


def pool_inputs(folder: Path) -> dict[str, Path]:
    """What a stage reads of a cycle: the pools alone, whose bytes do not depend on how long anything took, as those of traces do."""
    return {name: folder / name for name in POOL_NAMES if name != "judgements" or (folder / name).is_dir()}
