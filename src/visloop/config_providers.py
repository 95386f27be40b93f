"""The typed schema of where the assistant's tools get learning data (CLOVA 3.4), and of what is never taken. Part of
``visloop.config_assistant``.

The drawn collection is the default: it needs no network and no download. The rest is CLOVA's own: LVIS files, a search over HTTP,
negatives that an LLM names.
"""

from dataclasses import dataclass, field
from enum import Enum

from visloop.errors import ConfigError


class RegionSource(Enum):
    """Where boxes and masks come from. ``drawn``: the drawn collection; ``lvis``: an annotation file in LVIS's layout."""

    drawn = "drawn"
    lvis = "lvis"


class SearchSource(Enum):
    """Who finds pictures of words. ``folder``: one folder per word on disk; ``http``: a service that speaks Openverse's protocol."""

    folder = "folder"
    http = "http"


class NegativeSource(Enum):
    """Who says what is easily taken for a word. ``siblings``: what the search files under the same kind of thing; ``chat``: the LLM."""

    siblings = "siblings"
    chat = "chat"


@dataclass
class RegionsConfig:
    """The open-vocabulary set. ``annotations`` is the LVIS file, ``pictures`` the folder below which its pictures lie."""

    source: RegionSource = RegionSource.drawn
    annotations: str = ""
    pictures: str = ""


@dataclass
class SearchConfig:
    """The image search. ``folder``: of folders named by words (empty: the drawn ones).

    The others are those of ``http``. ``licences``: codes that are taken (empty: any that is named); ``page_size``: hits per request at
    most; ``store``: a folder that keeps what was fetched, so that the same search is answered from there (empty: only what tools are
    taught with is kept, in the cycle's folder); ``timeout_seconds`` to connect and between bytes, ``deadline_seconds`` for one
    download; ``max_bytes`` and ``max_redirects`` of it; ``min_side`` in pixels and ``max_aspect`` (longer side over shorter) of a
    picture; ``allow_private``: also fetch from addresses of the own network; ``safe``: ask for no sensitive results, and refuse those
    that the service marks as such."""

    source: SearchSource = SearchSource.folder
    folder: str = ""
    endpoint: str = ""
    licences: list[str] = field(default_factory=lambda: ["cc0", "pdm", "by", "by-sa"])
    page_size: int = 20
    store: str = ""
    timeout_seconds: float = 10.0
    deadline_seconds: float = 30.0
    max_bytes: int = 10_000_000
    max_redirects: int = 3
    min_side: int = 4
    max_aspect: float = 200.0
    allow_private: bool = False
    safe: bool = True


@dataclass
class NegativesConfig:
    """What a searched word is told apart from. The others are those of ``chat``: how many words are named, how often the LLM is asked
    until its reply can be read, its decoding."""

    source: NegativeSource = NegativeSource.siblings
    confusable: int = 3
    max_tries: int = 2
    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 256


@dataclass
class ProvidersConfig:
    """Where learning data comes from."""

    regions: RegionsConfig = field(default_factory=RegionsConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    negatives: NegativesConfig = field(default_factory=NegativesConfig)


@dataclass
class SafetyConfig:
    """What is never taken, whoever gives it. ``words``: a concept that holds one of them, whole and in any case, is not searched for,
    collected or learned. ``classifier``: an image-classification model (a folder or a hub id; empty: none) that looks at the pictures
    that a search finds and at those that diffusion paints; one is refused where the probability of all ``unsafe_labels`` together is
    ``threshold`` or more (each label's own, where the model gives several at once). ``batch_size``: pictures per forward pass.

    Raises:
        ConfigError: a word without letters, or a classifier without labels that are unsafe.
    """

    words: list[str] = field(default_factory=list)
    classifier: str = ""
    unsafe_labels: list[str] = field(default_factory=list)
    threshold: float = 0.5
    batch_size: int = 32

    def __post_init__(self) -> None:
        if not all(any(letter.isalnum() for letter in word) for word in self.words):
            raise ConfigError(f"assistant.safety.words: {self.words} holds a word without letters or digits, which names nothing")
        if self.classifier and not self.unsafe_labels:
            raise ConfigError("assistant.safety.unsafe_labels is empty; name the labels of assistant.safety.classifier that are unsafe")
