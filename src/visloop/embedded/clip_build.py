"""Build the tiny CLIP and its processor: the classes of the large checkpoints, small sizes, a word-level vocabulary."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import CLIPConfig, CLIPModel, CLIPProcessor, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

PAD, UNKNOWN, BOS, EOS = "<pad>", "<unk>", "<bos>", "<eos>"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipSizes:
    """Widths, depths and heads; ``image_size`` and ``patch_size`` in pixels, ``positions`` in tokens."""

    image_size: int = 32
    patch_size: int = 8
    vision_width: int = 128
    vision_layers: int = 4
    text_width: int = 96
    text_layers: int = 2
    heads: int = 4
    projection: int = 96
    positions: int = 24


def build_clip_processor(words: Iterable[str], *, sizes: ClipSizes) -> CLIPProcessor:
    """The processor: crops are resized to ``image_size`` squared (bicubic), a word is a token, unknown words are ``<unk>``.

    The end of text has the largest id: CLIP pools where it stands.
    """
    vocabulary = {token: index for index, token in enumerate((PAD, UNKNOWN, BOS, *dict.fromkeys(words)))}
    vocabulary[EOS] = len(vocabulary)
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (PAD, UNKNOWN, BOS, EOS)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {EOS}", special_tokens=[(BOS, vocabulary[BOS]), (EOS, vocabulary[EOS])]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        bos_token=BOS,
        eos_token=EOS,
        padding_side="right",
        clean_up_tokenization_spaces=False,
        model_max_length=sizes.positions,
    )
    side = {"height": sizes.image_size, "width": sizes.image_size}
    pictures = CLIPImageProcessorPil(
        size=side, crop_size=side, do_center_crop=False, image_mean=[0.5, 0.5, 0.5], image_std=[0.25, 0.25, 0.25]
    )
    return CLIPProcessor(image_processor=pictures, tokenizer=fast)


def build_clip(processor: CLIPProcessor, *, sizes: ClipSizes, seed: int) -> CLIPModel:
    """The model with random weights drawn from ``seed``, for the vocabulary of ``processor``."""
    tokenizer = processor.tokenizer
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": sizes.text_width,
        "intermediate_size": 2 * sizes.text_width,
        "num_hidden_layers": sizes.text_layers,
        "num_attention_heads": sizes.heads,
        "max_position_embeddings": sizes.positions,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "projection_dim": sizes.projection,
    }
    vision = {
        "hidden_size": sizes.vision_width,
        "intermediate_size": 2 * sizes.vision_width,
        "num_hidden_layers": sizes.vision_layers,
        "num_attention_heads": sizes.heads,
        "image_size": sizes.image_size,
        "patch_size": sizes.patch_size,
        "projection_dim": sizes.projection,
    }
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=sizes.projection)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CLIPModel(config)
