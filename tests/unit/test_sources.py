"""The providers that a configuration names, opened as a cycle opens them: LVIS files, folders, a search over HTTP, negatives by an LLM."""

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from flows._entry import compose_config
from tests.fixtures.outside_data import Server, png, serve_search, write_lvis
from tests.fixtures.scripted_chat import ScriptedChat
from visloop.assistant.providers import check_no_leak
from visloop.assistant.safety import Safety
from visloop.assistant.sources import LeftOut, NotedProvider, Shelf, list_files, open_drawn, open_regions, open_search
from visloop.config_providers import (
    NegativesConfig,
    NegativeSource,
    ProvidersConfig,
    RegionsConfig,
    RegionSource,
    SafetyConfig,
    SearchConfig,
    SearchSource,
)
from visloop.errors import ConfigError, DataError, ModelError
from visloop.prompts.render import PromptSet

PROMPTS = PromptSet("full")


@pytest.fixture
def server() -> Iterator[Server]:
    with serve_search() as found:
        yield found


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    """A drawn collection in small: the tiny LVIS file, and folders of two words."""
    root = tmp_path / "collection"
    (root / "open_vocabulary" / "pictures").mkdir(parents=True)
    write_lvis(root / "open_vocabulary" / "pictures").rename(root / "open_vocabulary" / "annotations.json")
    for word, shade in (("teal", 10), ("pink", 20)):
        (root / "image_search" / word).mkdir(parents=True)
        for number in range(3):
            (root / "image_search" / word / f"{number}.png").write_bytes(png((shade, number, 0)))
    (root / "image_search" / "sources.json").write_text('{"licence": "CC0-1.0", "groups": {"teal": "color", "pink": "color"}}')
    return root


class Opened:
    """Both providers of a configuration, and what they leave out."""

    def __init__(
        self,
        config: ProvidersConfig,
        *,
        collection: Path,
        out: Path,
        chat: ScriptedChat | None = None,
        safety: SafetyConfig | None = None,
    ) -> None:
        self.left_out: list[LeftOut] = []
        shelf = Shelf(out=out, prefix="cycle/material", note=self.left_out.extend, safety=Safety(safety or SafetyConfig()))
        self.regions = open_regions(config, shelf, drawn=open_drawn(collection, shelf))
        self.search = open_search(config, shelf, collection=collection, chat=chat, prompts=PROMPTS, seed=0)


def use_lvis(folder: Path) -> ProvidersConfig:
    source = RegionsConfig(source=RegionSource.lvis, annotations=str(write_lvis(folder)), pictures=str(folder))
    return ProvidersConfig(regions=source)


def use_http(server: Server, **changes: Any) -> ProvidersConfig:
    search = SearchConfig(
        **{"source": SearchSource.http, "endpoint": f"{server.base}/search", "allow_private": True, "timeout_seconds": 0.5} | changes
    )
    return ProvidersConfig(search=search, negatives=NegativesConfig(source=NegativeSource.chat, confusable=2))


def collect(provider: NotedProvider, concept: str, *, negatives: int = 0) -> list[tuple[str, bool]]:
    found = provider.collect(concept, tool="SELECT", positives=3, negatives=negatives, seed=0)
    check_no_leak(found)
    assert all(item.image.startswith("cycle/material/") and item.licence and item.origin for item in found)
    return [(item.label, item.positive) for item in found]


def test_the_default_is_the_drawn_collection(collection: Path, tmp_path: Path) -> None:
    config = compose_config().assistant
    assert config.providers == ProvidersConfig() and not config.asks_llm() and list_files(config.providers) == {}
    opened = Opened(config.providers, collection=collection, out=tmp_path / "out")
    assert collect(opened.regions, "kitty") == [("kitty", True)] * 2
    assert collect(opened.search, "teal", negatives=3) == [("teal", True)] * 3 + [("pink", False)] * 3
    assert opened.left_out == []


