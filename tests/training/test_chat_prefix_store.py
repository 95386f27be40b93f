"""How many leading tokens two conversations share."""

from itertools import takewhile

from hypothesis import example, given
from hypothesis import strategies as st

from visloop.chat.prefix_store import count_shared

TOKENS = st.lists(st.integers(0, 2), max_size=12)


@given(first=TOKENS, second=TOKENS)
@example(first=[], second=[1])
@example(first=[1, 1, 2], second=[1, 1, 2])
@example(first=[1, 0, 1, 1], second=[1, 2, 1, 1])  # equal again after the first difference
def test_shared_prefix_is_counted_up_to_the_first_difference(first: list[int], second: list[int]) -> None:
    expected = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))
    assert count_shared(first, second) == expected
