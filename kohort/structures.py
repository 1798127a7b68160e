"""Structures of arrays: dicts, lists and tuples, one inside the other, and None.

In comes a structure; out goes one of other leaves, its leaves alone, or a skeleton: plain values that JSON can hold, of
which the same structure is made again. The room exists because files and sockets take values and arrays apart.
"""

from collections.abc import Callable, Iterator
from typing import Any


def map_arrays(function: Callable, structure: Any) -> Any:
    """Applies a function to the arrays of a structure."""
    if isinstance(structure, dict):
        return {key: map_arrays(function, part) for key, part in structure.items()}
    if isinstance(structure, list | tuple):
        parts = [map_arrays(function, part) for part in structure]
        return type(structure)(*parts) if hasattr(structure, "_fields") else type(structure)(parts)
    return None if structure is None else function(structure)


def arrays_of(structure: Any) -> Iterator[Any]:
    """Yields the arrays of a structure."""
    if isinstance(structure, dict | list | tuple):
        for part in structure.values() if isinstance(structure, dict) else structure:
            yield from arrays_of(part)
    elif structure is not None:
        yield structure


def skeleton(structure: Any, told: Callable[[Any], Any]) -> Any:
    """Returns a structure as plain values, with what is told of each array in its place."""
    if structure is None:
        return None
    if isinstance(structure, dict):
        return {"dict": [[key, skeleton(part, told)] for key, part in structure.items()]}
    if isinstance(structure, list | tuple):
        return {"list" if isinstance(structure, list) else "tuple": [skeleton(part, told) for part in structure]}
    return {"array": told(structure)}


def filled(skeleton: Any, array: Callable[[Any], Any]) -> Any:
    """Returns the structure of which this is the skeleton, with the array of what was told of it in each place."""
    if skeleton is None:
        return None
    [(kind, parts)] = skeleton.items()
    if kind == "array":
        return array(parts)
    if kind == "dict":
        return {key: filled(part, array) for key, part in parts}
    return (tuple if kind == "tuple" else list)(filled(part, array) for part in parts)


def holds_number(structure: Any, name: str) -> bool:
    """Says whether a dict in a structure of dicts, lists and tuples has a whole number under this name."""
    if isinstance(structure, dict):
        return isinstance(structure.get(name), int) or any(holds_number(part, name) for part in structure.values())
    return isinstance(structure, list | tuple) and any(holds_number(part, name) for part in structure)
