"""The log-linear scorer and its training: the marginal likelihood of the candidates that agree with all feedback on an instruction."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from visloop.assistant.search_candidates import Candidate
from visloop.assistant.search_features import describe_part
from visloop.assistant.search_filters import Part
from visloop.assistant.search_words import Reading

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
_TINY = 1e-300


@dataclass(frozen=True, slots=True, eq=False)
class Lesson:
    """One instruction with its candidates; ``agrees`` (candidates,): 1 for those that agree with all feedback on it, else 0."""

    reading: Reading
    candidates: Sequence[Candidate]
    agrees: Floats


@dataclass(frozen=True, slots=True, eq=False)
class Design:
    """Lessons as matrices: ``choice`` (candidates, parts) says which parts a candidate has, ``traits`` (parts, features) which features a
    part has, ``owner`` (candidates,) the lesson of a candidate. ``names`` are the features."""

    choice: csr_matrix
    traits: csr_matrix
    owner: Ints
    agrees: Floats
    names: tuple[str, ...]

    def score(self, weights: Floats) -> Floats:
        """(candidates,): the sum of the weights of all parts' features."""
        return np.asarray(self.choice @ (self.traits @ weights))


def list_parts(candidates: Sequence[Candidate]) -> list[Part]:
    """The distinct parts of candidates, in order."""
    return list(dict.fromkeys(part for candidate in candidates for part in candidate.parts))


def build_design(lessons: Sequence[Lesson]) -> Design:
    """The matrices of lessons, with every feature that occurs."""
    index: dict[str, int] = {}
    rows, columns, part_rows, part_columns = [], [], [], []
    candidates = parts = 0
    for lesson in lessons:
        order = list_parts(lesson.candidates)
        for number, part in enumerate(order):
            found = {index.setdefault(name, len(index)) for name in describe_part(part, lesson.reading)}
            part_rows += [parts + number] * len(found)
            part_columns += sorted(found)
        place = {part: parts + number for number, part in enumerate(order)}
        for candidate in lesson.candidates:
            rows += [candidates] * len(candidate.parts)
            columns += [place[part] for part in candidate.parts]
            candidates += 1
        parts += len(order)
    return Design(
        choice=csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(candidates, parts)),
        traits=csr_matrix((np.ones(len(part_rows)), (part_rows, part_columns)), shape=(parts, len(index))),
        owner=np.repeat(np.arange(len(lessons)), [len(lesson.candidates) for lesson in lessons]),
        agrees=np.concatenate([lesson.agrees for lesson in lessons]) if lessons else np.zeros(0),
        names=tuple(index),
    )


def fit_weights(
    design: Design,
    *,
    lessons: Sequence[int] | None = None,
    start: Floats | None = None,
    penalty: float = 0.1,
    steps: int = 100,
    rate: float = 0.05,
    dropout: float = 0.3,
    seed: int = 0,
) -> Floats:
    """(features,): maximises, over the lessons (all, or the given ones), the sum of the logs of the probability that a candidate agrees
    with the feedback, less ``penalty / 2`` times the squared distance from ``start`` (features,; None: zeros).

    Lessons without an agreeing candidate, or where all agree, teach nothing and are left out.
    """
    count = int(design.owner.max(initial=-1)) + 1
    sums, sizes = np.bincount(design.owner, design.agrees, minlength=count), np.bincount(design.owner, minlength=count)
    useful = (sums > 0) & (sums < sizes)
    if lessons is not None:
        useful &= np.isin(np.arange(count), lessons)
    rows = np.flatnonzero(useful[design.owner])
    first = np.zeros(len(design.names)) if start is None else start
    if not rows.size:
        return first
    choice = design.choice[rows]
    used_parts = np.flatnonzero(np.diff(choice.tocsc().indptr))
    choice, traits = choice[:, used_parts], design.traits[used_parts]
    used = np.flatnonzero(np.diff(traits.tocsc().indptr))
    traits = traits[:, used]
    choice_t, traits_t = choice.T.tocsr(), traits.T.tocsr()
    agrees = design.agrees[rows]
    _, heads, owner = np.unique(design.owner[rows], return_index=True, return_inverse=True)
    offset = choice @ (traits @ first[used])

    def find_loss(weights: Floats) -> tuple[float, Floats]:
        scores = offset + choice @ (traits @ weights)
        shifted = np.exp(scores - np.maximum.reduceat(scores, heads)[owner])
        total, good = np.add.reduceat(shifted, heads), np.add.reduceat(shifted * agrees, heads) + _TINY
        value = float(np.log(total).sum() - np.log(good).sum() + penalty / 2 * weights @ weights)
        pull = shifted / total[owner] - shifted * agrees / good[owner]
        return value, traits_t @ (choice_t @ pull) + penalty * weights

    weights = first.copy()
    weights[used] += _descend(find_loss, len(used), steps=steps, rate=rate, dropout=dropout, seed=seed)
    return weights


def _descend(
    find_loss: Callable[[Floats], tuple[float, Floats]], size: int, *, steps: int, rate: float, dropout: float, seed: int
) -> Floats:
    """Adam on the whole batch, the rate falling to nothing; ``dropout`` of the features are left out of each step."""
    random = np.random.default_rng(seed)
    weights, mean, square = np.zeros(size), np.zeros(size), np.zeros(size)
    for step in range(1, steps + 1):
        kept = (random.random(size) >= dropout) / (1 - dropout)
        slope = find_loss(weights * kept)[1] * kept
        mean, square = 0.9 * mean + 0.1 * slope, 0.999 * square + 0.001 * slope**2
        update = (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
        weights = weights - rate * (1 - (step - 1) / steps) * update
    return weights


def score_candidates(reading: Reading, candidates: Sequence[Candidate], weights: Mapping[str, float]) -> Floats:
    """(candidates,): the sum of the weights of all parts' features; features that no lesson had count nothing."""
    value = {part: sum(weights.get(name, 0.0) for name in set(describe_part(part, reading))) for part in list_parts(candidates)}
    return np.array([sum(value[part] for part in candidate.parts) for candidate in candidates])
