"""What a configuration never takes: words that no tool is taught, pictures that a classifier refuses (``assistant.safety``)."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from PIL import Image

from visloop.config_providers import SafetyConfig
from visloop.errors import ConfigError, ModelError

CheckPictures = Callable[[Sequence[Image.Image]], list[str]]
"""For each picture why it is refused; empty: it is not."""


@dataclass(frozen=True, eq=False)
class Safety:
    """The refusals of one configuration. The default refuses nothing and loads nothing."""

    config: SafetyConfig = field(default_factory=SafetyConfig)

    def refuse_word(self, *texts: str) -> str:
        """Why these texts name nothing that may be searched for, collected or learned; empty where they may."""
        for text in texts:
            said = _split(text)
            for word, parts in self._forbidden:
                if any(said[at : at + len(parts)] == parts for at in range(len(said))):
                    return f"{text!r} holds {word!r}, which assistant.safety.words forbids"
        return ""

    @property
    def checks_pictures(self) -> bool:
        """Whether there is a classifier."""
        return bool(self.config.classifier)

    def open_check(self) -> CheckPictures:
        """The classifier, loaded at the first call and shared by all later ones.

        Raises:
            ConfigError: it cannot be loaded, or does not know an unsafe label: nothing could be checked.
        """
        return self._check

    @property
    def picture_key(self) -> tuple[str, ...]:
        """What the classifier's word depends on; empty without one."""
        config = self.config
        return (config.classifier, f"{config.threshold:g}", *sorted(config.unsafe_labels)) if self.checks_pictures else ()

    @cached_property
    def _forbidden(self) -> list[tuple[str, list[str]]]:
        return [(word, _split(word)) for word in self.config.words]

    @cached_property
    def _check(self) -> CheckPictures:
        from visloop.tools.picture_check import load_picture_check  # torch: only where there is a classifier

        try:
            return load_picture_check(self.config)
        except ModelError as error:
            raise ConfigError(f"assistant.safety.classifier: {error}") from error


def _split(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.casefold())