def test_an_lvis_file_takes_the_place_of_the_drawn_regions(collection: Path, tmp_path: Path) -> None:
    config = use_lvis(tmp_path)
    (collection / "open_vocabulary" / "annotations.json").unlink()
    (tmp_path / "p2.png").write_bytes(b"broken")
    opened = Opened(config, collection=collection, out=tmp_path / "out")
    assert collect(opened.regions, "stoplight") == [("stoplight", True)] * 2
    assert collect(opened.regions, "cat") == [("cat", True)]
    assert [(item.source, item.tool, item.concept, item.where) for item in opened.left_out] == [
        ("open_vocabulary", "SELECT", "cat", "annotation 12")
    ]
    assert list_files(config) == {"lvis": tmp_path / "lvis.json"}, "what a stage depends on"


def test_a_search_over_http_with_negatives_that_an_llm_names(server: Server, collection: Path, tmp_path: Path) -> None:
    server.name("teal", "/good/1.png", "/lie", "/good/22.png", licence="by")
    server.name("cyan", "/good/333.png", "/silent", licence="cc0")
    server.name("mint", "/good/4444.png", licence="by-nc")
    chat = ScriptedChat(lambda request: '["cyan", "mint"]')
    opened = Opened(use_http(server, page_size=5), collection=collection, out=tmp_path / "out", chat=chat)
    assert collect(opened.search, "teal", negatives=4) == [("teal", True)] * 2 + [("cyan", False)]
    assert "teal" in chat.requests[0].messages[0].text and chat.samplings[0].temperature == 0.0
    told = [(item.concept, item.where.removeprefix(server.base), item.reason) for item in opened.left_out]
    assert [(concept, where) for concept, where, _ in told] == [("teal", "/lie"), ("teal", "/silent"), ("teal", "/good/4444.png")]
    assert "no answer within 0.5 seconds" in told[1][2] and "licence 'by-nc 4.0'" in told[2][2]
    assert {query["page_size"][0] for query in server.queries} == {"5", "4"}


def test_what_was_fetched_is_kept_and_answers_the_same_search(server: Server, collection: Path, tmp_path: Path) -> None:
    server.name("teal", "/good/1.png", "/good/22.png", "/good/333.png", licence="by")
    config, store = use_http(server, store=str(tmp_path / "store")), tmp_path / "store"

    def search(out: str, config: ProvidersConfig = config, **more: Any) -> list[Any]:
        opened = Opened(config, collection=collection, out=tmp_path / out, chat=ScriptedChat(lambda request: "[]"))
        return opened.search.collect("teal", tool="SELECT", negatives=0, seed=0, **{"positives": 2} | more)

    first = search("one")
    server.hits["teal"].reverse()
    assert search("two") == first and len(server.queries) == 1, "the service would answer differently now"
    assert all((tmp_path / "two" / item.image.removeprefix("cycle/material/")).is_file() for item in first)
    assert search("two", positives=1) == [item for item in first if item.origin.endswith("/1.png")]
    assert len(search("three", positives=3)) == 3 and len(server.queries) == 2, "more than were kept"
    next((store / "pictures").rglob("*.png")).write_bytes(png((7, 7, 7)))
    assert len(search("four", positives=3)) == 3 and len(server.queries) == 3, "a picture that is another one is not taken"
    assert search("five", use_http(server, store=str(store), licences=["cc0"])) == [], "other licences are another search"
    next((store / "answers").glob("*.json")).write_text("{}")
    with pytest.raises(DataError, match=r"answers/.*delete the file"):
        search("six")


def test_a_search_that_cannot_be_reached_is_noted_and_may_be_made_up_for(server: Server, collection: Path, tmp_path: Path) -> None:
    config = use_http(server, endpoint=f"{server.base}/missing")
    opened = Opened(config, collection=collection, out=tmp_path, chat=ScriptedChat(lambda request: "[]"))
    with pytest.raises(DataError, match="status 404"):
        opened.search.collect("teal", tool="SELECT", positives=1, negatives=0, seed=0)
    [left] = opened.left_out
    assert (left.source, left.where) == ("image_search", "teal") and "status 404" in left.reason


@pytest.mark.parametrize(
    ("texts", "refused"),
    [
        (("Gun",), True),
        (("a toy GUN, red",), True),
        (("machine_gun_(toy)",), True),
        (("gunmetal",), False),
        (("pellet  Rifle",), True),
        (("rifle pellet",), False),
        (("teal", "is there a gun ?"), True),
        ((), False),
    ],
)
def test_forbidden_words_are_whole_words_in_any_case(texts: tuple[str, ...], refused: bool) -> None:
    assert bool(Safety(SafetyConfig(words=["gun", "pellet rifle"])).refuse_word(*texts)) is refused
    assert Safety().refuse_word(*texts) == ""


