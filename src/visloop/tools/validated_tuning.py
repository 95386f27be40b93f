"""Training-validation prompt tuning, the part that no model needs: who learns from what, and what is kept (CLOVA 3.4).

Every picture of the training instances belongs to one prompt. A picture that validates is never learned from: the released code
validates on the training picture, so that it keeps what was only memorized. The exception is a question with its one inferred answer
(``lone_questions``), for which nothing else is there; the next run of its program validates it.
"""

import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

import numpy as np

from visloop.config_assistant import PromptTuning
from visloop.ids import hash_json, make_id, seed_for
from visloop.records.assistant import Instance, PromptEntry
from visloop.tools.base import TuningReport
from visloop.tools.prompt_pool import Floats, LearnedPrompt, PromptPool

Pictures = Sequence[Sequence[Instance]]
"""The positive instances of a concept, picture by picture."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Learned:
    """What a backend learned from some pictures: ``prompt`` (tokens, width), ``feature`` (d,) of the pictures, and the share of them
    that came out right with it."""

    prompt: Floats
    feature: Floats
    train_accuracy: float


class Learner(Protocol):
    """What a backend gives to the tuning: how it learns one prompt, and how it measures a pool."""

    owner: str
    backend: str
    placement: str
    model_name: str

    def learn(self, concept: str, *, pictures: Pictures, negatives: Sequence[Instance], seed: int) -> Learned:
        """One prompt from these pictures."""
        ...

    def measure(self, concept: str, instances: Sequence[Instance], *, pool: PromptPool) -> float:
        """Share of positive instances that the tool gets right with a pool."""
        ...

    def measure_base(self, concept: str, instances: Sequence[Instance], *, pool: PromptPool) -> float:
        """Share of what the tool should know already, or should not take for the concept, that it gets right with a pool."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """Instances by their use. ``pictures`` are learned from; ``positives`` decide; ``base`` must not be harmed."""

    pictures: tuple[tuple[Instance, ...], ...]
    negatives: tuple[Instance, ...]
    positives: tuple[Instance, ...]
    base: tuple[Instance, ...]


def share_instances(
    instances: Sequence[Instance], *, replay: Sequence[Instance], tuning: PromptTuning, seed: int, lone_questions: bool = False
) -> Shares:
    """Divide instances by split; a picture of the validation split or of the replay set is taken out of the training.

    With ``lone_questions`` it is a question about a picture that is taken out, and what is learned from validates where nothing else does.
    """

    def key(item: Instance) -> tuple[str, str]:
        return item.image, item.question if lone_questions else ""

    held = {key(item) for item in (*(item for item in instances if item.split == "validation"), *replay)}
    train = [item for item in instances if item.split == "train" and key(item) not in held]
    groups: dict[str, list[Instance]] = {}
    for item in sorted((item for item in train if item.positive), key=lambda item: item.id):
        groups.setdefault(item.image, []).append(item)
    pictures = [tuple(group) for _, group in sorted(groups.items())]
    random.Random(seed).shuffle(pictures)
    validation = [item for item in instances if item.split == "validation"]
    learned = tuple(pictures[: tuning.instances])
    positives = tuple(item for item in validation if item.positive)[: tuning.validation]
    if lone_questions and not positives:
        positives = tuple(item for picture in learned for item in picture)
    return Shares(
        pictures=learned,
        negatives=tuple(item for item in train if not item.positive)[: tuning.negatives],
        positives=positives,
        base=(*(item for item in validation if not item.positive), *replay),
    )


def tune_prompts(
    learner: Learner,
    concept: str,
    *,
    pool: PromptPool,
    instances: Sequence[Instance],
    replay: Sequence[Instance],
    tuning: PromptTuning,
    seed: int,
    cycle: int,
    companions: Sequence[LearnedPrompt] = (),
    lone_questions: bool = False,
) -> TuningReport:
    """Learn up to ``tuning.prompts`` prompts, each from other pictures, and keep those that prove themselves.

    A prompt is kept if, alone for its concept, it gets ``tuning.min_validation`` of the validation instances right, no fewer than the
    pool did before, and costs at most ``tuning.max_base_drop`` of the base set. Then all that were kept are measured together, and
    the worst are dropped until they hold the same limit. ``min_validation`` 0 keeps all unmeasured (CLOVA's ablation).

    Args:
        companions: prompts that go into the pool together with the first kept one (VQA's anchors).
        lone_questions: what is learned are single questions, each with a prompt of its own beside the others of its answer, without a
            limit (VQA, CLOVA 3.4: there is one inferred answer, and the proof is the program's next run).
    """
    started = time.perf_counter()
    shares = share_instances(
        instances, replay=replay, tuning=tuning, seed=seed_for(seed, "pictures", concept), lone_questions=lone_questions
    )
    most = None if lone_questions else tuning.max_prompts
    before = learner.measure(concept, shares.positives, pool=pool) if shares.positives else 0.0
    base_before = learner.measure_base(concept, shares.base, pool=pool) if shares.base else 1.0
    if not shares.pictures or not shares.positives:
        reason = "nothing to learn from: no positive train picture" if not shares.pictures else "no positive validation instance"
        return _report(pool, (), 0, f"{reason}, of {len(instances)} instances", (before, before), (base_before, base_before), started)

    rest = pool if lone_questions else pool.drop_prompts(prompt.entry.id for prompt in pool.find_prompts(learner.owner, concept))
    kept: list[LearnedPrompt] = []
    folds = min(tuning.prompts, len(shares.pictures))
    best = 0.0
    for fold in range(folds):
        pictures = shares.pictures[fold::folds]
        learned = learner.learn(concept, pictures=pictures, negatives=shares.negatives, seed=seed_for(seed, concept, fold))
        prompt = _make_prompt(learner, concept, learned, pictures, tuning=tuning, seed=seed, cycle=cycle)
        alone = _add(rest, [prompt], companions, most=most)
        right = learner.measure(concept, shares.positives, pool=alone)
        best = max(best, right)
        if tuning.min_validation > 0 and right < max(tuning.min_validation, before):
            continue
        base = learner.measure_base(concept, shares.base, pool=alone) if shares.base else 1.0
        if tuning.min_validation > 0 and base < base_before - tuning.max_base_drop:
            continue
        kept.append(_with_figures(prompt, validation=right, base=base, base_before=base_before))

    kept.sort(key=lambda prompt: -prompt.entry.validation_accuracy)
    while kept:
        joined = _add(pool, kept, companions, most=most)
        after = learner.measure(concept, shares.positives, pool=joined)
        base_after = learner.measure_base(concept, shares.base, pool=joined) if shares.base else 1.0
        if tuning.min_validation <= 0 or (base_after >= base_before - tuning.max_base_drop and after >= before):
            there = {prompt.entry.id for prompt in joined.prompts}
            ids = tuple(prompt.entry.id for prompt in kept if prompt.entry.id in there)
            reason = f"{len(ids)} of {folds} prompts kept"
            return _report(joined, ids, folds - len(ids), reason, (before, after), (base_before, base_after), started)
        kept.pop()
    reason = (
        f"none of {folds} prompts passed: best {best:.2f} of {len(shares.positives)} validation instances, wanted "
        f"{max(tuning.min_validation, before):.2f}, and at most {tuning.max_base_drop:.2f} lost of {len(shares.base)} base instances"
    )
    return _report(pool, (), folds, reason, (before, before), (base_before, base_before), started)


def split_concepts(text: str) -> tuple[str, ...]:
    """The single words of a phrase that may be learned, then the phrase itself; lower case, without articles and prepositions."""
    words = [word.strip(".,;:!?'\"()") for word in text.lower().split()]
    named = [word for word in words if word and word not in _EMPTY_WORDS]
    phrase = " ".join(named)
    return tuple(dict.fromkeys([*named, phrase] if phrase else named))


def find_asked(pool: PromptPool, owner: str, text: str) -> tuple[LearnedPrompt, ...]:
    """The prompts of a phrase, or else those of its words in order; empty if there are none."""
    concepts = split_concepts(text)
    if concepts and (whole := pool.find_prompts(owner, concepts[-1])):
        return whole
    return tuple(prompt for concept in concepts[:-1] for prompt in pool.find_prompts(owner, concept))


_EMPTY_WORDS = frozenset(["a", "an", "the", "of", "in", "on", "at", "to", "and", "or", "with", "is", "are"])


def _make_prompt(
    learner: Learner, concept: str, learned: Learned, pictures: Pictures, *, tuning: PromptTuning, seed: int, cycle: int
) -> LearnedPrompt:
    sources = tuple(item.id for picture in pictures for item in picture)
    made_with = (learner.model_name, hash_json(asdict(tuning)), *sources, seed, cycle)
    entry = PromptEntry(
        id=make_id(learner.owner, concept, learner.backend, learner.placement, *made_with),
        tool=learner.owner,
        concept=concept,
        backend=learner.backend,
        placement=learner.placement,
        instance_ids=sources,
        train_accuracy=learned.train_accuracy,
        validation_accuracy=0.0,
        base_accuracy=0.0,
        base_accuracy_before=0.0,
        cycle=cycle,
    )
    return LearnedPrompt(
        entry=entry, feature=np.asarray(learned.feature, dtype=np.float32), prompt=np.asarray(learned.prompt, dtype=np.float32)
    )


def _with_figures(prompt: LearnedPrompt, *, validation: float, base: float, base_before: float) -> LearnedPrompt:
    entry = prompt.entry
    figures = {"validation_accuracy": validation, "base_accuracy": base, "base_accuracy_before": base_before}
    return LearnedPrompt(entry=PromptEntry(**(asdict(entry) | figures)), feature=prompt.feature, prompt=prompt.prompt)


def _add(pool: PromptPool, prompts: Sequence[LearnedPrompt], companions: Sequence[LearnedPrompt], *, most: int | None) -> PromptPool:
    return pool.add_prompts(companions, most_per_concept=None).add_prompts(prompts, most_per_concept=most)


def _report(
    pool: PromptPool,
    kept: tuple[str, ...],
    refused: int,
    reason: str,
    validation: tuple[float, float],
    base: tuple[float, float],
    started: float,
) -> TuningReport:
    return TuningReport(
        pool=pool,
        kept=kept,
        refused=refused,
        reason=reason,
        validation_before=validation[0],
        validation_after=validation[1],
        base_before=base[0],
        base_after=base[1],
        seconds=time.perf_counter() - started,
    )
