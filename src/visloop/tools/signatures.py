"""The signatures of all tools: what planner, checker and prompts know of them. Backends are in the other modules of this package.

The tools of CLOVA (its released interpreters and VISPROG's), and those that pictures of several boxes need: FILTER,
TOUCHING, TOP, BOTTOM, ABOVE and ON (NLVR speaks of towers, walls and blocks on blocks). Aliases are published names for one tool.
"""

from collections.abc import Mapping
from typing import Final

from visloop.records.assistant import TaskKind
from visloop.tools.base import Parameter, ToolSignature
from visloop.tools.values import ValueType

_ALL: tuple[TaskKind, ...] = ("vqa", "multi_image", "editing", "tagging")
_REGIONS: tuple[ValueType, ...] = ("Boxes", "Objects")


def _take(name: str, *types: ValueType, required: bool = True, template: bool = False) -> Parameter:
    return Parameter(name=name, types=types, required=required, template=template)


_IMAGE = _take("image", "Image")
_OBJECT = _take("object", "Objects")
_REGION = _take("box", *_REGIONS)


def _crop(name: str, what: str) -> ToolSignature:
    doc = f"the part of the picture {what} the first box, or half of the picture where there is no box"
    return ToolSignature(name=name, parameters=(_IMAGE, _REGION), returns="Image", doc=doc, kinds=("vqa", "multi_image"))


_SIGNATURES = (
    ToolSignature(
        name="LOC",
        parameters=(_IMAGE, _take("object", "Text")),
        returns="Boxes",
        doc="boxes of everything that fits the words, best first; TOP, BOTTOM, LEFT and RIGHT are halves of the picture",
        kinds=("vqa", "multi_image", "tagging"),
        concept="object",
    ),
    ToolSignature(
        name="SEG",
        parameters=(_IMAGE,),
        returns="Objects",
        doc="every object of the picture with its mask",
        kinds=("editing", "multi_image", "tagging"),
        concept="",
    ),
    ToolSignature(
        name="SELECT",
        parameters=(_IMAGE, _OBJECT, _take("query", "Text"), _take("category", "Text", required=False)),
        returns="Objects",
        doc="those of the objects that fit the query; several queries are separated by commas",
        kinds=("editing", "multi_image"),
        concept="query",
    ),
    ToolSignature(
        name="CLASSIFY",
        parameters=(_IMAGE, _take("object", *_REGIONS), _take("categories", "List", "Text")),
        returns="Objects",
        doc="the objects with the best fitting of the categories as their label",
        kinds=("tagging",),
        concept="categories",
    ),
    ToolSignature(
        name="VQA",
        parameters=(_IMAGE, _take("question", "Text", template=True)),
        returns="Text",
        doc="a short answer to a question about the picture",
        kinds=("vqa", "multi_image"),
        concept="question",
    ),
    ToolSignature(
        name="REPLACE",
        parameters=(_IMAGE, _OBJECT, _take("prompt", "Text")),
        returns="Image",
        doc="the picture with the objects replaced by what the prompt says",
        kinds=("editing",),
        concept="prompt",
    ),
    ToolSignature(name="FACEDET", parameters=(_IMAGE,), returns="Objects", doc="every face of the picture", kinds=("editing", "tagging")),
    ToolSignature(
        name="LIST",
        parameters=(_take("query", "Text"), _take("max", "Number")),
        returns="List",
        doc="at most max names that fit the query, from general knowledge",
        kinds=("tagging",),
    ),
    ToolSignature(
        name="COUNT", parameters=(_REGION,), returns="Number", doc="how many boxes or objects there are", kinds=("vqa", "multi_image")
    ),
    ToolSignature(
        name="CROP",
        parameters=(_IMAGE, _REGION),
        returns="Image",
        doc="the part of the picture inside of the first box, or the whole picture where there is no box",
        kinds=("vqa", "multi_image"),
    ),
    _crop("CROP_LEFTOF", "left of"),
    _crop("CROP_RIGHTOF", "right of"),
    _crop("CROP_ABOVE", "above"),
    _crop("CROP_BELOW", "below"),
    ToolSignature(
        name="EVAL",
        parameters=(_take("expr", "Text", template=True),),
        returns="Any",
        doc="the value of an expression over earlier variables in braces: arithmetic, comparison, and, or, not, xor, if-else, len, in",
        kinds=("vqa", "multi_image"),
    ),
    ToolSignature(
        name="COLORPOP",
        parameters=(_IMAGE, _OBJECT),
        returns="Image",
        doc="the picture in grey except for the objects",
        kinds=("editing",),
    ),
    ToolSignature(
        name="BGBLUR",
        parameters=(_IMAGE, _OBJECT),
        returns="Image",
        doc="the picture blurred except for the objects",
        kinds=("editing",),
    ),
    ToolSignature(
        name="EMOJI",
        parameters=(_IMAGE, _OBJECT, _take("emoji", "Text")),
        returns="Image",
        doc="the picture with the emoji over every object",
        kinds=("editing",),
    ),
    ToolSignature(
        name="TAG",
        parameters=(_IMAGE, _OBJECT),
        returns="Image",
        doc="the picture with a box and a label for every object",
        kinds=("tagging",),
    ),
    ToolSignature(name="RESULT", parameters=(_take("var", "Any"),), returns="Any", doc="the result of the program", kinds=_ALL),
    ToolSignature(
        name="FILTER",
        parameters=(_take("image", "Image"), _OBJECT, _take("query", "Text")),
        returns="Objects",
        doc="all of the objects that fit the query, also none",
        kinds=("multi_image",),
        concept="query",
    ),
    ToolSignature(
        name="TOUCHING",
        parameters=(_IMAGE, _OBJECT, _take("target", "Text", "Objects")),
        returns="Objects",
        doc="those of the objects that touch the target: wall, corner, top, bottom, left, right, or other objects",
        kinds=("multi_image",),
    ),
    ToolSignature(name="TOP", parameters=(_OBJECT,), returns="Objects", doc="the uppermost object of every tower", kinds=("multi_image",)),
    ToolSignature(name="BOTTOM", parameters=(_OBJECT,), returns="Objects", doc="the lowest object of every tower", kinds=("multi_image",)),
    ToolSignature(
        name="ABOVE",
        parameters=(_OBJECT, _take("other", "Objects")),
        returns="Objects",
        doc="those of the objects that are anywhere above one of the others",
        kinds=("multi_image",),
    ),
    ToolSignature(
        name="ON",
        parameters=(_OBJECT, _take("other", "Objects")),
        returns="Objects",
        doc="those of the objects that lie directly on one of the others",
        kinds=("multi_image",),
    ),
)

