"""Batched replies of a model held in memory, for measuring and for the judge's training data."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from visloop.embedded.dialogues import DialogueEncoder


@torch.no_grad()
def generate_replies(
    model: LlavaForConditionalGeneration,
    prompts: Sequence[Sequence[int]],
    pictures: Sequence[tuple[int, ...]],
    *,
    pixels: Tensor,
    encoder: DialogueEncoder,
    decode: Callable[[list[int]], str],
    max_new_tokens: int,
    sampled: bool = False,
    seed: int = 0,
    batch_size: int = 128,
) -> list[str]:
    """One reply per prompt (ids, see ``DialogueEncoder.encode_prompt``), in order; ``sampled`` draws at temperature 1.

    Args:
        pictures: rows of ``pixels`` (n, 3, side, side) for each prompt.
    """
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    replies = [""] * len(prompts)
    device = model.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            longest = max(len(prompts[index]) for index in chosen)
            ids = torch.full((len(chosen), longest), encoder.pad)
            for row, index in enumerate(chosen):
                ids[row, longest - len(prompts[index]) :] = torch.tensor(list(prompts[index]))
            rows = [row for index in chosen for row in pictures[index]]
            output = model.generate(
                input_ids=ids.to(device),
                attention_mask=(ids != encoder.pad).long().to(device),
                **({"pixel_values": pixels[rows].to(device)} if rows else {}),
                max_new_tokens=max_new_tokens,
                do_sample=sampled,
                temperature=1.0 if sampled else None,
                top_k=0 if sampled else None,
                top_p=1.0 if sampled else None,
            )
            for index, tokens in zip(chosen, output[:, longest:].tolist(), strict=True):
                replies[index] = decode(tokens)
    return replies
