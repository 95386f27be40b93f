"""Quality of chains against the scene: chain-right x answer-right (Insight-V Fig. 6).

The exact verifier measures here; no system under test ever sees what it says.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from visloop.errors import DataError
from visloop.records.reasoning import GroundTruth, Prediction, ReasoningPath, Sample
from visloop.scenes.export import parse_scene
from visloop.scenes.verify import PathCheck, verify_steps


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainMatrix:
    """How often a right or wrong chain came with a right or wrong final answer. A chain is right when every step of it is and
    none is missing, whatever answer follows; an unfinished chain is wrong."""

    both_right: int
    chain_only: int
    answer_only: int
    both_wrong: int

    @property
    def counts(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Rows: chain right, chain wrong; columns: answer right, answer wrong."""
        return (self.both_right, self.chain_only), (self.answer_only, self.both_wrong)

    @property
    def total(self) -> int:
        return self.both_right + self.chain_only + self.answer_only + self.both_wrong


def check_path(path: ReasoningPath, sample: Sample, truth: GroundTruth) -> PathCheck | None:
    """The verifier's check of one chain, or None for an unfinished one.

    Raises:
        DataError: the ground truth belongs to another sample or cannot be read.
    """
    if not path.sample_id == sample.id == truth.sample_id:
        raise DataError(f"path {path.id} of sample {path.sample_id}: checked against sample {sample.id} and truth of {truth.sample_id}")
    if path.status != "finished":
        return None
    scene = parse_scene(truth.scene)
    return verify_steps(scene, gold_steps=truth.steps, gold_answer=sample.answer, steps=path.steps, answer=path.answer)


def build_chain_matrix(
    paths: Sequence[ReasoningPath], predictions: Sequence[Prediction], *, samples: Sequence[Sample], truths: Mapping[str, GroundTruth]
) -> ChainMatrix:
    """Chain against final answer, one chain per sample; the answer's verdict is the prediction's.

    Raises:
        DataError: samples, chains and predictions do not cover the same ids once each, or a ground truth is missing (real
            pictures have none).
    """
    by_sample = {sample.id: sample for sample in samples}
    right = {prediction.sample_id: prediction.correct for prediction in predictions}
    ids = sorted(path.sample_id for path in paths)
    if not ids == sorted(by_sample) == sorted(right) or len(predictions) != len(right):
        found = f"{len(paths)} chains, {len(predictions)} predictions, {len(samples)} samples"
        raise DataError(f"chain matrix: {found}; one chain and one prediction per sample are needed")
    cells = Counter((_has_right_steps(path, by_sample, truths), right[path.sample_id]) for path in paths)
    return ChainMatrix(
        both_right=cells[True, True], chain_only=cells[True, False], answer_only=cells[False, True], both_wrong=cells[False, False]
    )


def _has_right_steps(path: ReasoningPath, samples: Mapping[str, Sample], truths: Mapping[str, GroundTruth]) -> bool:
    check = check_path(path, samples[path.sample_id], _find_truth(truths, path))
    return check is not None and check.first_error_step is None


def _find_truth(truths: Mapping[str, GroundTruth], path: ReasoningPath) -> GroundTruth:
    if path.sample_id not in truths:
        raise DataError(f"sample {path.sample_id}: no ground truth; chains are checked in the embedded world only")
    return truths[path.sample_id]
