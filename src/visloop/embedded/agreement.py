"""How well a judge agrees with the exact verifier: ranking within questions, named errors, readable replies."""

import json
import math
from collections.abc import Sequence

from scipy.stats import spearmanr

from visloop.embedded.judge_lessons import JudgedQuestion

Entry = tuple[int, int]
"""Score and first wrong step (0: none) as the judge gave them."""


def read_entries(reply: str) -> dict[int, Entry]:
    """Score and first wrong step by path id; empty when the reply is no JSON array of such entries."""
    try:
        return {entry["id"]: (entry["score"], entry["error"]) for entry in json.loads(reply)}
    except (json.JSONDecodeError, KeyError, TypeError):
        return {}


def measure_agreement(questions: Sequence[JudgedQuestion], entries: Sequence[Sequence[Entry | None]]) -> dict[str, float]:
    """Agreement of the judge's entries, one per path (None: nothing readable), with the verifier.

    ``rank``: mean Spearman correlation within questions whose paths differ in the verifier's score (a judge that gives
    all of them one score counts as 0). ``pairs``: share of differently scored pairs put in the right order, ties count
    half. ``error step``: share of paths with the first wrong step (or none) named. ``parsed``: share of paths with an entry.
    ``flawless found``: of the paths without a wrong step, the share the judge calls so; ``flawed found``: of the others.
    """
    ranks, ordered, named, parsed = [], [], [], []
    clean: dict[bool, list[bool]] = {True: [], False: []}
    for judged, given in zip(questions, entries, strict=True):
        for path, entry in zip(judged.paths, given, strict=True):
            parsed.append(entry is not None)
            named.append(entry is not None and entry[1] == path.error)
            clean[path.error == 0].append(entry is not None and (entry[1] == 0) == (path.error == 0))
        if None in given or len({path.score for path in judged.paths}) < 2:
            continue
        truth, said = [path.score for path in judged.paths], [entry[0] for entry in given if entry is not None]
        rank = float(spearmanr(truth, said).statistic) if len(set(said)) > 1 else 0.0
        ranks.append(0.0 if math.isnan(rank) else rank)
        for first in range(len(truth)):
            for second in range(first):
                if truth[first] != truth[second]:
                    difference = (said[first] - said[second]) * (1 if truth[first] > truth[second] else -1)
                    ordered.append(0.5 if difference == 0 else float(difference > 0))
    return {
        "questions": len(questions),
        "paths": len(parsed),
        "parsed": _mean(parsed),
        "rank": _mean(ranks),
        "ranked questions": len(ranks),
        "pairs": _mean(ordered),
        "error step": _mean(named),
        "flawless found": _mean(clean[True]),
        "flawed found": _mean(clean[False]),
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