SIGNATURES: Final[Mapping[str, ToolSignature]] = {signature.name: signature for signature in _SIGNATURES}

ALIASES: Final[Mapping[str, str]] = {
    "CROP_BEHIND": "CROP_ABOVE",
    "CROP_FRONTOF": "CROP",
    "CROP_INFRONT": "CROP",
    "CROP_INFRONTOF": "CROP",
    "CROP_AHEAD": "CROP",
}
"""Names that published programs use, and the tool they mean."""

LEARNABLE: Final[tuple[str, ...]] = ("LOC", "SEG", "SELECT", "CLASSIFY", "VQA", "REPLACE")
"""The six tools of CLOVA that learn prompts (3.4). FILTER is SELECT's model under another rule and shares its prompts."""


def find_signature(name: str) -> ToolSignature | None:
    """The signature of a tool or of one of its aliases, or None."""
    return SIGNATURES.get(ALIASES.get(name, name))


def list_signatures(kind: TaskKind) -> tuple[ToolSignature, ...]:
    """The tools that tasks of this kind may use, in the order of the catalogue."""
    return tuple(signature for signature in _SIGNATURES if kind in signature.kinds)


class ShippedTools:
    """The tools of this module as a ``ToolCatalogue``: what is known where no toolbox says more."""

    find_signature = staticmethod(find_signature)
    list_signatures = staticmethod(list_signatures)


SHIPPED: Final = ShippedTools()
