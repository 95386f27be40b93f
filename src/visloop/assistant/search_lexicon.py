"""Words for the parts of the space, learned from feedback: what the lexicon lacks is filled in as expectation maximisation would.

The search is opened: a place or relation may be proposed where no word of the instruction is known to speak of it. Candidates that agree
with the feedback then tell, all instructions together, which unknown word goes with which part; those words enter the lexicon.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from visloop.assistant.search_judgements import Judgement
from visloop.assistant.search_learning import TrainingSettings, fit_scorer, group_judgements, make_lesson, prepare_scorer
from visloop.assistant.search_scorer import Scorer
from visloop.assistant.search_space import join_lexicons
from visloop.assistant.search_training import Lesson, score_candidates


@dataclass(frozen=True, slots=True)
class LearnedWord:
    """A word that entered the lexicon: ``support`` is the expected number of instructions where it speaks of the part, ``share`` that
    number as a fraction of the instructions that have the word."""

    part: str
    word: str
    support: float
    share: float
    round: int


@dataclass(frozen=True, slots=True)
class LexiconSettings:
    """``rounds`` of search and counting; a word needs ``support`` and ``share`` for a part, and parts compete for it: those below
    ``rival`` times the best part's share are dropped."""

    rounds: int = 2
    support: float = 1.5
    share: float = 0.3
    rival: float = 0.4


def learn_lexicon(
    scorer: Scorer, judgements: Sequence[Judgement], *, settings: LexiconSettings | None = None, training: TrainingSettings | None = None
) -> tuple[Scorer, tuple[LearnedWord, ...]]:
    """The scorer (without weights) with the words that the judgements teach, and these words in the order in which they came."""
    settings, training = settings or LexiconSettings(), training or TrainingSettings()
    learned: list[LearnedWord] = []
    for number in range(1, settings.rounds + 1):
        opened = prepare_scorer(replace(scorer, open_parts=True), judgements, reference=training.reference)
        lessons = [make_lesson(opened, group) for group in group_judgements(judgements)]
        weights = fit_scorer(lessons, settings=training)
        found = _count_words(lessons, weights, settings=settings, round=number)
        if not found:
            break
        learned += found
        words: dict[str, tuple[str, ...]] = defaultdict(tuple)
        for item in found:
            words[item.part] = (*words[item.part], item.word)
        scorer = replace(scorer, lexicon=join_lexicons(scorer.lexicon, words))
    return scorer, tuple(learned)


def _count_words(lessons: Sequence[Lesson], weights: dict[str, float], *, settings: LexiconSettings, round: int) -> list[LearnedWord]:
    support: dict[tuple[str, str], float] = defaultdict(float)
    seen: dict[str, int] = defaultdict(int)
    for lesson in lessons:
        unknown = sorted({lesson.reading.tokens[position] for position in lesson.reading.unknown})
        for word in unknown:
            seen[word] += 1
        if not lesson.agrees.any() or not unknown:
            continue
        scores = score_candidates(lesson.reading, lesson.candidates, weights)
        shares = np.exp(scores - scores[lesson.agrees > 0].max()) * lesson.agrees
        for candidate, share in zip(lesson.candidates, shares / shares.sum(), strict=True):
            for part in candidate.parts:
                if part[0] in ("place", "relation") and part[-1] == -1:
                    pull = np.array([_weigh(part[0], str(part[1]), word, part, weights) for word in unknown])
                    pull = np.exp(4 * (pull - pull.max()))
                    for word, fraction in zip(unknown, pull / pull.sum(), strict=True):
                        support[str(part[1]), word] += float(share * fraction)
    best: dict[str, float] = defaultdict(float)
    for (_, word), count in support.items():
        best[word] = max(best[word], count / seen[word])
    kept = [
        LearnedWord(part, word, round=round, support=count, share=count / seen[word])
        for (part, word), count in support.items()
        if count >= settings.support and count / seen[word] >= max(settings.share, settings.rival * best[word])
    ]
    return sorted(kept, key=lambda item: (-item.support, item.part, item.word))


def _weigh(kind: str, name: str, word: str, part: tuple[object, ...], weights: dict[str, float]) -> float:
    """How much the scorer ties an open part to a word."""
    shown = f"{kind} {name} {part[2]}" if kind == "place" else f"{kind} {name}"
    return weights.get(f"{shown} open {word}", 0.0)
