"""Each check of the layout notices what it is there for, and leaves alone what is right."""

import pytest
from test_layout import (
    FUNCTION_CODE_LINES,
    PACKAGE,
    budget_complaints,
    code_lines,
    docstring_complaints,
    foreign_complaints,
    internals_complaints,
    order_complaints,
    public_names,
    statement_complaints,
)


def in_room(room):
    return PACKAGE / f"{room}.py"


@pytest.mark.parametrize(
    "source",
    [
        "import kohort",
        "import kohort.plot",
        "import kohort.plot as p",
        "from kohort import plot",
        "from kohort import data, plot",
        "from kohort import Cohort",
        "from kohort.plot import wall",
        "from kohort.lab.server import serve",
        "from . import plot",
        "from .plot import wall",
        "def late():\n    from kohort import plot",
        "if True:\n    import kohort.plot",
        "import kohort.fit",
    ],
)
def test_a_wrong_import_is_noticed(source):
    assert len(order_complaints(source, in_room("fit"))) == 1


@pytest.mark.parametrize(
    "source",
    [
        "import kohort.data",
        "from kohort import data, engine",
        "from kohort import (\n    data,\n    engine,\n)",
        "from kohort.engine import train",
        "from . import data",
        "from .history import Outcome",
        "import keras, kohortium",
        "from kohortium import plot",
    ],
)
def test_a_right_import_is_left_alone(source):
    assert order_complaints(source, in_room("fit")) == []


def test_rooms_of_more_than_one_file():
    plane, init = PACKAGE / "plot" / "plane.py", PACKAGE / "plot" / "__init__.py"

    assert order_complaints("from . import style\nfrom .style import require", plane) == []
    assert order_complaints("from ..data import xor\nfrom .. import study", plane) == []
    assert order_complaints("from kohort.plot.groups import minima", init) == []
    assert len(order_complaints("from .. import cli", plane)) == 1
    assert len(order_complaints("from ..cli import main", plane)) == 1
    assert len(order_complaints("from .surface import Surface", plane)) == 1
    assert len(order_complaints("from kohort.plot.plane import cut", plane)) == 1
    assert len(order_complaints("from kohort.plot import wall", plane)) == 1
    assert len(order_complaints("from kohort import plot", plane)) == 1
    assert len(order_complaints("", PACKAGE / "plot" / "helpers.py")) == 1
    assert len(order_complaints("", PACKAGE / "lab" / "server.py")) == 1


def test_a_module_without_a_room_is_noticed():
    assert len(order_complaints("", in_room("helpers"))) == 1
    assert order_complaints("from kohort.cli import main", in_room("__init__")) == []
    assert order_complaints("import kohort\nfrom kohort.cli import main", in_room("__main__")) == []
    assert len(order_complaints("from kohort.__main__ import main", in_room("cli"))) == 1


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("engine", "import keras"),
        ("engine", "def late():\n    from keras.layers import Dense"),
        ("history", "import jax.numpy as jnp"),
        ("store", "import pickle"),
        ("fit", "from joblib import dump"),
    ],
)
def test_a_foreign_import_is_noticed(room, source):
    complaints = foreign_complaints(source, in_room(room))

    assert complaints
    assert foreign_complaints("import numpy\nimport json", in_room(room)) == []


@pytest.mark.parametrize(
    "source",
    [
        "import keras.src",
        "from keras import src",
        "from keras.src.trainers import trainer",
        "def late():\n    import keras.src.backend",
        "import keras\nkeras.src.backend.config.floatx()",
        "importlib.import_module('keras.src.backend')",
        "model._compile_metrics",
        "model.optimizer._iterations = 3",
    ],
)
def test_reaching_into_keras_is_noticed(source):
    assert internals_complaints(source, in_room("fit"))
    assert internals_complaints(source, in_room("keras_internals")) == []


def test_private_names_of_our_own_are_left_alone():
    source = '''
"""As `keras.src.trainers.trainer` does."""
class Cohort:
    """Follows keras.src."""
    def __init__(self):
        self._states = ()
    def _grow(self, other):
        return other._states, self._grow(other), other.seeds._replace(a=1), other.__dict__
'''
    assert internals_complaints(source, in_room("cohort")) == []


def test_counting_code_lines():
    source = '''
@decorated(
    1,
)
def short(
    a,
):
    """Docstring.

    More of it.
    """
    # a comment

    text = """one
    two"""  # counted: it is no docstring

    def nested():
        """Docstring."""
        return a

    return nested, text
'''
    assert code_lines(source) == {"short (line 5)": 8, "nested (line 17)": 2}


def test_a_burst_budget_is_noticed():
    function = "def f():\n" + "    x = 1\n" * (FUNCTION_CODE_LINES - 1)

    assert budget_complaints(function) == []
    assert budget_complaints(function + "\n    # a comment\n") == []
    assert budget_complaints(function + "    x = 1\n") == ["f (line 1): 61 code lines, 60 allowed"]
    assert budget_complaints("\n" * 500) == []
    assert budget_complaints("\n" * 501) == ["501 lines, 500 allowed"]


@pytest.mark.parametrize(
    "source",
    [
        "assert x",
        "def f():\n    assert x",
        "try:\n    f()\nexcept Exception:\n    pass",
        "try:\n    f()\nexcept Exception as error:\n    raise",
        "try:\n    f()\nexcept (ValueError, Exception):\n    pass",
        "try:\n    f()\nexcept:\n    pass",
    ],
)
def test_a_statement_that_hides_is_noticed(source):
    assert len(statement_complaints(source)) == 1


def test_statements_that_hide_nothing_are_left_alone():
    source = "try:\n    f()\nexcept (ValueError, KeyError):\n    pass\nexcept OSError:\n    raise"

    assert statement_complaints(source) == []


def test_public_names_are_found_wherever_they_are_bound():
    source = """
import os, sys
from kohort import data, plot as pictures
if sys:
    from kohort.fit import fit
    limit: int = 3
def run(inner):
    hidden = 1
class Cohort:
    def method(self): ...
__version__ = "1"
"""
    names = {"data", "pictures", "fit", "limit", "run", "Cohort"}

    assert public_names(source) == names


def test_a_missing_docstring_is_noticed():
    def silent(): ...

    def told():
        """Says something."""

    def shown():
        """Says something: >>> 1"""

    assert docstring_complaints("silent", silent) == ["silent has no docstring"]
    assert docstring_complaints("told", told) == ["told has no Example (>>>) in its docstring"]
    assert docstring_complaints("shown", shown) == []
