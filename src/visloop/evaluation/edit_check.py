"""What a CLIP says of new objects in an edited picture, as CLOVA's people would look at them: a second measure beside the right picture."""

from functools import cache
from pathlib import Path

from PIL import Image

from visloop.chat.weights import resolve_model
from visloop.config_assistant import ToolsConfig
from visloop.evaluation.edit_scores import CheckCrop
from visloop.tools.base import ToolCall
from visloop.tools.prompt_pool import PromptPool
from visloop.tools.toolbox import Toolbox
from visloop.tools.values import Box, VisualObject
from visloop.tools.vocabulary import Vocabulary, load_vocabulary


def open_clip_check(tools: Toolbox, *, config: ToolsConfig) -> CheckCrop:
    """The toolbox's CLIP as a check: the probability, 0-1, that a crop shows what the words say.

    Never with learned prompts, whatever ``tools`` has: a measure that learns along measures nothing. It says nothing (None) of words
    that a CLIP with a closed vocabulary was not trained with (a new colour, the name of an emoji): its figure would be noise.

    Raises (the check):
        ConfigError, ModelError, DataError: the CLIP or its vocabulary cannot be loaded.
    """
    frozen = tools.with_pool(PromptPool())

    @cache
    def read_vocabulary() -> Vocabulary:
        return load_vocabulary(Path(resolve_model(config.clip.model)))

    def check(crop: Image.Image, words: str) -> float | None:
        vocabulary = read_vocabulary()
        senses = vocabulary.read_words(words)
        if not senses or (not vocabulary.join_unknown and any(sense.group is None for sense in senses)):
            return None
        whole = Box(left=0, top=0, right=crop.width, bottom=crop.height)
        call = ToolCall(tool="CLASSIFY", arguments={"image": crop, "object": (whole,), "categories": (words,)})
        [result] = frozen.run("CLASSIFY", [call])
        # words about places are no category, and an empty crop is no picture: nothing is known of the object then
        named = result.value[0] if isinstance(result.value, tuple) and result.value else None
        return named.score if isinstance(named, VisualObject) else None

    return check
