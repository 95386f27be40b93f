"""A planner that searches a typed space of programs with a scorer that feedback has taught (author ``search``)."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from PIL import Image

from visloop.assistant.demonstrations import DemonstrationPool
from visloop.assistant.proposals import FailedAttempt, list_failed_programs, normalize_program, pair_attempts
from visloop.assistant.search_candidates import Candidate
from visloop.assistant.search_judgements import JudgedRun, Judgement, JudgementPool, read_answer
from visloop.assistant.search_learning import TrainingSettings, learn
from visloop.assistant.search_lexicon import learn_lexicon
from visloop.assistant.search_perception import look_at_tasks
from visloop.assistant.search_programs import write_program
from visloop.assistant.search_scenes import SceneTable
from visloop.assistant.search_scorer import Scorer, load_scorer, start_scorer
from visloop.assistant.search_space import Pack, Space, derive_lexicon, join_lexicons, load_pack
from visloop.config_assistant import WordsChoice
from visloop.errors import ConfigError, ToolError
from visloop.records.assistant import Proposal, Task
from visloop.tools.base import FindSignature, ToolRunner
from visloop.tools.signatures import find_signature

AUTHOR = "search"
_Rank = Callable[[str], list[tuple[Candidate, float]]]
_MOST_TRIES = 50
_BATCH = 64
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class SearchPlanner:
    """Proposes the likeliest program of a scorer's space. It shows no demonstrations to anyone; of the pool it reads which programs have
    failed for an instruction. A planner is a value: ``with_judgements`` gives another one, which learns from ``start`` anew; what was
    fitted is kept in ``learned`` by the pool's hash."""

    scorer: Scorer
    name: str = AUTHOR
    start: Scorer | None = None
    learn_words: bool = False
    settings: TrainingSettings = field(default_factory=TrainingSettings)
    learned: dict[str, Scorer] = field(default_factory=dict, repr=False)

    def propose(
        self, tasks: Sequence[Task], *, pool: DemonstrationPool, attempts: Sequence[FailedAttempt | None] | None = None, seed: int
    ) -> list[Proposal]:
        """One proposal per task, in order; nothing is drawn, so ``seed`` changes nothing. ``confidence`` is the program's probability
        among all candidates."""
        paired = pair_attempts(tasks, attempts)
        rank = cache(lambda instruction: self.scorer.rank(instruction)[:_MOST_TRIES])  # several tasks often share their instruction
        return [self._propose(task, rank, pool=pool, attempt=attempt) for task, attempt in zip(tasks, paired, strict=True)]

    def _propose(self, task: Task, rank: _Rank, *, pool: DemonstrationPool, attempt: FailedAttempt | None) -> Proposal:
        if task.inputs != self.scorer.space.inputs:
            wanted = ", ".join(self.scorer.space.inputs)
            return _fail(task, f"programs of the space {self.scorer.space.name} are about {wanted}, the task has {', '.join(task.inputs)}")
        failed = list_failed_programs(task, pool=pool, attempt=attempt)
        for candidate, share in rank(task.instruction):
            program, plan = write_program(candidate.meaning, space=self.scorer.space)
            if not failed or normalize_program(program) not in failed:
                return Proposal(task_id=task.id, plan=plan, program=program, author=AUTHOR, confidence=share)
        return _fail(task, "no program of the space fits the instruction's words" + (", but those that failed" if failed else ""))

    def judge(self, runs: Sequence[JudgedRun], *, tools: ToolRunner) -> list[Judgement]:
        """A judgement for every run of a task of the space whose right answer is known to be true or false. ``tools`` look at the
        pictures, all tasks side by side; a task whose pictures they fail on is left out, and logged."""
        space = self.scorer.space
        heard = [(run, read_answer(run.trace, run.feedback)) for run in runs if run.task.inputs == space.inputs]
        known = [(run, answer) for run, answer in heard if answer is not None]
        scenes = _look_at_runs([run for run, _ in known], space=space, tools=tools)
        return [
            Judgement(run.task.id, run.task.instruction, scene, answer)
            for (run, answer), scene in zip(known, scenes, strict=True)
            if scene is not None
        ]

    def with_judgements(self, pool: JudgementPool) -> "SearchPlanner":
        """The planner that has learned from a pool (``search_learning.learn``), and with ``learn_words`` words for the parts of programs
        too. A scorer that was loaded goes on from what it knew.

        Raises:
            ConfigError: the pool was heard with another space of programs.
        """
        start = self.start or self.scorer
        if not pool.entries:
            return replace(self, scorer=start)
        misfit = pool.find_misfit(start.space)
        if misfit is not None:
            raise ConfigError(
                f"planner: judgement {misfit} was heard with other words, places or relations than the space {start.space.name} has; "
                "take the task pack of the earlier cycles (assistant.planner.pack, scorer), or other cycles (paths.cycles)"
            )
        if pool.hash not in self.learned:
            opened, settings = start, self.settings
            if self.learn_words:
                opened, _ = learn_lexicon(start, pool.entries, training=settings)
            self.learned[pool.hash] = learn(opened, pool.entries, settings=settings, go_on=bool(start.weights))
        return replace(self, scorer=self.learned[pool.hash], start=start)


