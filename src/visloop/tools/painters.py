"""REPLACE by in-painting with a diffusion model; a concept that it cannot paint is learned as one new word (CLOVA 3.4)."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import mse_loss

from visloop.chat.weights import load_arguments
from visloop.config_assistant import ReplaceBackend, ToolsConfig
from visloop.errors import ConfigError
from visloop.ids import seed_for
from visloop.records.assistant import Instance
from visloop.tools.base import ToolCall, ToolResult, TuningReport
from visloop.tools.mounted import Mounted, mount_model, open_picture, split_batches
from visloop.tools.prompt_pool import PromptPool
from visloop.tools.prompted import attach_word, optimize_prompt, to_numpy
from visloop.tools.signatures import SIGNATURES
from visloop.tools.tunings import choose_tuning
from visloop.tools.validated_tuning import Learned, Pictures, split_concepts, tune_prompts
from visloop.tools.values import VisualObject

TEMPLATES: Final = ("a photo of {}", "a picture of one {}", "a close view of {}", "a bright photo of {}", "a plain photo of the {}")
_NOISE_DRAWS: Final = 4
"""Noises per picture by which two words are compared."""


CheckPictures = Callable[[Sequence[Image.Image]], list[str]]
"""For each picture why it is refused; empty: it is not."""


def make_painter(
    config: ToolsConfig, pool: PromptPool, *, root: Path = Path(), open_check: Callable[[], CheckPictures] | None = None
) -> "Painter":
    """REPLACE with the in-painting pipeline of ``config.painter``.

    Args:
        root: the data folder that paths of instances start from.
        open_check: loads what looks at every painted picture; one that it refuses becomes an error.

    Raises:
        ConfigError: ``config.replace`` is another backend, or the check cannot be loaded.
        ModelError: no in-painting pipeline there.
    """
    if config.replace is not ReplaceBackend.diffusion:
        raise ConfigError(f"tools.replace is {config.replace.value}; this painter is the backend diffusion")
    check = open_check() if open_check is not None else None
    mounted = mount_model(config.painter, _load_pipeline, kind="in-painting pipeline")
    return Painter(mounted, config=config, pool=pool, root=root, check=check)


def _load_pipeline(source: str, dtype: torch.dtype | str) -> tuple[Any, Any]:
    from diffusers import StableDiffusionInpaintPipeline

    chosen = {} if dtype == "auto" else {"torch_dtype": dtype}
    pipeline: Any = StableDiffusionInpaintPipeline.from_pretrained(**load_arguments(source), **chosen)  # type: ignore[no-untyped-call]
    pipeline.set_progress_bar_config(disable=True)
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        part.requires_grad_(False)
        part.eval()
    return pipeline, pipeline.tokenizer


class Painter:
    """REPLACE: the first object is painted anew; what lies outside of its mask stays the picture's own, pixel for pixel.

    A learned word (1, width) stands in the prompt at the place of a token, without a change to tokenizer or weights: the pipeline is
    the same before and after, however often a word is used.
    """

    signature = SIGNATURES["REPLACE"]
    owner = "REPLACE"
    learns_questions = False
    backend = "diffusion"
    placement = "word"

    def __init__(
        self, mounted: Mounted, *, config: ToolsConfig, pool: PromptPool, root: Path = Path(), check: CheckPictures | None = None
    ) -> None:
        self.mounted, self.config, self.pool, self.root, self.check = mounted, config, pool, root, check
        self.model_name = mounted.name
        self._pipeline, self._tuning = mounted.model, choose_tuning(config, self.owner)
        self._side = config.paint.size or self._pipeline.unet.config.sample_size * self._pipeline.vae_scale_factor
        if self._side % self._pipeline.vae_scale_factor:
            raise ConfigError(f"tools.paint.size {self._side}: it must be a multiple of {self._pipeline.vae_scale_factor}")

    def with_pool(self, pool: PromptPool) -> "Painter":
        """The same painter with other words."""
        return Painter(self.mounted, config=self.config, pool=pool, root=self.root, check=self.check)

    def list_concepts(self, call: ToolCall) -> tuple[str, ...]:
        """Words of the prompt, then the prompt."""
        prompt = call.arguments.get("prompt")
        return split_concepts(prompt) if isinstance(prompt, str) else ()

    def run(self, calls: Sequence[ToolCall]) -> list[ToolResult]:
        """The changed picture of every call."""
        results: dict[int, ToolResult] = {}
        asked: dict[int, tuple[Image.Image, VisualObject, str]] = {}
        for index, call in enumerate(calls):
            image, objects, prompt = (call.arguments.get(name) for name in ("image", "object", "prompt"))
            first = objects[0] if isinstance(objects, tuple) and objects else None
            if not isinstance(image, Image.Image) or not isinstance(prompt, str) or not prompt.strip():
                results[index] = ToolResult(value=None, error=f"REPLACE needs a picture and a prompt; got {image!r} and {prompt!r}")
            elif not isinstance(first, VisualObject):
                results[index] = ToolResult(value=None, error=f"REPLACE has no object to paint over: {objects!r}")
            else:
                asked[index] = (image.convert("RGB"), first, prompt.strip())
        places = list(asked)
        for batch in split_batches(len(places), self.config.painter.batch_size):
            chosen = [places[at] for at in batch]
            with self.mounted.lock:
                results |= zip(chosen, self._paint([asked[index] for index in chosen]), strict=True)
        return [results[index] for index in range(len(calls))]

    def tune(self, concept: str, *, instances: Sequence[Instance], replay: Sequence[Instance], seed: int, cycle: int) -> TuningReport:
        """Learn one word from pictures of the concept (textual inversion); see ``LearnableTool``."""
        with self.mounted.lock:
            return tune_prompts(
                self, concept, pool=self.pool, instances=instances, replay=replay, tuning=self._tuning, seed=seed, cycle=cycle
            )

    @torch.no_grad()
    def _paint(self, asked: Sequence[tuple[Image.Image, VisualObject, str]]) -> list[ToolResult]:
        canvases = [ImageOps.pad(image, (self._side, self._side), method=Image.Resampling.BICUBIC) for image, _, _ in asked]
        masks = [self._fit_mask(image, entry) for image, entry, _ in asked]
        texts = [self._embed(prompt) for _, _, prompt in asked]
        generators = [torch.Generator().manual_seed(seed_for(self.config.paint.seed, prompt) % 2**63) for _, _, prompt in asked]
        output = self._pipeline(
            prompt_embeds=torch.cat([embeds for embeds, _ in texts]),
            negative_prompt_embeds=self._encode([""] * len(asked), None, None),
            image=canvases,
            mask_image=masks,
            height=self._side,
            width=self._side,
            num_inference_steps=self.config.paint.steps,
            guidance_scale=self.config.paint.guidance,
            generator=generators,
        )
        flagged = output.nsfw_content_detected or [False] * len(asked)
        shown = [self._restore(image, painted, mask) for (image, _, _), painted, mask in zip(asked, output.images, masks, strict=True)]
        unsafe = self.check(shown) if self.check is not None else [""] * len(shown)
        results = []
        for (_, _, prompt), picture, (_, used), refused, reason in zip(asked, shown, texts, flagged, unsafe, strict=True):
            if refused:
                results.append(ToolResult(value=None, error=f"REPLACE: the model's safety checker refused what {prompt!r} gave"))
            elif reason:
                results.append(ToolResult(value=None, error=f"REPLACE: what {prompt!r} gave was refused: {reason}"))
            else:
                results.append(ToolResult(value=picture, prompts=used))
        return results

    def _fit_mask(self, image: Image.Image, entry: VisualObject) -> Image.Image:
        if entry.mask is not None:
            mask = Image.fromarray(entry.mask.astype(np.uint8) * 255)
        else:
            mask = Image.new("L", image.size)
            left, top, right, bottom = (round(value) for value in entry.box.corners)
            mask.paste(255, (left, top, right, bottom))
        padded = ImageOps.pad(mask, (self._side, self._side), method=Image.Resampling.BILINEAR)
        return padded.point(lambda value: 255 if value > 255 * self.config.painter.threshold else 0)

    def _restore(self, image: Image.Image, painted: Image.Image, mask: Image.Image) -> Image.Image:
        """The painted part on the picture, in its size."""
        scale = self._side / max(image.size)
        width, height = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        left, top = (self._side - width) // 2, (self._side - height) // 2
        shown = (left, top, left + width, top + height)
        new = painted.crop(shown).resize(image.size, Image.Resampling.BICUBIC)
        where = mask.crop(shown).resize(image.size, Image.Resampling.NEAREST)
        return Image.composite(new, image, where)

    def _embed(self, prompt: str) -> tuple[Tensor, tuple[str, ...]]:
        """The prompt's states (1, length, width); a learned concept is its word alone (CLOVA's code)."""
        whole = split_concepts(prompt)[-1:] or (prompt.lower(),)
        learned = self.pool.find_prompts(self.owner, whole[0])
        if not learned:
            return self._encode([prompt], None, None), ()
        best = max(learned, key=lambda item: item.entry.validation_accuracy)
        word = torch.tensor(best.prompt, device=self.mounted.device)
        return self._encode(["{}"], word, whole[0]), (best.entry.id,)

    def _encode(self, texts: Sequence[str], word: Tensor | None, concept: str | None) -> Tensor:
        """States (n, length, width) of prompts; where a word is given, it stands for ``{}``, else the concept does."""
        tokenizer, encoder = self._pipeline.tokenizer, self._pipeline.text_encoder
        holder = concept or ""
        filled = [text.replace("{}", holder) for text in texts]
        longest = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
        if word is None:
            encoded = tokenizer(filled, padding="max_length", max_length=longest, truncation=True, return_tensors="pt")["input_ids"]
            ids, places = encoded.to(self.mounted.device), encoded.new_zeros(encoded.shape, dtype=torch.bool)
        else:
            ids, places = self._place_word(texts, holder, longest)
        embedding = encoder.get_input_embeddings()
        with attach_word(embedding, word, places.to(self.mounted.device)):
            states: Tensor = encoder(ids).last_hidden_state
        return states

    def _place_word(self, texts: Sequence[str], holder: str, longest: int) -> tuple[Tensor, Tensor]:
        tokenizer = self._pipeline.tokenizer
        stand_in = tokenizer(holder, add_special_tokens=False)["input_ids"][0]
        rows, marks = [], []
        for text in texts:
            before, after = (tokenizer(part.strip(), add_special_tokens=False)["input_ids"] for part in text.split("{}"))
            row = [*[tokenizer.bos_token_id, *before, stand_in, *after][: longest - 1], tokenizer.eos_token_id]
            place = len(before) + 1
            rows.append(row + [tokenizer.pad_token_id] * (longest - len(row)))
            marks.append([index == place for index in range(longest)])
        return torch.tensor(rows, device=self.mounted.device), torch.tensor(marks)

    # What the tuning asks for.

    def learn(self, concept: str, *, pictures: Pictures, negatives: Sequence[Instance], seed: int) -> Learned:
        """One word from pictures of the concept."""
        images = [self._open(picture[0]) for picture in pictures]
        latents = torch.cat([self._to_latents([image, ImageOps.mirror(image)]) for image in images])
        draw = torch.Generator().manual_seed(seed % 2**63)

        def lose(word: Tensor, step: int) -> Tensor:
            rows = torch.randint(len(latents), (self._tuning.batch_size,), generator=draw)
            texts = [TEMPLATES[index] for index in torch.randint(len(TEMPLATES), (len(rows),), generator=draw).tolist()]
            return self._denoise(latents[rows.to(latents.device)], self._encode(texts, word, concept), draw)

        tuned = optimize_prompt(self._start_word(concept), lose, tuning=self._tuning, optimizer=torch.optim.AdamW, noisy=True)
        feature = to_numpy(latents.float().mean(dim=(0, 2, 3)))
        fits = [self._explains(image, concept, tuned.prompt, concept) for image in images]
        return Learned(prompt=to_numpy(tuned.prompt), feature=feature, train_accuracy=_mean(fits))

    def measure(self, concept: str, instances: Sequence[Instance], *, pool: PromptPool) -> float:
        """Share of pictures that the learned word explains better than the concept's plain words do; 0 without a word.

        Explaining is to have the smaller error when the same noise is removed.
        """
        word = self._find_word(concept, pool)
        return 0.0 if word is None else _mean([self._explains(self._open(item), concept, word, concept) for item in instances])

    def measure_base(self, concept: str, instances: Sequence[Instance], *, pool: PromptPool) -> float:
        """Share of pictures that their own name explains at least as well as the concept does."""
        word = self._find_word(concept, pool)
        return _mean([not self._explains(self._open(item), concept, word, item.label or item.concept) for item in instances])

    def _find_word(self, concept: str, pool: PromptPool) -> Tensor | None:
        learned = pool.find_prompts(self.owner, concept)
        if not learned:
            return None
        best = max(learned, key=lambda item: item.entry.validation_accuracy)
        return torch.tensor(best.prompt, device=self.mounted.device)

    @torch.no_grad()
    def _explains(self, image: Image.Image, concept: str, word: Tensor | None, other: str) -> bool:
        """Whether the concept (its word, if there is one) removes noise from a picture better than another name."""
        latents = self._to_latents([image]).expand(_NOISE_DRAWS, -1, -1, -1)
        errors = []
        for states in (self._encode([TEMPLATES[0]], word, concept), self._encode([TEMPLATES[0]], None, other)):
            draw = torch.Generator().manual_seed(self.config.paint.seed)
            errors.append(float(self._denoise(latents, states.expand(_NOISE_DRAWS, -1, -1), draw)))
        return errors[0] < errors[1]

    def _open(self, item: Instance) -> Image.Image:
        image = open_picture(self.root, item.image)
        return image.crop(item.box) if item.box else image

    @torch.no_grad()
    def _to_latents(self, images: Sequence[Image.Image]) -> Tensor:
        vae = self._pipeline.vae
        canvases = [ImageOps.pad(image, (self._side, self._side), method=Image.Resampling.BICUBIC) for image in images]
        pixels = self._pipeline.image_processor.preprocess(canvases).to(self.mounted.device, vae.dtype)
        latents: Tensor = vae.encode(pixels).latent_dist.mean * vae.config.scaling_factor
        return latents

    def _denoise(self, latents: Tensor, states: Tensor, draw: torch.Generator) -> Tensor:
        """Mean squared error of the predicted noise (or velocity), all of the picture being masked."""
        pipeline, schedule = self._pipeline, self._pipeline.scheduler
        noise = torch.randn(latents.shape, generator=draw).to(latents)
        times = torch.randint(schedule.config.num_train_timesteps, (len(latents),), generator=draw).to(latents.device)
        noisy = schedule.add_noise(latents, noise, times)
        if pipeline.unet.config.in_channels == 9:
            # The model that in-paints also learns: everything is masked, so that only the words say what is there.
            blank = self._blank_latents().to(latents).expand(len(latents), -1, -1, -1)
            noisy = torch.cat([noisy, torch.ones_like(noisy[:, :1]), blank], dim=1)
        predicted = pipeline.unet(noisy, times, encoder_hidden_states=states.to(noisy.dtype)).sample
        wanted = schedule.get_velocity(latents, noise, times) if schedule.config.prediction_type == "v_prediction" else noise
        return mse_loss(predicted.float(), wanted.float())

    @torch.no_grad()
    def _blank_latents(self) -> Tensor:
        vae = self._pipeline.vae
        grey = torch.zeros(1, 3, self._side, self._side, device=self.mounted.device, dtype=vae.dtype)
        latents: Tensor = vae.encode(grey).latent_dist.mean * vae.config.scaling_factor
        return latents

    def _start_word(self, concept: str) -> Tensor:
        """The mean of the token embeddings of the concept's own words, (1, width)."""
        ids = self._pipeline.tokenizer(concept, add_special_tokens=False, return_tensors="pt")["input_ids"].to(self.mounted.device)
        rows: Tensor = self._pipeline.text_encoder.get_input_embeddings()(ids[0])
        return rows.float().mean(dim=0, keepdim=True).detach()


def _mean(outcomes: Sequence[bool]) -> float:
    return sum(outcomes) / len(outcomes) if outcomes else 0.0
