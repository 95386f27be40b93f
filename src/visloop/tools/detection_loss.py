"""The loss of prompts on an open-vocabulary detector: an optimal assignment, then focal loss and two box losses (CLOVA 3.4, LOC).

Boxes are (centre x, centre y, width, height) as shares of the model's input, as OWL-ViT predicts them.
"""

from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from visloop.config_assistant import DetectionLoss


@dataclass(frozen=True, slots=True)
class Matched:
    """One picture's loss, and what was assigned: ``scores`` (n,) of the right names and ``overlaps`` (n,) (GIoU, -1 to 1) of the
    boxes; ``right`` (n,) says where the right name also has the highest score."""

    loss: Tensor
    scores: Tensor
    overlaps: Tensor
    right: Tensor


def to_corners(boxes: Tensor) -> Tensor:
    """(..., 4) centres and sizes as corners."""
    center, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([center - size / 2, center + size / 2], dim=-1)


def generalized_overlap(first: Tensor, second: Tensor) -> Tensor:
    """GIoU (n, m) of corner boxes (n, 4) and (m, 4), from -1 to 1."""
    areas = [(box[:, 2:] - box[:, :2]).clamp(min=0).prod(dim=1) for box in (first, second)]
    inner = (torch.min(first[:, None, 2:], second[:, 2:]) - torch.max(first[:, None, :2], second[:, :2])).clamp(min=0).prod(dim=-1)
    outer = (torch.max(first[:, None, 2:], second[:, 2:]) - torch.min(first[:, None, :2], second[:, :2])).clamp(min=0).prod(dim=-1)
    union = areas[0][:, None] + areas[1] - inner
    return inner / union.clamp(min=1e-9) - (outer - union) / outer.clamp(min=1e-9)


def compute_focal(logits: Tensor, targets: Tensor, *, alpha: float, gamma: float) -> Tensor:
    """Focal loss of every entry; ``targets`` are 0 or 1."""
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    chance = torch.sigmoid(logits)
    hit = chance * targets + (1 - chance) * (1 - targets)
    return (alpha * targets + (1 - alpha) * (1 - targets)) * (1 - hit) ** gamma * entropy


@torch.no_grad()
def assign_boxes(logits: Tensor, boxes: Tensor, *, names: Tensor, targets: Tensor, weights: DetectionLoss) -> tuple[Tensor, Tensor]:
    """The cheapest one-to-one assignment: indices of places (n,) and of targets (n,).

    Args:
        logits: (places, texts); boxes: (places, 4).
        names: (targets,) index of each target's text; targets: (targets, 4).
    """
    ones, zeros = torch.ones_like(logits), torch.zeros_like(logits)
    hit = compute_focal(logits, ones, alpha=weights.alpha, gamma=weights.gamma)
    miss = compute_focal(logits, zeros, alpha=weights.alpha, gamma=weights.gamma)
    cost = (
        weights.class_cost * (hit - miss)[:, names]
        + weights.box_cost * torch.cdist(boxes, targets, p=1)
        - weights.overlap_cost * generalized_overlap(to_corners(boxes), to_corners(targets))
    )
    rows, columns = linear_sum_assignment(cost.double().cpu().numpy())
    return torch.as_tensor(rows, device=logits.device), torch.as_tensor(columns, device=logits.device)


def match_picture(logits: Tensor, boxes: Tensor, *, names: Tensor, targets: Tensor, weights: DetectionLoss) -> Matched:
    """The loss of one picture; shapes as in ``assign_boxes``. A place without a target is trained to fit no text."""
    places, chosen = assign_boxes(logits.detach(), boxes.detach(), names=names, targets=targets, weights=weights)
    wanted = torch.zeros_like(logits)
    wanted[places, names[chosen]] = 1.0
    count = max(1, len(targets))
    focal = compute_focal(logits, wanted, alpha=weights.alpha, gamma=weights.gamma).sum() / count
    found, truth = boxes[places], targets[chosen]
    overlaps = generalized_overlap(to_corners(found), to_corners(truth)).diagonal()
    distance = (found - truth).abs().sum() / count
    loss = weights.class_weight * focal + weights.box_weight * distance + weights.overlap_weight * (1 - overlaps).sum() / count
    scores = torch.sigmoid(logits[places, names[chosen]])
    right = logits[places].argmax(dim=1) == names[chosen]
    return Matched(loss, scores.detach(), overlaps.detach(), right)
