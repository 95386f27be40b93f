"""A small causal LM over symbols: writes rows of a closed vocabulary under a grammar.

The model is any ``LlamaForCausalLM`` with a ``symbols.json`` (its vocabulary, and the words that stand for themselves) in its folder.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import LlamaForCausalLM

from visloop.chat.loads import note_load
from visloop.chat.symbol_rows import END, PAD, PROGRAM_START, UNKNOWN, WRITES, Coded, Grammar, SymbolPrompt, WrittenRow, code_entries
from visloop.chat.weights import name_model, resolve_model
from visloop.errors import ModelError

SYMBOLS_FILE: Final = "symbols.json"


class SymbolModel:
    """A loaded model. ``words`` are the words of instructions that stand for themselves."""

    def __init__(self, model: LlamaForCausalLM, ids: Mapping[str, int], words: frozenset[str], *, name: str, batch_size: int = 48) -> None:
        self.words, self.name, self.vocabulary = words, name, tuple(ids)
        self._model, self._ids, self._batch_size = model.eval(), ids, batch_size
        self._names = {number: symbol for symbol, number in ids.items()}

    def write(self, prompts: Sequence[SymbolPrompt], *, most: int = 220) -> list[WrittenRow]:
        """The likeliest next symbol, again and again, for every prompt: one row each, in order.

        Prompts of like length share a batch. A row ends when its grammar is done, or after ``most`` symbols.
        """
        coded = [code_entries(prompt.kind, (*prompt.shown, (prompt.asked, None)), ids=self._ids) for prompt in prompts]
        order = sorted(range(len(prompts)), key=lambda index: len(coded[index].ids))
        rows: dict[int, WrittenRow] = {}
        for start in range(0, len(order), self._batch_size):
            batch = order[start : start + self._batch_size]
            written = self._write_batch([prompts[index].grammar for index in batch], [coded[index] for index in batch], most=most)
            rows |= zip(batch, written, strict=True)
        return [rows[index] for index in range(len(prompts))]

    @torch.inference_mode()
    def _write_batch(self, grammars: Sequence[Grammar], coded: Sequence[Coded], *, most: int) -> list[WrittenRow]:
        longest = max(len(row.ids) for row in coded)
        pad = self._ids[PAD]
        current = torch.tensor([[pad] * (longest - len(row.ids)) + row.ids for row in coded])
        positions = torch.tensor([[0] * (longest - len(row.ids)) + row.positions for row in coded])
        mask = (current != pad).long()
        written: list[list[str]] = [[] for _ in coded]
        log_probabilities = [0.0] * len(coded)
        stuck = [False] * len(coded)
        cache: Any = None
        for step in range(most):
            output = self._model(input_ids=current, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            chances = self._constrain(output.logits[:, -1].float(), grammars)
            chosen = chances.argmax(dim=-1)
            for index, number in enumerate(chosen.tolist()):
                if grammars[index].done or stuck[index]:
                    continue
                stuck[index] = number == pad  # the vocabulary has nothing of what the grammar allows
                if not stuck[index]:
                    symbol = self._names[number]
                    written[index].append(symbol)
                    log_probabilities[index] += float(chances[index, number])
                    grammars[index].take(symbol)
            if all(grammar.done or ended for grammar, ended in zip(grammars, stuck, strict=True)):
                break
            current, positions = chosen[:, None], torch.full((len(coded), 1), PROGRAM_START + step)
            mask = torch.cat([mask, torch.ones(len(coded), 1, dtype=mask.dtype)], dim=1)
        return [
            WrittenRow(symbols=tuple(symbols), log_probability=value, finished=grammar.done)
            for symbols, value, grammar in zip(written, log_probabilities, grammars, strict=True)
        ]

    def _constrain(self, logits: Tensor, grammars: Sequence[Grammar]) -> Tensor:
        """Logarithms of probabilities (rows, symbols) among the allowed symbols."""
        blocked = torch.full_like(logits, -torch.inf)
        for index, grammar in enumerate(grammars):
            allowed = [self._ids[symbol] for symbol in grammar.list_allowed() if symbol in self._ids] or [self._ids[PAD]]
            blocked[index, allowed] = 0.0
        return torch.log_softmax(logits + blocked, dim=-1)


def load_symbol_model(name: str) -> SymbolModel:
    """Load by a shipped name (``embedded/planner``) or a folder; on the CPU, where so small a model is fastest.

    Raises:
        ModelError: nothing to load there, or not a LlamaForCausalLM with its symbols.
    """
    source = resolve_model(name)
    try:
        known = json.loads((Path(source) / SYMBOLS_FILE).read_text())
        ids, words = {str(symbol): int(number) for symbol, number in known["ids"].items()}, frozenset(known["words"])
        model = LlamaForCausalLM.from_pretrained(source, dtype=torch.float32)
        missing = [symbol for symbol in (PAD, WRITES, END, UNKNOWN) if symbol not in ids]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"cannot load an LM over symbols from {name!r}: {error}; it must be a LlamaForCausalLM with {SYMBOLS_FILE}"
        ) from error
    if missing or sorted(ids.values()) != list(range(model.config.vocab_size)):
        raise ModelError(
            f"{name!r}: {SYMBOLS_FILE} has {len(ids)} symbols and lacks {missing or 'none'}; the model has {model.config.vocab_size}"
        )
    note_load(name)
    return SymbolModel(model, ids, words, name=name_model(name))
