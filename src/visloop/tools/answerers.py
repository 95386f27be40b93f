"""VQA by BLIP with learned prompts (CLOVA 3.4), or by a callable that answers, such as the two agents."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from visloop.answers import normalize_answer
from visloop.chat.weights import load_arguments
from visloop.config_assistant import ToolsConfig, VqaBackend
from visloop.errors import ConfigError, ModelError
from visloop.ids import make_id
from visloop.records.assistant import Instance, PromptEntry
from visloop.tools.base import ToolCall, ToolResult, TuningReport
from visloop.tools.handed_answers import AnswerQuestions, CallableAnswerer, Question, read_calls
from visloop.tools.mounted import Mounted, mount_model, open_picture, split_batches
from visloop.tools.prompt_pool import ANCHORS, QUESTION_STATES, Floats, LearnedPrompt, PromptPool
from visloop.tools.prompted import blend_prompts, find_share, optimize_prompt, start_prompt, to_numpy
from visloop.tools.signatures import SIGNATURES
from visloop.tools.tunings import choose_tuning
from visloop.tools.validated_tuning import Learned, Pictures, split_concepts, tune_prompts

_LONGEST: Final = 10
"""Tokens of an answer (CLOVA's code)."""
_SCALE: Final = 2.0
"""Similarity in CLOVA is the sum of two cosines, which is twice the cosine of the joined vector."""


def make_answerer(
    config: ToolsConfig, pool: PromptPool, *, answer: AnswerQuestions | None = None, root: Path = Path()
) -> "BlipAnswerer | CallableAnswerer":
    """VQA with the backend of ``config.vqa``.

    Args:
        answer: what answers for the backend ``agents``.
        root: the data folder that paths of instances start from.

    Raises:
        ConfigError: another backend, or ``agents`` without ``answer``.
        ModelError: not a BLIP for questions.
    """
    if config.vqa is VqaBackend.agents:
        if answer is None:
            raise ConfigError("tools.vqa is agents, but nothing was handed over that answers; give make_answerer answer=...")
        return CallableAnswerer(answer, pool=pool)
    if config.vqa is VqaBackend.blip:
        return BlipAnswerer(mount_model(config.answerer, _load_blip, kind="BLIP for questions"), config=config, pool=pool, root=root)
    raise ConfigError(f"tools.vqa is {config.vqa.value}; these answerers are the backends blip and agents")


def _load_blip(source: str, dtype: torch.dtype | str) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoProcessor, BlipForQuestionAnswering

    if (found := AutoConfig.from_pretrained(**load_arguments(source)).model_type) != "blip":
        raise ModelError(f"{source} holds a {found}; VQA's model is a blip")
    processor: Any = AutoProcessor.from_pretrained(**load_arguments(source))  # type: ignore[no-untyped-call]
    return BlipForQuestionAnswering.from_pretrained(**load_arguments(source), dtype=dtype), processor


class BlipAnswerer:
    """VQA by BLIP. Prompts (tokens, hidden) stand behind the states of the question that the answer decoder attends to.

    One list holds the prompts of all concepts, as the answer to be learned need not occur in the question. The most similar by picture
    and question are combined. Anchors, zero prompts of questions that were right before, pull known questions to the plain model.
    """

    signature = SIGNATURES["VQA"]
    owner = "VQA"
    backend = "blip"
    placement = QUESTION_STATES
    learns_questions = True

    def __init__(self, mounted: Mounted, *, config: ToolsConfig, pool: PromptPool, root: Path = Path()) -> None:
        self.mounted, self.config, self.pool, self.root = mounted, config, pool, root
        self.model_name = mounted.name
        self._tuning = choose_tuning(config, self.owner)
        self._prompts = tuple(prompt for prompt in pool.prompts if prompt.entry.tool == self.owner)

    def with_pool(self, pool: PromptPool) -> "BlipAnswerer":
        """The same answerer with other prompts."""
        return BlipAnswerer(self.mounted, config=self.config, pool=pool, root=self.root)

    def list_concepts(self, call: ToolCall) -> tuple[str, ...]:
        """The words of the question."""
        question = call.arguments.get("question")
        return split_concepts(question)[:-1] if isinstance(question, str) and len(question.split()) > 1 else ()

    def run(self, calls: Sequence[ToolCall]) -> list[ToolResult]:
        """Short answers; ``confidence`` is the probability of the answer's tokens, their geometric mean."""
        asked, results = read_calls(calls)
        places = list(asked)
        for batch in split_batches(len(places), self.config.answerer.batch_size):
            chosen = [places[at] for at in batch]
            with self.mounted.lock:
                results |= zip(chosen, self._answer([asked[index] for index in chosen]), strict=True)
        return [results[index] for index in range(len(calls))]

    def tune(self, concept: str, *, instances: Sequence[Instance], replay: Sequence[Instance], seed: int, cycle: int) -> TuningReport:
        """Learn prompts from questions with their right answers; see ``LearnableTool``.

        Every second question of the replay set becomes an anchor where it is answered right; the others are what is measured.
        """
        usable = [item for item in instances if item.question and item.target]
        known = [item for item in replay if item.question and item.target]
        with self.mounted.lock:
            anchors = self._make_anchors(known[::2], cycle=cycle)
            return tune_prompts(
                self.with_pool(self.pool.add_prompts(anchors, most_per_concept=None)),
                concept,
                pool=self.pool,
                instances=usable,
                replay=known[1::2],
                tuning=self._tuning,
                seed=seed,
                cycle=cycle,
                companions=anchors,
                lone_questions=True,
            )

    @torch.no_grad()
    def _answer(self, asked: Sequence[Question]) -> list[ToolResult]:
        states, mask, features = self._encode(asked)
        results = self._decode(states, mask)
        if self._prompts:
            for index, feature in enumerate(features):
                blended = blend_prompts(self._prompts, to_numpy(feature), tuning=self._tuning, device=self.mounted.device, scale=_SCALE)
                if blended and bool(blended[0].any()):
                    own = mask[index].bool()
                    extended = self._extend(states[index : index + 1, own], mask[index : index + 1, own], blended[0])
                    (prompted,) = self._decode(*extended)
                    results[index] = ToolResult(value=prompted.value, confidence=prompted.confidence, prompts=blended[1])
        return results

    def _encode(self, asked: Sequence[Question]) -> tuple[Tensor, Tensor, Tensor]:
        """States of the questions (n, length, width), their mask, and features (n, 2 width) that prompts are looked up by."""
        texts, images = [question for question, _ in asked], [image for _, image in asked]
        longest = self.mounted.model.config.text_config.max_position_embeddings
        encoded = self.mounted.processor(
            images=images, text=texts, padding=True, truncation=True, max_length=longest, return_tensors="pt"
        ).to(self.mounted.device)
        model, mask = self.mounted.model, encoded["attention_mask"]
        seen = model.vision_model(pixel_values=encoded["pixel_values"]).last_hidden_state
        states = model.text_encoder(
            input_ids=encoded["input_ids"],
            attention_mask=mask,
            encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:-1], dtype=torch.long, device=seen.device),
        ).last_hidden_state
        words = states.masked_fill(mask[..., None] == 0, float("-inf"))
        features = torch.cat([normalize(part.float().amax(dim=1), dim=-1) for part in (seen, words)], dim=-1)
        return states, mask, features

    def _extend(self, states: Tensor, mask: Tensor, prompt: Tensor) -> tuple[Tensor, Tensor]:
        added = prompt.to(states.dtype).expand(len(states), -1, -1)
        return torch.cat([states, added], dim=1), torch.cat([mask, mask.new_ones(added.shape[:2])], dim=1)

    @torch.no_grad()
    def _decode(self, states: Tensor, mask: Tensor) -> list[ToolResult]:
        model, text = self.mounted.model, self.mounted.model.config.text_config
        output = model.text_decoder.generate(
            input_ids=torch.full((len(states), 1), model.decoder_start_token_id, device=states.device),
            eos_token_id=text.sep_token_id,
            pad_token_id=text.pad_token_id,
            encoder_hidden_states=states,
            encoder_attention_mask=mask,
            do_sample=False,
            max_new_tokens=_LONGEST,
            output_logits=True,
            return_dict_in_generate=True,
        )
        chances = torch.stack(output.logits, dim=1).float().log_softmax(dim=-1)
        written = output.sequences[:, 1:]
        picked = chances.gather(-1, written[..., None])[..., 0]
        results = []
        for row, ids in enumerate(written):
            length = int((ids != text.pad_token_id).sum())
            answer = self.mounted.processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
            confidence = float(picked[row, :length].mean().exp()) if length else None
            results.append(
                ToolResult(value=answer, confidence=confidence) if answer else ToolResult(value=None, error="VQA: the model gave no word")
            )
        return results

    def _make_anchors(self, known: Sequence[Instance], *, cycle: int) -> list[LearnedPrompt]:
        width = self.mounted.model.config.text_config.hidden_size
        right = zip(known, self._run_instances(known, pool=self.pool), strict=True)
        anchors = []
        with torch.no_grad():
            for item in (item for item, result in right if _says(result, item)):
                _, _, features = self._encode([(item.question, open_picture(self.root, item.image))])
                name = make_id(self.owner, ANCHORS, self.model_name, Path(item.image).name, item.question)
                entry = self._make_entry(name, ANCHORS, (item.id,), cycle=cycle)
                blank = np.zeros((self._tuning.tokens, width), dtype=np.float32)
                anchors.append(LearnedPrompt(entry=entry, feature=to_numpy(features[0]), prompt=blank))
        return anchors

    # What the tuning asks for.

    def learn(self, concept: str, *, pictures: Pictures, negatives: Sequence[Instance], seed: int) -> Learned:
        """One prompt from some questions with answers. It is trained as it will be used: in the mean with the pool's prompts."""
        items = [item for picture in pictures for item in picture]
        with torch.no_grad():
            states, mask, features = self._encode([(item.question, open_picture(self.root, item.image)) for item in items])
        inputs, labels = self._write_answers([item.target for item in items])

        feature = to_numpy(normalize(features.mean(dim=0).reshape(2, -1), dim=-1).flatten())
        width = self.mounted.model.config.text_config.hidden_size
        first = start_prompt(self._tuning.tokens, width, spread=self._tuning.init_std, seed=seed).to(self.mounted.device)
        shares, rest = self._find_shares(concept, feature, features, shape=tuple(first.shape))

        def mix(prompt: Tensor) -> Tensor:
            return shares * prompt + rest

        def lose(prompt: Tensor, step: int) -> Tensor:
            longer, wider = self._extend(states, mask, mix(prompt))
            logits = self.mounted.model.text_decoder(
                input_ids=inputs, encoder_hidden_states=longer, encoder_attention_mask=wider, is_decoder=True
            ).logits
            return torch.nn.functional.cross_entropy(
                logits.float().flatten(0, 1), labels.flatten(), label_smoothing=self._tuning.label_smoothing, ignore_index=-100
            )

        def accuracy(prompt: Tensor) -> float:
            found = self._decode(*self._extend(states, mask, mix(prompt)))
            return _mean([_says(result, item) for result, item in zip(found, items, strict=True)])

        tuned = optimize_prompt(
            first,
            lose,
            tuning=self._tuning,
            optimizer=torch.optim.AdamW,
            fits=lambda prompt: accuracy(prompt) == 1.0,
            check_every=1,  # CLOVA looks at the greedy answer after every step
        )
        return Learned(prompt=to_numpy(tuned.prompt), feature=feature, train_accuracy=accuracy(tuned.prompt))

    def _find_shares(self, concept: str, feature: Floats, features: Tensor, *, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Shares (n, 1, 1) of a new prompt in what each question gets, and the rest (n, tokens, width), which the pool's prompts give."""
        newcomer = LearnedPrompt(entry=self._make_entry("", concept, ()), feature=feature, prompt=np.zeros(shape, dtype=np.float32))
        found = [
            find_share(self._prompts, newcomer, to_numpy(item), tuning=self._tuning, device=self.mounted.device, scale=_SCALE)
            for item in features
        ]
        shares = torch.tensor([share for share, _ in found], device=self.mounted.device)[:, None, None]
        return shares, torch.stack([rest for _, rest in found])

    def _make_entry(self, name: str, concept: str, sources: tuple[str, ...], *, cycle: int = 0) -> PromptEntry:
        return PromptEntry(
            id=name,
            tool=self.owner,
            concept=concept,
            backend=self.backend,
            placement=self.placement,
            instance_ids=sources,
            train_accuracy=1.0,
            validation_accuracy=1.0,
            base_accuracy=1.0,
            base_accuracy_before=1.0,
            cycle=cycle,
        )

    def _write_answers(self, answers: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Decoder inputs (n, length) and the tokens to be said (n, length), -100 where nothing is."""
        model, text, tokenizer = self.mounted.model, self.mounted.model.config.text_config, self.mounted.processor.tokenizer
        rows = [tokenizer(answer, add_special_tokens=False)["input_ids"][: _LONGEST - 1] for answer in answers]
        length = max(map(len, rows)) + 1
        inputs = [[model.decoder_start_token_id, *ids, *[text.pad_token_id] * (length - 1 - len(ids))] for ids in rows]
        labels = [[*ids, text.sep_token_id, *[-100] * (length - 1 - len(ids))] for ids in rows]
        device = self.mounted.device
        return torch.tensor(inputs, device=device), torch.tensor(labels, device=device)

    def measure(self, concept: str, instances: Sequence[Instance], *, pool: PromptPool) -> float:
        """Share of questions that get their right answer."""
        found = self._run_instances(instances, pool=pool)
        return _mean([_says(result, item) for result, item in zip(found, instances, strict=True)])

    def _run_instances(self, instances: Sequence[Instance], *, pool: PromptPool) -> list[ToolResult]:
        pictures = [open_picture(self.root, item.image) for item in instances]
        calls = [
            ToolCall(tool="VQA", arguments={"image": image, "question": item.question})
            for image, item in zip(pictures, instances, strict=True)
        ]
        return self.with_pool(pool).run(calls)

    def measure_base(self, concept: str, instances: Sequence[Instance], *, pool: PromptPool) -> float:
        """As ``measure``: every question counts."""
        return self.measure(concept, instances, pool=pool)


def _says(result: ToolResult, item: Instance) -> bool:
    return isinstance(result.value, str) and normalize_answer(result.value) == normalize_answer(item.target)


def _mean(outcomes: Sequence[bool]) -> float:
    return sum(outcomes) / len(outcomes) if outcomes else 0.0
