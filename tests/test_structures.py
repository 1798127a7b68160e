"""Structures of arrays come out of their skeletons as they went in."""

import json

import numpy as np

from kohort.engine import Schedule
from kohort.structures import arrays_of, filled, holds_number, map_arrays, skeleton

STRUCTURE = {"a": [np.arange(3), (np.ones(2), None)], "b": {}, "": (np.zeros(1),)}


def test_arrays_are_mapped_where_they_are():
    assert map_arrays(lambda a: a + 1, {"a": [1, (2, None)]}) == {"a": [2, (3, None)]}
    assert map_arrays(lambda a: a + 1, Schedule(np.zeros(1))).rows == 1


def test_a_skeleton_holds_everything_but_the_arrays():
    leaves = []

    def told(array):
        leaves.append(array)
        return len(leaves) - 1

    bones = json.loads(json.dumps(skeleton(STRUCTURE, told)))
    again = filled(bones, leaves.__getitem__)

    assert list(map(id, arrays_of(STRUCTURE))) == list(map(id, leaves)) == list(map(id, arrays_of(again)))
    assert map_arrays(id, again) == map_arrays(id, STRUCTURE)
    assert skeleton(None, told) is None is filled(None, leaves.__getitem__)
    assert filled(skeleton([], told), leaves.__getitem__) == []


def test_numbers_are_found_by_their_name():
    config = {"rate": 1, "parts": [{"init": {"seed": 3}}, None]}
    assert holds_number(config, "seed")
    assert not holds_number(config | {"parts": [{"seed": None}]}, "seed")
