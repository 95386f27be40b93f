"""The providers that a configuration names (CLOVA 3.4): which set of regions, which search, who says what is easily taken for a word.

A provider is opened when it is first asked: LVIS is a gigabyte to read, and evaluating pools asks none. What providers leave out is
handed on with its reason, so that a cycle can tell what it was not taught with.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from visloop.assistant.inference import ChatNegatives
from visloop.assistant.providers import DataProvider, ImageSearchProvider, OpenVocabularyProvider
from visloop.assistant.safety import Safety
from visloop.chat.base import ChatModel
from visloop.config import Sampling
from visloop.config_providers import NegativesConfig, NegativeSource, ProvidersConfig, RegionSource, SearchConfig, SearchSource
from visloop.datasets.checked_search import CheckedSearch
from visloop.datasets.folder_search import FolderImageSearch
from visloop.datasets.image_search import FetchLimits, HttpImageSearch, PictureSource
from visloop.datasets.images import ImageLimits, Skip
from visloop.datasets.kept_search import PICTURES, KeptSearch
from visloop.datasets.lvis import read_lvis
from visloop.errors import ConfigError, DataError
from visloop.prompts.render import PromptSet
from visloop.records.assistant import DataSource, Instance

KEY = "assistant.providers"


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """What a provider met and did not give, for which word of which tool: a picture, an annotation, or all (``where`` is the word)."""

    source: DataSource
    tool: str
    concept: str
    where: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Shelf:
    """Where collected pictures are put: ``out``, which records call ``prefix``; ``note`` is told what was left out, ``safety`` says what
    must not be put there."""

    out: Path
    prefix: str = ""
    note: Callable[[Sequence[LeftOut]], None] = lambda found: None
    safety: Safety = field(default_factory=Safety)


class SkippingProvider(DataProvider, Protocol):
    """A provider that lists what it leaves out."""

    @property
    def skipped(self) -> list[Skip]: ...


class NotedProvider:
    """A provider that is opened when it is first asked, and whose omissions and failures are noted. It is not asked for words that
    ``safety`` refuses, and what it gives of others without being asked is left out.

    Args:
        opened_by: opens it.
        key: what the configuration calls it, for errors of opening it.
    """

    def __init__(
        self,
        source: DataSource,
        opened_by: Callable[[], SkippingProvider],
        *,
        key: str,
        shelf: Shelf,
    ) -> None:
        self.source: DataSource = source
        self._open, self._key, self._note, self._safety = opened_by, key, shelf.note, shelf.safety
        self._provider: SkippingProvider | None = None

    def collect(self, concept: str, *, tool: str, positives: int, negatives: int, seed: int) -> list[Instance]:
        """What the provider gives.

        Raises:
            DataError: it cannot be reached now; another one may be asked.
            ConfigError: it cannot be opened, so that no word will ever be found there.
        """
        left: list[Skip] = []
        try:
            if reason := self._safety.refuse_word(concept):
                left.append(Skip(concept, reason))
                return []
            return self._collect(concept, left, tool=tool, positives=positives, negatives=negatives, seed=seed)
        except DataError as error:
            left.append(Skip(concept, str(error)))
            raise
        finally:
            if left:
                self._note([LeftOut(source=self.source, tool=tool, concept=concept, where=skip.where, reason=skip.reason) for skip in left])

    def _collect(self, concept: str, left: list[Skip], *, tool: str, positives: int, negatives: int, seed: int) -> list[Instance]:
        provider = self._take()
        before = len(provider.skipped)
        try:
            found = provider.collect(concept, tool=tool, positives=positives, negatives=negatives, seed=seed)
        finally:
            left += provider.skipped[before:]
        reasons = [self._safety.refuse_word(item.label) for item in found]
        left += [Skip(item.origin, reason) for item, reason in zip(found, reasons, strict=True) if reason]
        return [item for item, reason in zip(found, reasons, strict=True) if not reason]

    def _take(self) -> SkippingProvider:
        if self._provider is None:
            try:
                self._provider = self._open()
            except DataError as error:
                raise ConfigError(f"{self._key}: {error}") from error
        return self._provider


def list_files(config: ProvidersConfig) -> dict[str, Path]:
    """The files that providers read besides the drawn collection, by role: what a stage that asks them depends on.

    The pictures of an LVIS file are not among them: the file names them, they are never changed, and they are more than a stage should
    read before each run. An address and what is kept of its answers count by the configuration.

    Raises:
        ConfigError: a key that a choice needs is empty, or a choice that fits no other one.
        DataError: a file or folder that a key names is not there.
    """
    files: dict[str, Path] = {}
    regions, search = config.regions, config.search
    if regions.source is RegionSource.lvis:
        files["lvis"] = _find(regions.annotations, key="regions.annotations", what="the annotation file in LVIS's layout", folder=False)
        _find(regions.pictures, key="regions.pictures", what="the folder of its pictures", folder=True)
    if search.source is SearchSource.folder and search.folder:
        files["searched"] = _find(search.folder, key="search.folder", what="a folder with one folder of pictures per word", folder=True)
    if search.source is SearchSource.http:
        if not search.endpoint:
            raise ConfigError(f"{KEY}.search.endpoint is empty; source http needs the address of a search that speaks Openverse's protocol")
        if config.negatives.source is NegativeSource.siblings:
            raise ConfigError(f"{KEY}.negatives.source is siblings, but a search by http knows no kinds of things; set it to chat")
    return files


def _find(value: str, *, key: str, what: str, folder: bool) -> Path:
    if not value:
        raise ConfigError(f"{KEY}.{key} is empty; it must name {what}")
    path = Path(value)
    if not (path.is_dir() if folder else path.is_file()):
        raise DataError(f"{KEY}.{key}: {path} is missing; it must be {what}")
    return path


def open_drawn(collection: Path, shelf: Shelf) -> NotedProvider:
    """The regions of the drawn collection."""
    folder = collection / "open_vocabulary"
    return _open_regions(folder / "annotations.json", folder / "pictures", shelf, key=str(collection))


def open_regions(config: ProvidersConfig, shelf: Shelf, *, drawn: NotedProvider) -> NotedProvider:
    """The open-vocabulary set of a configuration.

    Raises:
        ConfigError, DataError: as ``list_files``.
    """
    list_files(config)
    if config.regions.source is RegionSource.drawn:
        return drawn
    return _open_regions(Path(config.regions.annotations), Path(config.regions.pictures), shelf, key=f"{KEY}.regions.annotations")


def _open_regions(annotations: Path, pictures: Path, shelf: Shelf, *, key: str) -> NotedProvider:
    def read() -> OpenVocabularyProvider:
        return OpenVocabularyProvider(read_lvis(annotations), pictures=pictures, out=shelf.out, prefix=shelf.prefix)

    return NotedProvider("open_vocabulary", read, key=key, shelf=shelf)


def open_search(
    config: ProvidersConfig, shelf: Shelf, *, collection: Path, chat: ChatModel | None, prompts: PromptSet, seed: int
) -> NotedProvider:
    """The image search of a configuration, with who names negatives.

    Args:
        collection: the drawn collection, whose folders are searched where no other ones are named.

    Raises:
        ConfigError: as ``list_files``; or the LLM is to name negatives, and there is none.
        DataError: as ``list_files``.
    """
    list_files(config)
    name = _open_negatives(config.negatives, chat=chat, prompts=prompts, seed=seed)

    def start() -> ImageSearchProvider:
        found = _open_pictures(config.search, shelf, collection=collection)
        confusable, refuse = config.negatives.confusable, shelf.safety.refuse_word
        return ImageSearchProvider(found, prefix=shelf.prefix, name_negatives=name, confusable=confusable, refuse_word=refuse)

    return NotedProvider("image_search", start, key=f"{KEY}.search", shelf=shelf)


def _open_pictures(config: SearchConfig, shelf: Shelf, *, collection: Path) -> PictureSource:
    """The search; with a classifier, its pictures are checked before anything, also the store, holds them."""
    out, safety = shelf.out, shelf.safety

    def check(open_search: Callable[[Path], PictureSource], out: Path, limits: ImageLimits) -> PictureSource:
        if not safety.checks_pictures:
            return open_search(out)
        return CheckedSearch(open_search, out=out, check=safety.open_check(), limits=limits)

    if config.source is SearchSource.folder:
        root = Path(config.folder) if config.folder else collection / "image_search"
        return check(lambda folder: FolderImageSearch(root, out=folder), out, ImageLimits())
    limits = FetchLimits(
        timeout=config.timeout_seconds,
        deadline=config.deadline_seconds,
        max_bytes=config.max_bytes,
        max_redirects=config.max_redirects,
        pictures=ImageLimits(min_side=config.min_side, max_aspect=config.max_aspect),
    )
    store = Path(config.store) if config.store else None

    def search(folder: Path) -> HttpImageSearch:
        return HttpImageSearch(
            config.endpoint,
            out=folder,
            licences=config.licences,
            limits=limits,
            page_size=config.page_size,
            allow_private=config.allow_private,
            safe=config.safe,
        )

    if store is None:
        return check(search, out, limits.pictures)
    # an answer that was kept under looser rules is none of this search
    asked_of = (config.endpoint, *config.licences, *(["safe"] if config.safe else []), *safety.picture_key)
    return KeptSearch(check(search, store / PICTURES, limits.pictures), store=store, out=out, asked_of=asked_of, limits=limits.pictures)


def _open_negatives(config: NegativesConfig, *, chat: ChatModel | None, prompts: PromptSet, seed: int) -> ChatNegatives | None:
    if config.source is NegativeSource.siblings:
        return None
    if chat is None:
        raise ConfigError(f"{KEY}.negatives.source is chat, which needs a chat model (llm); or choose siblings")
    sampling = Sampling(temperature=config.temperature, top_p=config.top_p, max_new_tokens=config.max_new_tokens)
    return ChatNegatives(model=chat, prompts=prompts, sampling=sampling, seed=seed, max_tries=config.max_tries)
