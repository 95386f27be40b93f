"""Soft prompts on frozen models: attached by hooks for the time of one forward pass, and an exact no-op where there is none.

Every ``attach_*`` is a context manager. With ``None`` it registers nothing, so the model computes what it always does. Prompts are
(tokens, width), the same for every row, or (batch, tokens, width).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from visloop.config_assistant import PromptTuning
from visloop.errors import TrainingError
from visloop.tools.prompt_pool import Floats, LearnedPrompt, rank_prompts

PATIENCE, _GAIN = 20, 1e-3
"""Tuning stops when the loss did not fall by this share of itself for so many steps."""


def spread_rows(prompt: Tensor, rows: int) -> Tensor:
    """A prompt as (rows, tokens, width)."""
    return prompt.expand(rows, -1, -1) if prompt.dim() == 2 else prompt


@contextmanager
def attach_tokens(encoder: nn.Module, prompt: Tensor | None) -> Iterator[None]:
    """Append the prompt to the tokens that enter a transformer encoder, and drop its places from what leaves (CLOVA 3.4, LOC).

    ``encoder`` takes ``inputs_embeds`` (batch, n, width) by name and returns an output with ``last_hidden_state``, as the vision
    encoders of CLIP, OWL-ViT and their kin do.
    """
    if prompt is None:
        yield
        return
    tokens = prompt.shape[-2]

    def add(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        embeds = kwargs["inputs_embeds"]
        return args, kwargs | {"inputs_embeds": torch.cat([embeds, spread_rows(prompt, len(embeds)).to(embeds.dtype)], dim=1)}

    def drop(_: nn.Module, __: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state[:, :-tokens]
        return output

    with _hooks(encoder.register_forward_pre_hook(add, with_kwargs=True), encoder.register_forward_hook(drop)):
        yield


@contextmanager
def attach_memory(decoder: nn.Module, prompt: Tensor | None) -> Iterator[None]:
    """Append the prompt to the picture features that MaskFormer's decoder attends to (CLOVA 3.4, SEG).

    Its places get a position encoding of zeros. The pixels keep theirs: the map is not reshaped.
    """
    if prompt is None:
        yield
        return

    def add(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        memory, places = kwargs["encoder_hidden_states"], kwargs["spatial_position_embeddings"]
        extra = spread_rows(prompt, len(memory)).to(memory.dtype)
        blank = places.new_zeros(len(places), extra.shape[1], places.shape[2])
        changed = {
            "encoder_hidden_states": torch.cat([memory, extra], dim=1),
            "spatial_position_embeddings": torch.cat([places, blank], dim=1),
        }
        return args, kwargs | changed

    with _hooks(decoder.register_forward_pre_hook(add, with_kwargs=True)):
        yield


@contextmanager
def attach_keys(attentions: Sequence[nn.Module], prompt: Tensor | None) -> Iterator[None]:
    """Append the prompt to keys and values of cross-attentions (Mask2Former's: length first, with a mask that hides pixels).

    No query is kept from seeing the prompt.
    """
    if prompt is None:
        yield
        return

    def add(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        key, value, mask = kwargs["key"], kwargs["value"], kwargs.get("attn_mask")
        extra = spread_rows(prompt, key.shape[1]).transpose(0, 1).to(key.dtype)
        changed = {"key": torch.cat([key, extra]), "value": torch.cat([value, extra])}
        if mask is not None:
            changed["attn_mask"] = torch.cat([mask, mask.new_zeros(*mask.shape[:-1], len(extra))], dim=-1)
        return args, kwargs | changed

    with _hooks(*(attention.register_forward_pre_hook(add, with_kwargs=True) for attention in attentions)):
        yield


@contextmanager
def attach_word(embedding: nn.Module, row: Tensor | None, places: Tensor) -> Iterator[None]:
    """Put a learned word (1, width) at ``places`` (batch, length, bool) of what a token embedding gives (textual inversion).

    Tokenizer and weights stay as they are, so that a word can be used any number of times, and other snapshots beside it.
    """
    if row is None:
        yield
        return

    def put(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        return torch.where(places[..., None], row.to(output.dtype), output)

    with _hooks(embedding.register_forward_hook(put)):
        yield


@contextmanager
def _hooks(*handles: Any) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True, slots=True, kw_only=True)
class TunedPrompt:
    """The best prompt that was reached, and the loss of every step."""

    prompt: Tensor
    losses: tuple[float, ...]


def start_prompt(tokens: int, width: int, *, spread: float, seed: int) -> Tensor:
    """First values (tokens, width): zeros, or normal with the given spread."""
    if not spread:
        return torch.zeros(tokens, width)
    return torch.randn(tokens, width, generator=torch.Generator().manual_seed(seed % 2**63)) * spread


def optimize_prompt(
    start: Tensor,
    loss_of: Callable[[Tensor, int], Tensor],
    *,
    tuning: PromptTuning,
    optimizer: Callable[..., torch.optim.Optimizer],
    fits: Callable[[Tensor], bool] | None = None,
    check_every: int = 10,
    noisy: bool = False,
) -> TunedPrompt:
    """Train one prompt; the model behind ``loss_of(prompt, step)`` stays frozen.

    Stops after ``tuning.steps``, when the loss is flat, or as soon as ``fits`` says that the training pictures come out right (looked
    at every ``check_every`` steps). Returns the values with the lowest loss, or those that fit. A ``noisy`` loss, which differs by
    what is drawn for a step, says neither: then all steps are taken, and the last values are returned.

    Raises:
        TrainingError: the loss is not finite.
    """
    prompt = start.clone().requires_grad_(True)
    stepper = optimizer([prompt], lr=tuning.learning_rate, weight_decay=tuning.weight_decay)
    losses: list[float] = []
    best, lowest, mark, waited = prompt.detach().clone(), math.inf, math.inf, 0
    for step in range(tuning.steps):
        if tuning.decay_every and step and step % tuning.decay_every == 0:
            for group in stepper.param_groups:
                group["lr"] *= 0.1
        loss = loss_of(prompt, step)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(f"tuning a prompt: the loss is {value} at step {step}; a lower learning_rate than {tuning.learning_rate}?")
        losses.append(value)
        # Against the last clear gain, not the last step: a slow steady fall is no standstill.
        gained = not math.isfinite(mark) or value < mark - _GAIN * abs(mark)
        mark, waited = (value, 0) if gained else (mark, waited + 1)
        if value < lowest:
            best, lowest = prompt.detach().clone(), value
        if waited >= PATIENCE and not noisy:
            break
        stepper.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if tuning.gradient_clip:
            clip_grad_norm_([prompt], tuning.gradient_clip)
        stepper.step()
        if fits is not None and (step + 1) % check_every == 0 and fits(prompt.detach()):
            best = prompt.detach().clone()
            break
    else:
        if noisy:
            best = prompt.detach().clone()
    return TunedPrompt(prompt=best, losses=tuple(losses))


def freeze(model: nn.Module) -> None:
    """No parameter of the model takes a gradient; dropout is off."""
    model.requires_grad_(False)
    model.eval()


def to_numpy(tensor: Tensor) -> Floats:
    """The tensor as float32 on the CPU."""
    array: Floats = tensor.detach().to("cpu", torch.float32).numpy().astype(np.float32)
    return array


def blend_prompts(
    prompts: Sequence[LearnedPrompt], feature: Floats, *, tuning: PromptTuning, device: torch.device, scale: float = 1.0
) -> tuple[Tensor, tuple[str, ...]] | None:
    """The softmax-weighted mean of the prompts most like ``feature`` (CLOVA 3.4, prompt ensemble), with their ids; None without any.

    Similarity is the cosine; ``tuning.ensemble`` prompts take part, those under ``tuning.min_similarity`` do not, and the softmax is
    taken of the similarities times ``scale`` at ``tuning.temperature``.
    """
    ranked = [pair for pair in rank_prompts(prompts, feature, most=tuning.ensemble) if pair[1] >= tuning.min_similarity]
    if not ranked:
        return None
    weights = np.exp(scale * (np.array([pair[1] for pair in ranked]) - ranked[0][1]) / tuning.temperature)
    return mix_prompts([pair[0] for pair in ranked], weights, device=device)


def find_share(
    prompts: Sequence[LearnedPrompt], newcomer: LearnedPrompt, feature: Floats, *, tuning: PromptTuning, device: torch.device, scale: float
) -> tuple[float, Tensor]:
    """What a prompt would be in the mean that ``blend_prompts`` gives: its share (0-1; 0 where it would not take part), and the rest
    (tokens, width), to which share times prompt is to be added."""
    shape = newcomer.prompt.shape
    means = []
    for value in (0.0, 1.0):
        probe = replace(newcomer, prompt=np.full(shape, value, dtype=np.float32))
        blended = blend_prompts((*prompts, probe), feature, tuning=tuning, device=device, scale=scale)
        means.append(blended[0] if blended else torch.zeros(shape, device=device))
    return float((means[1] - means[0]).mean()), means[0]


def mix_prompts(prompts: Sequence[LearnedPrompt], weights: Any, *, device: torch.device) -> tuple[Tensor, tuple[str, ...]]:
    """The mean of prompts (tokens, width) under weights, which are scaled to sum to one; with the ids."""
    shares = np.asarray(weights, dtype=np.float64) / np.sum(weights)
    mixed = sum(share * prompt.prompt.astype(np.float64) for share, prompt in zip(shares, prompts, strict=True))
    return torch.tensor(np.asarray(mixed), dtype=torch.float32, device=device), tuple(prompt.entry.id for prompt in prompts)