def test_forbidden_words_are_neither_searched_for_nor_collected(server: Server, collection: Path, tmp_path: Path) -> None:
    safety = SafetyConfig(words=["Pink", "dog"])
    drawn = Opened(ProvidersConfig(), collection=collection, out=tmp_path / "out", safety=safety)
    assert collect(drawn.search, "hot pink") == [] and not list((tmp_path / "out").rglob("*.png"))
    assert collect(drawn.search, "teal", negatives=3) == [("teal", True)] * 3
    found = collect(drawn.regions, "cat", negatives=2)
    assert found == [("cat", True), ("cat", True), ("traffic light", False)], "dogs were not asked for, and are left out as well"
    assert [(item.concept, item.where) for item in drawn.left_out] == [("hot pink", "hot pink"), ("teal", "pink"), ("cat", "p3.png#13")]
    assert {item.reason.partition(" holds ")[2] for item in drawn.left_out} == {
        f"{word!r}, which assistant.safety.words forbids" for word in safety.words
    }
    server.name("teal", "/good/1.png")
    served = Opened(
        use_http(server), collection=collection, out=tmp_path, safety=safety, chat=ScriptedChat(lambda request: '["pink", "mint"]')
    )
    assert collect(served.search, "teal", negatives=2) == [("teal", True)]
    assert [query["q"] for query in server.queries] == [["teal"], ["mint"]]


def test_found_pictures_are_checked_before_they_are_kept(
    server: Server, collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.name("teal", "/good/1.png", "/good/22.png", "/good/333.png", licence="by")
    loads, checked = [], []

    def load(config: SafetyConfig) -> Callable[[Sequence[Image.Image]], list[str]]:
        loads.append(config.classifier)
        if config.classifier == "gone":
            raise ModelError("no such model")

        def check(images: Sequence[Image.Image]) -> list[str]:
            checked.append(len(images))
            return ["unsafe" if image.getpixel((0, 0))[2] == len("/good/22.png") else "" for image in images]  # type: ignore[index]

        return check

    monkeypatch.setitem(sys.modules, "visloop.tools.picture_check", SimpleNamespace(load_picture_check=load))
    config, store = use_http(server, store=str(tmp_path / "store")), tmp_path / "store"

    def open_parts(out: str, **safety: Any) -> Opened:
        chat = ScriptedChat(lambda request: "[]")
        return Opened(config, collection=collection, out=tmp_path / out, chat=chat, safety=SafetyConfig(**safety) if safety else None)

    guarded = {"classifier": "some/model", "unsafe_labels": ["a"]}
    opened = open_parts("one", **guarded)
    assert not loads, "nothing is loaded before a picture is fetched"
    assert len(collect(opened.search, "teal")) == 2
    assert (loads, checked) == (["some/model"], [3]), "once, and in one batch"
    assert [(item.where, item.reason) for item in opened.left_out] == [(f"{server.base}/page/good/22.png", "unsafe")]
    assert len(list((tmp_path / "one").rglob("*.png"))) == len(list(store.rglob("*.png"))) == 2, "the store has it neither"
    assert len(collect(open_parts("two", **guarded).search, "teal")) == 2 and len(server.queries) == 1, "the checked answer is kept"
    assert len(collect(open_parts("three").search, "teal")) == 3 and len(server.queries) == 2
    assert len(collect(open_parts("four", **guarded, threshold=0.9).search, "teal")) == 2
    assert len(server.queries) == 3, "what was kept without this check is no answer with it"
    with pytest.raises(ConfigError, match=r"assistant\.safety\.classifier: no such model"):
        collect(open_parts("five", **guarded | {"classifier": "gone"}).search, "teal")


Change = Callable[[Path, ProvidersConfig], None]


def _set(part: str, **values: Any) -> Change:
    def change(folder: Path, config: ProvidersConfig) -> None:
        for key, value in values.items():
            setattr(getattr(config, part), key, str(folder / value) if isinstance(value, Path) else value)

    return change


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ([_set("search", source=SearchSource.http)], ConfigError, r"assistant\.providers\.search\.endpoint is empty"),
        (
            [_set("search", source=SearchSource.http, endpoint="http://127.0.0.1/")],
            ConfigError,
            r"assistant\.providers\.negatives\.source is siblings",
        ),
        ([_set("regions", source=RegionSource.lvis)], ConfigError, r"assistant\.providers\.regions\.annotations is empty"),
        (
            [_set("regions", source=RegionSource.lvis, annotations=Path("no.json"))],
            DataError,
            r"assistant\.providers\.regions\.annotations: .*no\.json is missing",
        ),
        (
            [_set("regions", source=RegionSource.lvis, annotations=Path("lvis.json"), pictures=Path("none"))],
            DataError,
            r"assistant\.providers\.regions\.pictures: .*none is missing",
        ),
        ([_set("search", folder=Path("none"))], DataError, r"assistant\.providers\.search\.folder: .*none is missing"),
    ],
)
def test_what_a_choice_lacks_is_named_by_its_key(tmp_path: Path, changes: Sequence[Change], error: type[Exception], message: str) -> None:
    write_lvis(tmp_path)
    config = ProvidersConfig()
    for change in changes:
        change(tmp_path, config)
    with pytest.raises(error, match=message):
        list_files(config)
    with pytest.raises(error, match=message):
        Opened(config, collection=tmp_path, out=tmp_path / "out")


