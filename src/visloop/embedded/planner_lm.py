"""A tiny LM that reads demonstrations: trained on episodes of (demonstrations, instruction -> program) whose words are symbols.

Programs have a compact form of a closed vocabulary. Template words of instructions are tokens of their own; every other word is one of the
placeholders ``<w0>`` to ``<w95>``, dealt anew in each episode, so that nothing is to be known of it but where else it stands. Half of the
episodes have a made-up wording and a changed program ("symbol tuning"): only the demonstrations then say what is meant.
"""

import random
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from visloop.assistant.grammar import parse_program
from visloop.assistant.lexicon import split_words
from visloop.assistant.program import Literal, Program, Reference

PLACEHOLDERS = 96
_TOKEN = re.compile(r"\{\w+\}|[A-Za-z]+|\d+|[^\sA-Za-z0-9]")
PAD, SAYS, NEXT, END = "<pad>", "=>", ";", "<end>"


@dataclass(frozen=True, slots=True)
class Shown:
    """An instruction and its program, as rows of words and of compact tokens (words of texts are marked by a leading quote)."""

    words: tuple[str, ...]
    program: tuple[str, ...]


def compact_program(program: Program) -> tuple[str, ...]:
    """Tool, then arguments in order; variables are numbered by line, argument names are left out (signatures give them back)."""
    names: dict[str, str] = {}
    tokens: list[str] = []
    for number, statement in enumerate(program.statements):
        tokens.append(statement.tool)
        for _, argument in statement.arguments:
            match argument:
                case Reference(name):
                    tokens.append(names.get(name, name))
                case Literal(str() as text):
                    for part in _TOKEN.findall(text):
                        inner = part[1:-1] if part.startswith("{") else part
                        is_word = part.isalpha() and not part.isupper()
                        tokens.append(
                            names.get(inner, inner) if part.startswith("{") else f"'{split_words(part)[0].norm}" if is_word else part
                        )
                    tokens.append(",")
                case Literal(value):
                    tokens.append(str(value))
        tokens.append(NEXT)
        names[statement.variable] = f"v{number}"
    return tuple(tokens)


def show(instruction: str, program: str) -> Shown:
    """The compact form of one demonstration."""
    return Shown(tuple(word.norm for word in split_words(instruction)), compact_program(parse_program(program)))


@dataclass(frozen=True, slots=True)
class Codec:
    """Tokens to ids. ``template`` are the words of instructions that are tokens of their own."""

    ids: dict[str, int]
    template: frozenset[str]

    @classmethod
    def build(cls, shown: Sequence[Shown], *, template: frozenset[str]) -> "Codec":
        """The vocabulary of all programs in ``shown`` and of ``template``."""
        fixed = sorted({token for entry in shown for token in entry.program})
        words = [f'"{word}' for word in sorted(template)]
        numbers = [f'"{number}' for number in range(13)]
        tokens = [PAD, SAYS, END, *(f"<w{index}>" for index in range(PLACEHOLDERS)), *numbers, *words, *fixed]
        return cls({token: index for index, token in enumerate(dict.fromkeys(tokens))}, template)

    def encode(
        self, episode: Sequence[Shown], rng: random.Random, *, dropout: float = 0.0, open_last: bool = False
    ) -> tuple[list[int], dict[str, str]]:
        """Ids of an episode, and which placeholder each word got. ``dropout``: share of template words that become placeholders as well.
        With ``open_last`` the last program is left out."""
        order = list(range(PLACEHOLDERS))
        rng.shuffle(order)
        dealt: dict[str, str] = {}
        ids: list[int] = []
        for index, entry in enumerate(episode):
            for word in entry.words:
                if word not in dealt:
                    kept = word.isdigit() or (word in self.template and rng.random() >= dropout)
                    dealt[word] = f'"{word}' if kept and f'"{word}' in self.ids else f"<w{order.pop() if order else 0}>"
                ids.append(self.ids[dealt[word]])
            ids.append(self.ids[SAYS])
            if not (open_last and index == len(episode) - 1):
                for token in entry.program:
                    mapped = dealt.get(token[1:], token) if token.startswith("'") else token
                    ids.append(self.ids.get(token if mapped.startswith('"') else mapped, 0))
                ids.append(self.ids[END])
        return ids, dealt


def build_model(codec: Codec, *, width: int = 160, layers: int = 4, heads: int = 5, seed: int = 0) -> LlamaForCausalLM:
    """A ``LlamaForCausalLM`` from scratch: 1.3 M parameters with the default sizes."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(codec.ids),
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=codec.ids[END],
    )
    return LlamaForCausalLM(config)


def train(
    model: LlamaForCausalLM, draw: Callable[[random.Random], list[int]], *, codec: Codec, seconds: float, seed: int, batch: int = 24
) -> list[float]:
    """Train for CPU ``seconds`` on drawn episodes (ids); loss on every program of an episode. Returns losses."""
    rng = random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.98), weight_decay=0.01)
    begin, losses = time.process_time(), list[float]()
    model.train()
    while (share := (time.process_time() - begin) / seconds) < 1:
        warm = min(1.0, (len(losses) + 1) / 50)
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * warm * min(1.0, 2 * (1 - share) + 0.05)
        rows = sorted((draw(rng) for _ in range(batch)), key=len)
        longest = len(rows[-1])
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        loss = model(input_ids=ids, labels=_mask_labels(ids, says=codec.ids[SAYS], end=codec.ids[END])).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def _mask_labels(ids: torch.Tensor, *, says: int, end: int) -> torch.Tensor:
    """Labels (batch, length) of program tokens only: those after ``=>`` up to the end mark."""
    opened = (ids == says).cumsum(1) - (ids == says).int() > (ids == end).cumsum(1) - (ids == end).int()
    return torch.where(opened, ids, torch.full_like(ids, -100))
