"""The metrics of a fit while it runs: who puts what where, and large ones in a file."""

import errno
import os

import numpy as np
import pytest

from kohort import curves
from kohort.curves import Curves

EVERY = range(5, 9)


def logs(members, epochs, first=0.0):
    values = first + np.arange(members * epochs, dtype="float32").reshape(members, epochs).T
    return {"loss": values}, {"loss": -values}


def put(metrics, members, epochs, ran=None, validates=None):
    ran = np.full(len(members), len(epochs)) if ran is None else np.array(ran)
    metrics.put(np.array(members), epochs, logs(len(members) + 1, len(epochs) + 2), ran, validates)


def test_members_find_their_rows_and_nan_where_nothing_was_recorded():
    metrics = Curves((10, 11, 12, 13), EVERY)
    put(metrics, [0, 2], range(5, 7), validates=np.array([False, True, False]))
    put(metrics, [3], range(5, 7), ran=[1])
    metrics.skip(np.array([1]), range(5, 7))
    history = metrics.history(7, np.array([-1, 4, -1, 5]))
    nan = np.nan
    np.testing.assert_array_equal(history["loss"], [[0, 1], [nan, nan], [4, 5], [0, nan]])
    np.testing.assert_array_equal(history["val_loss"], [[nan, -1], [nan, nan], [nan, -5], [-0.0, nan]])
    assert list(history) == ["loss", "val_loss"]
    assert (history.seeds, history.epoch) == ([10, 11, 12, 13], [5, 6])
    assert history["loss"].dtype == np.float32


def test_members_apart_have_nan_in_every_epoch_that_did_not_validate():
    """As many epochs as members, so that no accident of shapes hides which of them are meant."""
    metrics = Curves((10, 11, 12), EVERY)
    put(metrics, [0, 2], range(5, 8), validates=np.array([False, False, True]))
    put(metrics, [1], range(5, 8), validates=np.array([False, False, True]))

    nan = np.nan
    np.testing.assert_array_equal(metrics.history(8)["val_loss"], [[nan, nan, -2], [nan, nan, -2], [nan, nan, -7]])


def test_a_history_of_no_epochs_has_no_metrics():
    metrics = Curves((1, 2), EVERY)
    put(metrics, [0, 1], range(5, 6))
    assert dict(metrics.history(5)) == {}


def test_whole_numbers_become_such_that_know_nan():
    metrics = Curves((1,), EVERY)
    metrics.put(np.array([0]), range(5, 6), ({"count": np.ones((1, 1), int)}, {}), np.array([1]), None)
    assert metrics.history(6)["count"].dtype == np.float64


@pytest.mark.parametrize(("room", "longest"), [(8, 0), (31, 1), (48, 2)])
def test_large_metrics_are_in_a_file_that_nobody_sees(monkeypatch, tmp_path, room, longest):
    """The rows of a round wait in memory, if it is not too long, and are written together."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    every = range(5, 15)
    in_memory = Curves((1, 2, 3), every)
    monkeypatch.setattr(curves, "MOST_BYTES_IN_MEMORY", room)
    in_file = Curves((1, 2, 3), every)
    for epochs in (range(5, 6), range(6, 8), range(8, 12), range(12, 14)):
        for metrics in (in_memory, in_file):
            metrics.begin(epochs)
            put(metrics, [0], epochs)
            put(metrics, [2], epochs[: len(epochs) // 2])  # a part of the round after the other
            put(metrics, [2], epochs[len(epochs) // 2 :])
            metrics.skip(np.array([1]), epochs)
        history, expected = (dict(metrics.history(epochs.stop)) for metrics in (in_file, in_memory))
        np.testing.assert_equal(history, expected)
    assert sum(rows.nbytes for rows in in_file._buffers.values()) == 2 * longest * 12
    assert set(in_file._files) == {"loss", "val_loss"}
    assert not in_memory._files
    del metrics, in_file
    np.testing.assert_equal(history, expected)
    assert not os.listdir(tmp_path)


def test_no_room_on_the_disk_is_said_at_once(monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(curves, "MOST_BYTES_IN_MEMORY", 8)
    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(OSError, match=r"must be so few.*a metric of 32 bytes.*No space left.*TMPDIR"):
        put(Curves((1, 2), EVERY), [0, 1], range(5, 6))


@pytest.fixture
def nothing_given_back(monkeypatch):
    monkeypatch.setattr(curves, "_given_back", curves.collections.deque())


@pytest.mark.usefixtures("nothing_given_back")
def test_memory_is_lent_again_once_nobody_looks_into_it():
    first = curves.lent(curves.LEAST_BYTES_KEPT)
    place, look = first.ctypes.data, first.view(np.float32).reshape(2, -1)[1, ::2]
    del first
    assert curves.lent(curves.LEAST_BYTES_KEPT).ctypes.data != place  # and this one is given back at once
    del look
    again = curves.lent(curves.LEAST_BYTES_KEPT), curves.lent(curves.LEAST_BYTES_KEPT)
    assert place in {each.ctypes.data for each in again}
    assert not curves._given_back
    again[0][:] = 7  # as memory of one's own


@pytest.mark.usefixtures("nothing_given_back")
@pytest.mark.parametrize("size", [0, curves.LEAST_BYTES_KEPT - 1, curves.MOST_BYTES_KEPT + 1])
def test_memory_that_is_too_small_or_large_is_not_kept(size):
    assert curves.lent(size).nbytes == size
    assert not curves._given_back


@pytest.mark.usefixtures("nothing_given_back")
def test_no_more_memory_is_kept_than_said(monkeypatch):
    monkeypatch.setattr(curves, "MOST_BYTES_KEPT", 3 * curves.LEAST_BYTES_KEPT)
    sizes = [curves.LEAST_BYTES_KEPT + extra for extra in range(6)]
    held = [curves.lent(size) for size in sizes]
    while held:
        held.pop(0)
    curves.lent(2 * curves.LEAST_BYTES_KEPT)
    assert [memory.nbytes for memory in curves._given_back] == [*sizes[-2:], 2 * curves.LEAST_BYTES_KEPT]


@pytest.mark.usefixtures("nothing_given_back")
def test_a_history_keeps_its_values_when_the_next_fit_has_memory_like_it():
    members = range(2**12)
    epochs = range(curves.LEAST_BYTES_KEPT // len(members) // 4)
    metrics = Curves(tuple(members), epochs)
    put(metrics, members, epochs)
    history = metrics.history(len(epochs))
    before = np.array(history["loss"])
    del metrics
    other = Curves(tuple(members), epochs)
    put(other, members, epochs, ran=np.zeros(len(members), int))
    assert np.isnan(other.history(len(epochs))["loss"]).all()
    np.testing.assert_array_equal(history["loss"], before)
