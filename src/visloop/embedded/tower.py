"""Stage 0: the vision tower learns, patch by patch, what lies in a cell. Without it, perception does not start from scratch.

The grid of the world equals the patch grid, so a patch's label is its cell: empty or not, and the attribute values.
The heads are thrown away; the tower stays frozen in every later stage.
"""

import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from visloop.embedded.schedule import Report, make_schedule
from visloop.errors import TrainingError
from visloop.scenes.world import ATTRIBUTES, Objects, WorldSpec

IGNORED = -100


def label_patches(boxes: Sequence[Objects], *, spec: WorldSpec) -> dict[str, Tensor]:
    """Labels (n, cells) per head: ``occupied`` 0/1, ``column`` and ``row`` from 0, attributes by index (-100 where empty)."""
    cells = spec.grid**2
    labels = {name: torch.full((len(boxes), cells), IGNORED) for name in ATTRIBUTES}
    labels["occupied"] = torch.zeros(len(boxes), cells, dtype=torch.long)
    labels["column"] = (torch.arange(cells) % spec.grid).expand(len(boxes), cells)
    labels["row"] = (torch.arange(cells) // spec.grid).expand(len(boxes), cells)
    for index, box in enumerate(boxes):
        for entry in box:
            cell = (entry.row - 1) * spec.grid + entry.column - 1
            labels["occupied"][index, cell] = 1
            for attribute in ATTRIBUTES:
                labels[attribute][index, cell] = spec.values(attribute).index(getattr(entry, attribute))
    return labels


def _encode_patches(model: LlavaForConditionalGeneration, pixels: Tensor) -> Tensor:
    hidden = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
    features: Tensor = hidden[model.config.vision_feature_layer][:, 1:]
    return features


def train_tower(
    model: LlavaForConditionalGeneration,
    pixels: Tensor,
    boxes: Sequence[Objects],
    *,
    spec: WorldSpec,
    steps: int,
    learning_rate: float,
    batch_size: int,
    held_out: int,
    seed: int,
    report: Report,
) -> dict[str, float]:
    """Train the tower in place on pictures (n, 3, side, side) and the objects in each.

    Returns:
        Accuracy per head on the last ``held_out`` pictures (occupied patches only, except ``occupied``).

    Raises:
        TrainingError: the patch grid is not the world's grid.
    """
    cells = spec.grid**2
    patches = (model.config.vision_config.image_size // model.config.vision_config.patch_size) ** 2
    if patches != cells:
        raise TrainingError(f"the tower sees {patches} patches, world {spec.name!r} has {cells} cells; they must be the same grid")
    device = model.device
    labels = {name: value.to(device) for name, value in label_patches(boxes, spec=spec).items()}
    widths = {name: len(spec.values(name)) for name in ATTRIBUTES} | {"occupied": 2, "column": spec.grid, "row": spec.grid}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        heads = nn.ModuleDict({name: nn.Linear(model.config.vision_config.hidden_size, width) for name, width in widths.items()})
    heads.to(device)
    parameters = [*model.model.vision_tower.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = make_schedule(optimizer, steps=steps, warmup=40, down=0.3)
    draw = torch.Generator().manual_seed(seed)
    known = len(boxes) - held_out
    started = time.process_time()
    model.train()
    for step in range(steps):
        chosen = torch.randint(0, known, (batch_size,), generator=draw)
        features = _encode_patches(model, pixels[chosen].to(device))
        loss = sum(
            (
                nn.functional.cross_entropy(heads[name](features).flatten(0, 1), value[chosen.to(device)].flatten(), ignore_index=IGNORED)
                for name, value in labels.items()
            ),
            start=torch.zeros((), device=device),
        )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % 200 == 0 or step == steps - 1:
            report(f"tower {step + 1}/{steps} loss {loss.item():.4f} cpu {time.process_time() - started:.0f} s")
    model.eval()
    accuracy = {}
    with torch.no_grad():
        features = _encode_patches(model, pixels[known:].to(device))
        for name, value in labels.items():
            truth = value[known:]
            kept = truth != IGNORED
            accuracy[name] = (heads[name](features).argmax(-1)[kept] == truth[kept]).float().mean().item()
    return accuracy
