"""What goes into one end of a channel comes out of the other, and nothing of it stays."""

import os
import socket

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from oracle import differences

from kohort.structures import arrays_of
from kohort.wire import Channel

DTYPES = ["float32", "float64", "float16", "bfloat16", "int64", "uint32", "int8", "bool"]
ARRAYS = st.sampled_from(DTYPES).flatmap(
    lambda name: st_numpy.arrays("uint8", st_numpy.array_shapes(min_dims=0, min_side=0, max_side=4)).map(
        lambda array: array.astype(np.dtype(name))
    )
)
STRUCTURES = st.recursive(
    st.none() | ARRAYS,
    lambda parts: (
        st.lists(parts, max_size=3) | st.lists(parts, max_size=3).map(tuple) | st.dictionaries(st.text(), parts)
    ),
    max_leaves=6,
)


@pytest.fixture
def ends():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Channel(ours), Channel(theirs)


def descriptors():
    return len(os.listdir("/proc/self/fd"))


@hypothesis.given(STRUCTURES)
@hypothesis.settings(deadline=None, max_examples=60, derandomize=True)
def test_structures_come_out_as_they_went_in(structure):
    ours, theirs = map(Channel, socket.socketpair())
    with ours.socket, theirs.socket:
        ours.send({"do": "ü", "numbers": [1, 0.5, None]}, structure)
        message, received = theirs.receive()

    assert message == {"do": "ü", "numbers": [1, 0.5, None]}
    assert differences(structure, received) == []
    assert [a.dtype for a in arrays_of(structure)] == [a.dtype for a in arrays_of(received)]


def test_arrays_that_are_not_in_order(ends):
    ours, theirs = ends
    array = np.arange(24).reshape(2, 3, 4).transpose(2, 0, 1)[::2]
    ours.send({}, array)

    assert np.array_equal(theirs.receive()[1], array)


def test_arrays_outlive_the_other_end(ends):
    ours, theirs = ends
    array = np.random.default_rng(0).normal(size=100_000)
    ours.send({}, array)
    ours.socket.close()
    received = theirs.receive()[1]

    assert np.array_equal(received, array)
    assert not received.flags.writeable


def test_nothing_stays_behind(ends):
    ours, theirs = ends
    before = descriptors(), os.listdir("/dev/shm")
    for _ in range(50):
        ours.send({}, [np.zeros(1000), {"a": np.ones(3)}])
        theirs.receive()

    assert (descriptors(), os.listdir("/dev/shm")) == before


def test_a_disk_serves_where_memory_has_no_descriptors(ends, monkeypatch):
    ours, theirs = ends
    monkeypatch.delattr(os, "memfd_create")
    before = descriptors()
    ours.send({}, np.arange(5))

    assert np.array_equal(theirs.receive()[1], np.arange(5))
    assert descriptors() == before


@pytest.mark.parametrize("said", [b"", b"\0\0", (100).to_bytes(8, "big") + b"{"])
def test_an_end_that_is_gone_is_noticed(ends, said):
    ours, theirs = ends
    ours.socket.sendall(said)
    ours.socket.close()

    with pytest.raises(EOFError, match="The other end of the channel is gone"):
        theirs.receive()
