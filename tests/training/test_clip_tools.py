"""The tools on the shipped CLIP: what they find on drawn pictures, and what they refuse."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from visloop.config_assistant import ToolsConfig, VisionConfig
from visloop.embedded.clip_build import ClipSizes, build_clip
from visloop.errors import ModelError, ToolError
from visloop.scenes.pictures import render_scene
from visloop.scenes.regions import LocatedObject, locate_objects
from visloop.scenes.workshop import NOVEL_CONCEPTS, WORKSHOP
from visloop.scenes.world import SceneObject, make_scene
from visloop.tools.base import ToolCall, ToolResult
from visloop.tools.clip_model import ClipEncoder, load_clip
from visloop.tools.clip_questions import load_questions
from visloop.tools.clip_tools import make_clip_tools
from visloop.tools.prompt_pool import PromptPool
from visloop.tools.queries import read_query
from visloop.tools.values import Box, VisualObject, overlap_ratio
from visloop.tools.vocabulary import load_vocabulary

CONFIG = ToolsConfig(clip=VisionConfig(model="embedded/clip", threshold=0.5))


def draw(*objects: str, seed: int = 1) -> tuple[Image.Image, tuple[LocatedObject, ...]]:
    """A picture of objects ("plain red circle large"), from the top left cell on."""
    entries = []
    for index, words in enumerate(objects):
        pattern, color, shape, size = words.split()
        entries.append(SceneObject(shape=shape, color=color, size=size, pattern=pattern, column=index % 3 + 1, row=index // 3 + 1))
    scene = make_scene((tuple(entries),), seed=seed)
    return render_scene(scene, spec=WORKSHOP)[0], locate_objects(scene, spec=WORKSHOP)[0]


@pytest.fixture(scope="module")
def tools():
    return make_clip_tools(CONFIG, PromptPool())


@pytest.fixture(scope="module")
def encoder() -> ClipEncoder:
    return load_clip(CONFIG.clip)


@pytest.fixture(scope="module")
def scene():
    return draw("plain red circle large", "dotted blue square medium", "plain red triangle small", "checkered green circle medium")


def ask(tools, name: str, **arguments) -> ToolResult:
    (result,) = tools[name].run([ToolCall(tool=name, arguments=arguments)])
    return result


def places(boxes, located) -> set[int]:
    """Which objects the boxes lie on; a box on none is -1."""
    found = set()
    for item in boxes:
        box = item.box if isinstance(item, VisualObject) else item
        hits = [
            index
            for index, entry in enumerate(located)
            if overlap_ratio(box, Box(left=entry.box[0], top=entry.box[1], right=entry.box[2], bottom=entry.box[3])) >= 0.5
        ]
        found.add(hits[0] if hits else -1)
    return found


def test_without_prompts_the_text_features_are_the_models_own(encoder):
    texts = ["circle", "red circle", "dotted blue square"]
    tokenized = [encoder.processor.tokenizer([text], return_tensors="pt") for text in texts]
    with torch.no_grad():
        plain = torch.cat([F.normalize(encoder.model.get_text_features(**encoded).pooler_output, dim=-1) for encoded in tokenized])
    first = encoder.encode_texts(texts)
    prompted = encoder.encode_prompted(texts, torch.randn(3, 4, encoder.prompt_width, generator=torch.Generator().manual_seed(0)))
    encoder._texts.clear()
    assert torch.equal(first, plain) and torch.equal(encoder.encode_texts(texts), plain)
    assert (prompted - plain).abs().max() > 0.1


def test_a_prompt_does_not_reach_another_thread(encoder):
    plain = encoder.encode_texts(["dotted heart"])
    encoder._texts.clear()
    with (
        encoder._replaced(torch.randn(1, 4, encoder.prompt_width, generator=torch.Generator().manual_seed(0)), 1),
        ThreadPoolExecutor(1) as pool,
    ):
        beside = pool.submit(encoder.encode_texts, ["dotted heart"]).result()
    assert torch.equal(beside, plain)


def test_a_prompt_of_real_embeddings_is_the_longer_text(encoder):
    prompt = encoder.embed_words("red")[None]
    assert torch.allclose(encoder.encode_prompted(["circle"], prompt), encoder.encode_texts(["red circle"]), atol=1e-6)


def test_prompts_of_another_model_are_refused(encoder):
    with pytest.raises(ModelError, match="another model"):
        encoder.encode_prompted(["circle"], torch.zeros(1, 4, encoder.prompt_width + 1))
    with pytest.raises(ModelError, match="at most 24"):
        encoder.encode_prompted(["circle"], torch.zeros(1, 30, encoder.prompt_width))


def test_novel_words_were_never_trained(encoder):
    tokenizer = encoder.processor.tokenizer
    first = build_clip(encoder.processor, sizes=ClipSizes(), seed=0).text_model.get_input_embeddings().weight
    shipped = encoder.model.text_model.get_input_embeddings().weight
    novel = tokenizer.convert_tokens_to_ids(list(NOVEL_CONCEPTS))
    assert tokenizer.unk_token_id not in novel and len(set(novel)) == len(NOVEL_CONCEPTS)
    assert torch.equal(shipped[novel], first[novel].half().float())
    assert not torch.allclose(
        shipped[tokenizer.convert_tokens_to_ids("circle")], first[tokenizer.convert_tokens_to_ids("circle")], atol=1e-2
    )
    assert tokenizer.eos_token_id == len(tokenizer) - 1


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("red circle", {0}), ("circles", {0, 3}), ("dotted object", {1}), ("the checkered green circle", {3}), ("thing", {0, 1, 2, 3}),
        ("red", {0, 2}), ("purple heart", set()), ("spotted blue boxes", {1}), ("not red", {1, 3}), ("largest red thing", {0}),
    ],
)  # fmt: skip
def test_loc_finds_exactly_what_fits(tools, scene, words, expected):
    picture, located = scene
    result = ask(tools, "LOC", image=picture, object=words)
    assert places(result.value, located) == expected
    assert [box.score for box in result.value] == sorted((box.score for box in result.value), reverse=True)


def test_loc_halves_need_no_model_and_places_are_refused(tools, scene):
    picture, _ = scene
    (half,) = ask(tools, "LOC", image=picture, object="LEFT").value
    assert half.corners == (0, 0, 48, 96)
    results = tools["LOC"].run(
        [ToolCall(tool="LOC", arguments={"image": picture, "object": text}) for text in ("circle", "circle left of the square", "triangle")]
    )
    assert [result.error is None for result in results] == [True, False, True]
    mixed = [ToolCall(tool="SELECT", arguments={"image": picture, "object": value, "query": "red"}) for value in ("text", results[0].value)]
    assert [result.error is None for result in tools["SELECT"].run(mixed)] == [False, True]
    assert "'left'" in results[1].error and len(results[2].value) == 1


def test_a_word_that_nobody_taught_is_not_found_and_not_trusted(tools):
    picture, _ = draw("plain red star large", "plain blue square large")
    unknown = ask(tools, "LOC", image=picture, object="star")
    known = ask(tools, "LOC", image=picture, object="blue square")
    assert unknown.value == () and unknown.confidence <= 0.5 < known.confidence


def test_seg_names_and_select_picks(tools, scene):
    picture, located = scene
    objects = ask(tools, "SEG", image=picture).value
    assert sorted(item.label for item in objects) == ["checkered green circle", "dotted blue square", "red circle", "red triangle"]
    assert all(item.mask.shape == (96, 96) for item in objects)
    both = ask(tools, "SELECT", image=picture, object=objects, query="red triangle, blue square", category=None)
    assert places(both.value, located) == {1, 2}
    nearest = ask(tools, "SELECT", image=picture, object=objects, query="yellow triangle", category=None)
    assert len(nearest.value) == 1 and nearest.confidence < 0.5
    circles = ask(tools, "SELECT", image=picture, object=objects, query="red", category="circle")
    assert places(circles.value, located) == {0}
    assert ask(tools, "SELECT", image=picture, object=(), query="red", category=None).value == ()


@pytest.mark.parametrize(
    ("query", "expected"),
    [("not red", {1, 3}), ("red or green circle", {0, 3}), ("circle or square", {0, 1, 3}), ("not red or blue", {3}), ("yellow", set()),
     ("circle that is not red", {3}), ("smallest", {2})],
)  # fmt: skip
def test_filter_keeps_all_that_fit_and_may_keep_none(tools, scene, query, expected):
    picture, located = scene
    objects = ask(tools, "SEG", image=picture).value
    assert places(ask(tools, "FILTER", image=picture, object=objects, query=query).value, located) == expected


def test_classify_one_category_and_several(tools, scene):
    picture, located = scene
    boxes = ask(tools, "LOC", image=picture, object="object").value
    (best,) = ask(tools, "CLASSIFY", image=picture, object=boxes, categories="triangle").value
    assert best.label == "triangle" and places([best], located) == {2}
    several = ask(tools, "CLASSIFY", image=picture, object=boxes, categories=("circle", "square", "triangle")).value
    assert sorted(item.label for item in several) == ["circle", "square", "triangle"]
    assert ask(tools, "CLASSIFY", image=picture, object=boxes, categories=" , ").error


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("What color is the triangle?", "red"), ("What shape is the blue object?", "square"), ("What pattern has the square?", "dotted"),
        ("Is there a purple heart?", "no"), ("Is there a red circle in the picture?", "yes"), ("How many circles are there?", "2"),
        ("How many red objects are in the picture?", "2"), ("Is the square blue?", "yes"), ("Is the triangle a circle?", "no"),
        ("What is the colour of the square?", "blue"), ("Is the square red or blue?", "yes"),
    ],
)  # fmt: skip
def test_vqa_answers_questions_of_known_forms(tools, scene, question, answer):
    result = ask(tools, "VQA", image=scene[0], question=question)
    assert result.value == answer and result.confidence > 0.5


def test_vqa_about_a_crop_and_what_it_refuses(tools, scene):
    picture, located = scene
    crop = picture.crop(tuple(int(edge) for edge in located[1].box))
    assert ask(tools, "VQA", image=crop, question="What is this?").value == "square"
    assert ask(tools, "VQA", image=crop, question="What color is it?").value == "blue"
    assert "no form" in ask(tools, "VQA", image=picture, question="Why is the square blue?").error
    assert ask(tools, "VQA", image=picture, question="Is there a circle left of the square?").error
    assert "nothing in the picture" in ask(tools, "VQA", image=Image.new("RGB", (40, 40), (132, 132, 132)), question="What is this?").error


def test_questions_are_read_as_data():
    forms = load_questions()
    assert forms.read("How many dotted stars are there?").object == "dotted stars"
    held = forms.read("Is the large star a red circle?")
    assert (held.kind, held.object, held.predicate) == ("holds", "the large star", "a red circle")
    assert forms.read("which colour does the hexagon have").attribute == "color"
    with pytest.raises(ToolError):
        forms.read("What weight is the star?")


def test_replace_changes_the_object_only(tools, scene):
    picture, _ = scene
    objects = ask(tools, "SEG", image=picture).value
    target = next(item for item in objects if item.label == "red triangle")
    result = ask(tools, "REPLACE", image=picture, object=(target,), prompt="dotted green heart")
    assert result.confidence > 0.5
    labels = sorted(item.label for item in ask(tools, "SEG", image=result.value).value)
    assert labels == ["checkered green circle", "dotted blue square", "dotted green heart", "red circle"]
    before, after = np.asarray(picture, int), np.asarray(result.value, int)
    changed = np.abs(before - after).max(axis=2) > 0
    rows, columns = np.nonzero(changed)
    box = target.box
    assert box.left - 6 <= columns.min() and columns.max() <= box.right + 6 and box.top - 6 <= rows.min() and rows.max() <= box.bottom + 6
    unknown = ask(tools, "REPLACE", image=picture, object=(target,), prompt="green star")
    assert unknown.error is None and unknown.confidence < 0.5


def test_concepts_of_calls_come_in_order(tools, scene):
    def concepts(name: str, **arguments) -> tuple[str, ...]:
        return tools[name].list_concepts(ToolCall(tool=name, arguments={"image": scene[0], **arguments}))

    assert concepts("LOC", object="the striped pink stars") == ("striped", "pink", "star")
    assert concepts("CLASSIFY", object=(), categories=("hexagon", "red star")) == ("hexagon", "red", "star")
    assert concepts("VQA", question="Is the largest star teal?") == ("star", "teal")
    assert concepts("REPLACE", object=(), prompt="a pink hexagon") == ("pink", "hexagon")
    assert concepts("SEG") == ()


def walk_queries() -> Iterator[tuple[str, list[list[str]], bool]]:
    yield "red or blue squares", [["red", "square"], ["blue", "square"]], False
    yield "square or black", [["square"], ["black"]], False
    yield "not black or blue", [["black"], ["blue"]], True
    yield "the thing", [[]], False


@pytest.mark.parametrize(("text", "wanted", "negated"), list(walk_queries()))
def test_queries_are_read(tools, text, wanted, negated):
    query = read_query(text, vocabulary=tools["LOC"].engine.vocabulary)
    assert [[sense.word for sense in part.wanted] for part in query.alternatives] == wanted
    assert query.negated is negated


def test_the_open_vocabulary_joins_unknown_words_and_knows_learned_ones():
    vocabulary = load_vocabulary(None)
    assert [sense.word for sense in vocabulary.read_words("a red french horns")] == ["red", "french horn"]
    (sense,) = vocabulary.read_words("a Polka Dot", learned={"polka dot": "pattern"})
    assert (sense.word, sense.group) == ("polka dot", "pattern")
