"""The typed schema of one mounted chat model. Part of ``visloop.config``, from where it is imported."""

import math
from dataclasses import dataclass
from enum import Enum

from visloop.errors import ConfigError


class Backend(Enum):
    """Where a chat model runs."""

    transformers = "transformers"
    openai = "openai"


@dataclass
class ChatConfig:
    """One mounted model: generator, judge, reasoner or summarizer.

    ``model`` is a shipped name (``embedded/base``), a local folder, or a hub id; for ``openai`` the served model's name.
    ``api_key_env`` names an environment variable; the key itself never enters a config. Seconds for times. ``price_prompt`` and
    ``price_new`` are what tokens read and written cost, in USD per million; 0 and 0: nobody knows.

    Raises:
        ConfigError: a price below 0, or none that is a number.
    """

    backend: Backend = Backend.transformers
    model: str = "embedded/base"
    device: str = "auto"
    dtype: str = "auto"
    attn_implementation: str = "sdpa"
    batch_size: int = 128
    max_image_pixels: int = 1280 * 28 * 28
    base_url: str = "http://127.0.0.1:8000/v1"
    api_key_env: str = "OPENAI_API_KEY"
    concurrency: int = 8
    timeout_seconds: float = 120.0
    max_retries: int = 3
    price_prompt: float = 0.0
    price_new: float = 0.0

    def __post_init__(self) -> None:
        for key, price in (("price_prompt", self.price_prompt), ("price_new", self.price_new)):
            if not 0 <= price < math.inf:
                raise ConfigError(f"{key} of model {self.model} is {price}; use USD per million tokens, 0 or more")

    def price_tokens(self, *, prompt: int, new: int) -> tuple[float, float] | None:
        """What so many tokens read and written cost, in USD; None where no price is known."""
        if not self.price_prompt and not self.price_new:
            return None
        return prompt * self.price_prompt / 1e6, new * self.price_new / 1e6
