"""The word-level tokenizer of the embedded models and their chat template.

A word is a token, so a chain costs about thirty tokens. The fixed pieces of the JSON replies are one token each: the
models spend no capacity on brackets, and what they write stays readable by the parsers made for large models.
"""

import re
from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from visloop.prompts.render import PromptSet
from visloop.records.chains import CHAIN_TOKENS
from visloop.scenes.vocabulary import list_words
from visloop.scenes.world import WorldSpec

PAD, UNKNOWN, EOS, IMAGE = "<pad>", "<unk>", "<eos>", "<image>"
ROLES = {"system": "<system>", "user": "<user>", "assistant": "<assistant>"}
SPECIAL_TOKENS = (PAD, UNKNOWN, EOS, IMAGE, *ROLES.values())
STEP_PIECES = ('{"summary":"', '","reasoning":"', '","action":"', '"}')
JUDGE_PIECES = ('[{"id":', ',"score":', ',"error":', '},{"id":', "}]")
PIECES = (*STEP_PIECES, *JUDGE_PIECES, *CHAIN_TOKENS, "\n")
LARGEST_NUMBER = 100

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}"
    "<assistant>{% generation %}"
    "{%- if message['content'] is string -%}{{ message['content'] }}"
    "{%- else -%}{%- for part in message['content'] if part['type'] == 'text' -%}{{ part['text'] }}{%- endfor -%}{%- endif -%}"
    "<eos>{% endgeneration %}"
    "{%- else -%}"
    "{{ '<' + message['role'] + '>' }}"
    "{%- if message['content'] is string -%}{{ message['content'] }}"
    "{%- else -%}"
    "{%- set images = message['content'] | selectattr('type', 'equalto', 'image') | list -%}"
    "{%- for image in images -%}{%- if images | length > 1 -%}{{ loop.index | string + ' ' }}{%- endif -%}<image>{%- endfor -%}"
    "{%- for part in message['content'] if part['type'] == 'text' -%}{{ part['text'] }}{%- endfor -%}"
    "{%- endif -%}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}<assistant>{%- endif -%}"
)
"""One token per role; the pictures of a turn come first, numbered when there are several; a reply ends with ``<eos>``."""


_PLACEHOLDER = re.compile(r"\{\{.*?\}\}|\{%.*?%\}")
_EXTRA_TEXTS = ("continue summary ; :",)


def list_vocabulary(prompts: PromptSet, *, spec: WorldSpec) -> tuple[str, ...]:
    """The words of a world and of the prompts' own text, sorted; what an embedded model's tokenizer must know."""
    literals = [_PLACEHOLDER.sub(" ", path.read_text()) for path in sorted(prompts.folder.glob("*.j2"))]
    words = {word for text in (*literals, *_EXTRA_TEXTS) for word in text.lower().split()}
    return tuple(sorted(words | set(list_words(spec))))


def build_tokenizer(words: Iterable[str]) -> PreTrainedTokenizerFast:
    """A word-level tokenizer: lower case, split at white space and around every punctuation mark.

    Ids in order: special tokens, the single-token pieces of the replies (not special: they survive decoding), the
    numbers 0 to 100, then ``words`` sorted without repetition. A word outside the vocabulary becomes ``<unk>``.

    Args:
        words: words or texts; a text is split the way the tokenizer will split it.
    """
    normalizer = normalizers.Lowercase()
    splitter = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("isolated")])
    found = {piece for text in words for piece, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))}
    fixed = (*SPECIAL_TOKENS, *PIECES, *map(str, range(LARGEST_NUMBER + 1)))
    vocabulary = {token: index for index, token in enumerate((*fixed, *sorted(found - set(fixed))))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitter
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in PIECES])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=EOS,
        additional_special_tokens=[IMAGE, *ROLES.values()],
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
    )
