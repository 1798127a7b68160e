"""What holds kohort's annotations against what functions are given, while tests run."""

import functools
import types
from collections.abc import Callable
from typing import Any

import beartype
import jaxtyping

with_shapes = jaxtyping.jaxtyped
by_beartype = beartype.beartype(conf=beartype.BeartypeConf(violation_type=jaxtyping.TypeCheckError))


def jaxtyped(*, typechecker: Callable) -> Callable:
    """Stands in for jaxtyping's own decorator, which takes a fifth of the time of all tests.

    What names no shape, and nothing that is not there yet, beartype checks alone. What is made inside another function
    is not checked: it is made anew each time, and so would its check be.
    """

    def decorated(what: Any) -> Any:
        if "<locals>" in what.__qualname__:
            return what
        is_plain = isinstance(what, types.FunctionType) and "jaxtyping" not in repr(what.__annotations__)
        is_plain = is_plain and not any(isinstance(each, str) for each in what.__annotations__.values())
        return by_type(what) if is_plain else with_shapes(typechecker=typechecker)(what)

    return decorated


def by_type(function: Callable) -> Callable:
    """Returns a function that beartype checks, until jaxtyping is told to check nothing."""
    checked = by_beartype(function)
    if checked is function:
        return function

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        return (function if jaxtyping.config.jaxtyping_disable else checked)(*args, **kwargs)

    return run
