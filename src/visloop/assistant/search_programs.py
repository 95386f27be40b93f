"""Writes a meaning of the search as a real program: one line per tool call, and the plan that tells each line in words."""

from collections.abc import Callable
from dataclasses import dataclass, field

from visloop.assistant.search_meanings import Atom, Filter, Meaning
from visloop.assistant.search_scenes import add_word, join_filters
from visloop.assistant.search_space import Space

_SELF_TESTS = {"==": "is", ">=": "is at least", "<=": "is at most", ">": "is more than", "<": "is less than"}


@dataclass(slots=True)
class _Writer:
    """Lines so far; what was computed once is not computed again."""

    space: Space
    lines: list[str] = field(default_factory=list)
    plan: list[str] = field(default_factory=list)
    objects: int = 0
    answers: int = 0
    known: dict[tuple[object, ...], str] = field(default_factory=dict)

    def add(self, key: tuple[object, ...], call: str, step: str, *, answer: bool = False) -> str:
        if key not in self.known:
            name = f"ANSWER{self.answers}" if answer else f"OBJ{self.objects}"
            self.answers, self.objects = self.answers + answer, self.objects + (not answer)
            self.known[key] = name
            self.lines.append(f"{name}={call}")
            self.plan.append(step)
        return self.known[key]

    def find_all(self, picture: str) -> str:
        return self.add(("all", picture), f"SEG(image={picture})", f"Find every object in {picture}")

    def find_place(self, picture: str, name: str) -> str:
        """The objects of a picture that are in a place."""
        place, everything = self.space.places[name], self.find_all(picture)
        key = "place", picture, name
        if place.tool == "TOUCHING":
            call = f"TOUCHING(image={picture},object={everything},target='{place.target}')"
            return self.add(key, call, f"Keep the objects of {picture} that touch: {place.target}")
        if place.other:
            other = self.find_place(picture, place.other)
            return self.add(key, f"{place.tool}(object={everything},other={other})", f"Keep the objects of {picture} that lie on {other}")
        return self.add(key, f"{place.tool}(object={everything})", f"Keep the {place.tool.lower()} object of every tower in {picture}")

    def select(self, picture: str, what: Filter) -> str:
        """The objects of a picture that fit a filter whose places all hold."""
        spots = sorted((name for name, holds in what.places if holds), key=lambda name: self.space.places[name].tool == "TOUCHING")
        found = self.find_place(picture, spots[0]) if spots else self.find_all(picture)
        for name in spots[1:]:
            place = self.space.places[name]
            if place.tool != "TOUCHING":
                raise ValueError(f"a filter with two places, of which {name} depends on all objects")
            call = f"TOUCHING(image={picture},object={found},target='{place.target}')"
            found = self.add(("and place", found, name), call, f"Keep those of {found} that touch: {place.target}")
        for query in [*(" or ".join(words) for words in what.words), *(f"not {word}" for word in what.without)]:
            call = f"FILTER(image={picture},object={found},query='{query}')"
            found = self.add(("filter", found, query), call, f"Keep those of {found} that are {query}")
        if what.relation is not None:
            tool, other = what.relation[0], self.select(picture, what.relation[1])
            call = (
                f"TOUCHING(image={picture},object={found},target={other})"
                if tool == "TOUCHING"
                else f"{tool}(object={found},other={other})"
            )
            found = self.add((tool, found, other), call, f"Keep those of {found} that are {tool.lower()} one of {other}")
        return found

    def count(self, picture: str, what: Filter) -> str:
        """An expression for the number of objects of a picture that fit: those that are not in a place are all less those that are."""
        refused = [name for name, holds in what.places if not holds]
        if refused:
            kept = tuple(item for item in what.places if item[1])
            rest = tuple((name, False) for name in refused[1:])
            outer = Filter(what.words, what.without, (*kept, *rest), what.relation)
            inner = Filter(what.words, what.without, ((refused[0], True), *kept, *rest), what.relation)
            return f"({self.count(picture, outer)} - {self.count(picture, inner)})"
        found = self.select(picture, what)
        return f"{{{self.add(('count', found), f'COUNT(box={found})', f'Count {found}', answer=True)}}}"

    def evaluate(self, expression: str, step: str) -> str:
        """A variable with the value of an expression, in braces."""
        return f"{{{self.add(('eval', expression), f'EVAL(expr={_quote(expression)})', step, answer=True)}}}"

    def _number(self, pictures: tuple[str, ...], what: Filter) -> str:
        parts = [self.count(picture, what) for picture in pictures]
        return parts[0] if len(parts) == 1 else f"({' + '.join(parts)})"

    def state(self, pictures: tuple[str, ...], atom: Atom) -> str:
        """A variable that says whether the atom holds, over the pictures together."""
        what = atom.what
        match atom.form:
            case "count":
                text = f"{self._number(pictures, what)} {atom.sign} {atom.number}"
            case "every":
                some, both = self._number(pictures, what), self._number(pictures, join_filters(what, atom.more))
                text = f"{some} > 0 and {some} == {both}"
            case _:
                names = self.space.attributes[atom.group]
                numbers = {word: self._number(pictures, add_word(what, word)) for word in names}
                text = _combine(atom, numbers)
        return self.evaluate(text, f"Decide for {', '.join(pictures)}: {_tell(atom)}")

    def write(self, meaning: Meaning) -> str:
        """A variable that says whether the meaning holds."""
        pictures = self.space.inputs
        match meaning.form:
            case "and":
                return self.evaluate(" and ".join(self.write(part) for part in meaning.parts), "Decide whether all of it holds")
            case "total":
                return self.state(pictures, meaning.atoms[0])
            case "same_box":
                counts = [self.count(picture, meaning.atoms[0].what) for picture in pictures]
                total = " + ".join(counts)
                one = " or ".join(f"{count} == {total}" for count in counts)
                return self.evaluate(f"{total} > 0 and ({one})", "Decide whether all of them are in one picture")
            case "boxes":
                held = [self._state_all(picture, meaning.atoms) for picture in pictures]
                ones = " + ".join(f"(1 if {name} else 0)" for name in held)
                step = f"Decide whether the number of pictures where it holds {_SELF_TESTS[meaning.sign]} {meaning.number}"
                return self.evaluate(f"{ones} {meaning.sign} {meaning.number}", step)
            case "alike":
                return self._write_alike(meaning)
        raise ValueError(f"no meaning {meaning.form!r}")

    def _state_all(self, picture: str, atoms: tuple[Atom, ...]) -> str:
        names = [self.state((picture,), atom) for atom in atoms]
        return names[0] if len(names) == 1 else self.evaluate(" and ".join(names), f"Decide whether all of it holds for {picture}")

    def _write_alike(self, meaning: Meaning) -> str:
        pictures, first = self.space.inputs, meaning.atoms[0]
        held = {picture: self._state_all(picture, meaning.atoms) for picture in pictures}
        words = self.space.attributes[first.group] if first.group else ()
        pairs = []
        for index, left in enumerate(pictures):
            for right in pictures[index + 1 :]:
                if words:
                    both = [[self.count(picture, add_word(first.what, word)) for picture in (left, right)] for word in words]
                    same = " or ".join(f"({one} > 0 and {other} > 0)" for one, other in both)
                else:
                    same = f"{self.count(left, first.what)} == {self.count(right, first.what)}"
                equal = self.evaluate(same if meaning.holds else f"not ({same})", f"Compare {left} and {right}")
                pairs.append(f"({held[left]} and {held[right]} and {equal})")
        return self.evaluate(" or ".join(pairs), "Decide whether there is such a pair")


