"""The families of questions about one picture, in CLOVA's programs over LOC, CROP*, COUNT, VQA and EVAL (GQA's kind of task)."""

from typing import Final

from visloop.scenes.filters import Filter
from visloop.scenes.workshop import BASE_WORDS
from visloop.scenes.workshop_families import (
    Case,
    Cell,
    Draw,
    TaskFamily,
    choose_answer,
    deal_cells,
    draw_others,
    draw_phrase,
    draw_picture,
    fill_object,
    finish_scene,
    list_words,
    name_slots,
    overlaps,
    share_focus,
)
from visloop.scenes.world import Attribute

_LAST = "Visualize results."
CROPS: Final = {"left of": "CROP_LEFTOF", "right of": "CROP_RIGHTOF", "above": "CROP_ABOVE", "below": "CROP_BELOW"}
"""The tool for each direction, as instructions say it."""
_COUNTS: Final = ("0", "1", "2", "3", "4")


def _lies(cell: Cell, direction: str, other: Cell) -> bool:
    """Whether a cell lies wholly on one side of the centre line of another: the part that a CROP_* of the other shows."""
    (column, row), (other_column, other_row) = cell, other
    return {"left of": column < other_column, "right of": column > other_column, "above": row < other_row, "below": row > other_row}[
        direction
    ]


def _opposite(direction: str) -> str:
    return {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}[direction]


def _answer(yes: bool) -> str:
    return "yes" if yes else "no"


def _draw_query(draw: Draw, attribute: Attribute) -> Case | None:
    """What value an attribute of one object has."""
    answer = choose_answer(draw, BASE_WORDS[attribute], focus=attribute)
    phrase = draw_phrase(draw, focus=draw.focus if answer != draw.focus else None, without=attribute)
    scene = draw_picture(draw, [Filter(**{name: phrase.value(name) for name in phrase.attributes()} | {attribute: answer})], avoid=[phrase])
    return Case(slots=name_slots(a=phrase), scene=scene, answer=answer, concepts=list_words(phrase))


def _draw_query_color(draw: Draw) -> Case | None:
    return _draw_query(draw, "color")


def _draw_query_pattern(draw: Draw) -> Case | None:
    return _draw_query(draw, "pattern")


def _draw_count(draw: Draw) -> Case | None:
    phrase = draw_phrase(draw, focus=draw.focus)
    number = choose_answer(draw, _COUNTS)
    scene = draw_picture(draw, [phrase] * int(number), avoid=[phrase])
    return Case(slots=name_slots(a=phrase), scene=scene, answer=number, concepts=list_words(phrase))


def _draw_pair(draw: Draw, *, without: Attribute | None = None) -> tuple[Filter, Filter] | None:
    """Two phrases that no object fits both of."""
    first, second = (draw_phrase(draw, focus=focus, without=without) for focus in share_focus(draw, 2))
    return None if overlaps(first, second) else (first, second)


def _draw_relation(draw: Draw) -> Case | None:
    """Whether an object of one kind lies on one side of another object. None of that kind lies across the centre line."""
    pair = _draw_pair(draw)
    if pair is None:
        return None
    direction = draw.rng.choice(list(CROPS))
    cells = deal_cells(draw)
    center = cells.pop()
    sides = [cell for cell in cells if _lies(cell, direction if draw.positive else _opposite(direction), center)]
    if not sides:
        return None
    planted = [fill_object(draw, pair[1], cell=center)]
    if draw.positive or draw.rng.random() < 0.7:
        planted.append(fill_object(draw, pair[0], cell=sides[0]))
        cells.remove(sides[0])
    others = draw_others(draw, avoid=pair, cells=cells[: draw.rng.randint(1, 4)])
    slots = name_slots(a=pair[0], b=pair[1]) | {"direction": direction, "crop": CROPS[direction]}
    return Case(
        slots=slots, scene=finish_scene(draw, (tuple(planted + others),)), answer=_answer(draw.positive), concepts=list_words(*pair)
    )


