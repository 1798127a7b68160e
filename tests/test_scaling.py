"""The simulation of studies on many machines: its clock adds up, nothing is faster than its bounds, nothing is lost."""

import importlib.util
import math
from pathlib import Path

import pytest

FILE = Path(__file__).parents[1] / "examples" / "scaling.py"

pytestmark = pytest.mark.usefixtures("annotations_unchecked")  # tasks are names here


@pytest.fixture(scope="module")
def scaling():
    spec = importlib.util.spec_from_file_location("scaling", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def times(scaling):
    return scaling.Times(start=5.0, compile=2.0, block=1.0, travel=0.25, hand=0.125, commit=0.0625)


def test_one_worker_takes_the_sum_of_all_times(scaling, times):
    ran = scaling.simulated(scaling.lanes_of(3, 4), times, 1)

    # While it trains the driver commits, but for the last block.
    assert ran.seconds == 5 + 3 * 2 + 12 * (1 + 0.25) + 13 * 0.125 + 0.0625
    assert (ran.deaths, ran.lost_seconds) == (0, 0)


@pytest.mark.parametrize("workers", [1, 2, 3, 16, 256, 1024])
def test_no_run_is_faster_than_its_bounds_nor_slower_than_one_worker(workers, scaling, times):
    for lanes in (scaling.lanes_of(2, 40), scaling.lanes_of(40, 2)):
        ran = scaling.simulated(lanes, times, workers)
        own = scaling.bounds(lanes, times, workers)

        assert ran.seconds >= max(own.values())
        assert ran.seconds >= own["workers"] + own["start and compile"]
        assert ran.seconds <= scaling.simulated(lanes, times, 1).seconds


def test_stragglers_do_not_beat_the_writer(scaling, times):
    lanes = scaling.lanes_of(2, 100)
    ran = scaling.simulated(lanes, times, 1024, scaling.Weather(spread=2.0), seed=3)

    assert ran.seconds >= scaling.bounds(lanes, times, 1024)["writer"]


def test_a_block_whose_worker_died_is_done_again_and_counted_once(scaling, times):
    lanes = scaling.lanes_of(4, 50)
    calm = scaling.simulated(lanes, times, 8)
    ran = scaling.simulated(lanes, times, 8, scaling.Weather(failures_per_hour=100), seed=1)

    assert ran.deaths > 3
    assert ran.seconds > calm.seconds
    assert 0 < ran.lost_seconds < ran.deaths * (2 + 1 + 0.25)
    assert sorted(ran.committed) == [task for lane in lanes for task in lane] == sorted(calm.committed)


def test_three_deaths_over_one_block_are_an_error(scaling, times):
    with pytest.raises(RuntimeError, match=r"3 workers died one after the other while training \(0, 0\)\."):
        scaling.simulated(scaling.lanes_of(1, 1), times, 1, scaling.Weather(failures_per_hour=1e6))


@pytest.mark.parametrize(
    ("lanes", "tasks", "workers", "most"),
    [(2, 200, 4, "workers"), (2, 200, 64, "writer"), (200, 1, 4, "start and compile")],
)
def test_what_takes_most_of_the_time_is_named(lanes, tasks, workers, most, scaling, times):
    assert scaling.limit(scaling.lanes_of(lanes, tasks), times, workers) == most


def test_the_table_has_a_line_for_each_number_of_workers(scaling, monkeypatch):
    monkeypatch.setattr(scaling, "STUDIES", [(512, 2, 8)])
    rows = scaling.table()
    lines = scaling.told(rows).splitlines()

    assert [row.workers for row in rows] == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]
    assert len(lines) == 2 + len(rows)
    assert lines[2].startswith("| 2 | 512 | 1 | ")
    assert math.isclose(rows[0].speed_up(rows[0].calm), 1.0)
