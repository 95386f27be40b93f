"""Build the tiny LLaVA: CLIP vision tower, linear-GELU-linear projector, Llama language model, and its processor.

The classes are those of the large checkpoints; only the sizes are small. Every size can be set, the defaults are the
shipped model's (about 0.8 million parameters).
"""

import copy
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from visloop.embedded.tokenizer import CHAT_TEMPLATE, IMAGE, build_tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Widths, depths and heads; ``image_size`` and ``patch_size`` in pixels, ``positions`` in tokens."""

    image_size: int = 64
    patch_size: int = 16
    tower_width: int = 64
    tower_layers: int = 2
    tower_heads: int = 4
    width: int = 128
    layers: int = 4
    heads: int = 8
    feedforward: int = 256
    positions: int = 2048

    @property
    def patches(self) -> int:
        """Image tokens per picture (the class token of the tower is not passed on)."""
        return (self.image_size // self.patch_size) ** 2


def build_processor(words: Iterable[str], *, sizes: Sizes) -> LlavaProcessor:
    """The processor: pictures of any size are resized to ``image_size`` squared (bicubic), text goes through the tokenizer."""
    side = {"height": sizes.image_size, "width": sizes.image_size}
    pictures = CLIPImageProcessorPil(
        size=side, crop_size=side, do_center_crop=False, image_mean=[0.5, 0.5, 0.5], image_std=[0.25, 0.25, 0.25]
    )
    return LlavaProcessor(
        image_processor=pictures,
        tokenizer=build_tokenizer(words),
        patch_size=sizes.patch_size,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE,
        num_additional_image_tokens=1,
    )


def build_model(processor: LlavaProcessor, *, sizes: Sizes, seed: int) -> LlavaForConditionalGeneration:
    """The model with random weights drawn from ``seed``, for the vocabulary of ``processor``."""
    tokenizer = processor.tokenizer
    vision = CLIPVisionConfig(
        hidden_size=sizes.tower_width,
        intermediate_size=4 * sizes.tower_width,
        num_hidden_layers=sizes.tower_layers,
        num_attention_heads=sizes.tower_heads,
        image_size=sizes.image_size,
        patch_size=sizes.patch_size,
        projection_dim=sizes.tower_width,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=sizes.width,
        intermediate_size=sizes.feedforward,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.heads,
        max_position_embeddings=sizes.positions,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=sizes.patches,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def deepen_model(model: LlavaForConditionalGeneration, *, layers: int, seed: int) -> LlavaForConditionalGeneration:
    """A copy with ``layers`` more language layers on top that pass their input through unchanged until they are trained."""
    config = copy.deepcopy(model.config)
    first = config.text_config.num_hidden_layers
    config.text_config.num_hidden_layers = first + layers
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        deeper = LlavaForConditionalGeneration(config)
    deeper.load_state_dict(deeper.state_dict() | model.state_dict())
    with torch.no_grad():
        for layer in deeper.model.language_model.layers[first:]:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    deeper.generation_config = copy.deepcopy(model.generation_config)
    return deeper.to(model.device).eval()