def _draw_hop(draw: Draw) -> Case | None:
    """What shape the only object of one kind has that lies on one side of another; others of its kind lie on the other side only."""
    answer = choose_answer(draw, BASE_WORDS["shape"], focus="shape")
    focuses = share_focus(draw, 2) if answer != draw.focus else [None, None]
    name: Attribute = draw.words.choice(("color", "pattern"))
    if focuses[0] is not None:
        kind = draw_phrase(draw, focus=focuses[0], without="shape")
    else:
        kind = Filter(**{name: draw.words.choice([word for word in BASE_WORDS[name] if word != "plain"])})
    mark = draw_phrase(draw, focus=focuses[1])
    direction = draw.rng.choice(list(CROPS))
    cells = deal_cells(draw)
    center = cells.pop()
    near = [cell for cell in cells if _lies(cell, direction, center)]
    far = [cell for cell in cells if _lies(cell, _opposite(direction), center)]
    if not near:
        return None
    target = Filter(**{entry: kind.value(entry) for entry in kind.attributes()} | {"shape": answer})
    planted = [fill_object(draw, mark, cell=center), fill_object(draw, target, cell=near[0])]
    if far and draw.rng.random() < 0.5:
        planted.append(fill_object(draw, kind, cell=far[0]))
    if kind.matches(planted[0]) or any(mark.matches(entry) for entry in planted[1:]):
        return None
    taken = {(entry.column, entry.row) for entry in planted}
    free = [cell for cell in cells if cell not in taken]
    others = draw_others(draw, avoid=[kind, mark], cells=free[: draw.rng.randint(1, 3)])
    slots = name_slots(a=kind, b=mark) | {"direction": direction, "crop": CROPS[direction]}
    return Case(slots=slots, scene=finish_scene(draw, (tuple(planted + others),)), answer=answer, concepts=list_words(kind, mark))


def _draw_same_color(draw: Draw) -> Case | None:
    focus = draw.focus
    pair = _draw_pair(draw, without="color")
    if pair is None:
        return None
    colors = draw.rng.sample(BASE_WORDS["color"], 2)
    if draw.positive:
        colors[1] = colors[0]
    if focus is not None and not any(focus in list_words(phrase) for phrase in pair):
        return None
    wanted = [Filter(shape=phrase.shape, pattern=phrase.pattern, color=color) for phrase, color in zip(pair, colors, strict=True)]
    scene = draw_picture(draw, wanted, avoid=pair)
    return Case(slots=name_slots(a=pair[0], b=pair[1]), scene=scene, answer=_answer(draw.positive), concepts=list_words(*pair))


def _draw_compare(draw: Draw) -> Case | None:
    pair = _draw_pair(draw)
    if pair is None:
        return None
    low = draw.rng.randint(0, 2)
    high = draw.rng.randint(low + 1, 3)
    counts = (high, low) if draw.positive else draw.rng.choice([(low, high), (low or 1, low or 1)])
    scene = draw_picture(draw, [pair[0]] * counts[0] + [pair[1]] * counts[1], avoid=pair)
    return Case(slots=name_slots(a=pair[0], b=pair[1]), scene=scene, answer=_answer(draw.positive), concepts=list_words(*pair))


def _draw_both(draw: Draw) -> Case | None:
    pair = _draw_pair(draw)
    if pair is None:
        return None
    shown = list(pair) if draw.positive else draw.rng.choice([[pair[0]], [pair[1]], [pair[0]], [pair[1]], []])
    scene = draw_picture(draw, shown, avoid=pair)
    return Case(slots=name_slots(a=pair[0], b=pair[1]), scene=scene, answer=_answer(draw.positive), concepts=list_words(*pair))


def _draw_total(draw: Draw) -> Case | None:
    pair = _draw_pair(draw)
    if pair is None:
        return None
    number = int(choose_answer(draw, ("1", "2", "3", "4", "5")))
    first = draw.rng.randint(max(0, number - 3), min(3, number))
    scene = draw_picture(draw, [pair[0]] * first + [pair[1]] * (number - first), avoid=pair)
    return Case(slots=name_slots(a=pair[0], b=pair[1]), scene=scene, answer=str(number), concepts=list_words(*pair))


