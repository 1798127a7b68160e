"""One fault: a replacement of text in one file of kohort, and the tests that have to notice it.

The old text must be there exactly once. Whoever changes such a line changes it in `faults`, too.
"""

from typing import NamedTuple


class Fault(NamedTuple):
    """One deliberate fault."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