def test_a_provider_that_cannot_be_opened_stops_the_run_when_it_is_asked(collection: Path, tmp_path: Path) -> None:
    """A broken file gives nothing for any word: no other provider makes up for that."""
    config = use_lvis(tmp_path)
    (tmp_path / "lvis.json").write_text("[]")
    opened = Opened(config, collection=collection, out=tmp_path / "out")
    with pytest.raises(ConfigError, match=r"assistant\.providers\.regions\.annotations: .*no images"):
        collect(opened.regions, "cat")
    with pytest.raises(ConfigError, match=r"negatives\.source is chat, which needs a chat model"):
        open_search(
            ProvidersConfig(negatives=NegativesConfig(source=NegativeSource.chat)),
            Shelf(out=tmp_path),
            collection=collection,
            chat=None,
            prompts=PROMPTS,
            seed=0,
        )


def test_an_own_folder_is_searched_in_place_of_the_drawn_one(collection: Path, tmp_path: Path) -> None:
    (tmp_path / "mine" / "lime").mkdir(parents=True)
    (tmp_path / "mine" / "lime" / "0.png").write_bytes(png((1, 2, 3)))
    (tmp_path / "mine" / "lime" / "1.png").write_bytes(b"broken")
    (tmp_path / "mine" / "sources.json").write_text('{"licence": "mine"}')
    config = ProvidersConfig(search=SearchConfig(folder=str(tmp_path / "mine")))
    opened = Opened(config, collection=collection, out=tmp_path / "out")
    assert collect(opened.search, "lime") == [("lime", True)] and collect(opened.search, "teal") == []
    assert [item.where for item in opened.left_out] == ["lime/1.png"]
    assert list_files(config) == {"searched": tmp_path / "mine"}


@pytest.mark.parametrize(
    ("choice", "regions", "search", "negatives"),
    [
        ("drawn", RegionSource.drawn, SearchSource.folder, NegativeSource.siblings),
        ("lvis", RegionSource.lvis, SearchSource.folder, NegativeSource.siblings),
        ("http", RegionSource.drawn, SearchSource.http, NegativeSource.chat),
        ("clova_paper", RegionSource.lvis, SearchSource.http, NegativeSource.chat),
    ],
)
def test_the_choices_of_the_group(choice: str, regions: RegionSource, search: SearchSource, negatives: NegativeSource) -> None:
    config = compose_config([f"providers@assistant.providers={choice}"]).assistant
    assert (config.providers.regions.source, config.providers.search.source) == (regions, search)
    assert config.providers.negatives.source is negatives and config.asks_llm() is (negatives is NegativeSource.chat)
    if search is SearchSource.http:
        with pytest.raises(ConfigError, match=r"assistant\.providers"):
            compose_config([f"providers@assistant.providers={choice}", "assistant.providers.search.address=x"])