_LOC_A = "BOX0=LOC(image=IMAGE,object='<a>')"
_YES_NO = "ANSWER2=EVAL(expr=\"'yes' if {ANSWER0} %s {ANSWER1} else 'no'\")"
_COUNT_TWO = (_LOC_A, "BOX1=LOC(image=IMAGE,object='<b>')", "ANSWER0=COUNT(box=BOX0)", "ANSWER1=COUNT(box=BOX1)")
_PLAN_TWO = ("Locate every <a>.", "Locate every <b>.", "Count the boxes of Step1.", "Count the boxes of Step2.")

VQA_FAMILIES: Final[tuple[TaskFamily, ...]] = (
    TaskFamily(
        name="query_color",
        kind="vqa",
        base=("What color is the <a>?", "Which color does the <a> have?", "Tell me the color of the <a>."),
        new=("The <a> is painted in what color?", "Name the color in which the <a> appears.", "How is the <a> colored?"),
        plan=("Locate the <a>.", "Crop the region of Step1.", "Ask Step2's picture for the color of the <a>.", _LAST),
        program=(
            _LOC_A,
            "IMAGE0=CROP(image=IMAGE,box=BOX0)",
            "ANSWER0=VQA(image=IMAGE0,question='What color is the <a>?')",
            "FINAL_RESULT=RESULT(var=ANSWER0)",
        ),
        draw=_draw_query_color,
    ),
    TaskFamily(
        name="count",
        kind="vqa",
        base=("How many <as> are there?", "Count the <as>.", "What is the number of <as>?"),
        new=("The picture holds how many <as>?", "Give me the total of all <as> you can see.", "Of <as>, how many are visible?"),
        plan=("Locate every <a>.", "Count the boxes of Step1.", _LAST),
        program=(_LOC_A, "ANSWER0=COUNT(box=BOX0)", "FINAL_RESULT=RESULT(var=ANSWER0)"),
        draw=_draw_count,
    ),
    TaskFamily(
        name="exist_relation",
        kind="vqa",
        base=("Is there <an_a> <direction> the <b>?", "Can you see <an_a> <direction> the <b>?"),
        new=("Does any <a> lie <direction> the <b>?", "Looking <direction> the <b>, do you find <an_a>?"),
        plan=(
            "Locate the <b>.",
            "Crop the region <direction> the box of Step1.",
            "Locate every <a> in Step2's picture.",
            "Count the boxes of Step3.",
            "Answer yes if Step4's count is above zero, else no.",
            _LAST,
        ),
        program=(
            "BOX0=LOC(image=IMAGE,object='<b>')",
            "IMAGE0=<crop>(image=IMAGE,box=BOX0)",
            "BOX1=LOC(image=IMAGE0,object='<a>')",
            "ANSWER0=COUNT(box=BOX1)",
            "ANSWER1=EVAL(expr=\"'yes' if {ANSWER0} > 0 else 'no'\")",
            "FINAL_RESULT=RESULT(var=ANSWER1)",
        ),
        draw=_draw_relation,
    ),
    TaskFamily(
        name="same_color",
        kind="vqa",
        base=("Do the <a> and the <b> have the same color?", "Are the <a> and the <b> of the same color?"),
        new=("Does the color of the <a> match that of the <b>?", "Is the <a> colored like the <b>?"),
        plan=(
            "Locate the <a>.",
            "Crop the region of Step1.",
            "Ask Step2's picture for the color of the <a>.",
            "Locate the <b>.",
            "Crop the region of Step4.",
            "Ask Step5's picture for the color of the <b>.",
            "Answer yes if the colors of Step3 and Step6 are equal, else no.",
            _LAST,
        ),
        program=(
            _LOC_A,
            "IMAGE0=CROP(image=IMAGE,box=BOX0)",
            "ANSWER0=VQA(image=IMAGE0,question='What color is the <a>?')",
            "BOX1=LOC(image=IMAGE,object='<b>')",
            "IMAGE1=CROP(image=IMAGE,box=BOX1)",
            "ANSWER1=VQA(image=IMAGE1,question='What color is the <b>?')",
            _YES_NO % "==",
            "FINAL_RESULT=RESULT(var=ANSWER2)",
        ),
        draw=_draw_same_color,
        focuses=("shape", "pattern"),
    ),
    TaskFamily(
        name="hop_shape",
        kind="vqa",
        base=("What shape is the <a> <direction> the <b>?", "Which shape does the <a> <direction> the <b> have?"),
        new=("The <a> <direction> the <b> has what shape?", "Name the shape of the <a> that lies <direction> the <b>."),
        plan=(
            "Locate the <b>.",
            "Crop the region <direction> the box of Step1.",
            "Locate the <a> in Step2's picture.",
            "Crop the region of Step3 from Step2's picture.",
            "Ask Step4's picture for the shape of the <a>.",
            _LAST,
        ),
        program=(
            "BOX0=LOC(image=IMAGE,object='<b>')",
            "IMAGE0=<crop>(image=IMAGE,box=BOX0)",
            "BOX1=LOC(image=IMAGE0,object='<a>')",
            "IMAGE1=CROP(image=IMAGE0,box=BOX1)",
            "ANSWER0=VQA(image=IMAGE1,question='What shape is the <a>?')",
            "FINAL_RESULT=RESULT(var=ANSWER0)",
        ),
        draw=_draw_hop,
    ),
    TaskFamily(
        name="compare_counts",
        kind="vqa",
        base=(
            "Are there more <as> than <bs>?",
            "Do the <as> outnumber the <bs>?",
            "Is the number of <as> greater than the number of <bs>?",
        ),
        new=("Would you count more <as> than <bs>?", "Are the <bs> fewer in number than the <as>?"),
        plan=(*_PLAN_TWO, "Answer yes if Step3's count is above Step4's, else no.", _LAST),
        program=(*_COUNT_TWO, _YES_NO % ">", "FINAL_RESULT=RESULT(var=ANSWER2)"),
        draw=_draw_compare,
    ),
    TaskFamily(
        name="query_pattern",
        kind="vqa",
        held_out=True,
        base=("What pattern does the <a> have?", "Which pattern is on the <a>?"),
        new=("How is the surface of the <a> patterned?", "Name the pattern that covers the <a>."),
        plan=("Locate the <a>.", "Crop the region of Step1.", "Ask Step2's picture for the pattern of the <a>.", _LAST),
        program=(
            _LOC_A,
            "IMAGE0=CROP(image=IMAGE,box=BOX0)",
            "ANSWER0=VQA(image=IMAGE0,question='What pattern does the <a> have?')",
            "FINAL_RESULT=RESULT(var=ANSWER0)",
        ),
        draw=_draw_query_pattern,
    ),
    TaskFamily(
        name="exist_both",
        kind="vqa",
        held_out=True,
        base=("Is there both <an_a> and <an_b>?", "Does the picture show <an_a> as well as <an_b>?"),
        new=("Do <an_a> and <an_b> occur together?", "Would I find <an_a> and also <an_b> here?"),
        plan=(*_PLAN_TWO, "Answer yes if both counts are above zero, else no.", _LAST),
        program=(
            *_COUNT_TWO,
            "ANSWER2=EVAL(expr=\"'yes' if {ANSWER0} > 0 and {ANSWER1} > 0 else 'no'\")",
            "FINAL_RESULT=RESULT(var=ANSWER2)",
        ),
        draw=_draw_both,
    ),
    TaskFamily(
        name="count_total",
        kind="vqa",
        held_out=True,
        base=("How many <as> and <bs> are there in total?", "Count the <as> and the <bs> together."),
        new=("Adding the <as> to the <bs>, what number do you get?", "What do <as> and <bs> sum up to?"),
        plan=(*_PLAN_TWO, "Add the counts of Step3 and Step4.", _LAST),
        program=(*_COUNT_TWO, "ANSWER2=EVAL(expr='{ANSWER0} + {ANSWER1}')", "FINAL_RESULT=RESULT(var=ANSWER2)"),
        draw=_draw_total,
    ),
)
