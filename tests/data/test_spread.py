"""Indices spread evenly."""

import pytest

from ovsdino.data.spread import spread


@pytest.mark.parametrize(
    ("count", "most", "found"),
    [(5, 3, [0, 2, 4]), (3, 5, [0, 1, 2]), (10, 4, [0, 3, 6, 9]), (4, 1, [0]), (0, 3, []), (3, 0, [])],
)
def test_up_to_so_many_from_the_first_to_the_last(count: int, most: int, found: list[int]) -> None:
    assert spread(count, most) == found


def test_no_index_comes_twice() -> None:
    for count in range(1, 60):
        for most in range(1, 60):
            assert len(set(spread(count, most))) == min(count, most)
