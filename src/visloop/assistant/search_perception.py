"""Truth tables of scenes: what the tools say of the pictures, or what is known of drawn objects."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from visloop.assistant.search_scenes import Flags, SceneTable
from visloop.assistant.search_space import Place, Space
from visloop.errors import ConfigError, ToolError
from visloop.tools.base import ToolCall, ToolRunner
from visloop.tools.values import Box, Objects, Value, VisualObject


@dataclass(frozen=True, slots=True)
class SeenObject:
    """An object of one picture: the attribute words that fit it, and its box in pixels."""

    words: Collection[str]
    box: Box


def scene_from_objects(
    pictures: Sequence[Sequence[SeenObject]], *, space: Space, tools: ToolRunner, size: tuple[int, int] = (100, 100)
) -> SceneTable:
    """The table of one task from objects with known words; ``tools`` tell only where the objects lie. ``size`` of the pictures in pixels.

    Raises:
        ToolError: a tool failed.
        ConfigError: the space needs a tool that there is not.
    """
    blank = Image.new("RGB", size)
    found = [tuple(VisualObject(box=item.box) for item in picture) for picture in pictures]
    items = [item for picture in pictures for item in picture]
    words = {word: np.array([word in item.words for item in items], dtype=np.bool_) for word in space.words}
    return _look([[blank] * len(pictures)], [found], [words], space=space, tools=tools)[0]


def look_at_tasks(tasks: Sequence[Sequence[Image.Image]], *, space: Space, tools: ToolRunner) -> list[SceneTable]:
    """The table of each task's pictures as the tools see them: the same calls as a program's, in batches over all tasks.

    Raises:
        ToolError: a tool failed; a picture that cannot be seen must not count as an empty one.
        ConfigError: the space needs a tool that there is not.
    """
    pictures = [image for task in tasks for image in task]
    found = _run(tools, "SEG", [{"image": image} for image in pictures])
    masks: dict[str, list[Flags]] = {}
    for word in space.words:
        calls: list[Mapping[str, Value]] = [
            {"image": image, "object": objects, "query": word} for image, objects in zip(pictures, found, strict=True)
        ]
        kept = _run(tools, "FILTER", calls)
        masks[word] = [_mark(part, objects) for part, objects in zip(kept, found, strict=True)]
    objects, words, start = [], [], 0
    for task in tasks:
        end = start + len(task)
        objects.append(found[start:end])
        words.append({word: np.concatenate(flags[start:end]) for word, flags in masks.items()})
        start = end
    return _look(tasks, objects, words, space=space, tools=tools)


def _run(tools: ToolRunner, tool: str, arguments: Sequence[Mapping[str, Value]]) -> list[Objects]:
    if tools.find_signature(tool) is None:
        raise ConfigError(f"the space of programs needs the tool {tool}, which this toolbox does not have")
    results = tools.run(tool, [ToolCall(tool=tool, arguments=dict(item)) for item in arguments])
    failed = next((result.error for result in results if result.error is not None), None)
    if failed is not None:
        raise ToolError(f"{tool}: {failed}; a scene that a tool fails on cannot be judged")
    return [result.value for result in results]  # type: ignore[misc]  # SEG, FILTER and the tools of places give objects


def _mark(part: Objects, objects: Objects) -> Flags:
    """(n,): which of the objects are in ``part``; tools give back boxes unchanged."""
    kept = {item.box.corners for item in part}
    return np.array([item.box.corners in kept for item in objects], dtype=np.bool_)


def _look(
    tasks: Sequence[Sequence[Image.Image]],
    objects: Sequence[Sequence[Objects]],
    words: Sequence[Mapping[str, Flags]],
    *,
    space: Space,
    tools: ToolRunner,
) -> list[SceneTable]:
    images = [image for task in tasks for image in task]
    flat = [part for task in objects for part in task]
    places: dict[str, list[Objects]] = {}
    for name, place in space.places.items():
        places[name] = _run(
            tools,
            place.tool,
            [_ask(place, image, part, places, index) for index, (image, part) in enumerate(zip(images, flat, strict=True))],
        )
    singles = [(index, other) for index, part in enumerate(flat) for other in range(len(part))]
    related: dict[str, list[Objects]] = {}
    for tool in sorted({relation.tool for relation in space.relations.values()}):
        key = "target" if tool == "TOUCHING" else "other"
        asked: list[dict[str, Value]] = [
            {"image": images[index], "object": flat[index], key: (flat[index][other],)} for index, other in singles
        ]
        related[tool] = _run(tools, tool, [_drop_image(call, tool, tools) for call in asked])
    tables, start = [], 0
    for task, task_words in zip(objects, words, strict=True):
        span = range(start, start + len(task))
        box = np.array([index - start for index in span for _ in flat[index]], dtype=np.int64)
        masks = dict(task_words) | {
            name: np.concatenate([_mark(kept[index], flat[index]) for index in span]) for name, kept in places.items()
        }
        first = np.cumsum([0, *(len(flat[index]) for index in span)])
        pairs = {tool: np.zeros((len(box), len(box)), dtype=np.bool_) for tool in related}
        for tool, kept in related.items():
            for (index, other), part in zip(singles, kept, strict=True):
                if index in span:
                    low, high = first[index - start], first[index - start + 1]
                    pairs[tool][low:high, low + other] = _mark(part, flat[index])
        tables.append(SceneTable(tasks=1, pictures=len(task), box=box, masks=masks, pairs=pairs))
        start += len(task)
    return tables


def _ask(place: Place, image: Image.Image, part: Objects, places: Mapping[str, Sequence[Objects]], index: int) -> Mapping[str, Value]:
    if place.tool == "TOUCHING":
        return {"image": image, "object": part, "target": place.target}
    return {"object": part, "other": places[place.other][index]} if place.other else {"object": part}


def _drop_image(call: dict[str, Value], tool: str, tools: ToolRunner) -> Mapping[str, Value]:
    signature = tools.find_signature(tool)
    return call if signature is None or signature.find_parameter("image") else {key: value for key, value in call.items() if key != "image"}
