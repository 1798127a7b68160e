"""Members in lanes: who stops leaves, who trains on is moved, and all come home as they are."""

import numpy as np
import pytest

from kohort.engine import State
from kohort.lanes import Lanes, Packing, parts, widths


def state(members):
    """A state in which each member is known by its number."""
    numbers = np.asarray(members, "float32")
    return State([numbers], [], [numbers.astype("int32")], [np.stack([numbers, -numbers], -1)])


def stacked(members=21, width=8):
    home = [range(start, start + width) for start in range(0, members, width)]
    return Lanes(home, [state(np.minimum(block, members - 1)) for block in home], members, ())


def trained(lanes, epochs, stops=()):
    """Advances all lanes as a program does: who goes on is a hundred further per epoch."""
    carries = []
    for block in lanes.blocks:
        values, course = block.carry
        before = values.trainable_variables[0]
        on = np.asarray(course.goes_on)
        new = State([np.where(on, before + 100 * epochs, before)], *values[1:])
        goes_on = on & ~np.isin(block.members.reshape(on.shape), stops)
        carries.append((new, course._replace(goes_on=goes_on, epochs=course.epochs + epochs * on)))
    return lanes.advance(carries)


def came_home(lanes):
    return np.concatenate([np.atleast_1d(state.trainable_variables[0]) for state, _ in lanes.carries()])


def test_stopped_members_leave_and_come_home():
    lanes = stacked()
    assert trained(lanes, 3, stops=[2, 5, 9, 20]).tolist() == [3] * 21
    lanes.move(8)
    assert [block.members.tolist() for block in lanes.blocks] == [
        [0, 1, 3, 4, 6, 7, 8, 10],
        [11, 12, 13, 14, 15, 16, 17, 18],
        [19] * 8,
    ]
    ran = trained(lanes, 2, stops=range(8, 21))
    assert ran.tolist() == [0 if member in (2, 5, 9, 20) else 2 for member in range(21)]
    lanes.drop()
    assert len(lanes.blocks) == 1
    lanes.move(8)
    trained(lanes, 1)
    assert lanes.goes_on.sum() == 6
    expected = np.arange(21) + 100 * lanes.epochs
    np.testing.assert_array_equal(came_home(lanes), [*expected, *expected[-1:].repeat(3)])
    assert lanes.epochs[:3].tolist() == [6, 6, 3]
    assert [len(state.metrics_variables[0]) for state, _ in lanes.carries()] == [8, 8, 8]


def test_members_by_themselves_leave_one_by_one():
    lanes = Lanes([range(i, i + 1) for i in range(4)], [state(i) for i in range(4)], 4, ())
    trained(lanes, 1, stops=[1])
    lanes.drop()
    assert [block.members.tolist() for block in lanes.blocks] == [[0], [2], [3]]
    trained(lanes, 1, stops=[0, 2, 3])
    lanes.drop()
    assert lanes.blocks == []
    np.testing.assert_array_equal(came_home(lanes), [200, 101, 202, 203])


def test_who_has_no_lane_any_more():
    lanes = stacked()
    assert lanes.without_lane().size == 0
    trained(lanes, 1, stops=[0, 1, 2])
    lanes.move(8)
    np.testing.assert_array_equal(lanes.without_lane(), [0, 1, 2])


@pytest.mark.parametrize(
    ("width", "expected"), [(256, [256, 128, 64, 32, 16, 8]), (56, [56, 32, 16, 8]), (8, [8]), (1, [1])]
)
def test_widths_are_few(width, expected):
    assert widths(width) == expected


def test_turns_of_the_cores():
    assert [Packing(blocks, 8).turns(2) for blocks in (1, 2, 3, 4)] == [1, 1, 1.5, 2]
    assert [Packing(blocks, 8).turns(4) for blocks in (5, 6, 7, 8)] == [1.25, 1.5, 2, 2]


@pytest.mark.parametrize(("blocks", "cores"), [(1, 1), (1, 2), (3, 2), (8, 2), (9, 2), (6, 4), (7, 4), (3, 4)])
def test_all_epochs_of_all_blocks_are_run_in_their_order(blocks, cores):
    for epochs in (range(7, 8), range(3), range(5, 18)):
        order = parts(blocks, epochs, cores)
        for block in range(blocks):
            assert [e for place, part in order if place == block for e in part] == list(epochs)


def test_the_block_that_would_be_left_is_halved():
    order = parts(3, range(10, 20), 2)
    assert order == [(0, range(10, 15)), (1, range(10, 20)), (2, range(10, 20)), (0, range(15, 20))]
    assert parts(3, range(3), 2) == [(block, range(3)) for block in range(3)]  # an interrupt would lose them
