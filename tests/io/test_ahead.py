"""Reading ahead: items in order, made by a thread before they are asked for, an error in the place of its item."""

from __future__ import annotations

import threading

import pytest

from ovsdino.io.ahead import behind, read_ahead


def test_items_come_in_order_and_an_error_in_its_place() -> None:
    def half(index: int) -> int:
        if index == 6:
            raise ValueError("six")
        return index // 2

    assert list(read_ahead(half, range(5))) == [0, 0, 1, 1, 2]
    assert list(read_ahead(half, range(1, 6, 2))) == [0, 1, 2]
    assert list(read_ahead(half, [])) == []
    items = read_ahead(half, range(4, 9))
    assert [next(items), next(items)] == [2, 2]
    with pytest.raises(ValueError, match="six"):
        next(items)


def test_three_items_are_made_before_they_are_asked_for() -> None:
    made = [threading.Event() for _ in range(9)]
    items = read_ahead(lambda index: made[index].set(), range(9))
    next(items)
    assert all(event.wait(10) for event in made[:4])
    items.close()
    assert not any(event.is_set() for event in made[4:])


def test_calls_are_done_behind_in_their_order_and_all_by_the_end() -> None:
    done: list[int] = []
    here = threading.current_thread()
    elsewhere: list[bool] = []

    def work(number: int) -> None:
        elsewhere.append(threading.current_thread() is not here)
        done.append(number)

    with behind(work) as hand_over:
        for number in range(20):
            hand_over(number)
    assert done == list(range(20)) and all(elsewhere)


def test_an_error_behind_is_raised_by_a_later_call_or_at_the_end() -> None:
    def work(number: int) -> None:
        if number == 2:
            raise ValueError("two")

    with pytest.raises(ValueError, match="two"), behind(work) as hand_over:
        for number in range(3):
            hand_over(number)
    with pytest.raises(ValueError, match="two"), behind(work) as hand_over:
        for number in range(100):
            hand_over(number)
            assert number < 10
