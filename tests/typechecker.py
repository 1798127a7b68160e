"""What holds kohort's annotations against what functions are given, while tests run."""

import beartype


def of_modules_and_classes(function):
    """Checks a function as beartype does, unless it is made inside another one: each time anew, which takes as long."""
    return function if "<locals>" in getattr(function, "__qualname__", "") else beartype.beartype(function)
