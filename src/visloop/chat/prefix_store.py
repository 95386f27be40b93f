"""Conversations that were decoded and may go on: their rows, the caches that hold them, and which one a prompt extends."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from visloop.chat.base import Finish
from visloop.chat.conversations import Prompt
from visloop.chat.row_cache import RowCache


@dataclass(slots=True, eq=False)
class Row:
    """One conversation while it is decoded, and afterwards as what lies in a cache.

    Attributes:
        index: its place among the prompts of the batch.
        tokens: ids whose keys and values are in the cache, pictures as single placeholders.
        expansion: how many more columns the pictures take.
        first_free: leading tokens up to the last picture, which another prompt must share; None: never continue this row.
        room: new tokens until the model's limit of positions; None: no limit.
        new: ids written in this call.
        finish: why it ended; None while it goes on.
    """

    index: int
    prompt: Prompt
    tokens: list[int]
    expansion: int
    first_free: int | None
    room: int | None = None
    new: list[int] = field(default_factory=list)
    finish: Finish | None = None


@dataclass(slots=True, eq=False)
class Batch:
    """Rows and the cache that holds them, slot by slot. ``gone``: slots whose rows went on in another batch."""

    cache: RowCache
    rows: list[Row]
    gone: set[int] = field(default_factory=set)


@dataclass(frozen=True, slots=True, eq=False)
class Match:
    """A prompt shares ``shared`` leading tokens, its pictures included, with the row in ``slot`` of ``batch``."""

    batch: Batch
    slot: int
    shared: int


class PrefixStore:
    """Keeps the batches of past calls, rows that the last call did not ask for included (a chain may wait for its final
    answer), newest first, up to ``keep_bytes``."""

    def __init__(self, *, keep_bytes: int) -> None:
        self._keep_bytes = keep_bytes
        self._earlier: list[Batch] = []
        self._current: list[Batch] = []

    def forget(self) -> None:
        """Free all kept caches."""
        self._earlier, self._current = [], []

    def start_call(self) -> None:
        """What earlier calls decoded can be continued; what this call decodes cannot, until it has ended."""
        self._earlier, self._current = self._current + self._earlier, []

    def end_call(self) -> None:
        """Keep this call's batches, then what earlier calls left, as far as the memory goes."""
        room, kept = self._keep_bytes, []
        for batch in self._current + self._earlier:
            room -= batch.cache.count_bytes()
            if room < 0:
                break
            kept.append(batch)
        self._current, self._earlier = kept, []

    def add_batch(self, batch: Batch) -> None:
        """Keep what was just decoded."""
        self._current.append(batch)

    def match_prompts(self, prompts: Sequence[Prompt]) -> dict[int, Match]:
        """By the prompts' indices, the kept row that serves each best; prompts that no row serves are left out.

        First choice is the row of the same request id, if it is continued whole; then the row that shares most, the newest
        among equals. It must share all pictures and half of the prompt, else copying it costs more than it saves. At least
        one token of the prompt stays to be computed: its logits are wanted.
        """
        own: dict[str, Match] = {}
        alike: dict[tuple[str, ...], list[tuple[Batch, int, Row]]] = {}
        for batch in self._earlier:
            for slot, row in enumerate(batch.rows):
                if slot not in batch.gone and row.first_free is not None:
                    alike.setdefault(row.prompt.picture_keys, []).append((batch, slot, row))
                    own.setdefault(row.prompt.id, Match(batch, slot, len(row.tokens)))
        best: dict[tuple[tuple[int, ...], tuple[str, ...]], Match | None] = {}
        matches: dict[int, Match] = {}
        for index, prompt in enumerate(prompts):
            if (match := own.get(prompt.id)) is not None and _is_continued(match, prompt):
                matches[index] = match
                continue
            key = (prompt.ids, prompt.picture_keys)
            if key not in best:
                best[key] = _match_prompt(prompt, alike.get(prompt.picture_keys, []))
            if (match := best[key]) is not None:
                matches[index] = match
        return matches

    def sort_matches(self, matches: Mapping[int, Match]) -> list[int]:
        """The prompts' indices as their rows lie in the caches, so that whole caches go on uncopied."""
        places = {id(batch): place for place, batch in enumerate(self._earlier)}
        return sorted(matches, key=lambda index: (places[id(matches[index].batch)], matches[index].slot))

    def take_rows(self, prompts: Sequence[Prompt], *, matches: Mapping[int, Match]) -> Batch:
        """The matched rows in one batch, each cut to what its prompt shares.

        A row that is continued whole by its own request moves; of any other a copy is made and the row stays.
        """
        taken: Batch | None = None
        for batch in list(self._earlier):
            mine = sorted((match.slot, index) for index, match in matches.items() if match.batch is batch)
            if not mine:
                continue
            slots = [slot for slot, _ in mine]
            moved = {slot for slot, index in mine if batch.rows[slot].prompt.id == prompts[index].id}
            rows = [
                replace(batch.rows[slot], index=index, prompt=prompts[index], tokens=list(prompts[index].ids), new=[], finish=None)
                for slot, index in mine
            ]
            lengths = [matches[row.index].shared + row.expansion for row in rows]
            part = Batch(batch.cache.pick_slots(slots, lengths=lengths, move=len(moved) == len(batch.rows)), rows)
            self._leave_rows(batch, moved=moved)
            if taken is None:
                taken = part
            else:
                taken.cache.join_rows(part.cache)
                taken.rows += part.rows
        if taken is None:
            raise ValueError("no prompt matches a kept row")
        return taken

    def _leave_rows(self, batch: Batch, *, moved: set[int]) -> None:
        """Forget the rows that moved; close the gaps when less than half of the slots are in use."""
        batch.gone |= moved
        rest = [slot for slot in range(len(batch.rows)) if slot not in batch.gone]
        if not rest:
            self._earlier.remove(batch)
        elif 2 * len(rest) < len(batch.rows):
            batch.cache, batch.rows, batch.gone = batch.cache.pick_slots(rest), [batch.rows[slot] for slot in rest], set()


def _is_continued(match: Match, prompt: Prompt) -> bool:
    """Whether ``prompt`` goes on behind everything that the row holds."""
    row = match.batch.rows[match.slot]
    return (
        row.prompt.picture_keys == prompt.picture_keys
        and match.shared < len(prompt.ids)
        and prompt.ids[: match.shared] == tuple(row.tokens)
    )


def _match_prompt(prompt: Prompt, rows: Sequence[tuple[Batch, int, Row]]) -> Match | None:
    ids = list(prompt.ids)
    best: Match | None = None
    for batch, slot, row in rows:
        shared = min(count_shared(row.tokens, ids), len(ids) - 1)
        enough = 2 * (shared + row.expansion) >= len(ids) + row.expansion
        if enough and shared >= max(1, row.first_free or 0) and (best is None or shared > best.shared):
            best = Match(batch, slot, shared)
    return best


def count_shared(first: list[int], second: list[int]) -> int:
    """Number of leading elements that two lists share, by bisection over slices."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
