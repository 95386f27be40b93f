"""What the scorer sees of a candidate: sparse features of each of its parts with the words around. Scores are sums over parts."""

from collections.abc import Iterator

from visloop.assistant.search_filters import Part
from visloop.assistant.search_words import Reading

_WINDOW = 3


def describe_part(part: Part, reading: Reading) -> Iterator[str]:
    """The names of the features of one part of a candidate."""
    kind, *rest = part
    match kind:
        case "attribute":
            group, index, how = str(rest[0]), int(rest[1]), "/".join(map(str, rest[2:]))
            position = reading.mentions[index].position
            yield f"attribute {group} {how}"
            yield f"attribute {how}"
            yield f"attribute {group} {how} of {_find_head(reading, position)}"
            yield from _around(f"attribute {group} {how}", reading, position)
        case "amount":
            role, sign, index, position = str(rest[0]), str(rest[1]), int(rest[2]), int(rest[3])
            name = f"amount {role} {sign}"
            yield name
            if index >= 0:
                spot = reading.mentions[index].position
                yield f"{name} number {reading.mentions[index].value}"
                yield from _around(name, reading, spot)
                yield from _around(f"amount {role}", reading, spot)
                yield f"{name} of {_find_head(reading, spot)}"
                yield f"amount {role} of {_find_head(reading, spot)}"
                if position >= 0:
                    yield f"{name} gap {max(-4, min(4, position - spot))}"
            elif position >= 0:
                yield from _around(name, reading, position)
                yield f"{name} {reading.tokens[position]}"
            else:
                yield from _bag(name, reading)
        case "place":
            place, holds, position = str(rest[0]), bool(rest[1]), int(rest[2])
            name = f"place {place} {holds}"
            yield name
            yield f"place {holds}"
            negations = reading.find_part("none")
            if position >= 0:
                yield f"{name} {reading.tokens[position]}"
                yield from _around(name, reading, position)
                yield from _around(f"place {holds}", reading, position)
                yield f"place {holds} negation {min((position - at for at in negations if at < position), default=99) // 2}"
            else:
                yield from _open(name, reading)
            yield from _bag(name, reading)
        case "relation":
            name, position = f"relation {rest[0]}", int(rest[1])
            yield name
            if position >= 0:
                yield f"{name} {reading.tokens[position]}"
                yield from _around(name, reading, position)
            else:
                yield from _open(name, reading)
        case "unused":
            position = reading.mentions[int(rest[1])].position
            name = f"unused {rest[0]}"
            yield name
            yield from _around(name, reading, position)
        case "idle":
            position = int(rest[0])
            yield "idle"
            yield f"idle {reading.tokens[position]}"
            yield from _around("idle", reading, position)
        case "form":
            more = rest[2:]
            position = int(more[-1]) if more else -1
            name = f"form {' '.join(map(str, (*rest[:2], *more[:-1])))}"
            yield name
            yield from _bag(name, reading)
            if position >= 0:
                yield f"{name} {reading.tokens[position]}"
                yield from _around(name, reading, position)
        case "meaning":
            name = " ".join(map(str, part))
            yield name
            yield from _bag(name, reading)
            yield f"{name} starts {' '.join(reading.shapes[:3])}"
            yield f"{name} starts {' '.join(reading.shapes[:2])}"
        case _:
            yield " ".join(map(str, part))


def _find_head(reading: Reading, position: int) -> str:
    """The next word that is no attribute, number or comparison: what is counted or described."""
    skipped = {mention.position for mention in reading.mentions if mention.kind != "part"}
    return next((reading.tokens[spot] for spot in range(position + 1, len(reading.tokens)) if spot not in skipped), ".")


def _around(name: str, reading: Reading, position: int) -> Iterator[str]:
    shapes = reading.shapes
    for step in range(-_WINDOW, _WINDOW + 1):
        if step:
            yield f"{name} @{step} {_at(shapes, position + step)}"
    yield f"{name} @-1,1 {_at(shapes, position - 1)} {_at(shapes, position + 1)}"
    yield f"{name} @-2,-1 {_at(shapes, position - 2)} {_at(shapes, position - 1)}"
    yield f"{name} @1,2 {_at(shapes, position + 1)} {_at(shapes, position + 2)}"


def _at(words: tuple[str, ...], position: int) -> str:
    return words[position] if 0 <= position < len(words) else "."


def _bag(name: str, reading: Reading) -> Iterator[str]:
    words = sorted(set(reading.shapes))
    yield from (f"{name} has {word}" for word in words)
    pairs = sorted(set(zip(reading.shapes, reading.shapes[1:], strict=False)))
    yield from (f"{name} has {first} {second}" for first, second in pairs)


def _open(name: str, reading: Reading) -> Iterator[str]:
    yield f"{name} open"
    yield from (f"{name} open {word}" for word in sorted({reading.tokens[position] for position in reading.unknown}))
