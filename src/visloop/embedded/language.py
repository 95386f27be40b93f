"""The training loop of the language stages: frozen tower features in, next-token loss on the assistant turns."""

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from visloop.embedded.dialogues import IGNORED, Batch, Dialogue, DialogueEncoder, collate_sequences
from visloop.embedded.pictures import Gallery
from visloop.embedded.schedule import Report, make_schedule
from visloop.errors import TrainingError

DrawDialogue = Callable[[random.Random], Dialogue]
POOL = 24
"""Batches drawn at a time: their conversations are sorted by length before they are cut into batches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One run of the optimizer: AdamW, ``warmup`` steps up, constant, linear decay to a tenth over the last ``down`` share."""

    name: str
    steps: int
    learning_rate: float
    batch_size: int
    down: float
    warmup: int = 40
    weight_decay: float = 0.01
    clip: float = 1.0

    def describe(self) -> str:
        """One line for a model card."""
        decay = f"linear decay over the last {self.down:.0%}" if self.down else "no decay"
        return f"{self.name}: {self.steps} steps of {self.batch_size}, learning rate {self.learning_rate:g}, {decay}"


def draw_batches(draw: DrawDialogue, *, gallery: Gallery, encoder: DialogueEncoder, batch_size: int, seed: int) -> Iterator[Batch]:
    """An endless stream of batches of similar length, fresh conversations in each."""
    rng = random.Random(seed)
    while True:
        pool = []
        for _ in range(POOL * batch_size):
            dialogue = draw(rng)
            pool.append(encoder.encode_dialogue(dialogue, () if dialogue.scene is None else gallery.rows[dialogue.scene]))
        pool.sort(key=lambda sequence: len(sequence.ids))
        batches = [pool[start : start + batch_size] for start in range(0, len(pool), batch_size)]
        rng.shuffle(batches)
        for batch in batches:
            yield collate_sequences(batch, pad=encoder.pad)


class LineProbe(nn.Module):
    """A throw-away head that reads at the end of a step line, after ``layer`` layers, whether the line is right.

    Its loss puts the verdict of each line where the layers above can collect it; replies alone are too thin a signal.
    """

    def __init__(self, width: int, *, layer: int, seed: int) -> None:
        super().__init__()
        self.layer = layer
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2))

    def forward(self, states: Tensor, marks: Tensor) -> Tensor:
        """Mean cross-entropy over ``marks`` (m, 3) of hidden states (b, t, width); zero without marks."""
        if not len(marks):
            return states.new_zeros(())
        return nn.functional.cross_entropy(self.head(states[marks[:, 0], marks[:, 1]]), marks[:, 2])


def compute_loss(model: LlavaForConditionalGeneration, batch: Batch, features: Tensor, *, probe: LineProbe | None = None) -> Tensor:
    """Mean next-token loss over the labelled positions, plus the probe's; ``features`` (n, patches, width) is the gallery's."""
    language = model.model.language_model
    ids, labels = batch.ids.to(features.device), batch.labels.to(features.device)
    embeddings = language.embed_tokens(ids)
    projected = model.model.multi_modal_projector(features[batch.pictures.to(features.device)])
    embeddings = embeddings.masked_scatter((ids == model.config.image_token_id).unsqueeze(-1), projected)
    output = language(inputs_embeds=embeddings, use_cache=False, output_hidden_states=probe is not None)
    carried = labels != IGNORED
    loss = nn.functional.cross_entropy(model.lm_head(output.last_hidden_state[carried]), labels[carried])
    return loss if probe is None else loss + probe(output.hidden_states[probe.layer], batch.marks.to(features.device))


def train_language(
    model: LlavaForConditionalGeneration,
    draw: DrawDialogue,
    *,
    stage: Stage,
    gallery: Gallery,
    encoder: DialogueEncoder,
    seed: int,
    report: Report,
    probe: LineProbe | None = None,
) -> float:
    """Train projector and language model in place for ``stage.steps`` steps; the tower stays as it is. A probe is trained too.

    Returns:
        Mean loss of the last tenth of the steps.

    Raises:
        TrainingError: the loss is no longer finite.
    """
    parameters = [*model.model.multi_modal_projector.parameters(), *model.model.language_model.parameters(), *model.lm_head.parameters()]
    parameters += probe.parameters() if probe is not None else []
    optimizer = torch.optim.AdamW(parameters, lr=stage.learning_rate, betas=(0.9, 0.98), weight_decay=stage.weight_decay, fused=True)
    schedule = make_schedule(optimizer, steps=stage.steps, warmup=stage.warmup, down=stage.down)
    batches = draw_batches(draw, gallery=gallery, encoder=encoder, batch_size=stage.batch_size, seed=seed)
    started, losses = time.process_time(), []
    model.train()
    for step, batch in zip(range(stage.steps), batches, strict=False):
        loss = compute_loss(model, batch, gallery.features, probe=probe)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, stage.clip)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if not losses[-1] < float("inf"):
            raise TrainingError(f"stage {stage.name!r}: loss {losses[-1]} at step {step}; lower its learning rate")
        if (step + 1) % 100 == 0 or step + 1 == stage.steps:
            recent = sum(losses[-100:]) / len(losses[-100:])
            spent = time.process_time() - started
            report(f"{stage.name} {step + 1}/{stage.steps} loss {recent:.4f} cpu {spent:.0f} s")
    model.eval()
    last = losses[-max(1, stage.steps // 10) :]
    return sum(last) / len(last)
