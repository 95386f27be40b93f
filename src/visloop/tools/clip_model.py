"""A frozen CLIP for the tools: crops and phrases become unit vectors, soft prompts enter as embeddings on the text side.

Any ``CLIPModel`` fits: the shipped one, a folder, a hub id. A soft prompt is a (tokens, width) matrix that stands before the words
of its phrase; the model's own forward computes everything else, so without prompts the outputs are the plain model's, bit for bit.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from threading import get_ident
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import AutoModel, AutoProcessor, CLIPModel, CLIPProcessor

from visloop.chat.weights import load_arguments, resolve_model
from visloop.config_assistant import VisionConfig
from visloop.errors import ModelError

PLACEHOLDER_ID = 0
"""Id of the tokens whose embeddings a prompt replaces; the end of text must stay the largest id of its row (old checkpoints pool there)."""


class ClipEncoder:
    """Pictures and phrases to unit vectors (n, d). The weights never change.

    Args:
        model: in evaluation mode.
        processor: its image processor and tokenizer.
        batch_size: pictures or phrases per forward pass.
    """

    def __init__(self, model: CLIPModel, processor: CLIPProcessor, *, batch_size: int = 64, name: str = "clip") -> None:
        self.model = model.eval().requires_grad_(False)
        self.processor, self.batch_size, self.name = processor, batch_size, name
        self._texts: dict[str, Tensor] = {}

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        return self.model.device

    @property
    def prompt_width(self) -> int:
        """Width of a soft token."""
        width: int = self.model.config.text_config.hidden_size
        return width

    @property
    def feature_width(self) -> int:
        """d of the unit vectors."""
        width: int = self.model.config.projection_dim
        return width

    @cached_property
    def scale(self) -> float:
        """What cosine similarities are multiplied with to be logits."""
        return float(self.model.logit_scale.exp())

    @torch.no_grad()
    def encode_images(self, images: Sequence[Image.Image]) -> Tensor:
        """Unit vectors (n, d) of pictures, in float32 on the CPU."""
        found = []
        for start in range(0, len(images), self.batch_size):
            batch = [image.convert("RGB") for image in images[start : start + self.batch_size]]
            pixels = self.processor.image_processor(images=batch, return_tensors="pt")["pixel_values"]
            output = self.model.get_image_features(pixel_values=pixels.to(self.device, self.model.dtype))
            found.append(F.normalize(output.pooler_output.float(), dim=-1).cpu())
        return torch.cat(found) if found else torch.zeros(0, self.feature_width)

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors (n, d) of phrases without any prompt; a phrase is computed once, and alone: in a batch its last bits would depend
        on which phrases the process has met before."""
        for text in dict.fromkeys(texts):
            if text not in self._texts:
                with torch.no_grad():
                    (self._texts[text],) = self._encode_ids(self._tokenize([text])).cpu()
        return torch.stack([self._texts[text] for text in texts]) if texts else torch.zeros(0, self.feature_width)

    def encode_prompted(self, texts: Sequence[str], prompts: Tensor) -> Tensor:
        """Unit vectors (n, d) of phrases, each with its soft prompt before its words; gradients flow into ``prompts`` (n, tokens, width).

        Raises:
            ModelError: the prompts do not fit the model's width or the longest text it takes.
        """
        rows, tokens, width = prompts.shape
        if width != self.prompt_width or rows != len(texts):
            raise ModelError(
                f"{self.name}: prompts of shape {tuple(prompts.shape)} for {len(texts)} phrases; "
                f"expected ({len(texts)}, tokens, {self.prompt_width}): were they learned on another model?"
            )
        plain = self._tokenize(texts)
        start = 1 if self.processor.tokenizer.bos_token_id is not None else 0
        ids = F.pad(plain["input_ids"], (tokens, 0), value=PLACEHOLDER_ID)
        mask = F.pad(plain["attention_mask"], (tokens, 0), value=1)
        ids[:, :start], ids[:, start : start + tokens] = plain["input_ids"][:, :start], PLACEHOLDER_ID
        longest = self.model.config.text_config.max_position_embeddings
        if ids.shape[1] > longest:
            raise ModelError(f"{self.name}: {tokens} soft tokens and a phrase make {ids.shape[1]} tokens; at most {longest} fit")
        with self._replaced(prompts, start):
            return self._encode_ids({"input_ids": ids, "attention_mask": mask})

    def embed_words(self, text: str) -> Tensor:
        """The token embeddings (tokens, width) of a phrase, without its begin and end."""
        ids = self.processor.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"][0]
        return self.model.text_model.get_input_embeddings()(ids.to(self.device)).detach().float()

    def _tokenize(self, texts: Sequence[str]) -> dict[str, Tensor]:
        longest = self.model.config.text_config.max_position_embeddings
        encoded = self.processor.tokenizer(list(texts), padding=True, truncation=True, max_length=longest, return_tensors="pt")
        return {name: encoded[name].to(self.device) for name in ("input_ids", "attention_mask")}

    def _encode_ids(self, encoded: dict[str, Tensor]) -> Tensor:
        return F.normalize(self.model.get_text_features(**encoded).pooler_output.float(), dim=-1)

    @contextmanager
    def _replaced(self, prompts: Tensor, start: int) -> Iterator[None]:
        """Within, the embeddings at ``start`` and after are the prompts': for this thread alone, as others may use the model too."""
        owner = get_ident()

        def replace(_module: Any, _inputs: Any, output: Tensor) -> Tensor:
            if get_ident() != owner:
                return output
            tokens = prompts.to(output.device, output.dtype)
            return torch.cat([output[:, :start], tokens, output[:, start + tokens.shape[1] :]], dim=1)

        hook = self.model.text_model.get_input_embeddings().register_forward_hook(replace)
        try:
            yield
        finally:
            hook.remove()


def load_clip(config: VisionConfig) -> ClipEncoder:
    """Load a CLIP by a shipped name, a folder or a hub id.

    ``auto`` is the GPU where there is one, and float32: prompts are learned through the model.

    Raises:
        ModelError: nothing to load there, or not a CLIP.
    """
    source = resolve_model(config.model)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if config.device == "auto" else config.device
    dtype = torch.float32 if config.dtype == "auto" else getattr(torch, config.dtype)
    try:
        model = AutoModel.from_pretrained(**load_arguments(source), dtype=dtype)
        processor = AutoProcessor.from_pretrained(**load_arguments(source))
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"cannot load a CLIP from {config.model!r}: {error}") from error
    if not isinstance(model, CLIPModel):
        raise ModelError(f"model {config.model!r} is a {type(model).__name__}; SELECT, CLASSIFY and the regions' names need a CLIPModel")
    return ClipEncoder(model.to(device), processor, batch_size=config.batch_size, name=config.model)


def model_folder(config: VisionConfig) -> Path | None:
    """The folder of a shipped or local model; None for a hub id."""
    folder = Path(resolve_model(config.model))
    return folder if folder.is_dir() else None
