"""Deep visual prompts of a CLIP vision tower: CLOVA's placement for SELECT and CLASSIFY (3.4).

A prompt is (layers, tokens, width): the first layer's tokens stand behind the patches, the following layers' overwrite them there. It is
stored flat, (layers * tokens, width). Without a prompt the tower computes what it always does.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from visloop.config_assistant import PromptTuning
from visloop.errors import ModelError
from visloop.tools.prompt_pool import Floats, LearnedPrompt
from visloop.tools.prompted import TunedPrompt, attach_deep_tokens, mix_prompts, optimize_prompt, start_prompt


def phrase_pair(concept: str) -> tuple[str, str]:
    """The texts that tell the concept from everything else."""
    return f"a photo of {concept}", f"a photo of not {concept}"


def encode_pixels(model: Any, pixels: Tensor, prompt: Tensor | None) -> Tensor:
    """Unit vectors (n, d) of pictures (n, 3, h, w) by a ``CLIPModel``, with a deep prompt (layers, tokens, width) or none.

    Raises:
        ModelError: the prompt does not fit the tower.
    """
    if prompt is not None:
        vision = model.config.vision_config
        if prompt.dim() != 3 or prompt.shape[2] != vision.hidden_size or len(prompt) > vision.num_hidden_layers:
            raise ModelError(
                f"a deep prompt of shape {tuple(prompt.shape)} does not fit {vision.num_hidden_layers} layers of {vision.hidden_size}; "
                f"was it learned on another model?"
            )
    with attach_deep_tokens(model.vision_model.encoder, prompt):
        return normalize(model.get_image_features(pixel_values=pixels).pooler_output.float(), dim=-1)


def compute_contrast(similarities: Tensor, positive: Tensor) -> Tensor:
    """The symmetric contrastive loss of pictures against the two texts of a concept.

    Picture to text: each picture chooses its text. Text to picture: each text's share of the softmax over the pictures that fits it.

    Args:
        similarities: (n, 2) logits; column 0 is "a photo of X", column 1 "a photo of not X".
        positive: (n,) bool.
    """
    to_text = torch.nn.functional.cross_entropy(similarities, (~positive).long())
    shares = similarities.log_softmax(dim=0)
    chosen = [shares[rows, column] for column, rows in enumerate((positive, ~positive)) if bool(rows.any())]
    to_picture = -torch.stack([part.logsumexp(dim=0) for part in chosen]).mean()
    return (to_text + to_picture) / 2


def learn_deep_prompt(model: Any, *, positives: Tensor, negatives: Tensor, texts: Tensor, tuning: PromptTuning, seed: int) -> TunedPrompt:
    """Learn one deep prompt from pictures of a concept and of others; the model stays frozen.

    Stops as soon as every positive is nearer to the concept's text than any negative (CLOVA's keep rule, on training pictures).

    Args:
        positives, negatives: pixels (n, 3, h, w).
        texts: unit vectors (2, d) of ``phrase_pair``.
    """
    pixels = torch.cat([positives, negatives])
    positive = torch.arange(len(pixels), device=pixels.device) < len(positives)
    scale = float(model.logit_scale.detach().exp())
    width = model.config.vision_config.hidden_size

    def lose(flat: Tensor, step: int) -> Tensor:
        features = encode_pixels(model, pixels, flat.reshape(tuning.layers, tuning.tokens, width))
        return compute_contrast(scale * features @ texts.T, positive)

    @torch.no_grad()
    def separates(flat: Tensor) -> bool:
        near = encode_pixels(model, pixels, flat.reshape(tuning.layers, tuning.tokens, width)) @ texts[0]
        return bool(len(negatives)) and bool(near[positive].min() > near[~positive].max())

    first = start_prompt(tuning.layers * tuning.tokens, width, spread=tuning.init_std, seed=seed).to(pixels.device)
    optimizer = partial(torch.optim.Adam, betas=(0.9, 0.98), eps=1e-3)
    return optimize_prompt(first, lose, tuning=tuning, optimizer=optimizer, fits=separates, check_every=1)


def combine_by_share(
    crops: Floats, prompts: Sequence[LearnedPrompt], *, tuning: PromptTuning, device: torch.device
) -> tuple[Tensor, tuple[str, ...]] | None:
    """CLOVA's ensemble for SELECT and CLASSIFY: the crop that is most like the stored pictures decides for all crops of a query.

    Weights are the shares of its similarities, of which negative ones count as none.

    Args:
        crops: features (n, d) of the crops, without a prompt.

    Returns:
        The prompt (layers, tokens, width) and the ids; None if there are no prompts, or none is like any crop.
    """
    if not prompts or not len(crops):
        return None
    keys = np.stack([prompt.feature / max(float(np.linalg.norm(prompt.feature)), 1e-12) for prompt in prompts])
    similarities = crops / np.maximum(np.linalg.norm(crops, axis=1, keepdims=True), 1e-12) @ keys.T
    nearest = np.clip(similarities[int(similarities.sum(axis=1).argmax())], 0.0, None)
    best = np.argsort(-nearest, kind="stable")[: tuning.ensemble]
    if nearest[best].sum() <= 0:
        return None
    mixed, ids = mix_prompts([prompts[index] for index in best], nearest[best], device=device)
    return mixed.reshape(tuning.layers, -1, mixed.shape[-1]), ids
