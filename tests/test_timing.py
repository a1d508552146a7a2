"""The clock."""

from __future__ import annotations

import numpy as np
import pytest

from ovsdino.timing import Clock, Histogram, medians, percentiles


def test_stages_add_up_in_the_order_in_which_they_first_ended() -> None:
    clock = Clock()
    with clock("outer"), clock("inner"):
        pass
    first = clock.ms["inner"]
    with clock("inner"):
        pass
    clock.add("outer", 1000.0)
    assert list(clock.ms) == ["inner", "outer"]
    assert clock.ms["inner"] > first > 0
    assert clock.ms["outer"] > 1000.0 + first


def test_a_stage_waits_for_the_device_at_both_ends() -> None:
    seen: list[str] = []
    clock = Clock(lambda: seen.append("wait"))
    with clock("encode"):
        seen.append("work")
    assert seen == ["wait", "work", "wait"]


def test_a_stage_that_raises_is_not_counted() -> None:
    clock = Clock()
    with pytest.raises(ZeroDivisionError), clock("encode"):
        raise ZeroDivisionError
    assert clock.ms == {}


def test_a_share_of_a_batch_is_added_to_what_is_there() -> None:
    batch, image = Clock(), Clock()
    batch.add("encode", 8.0)
    batch.add("decode", 2.0)
    image.add("decode", 1.0)
    image.add_share(batch, 0.25)
    assert image.ms == {"decode": 1.5, "encode": 2.0}


def test_percentiles_are_interpolated_between_the_two_nearest_samples() -> None:
    found = percentiles([5.0, 1.0, 3.0, 2.0, 4.0])
    assert found == {"p50": 3.0, "p95": 4.8, "p99": 4.96}  # at 2, 3.8 and 3.96 of 0..4
    assert percentiles([7.0], (5, 50)) == {"p5": 7.0, "p50": 7.0}


def test_medians_are_taken_stage_by_stage() -> None:
    rounds = [{"encode": 3.0, "decode": 1.0}, {"encode": 1.0, "decode": 9.0}, {"encode": 2.0, "decode": 2.0}]
    assert medians(rounds) == {"encode": 2.0, "decode": 2.0}


def test_percentiles_are_those_of_the_sorted_times_to_half_a_percent() -> None:
    times = np.random.default_rng(0).lognormal(3.0, 1.0, 20_000)
    histogram = Histogram()
    for ms in times:
        histogram.add(ms)
    ordered = np.sort(times)
    for share in (0.01, 0.5, 0.95, 0.99):
        exact = ordered[int(np.ceil(share * len(ordered))) - 1]
        assert histogram.quantile(share) == pytest.approx(exact, rel=0.0051)
    assert histogram.quantile(1.0) == pytest.approx(ordered[-1], rel=0.0051) and histogram.maximum == ordered[-1]


def test_a_histogram_takes_any_time_and_does_not_grow() -> None:
    histogram = Histogram()
    assert histogram.quantile(0.5) is None and histogram.summary() is None
    before = len(histogram._counts)
    for ms in (0.0, 1e-9, 1e9):
        histogram.add(ms)
    assert histogram.count == 3 and len(histogram._counts) == before
    assert histogram.quantile(0.5) < 0.011 and histogram.summary()["max"] == 1e9