def _combine(atom: Atom, numbers: dict[str, str]) -> str:
    """The expression of an atom over the words of a group from the number of objects of each word."""
    present = [f"(1 if {number} > 0 else 0)" for number in numbers.values()]
    some: Callable[[str], str] = lambda sign: " or ".join(f"{number} {sign} {atom.number}" for number in numbers.values())  # noqa: E731
    every: Callable[[str], str] = lambda sign: " and ".join(f"{number} {sign} {atom.number}" for number in numbers.values())  # noqa: E731
    match atom.form, atom.sign:
        case "kinds", sign:
            return f"{' + '.join(present)} {sign} {atom.number}"
        case "exact", _:
            return " and ".join(f"{number} {'>' if word in atom.named else '=='} 0" for word, number in numbers.items())
        case "most", "==":
            return f"({some('==')}) and {every('<=')}"
        case "most", (">=" | ">") as sign:
            return some(sign)
        case "most", ("<=" | "<") as sign:
            return every(sign)
    raise ValueError(f"no atom {atom.form!r} with {atom.sign!r}")


def _tell(atom: Atom) -> str:
    test = f"{_SELF_TESTS[atom.sign]} {atom.number}"
    match atom.form:
        case "count":
            return f"their number {test}"
        case "every":
            return "there are some, and all of them fit"
        case "kinds":
            return f"the number of their {atom.group}s {test}"
        case "exact":
            return f"their {atom.group}s are {' and '.join(atom.named)} and no other"
    return f"the number of those that share a {atom.group} {test}"


def _quote(expression: str) -> str:
    return f'"{expression}"'


def write_program(meaning: Meaning, *, space: Space) -> tuple[str, tuple[str, ...]]:
    """The program of a meaning (its result is true or false) and its plan, one step per line (CLOVA 3.2)."""
    writer = _Writer(space)
    found = writer.write(meaning).strip("{}")
    writer.lines.append(f"FINAL_RESULT=RESULT(var={found})")
    writer.plan.append("Give the result")
    return "\n".join(writer.lines), tuple(writer.plan)