def _look_at_runs(runs: Sequence[JudgedRun], *, space: Space, tools: ToolRunner) -> list[SceneTable | None]:
    """What the tools see in the pictures of each run; None where they fail."""
    pictures = [[run.pictures[name] for name in space.inputs] for run in runs]
    scenes: list[SceneTable | None] = []
    for start in range(0, len(runs), _BATCH):
        batch = pictures[start : start + _BATCH]
        try:
            scenes += look_at_tasks(batch, space=space, tools=tools)
        except ToolError:
            scenes += [_look_at_one(one, space=space, tools=tools) for one in batch]
    for run, scene in zip(runs, scenes, strict=True):
        if scene is None:
            _log.warning("task %s: a tool fails on its pictures, so that the search learns nothing from it", run.task.id)
    return scenes


def _look_at_one(pictures: Sequence[Image.Image], *, space: Space, tools: ToolRunner) -> SceneTable | None:
    try:
        return look_at_tasks([pictures], space=space, tools=tools)[0]
    except ToolError:
        return None


def _fail(task: Task, error: str) -> Proposal:
    return Proposal(task_id=task.id, plan=(), program="", author=AUTHOR, status="failed", error=error)


def make_scorer(pack: Pack, words: WordsChoice, *, find_tool: FindSignature = find_signature) -> Scorer:
    """A scorer without weights that knows the words of a choice (``learned`` starts as ``reduced``).

    Raises:
        ConfigError: the space uses a tool that has no signature.
    """
    if words is WordsChoice.full:
        return start_scorer(pack, lexicon=join_lexicons(pack.lexicon, pack.function_words))
    own = derive_lexicon(pack.space, find_signature=find_tool)
    if words is WordsChoice.none:
        return start_scorer(pack, lexicon={part: own[part] for part in pack.space.words}, open_parts=True)
    return start_scorer(pack, lexicon=join_lexicons(own, pack.function_words))


def open_search_planner(
    pack: str | Path = "nlvr",
    *,
    scorer: Path | None = None,
    words: WordsChoice = WordsChoice.full,
    find_tool: FindSignature = find_signature,
) -> SearchPlanner:
    """The planner of a task pack that has learned nothing and knows these words, or that of a saved scorer, with its words.

    Raises:
        ConfigError: no such pack, or a tool of its space is unknown.
        DataError: the scorer cannot be read.
    """
    opened = load_scorer(scorer) if scorer is not None else make_scorer(load_pack(pack), words, find_tool=find_tool)
    places, relations = opened.space.places.values(), opened.space.relations.values()
    needed = {"SEG", "FILTER", "COUNT", "EVAL", *(place.tool for place in places), *(relation.tool for relation in relations)}
    unknown = sorted(tool for tool in needed if find_tool(tool) is None)
    if unknown:
        raise ConfigError(f"planner: the space {opened.space.name} needs tools that there are not: {', '.join(unknown)}")
    return SearchPlanner(opened, learn_words=scorer is None and words is WordsChoice.learned)
