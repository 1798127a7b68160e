"""Before any test: Keras on JAX, pictures off screen, shapes checked, and nobody else's cache.

All of this must stand before the first import of keras or kohort, so it is module code.
"""

import atexit
import gc
import os
import random
import shutil
import signal
import sys
import tempfile
import zlib
from collections import Counter

os.environ["KERAS_BACKEND"] = "jax"
os.environ["MPLBACKEND"] = "Agg"

if "PYTEST_XDIST_WORKER" not in os.environ:  # the workers inherit the folder of the main process
    _cache = tempfile.mkdtemp(prefix="kohort-tests-")
    atexit.register(shutil.rmtree, _cache, ignore_errors=True)
    os.environ["KOHORT_CACHE_DIR"] = _cache

import beartype._check.code.codemain as beartype_code
import jaxtyping
import numpy as np
import pytest
import typechecker

# beartype looks at one item of a list, drawn with the global generator. It gets a generator of its
# own here, or a check of kohort's annotations would count as a draw that kohort makes.
beartype_code.getrandbits = random.Random(0).getrandbits
jaxtyping.jaxtyped = typechecker.jaxtyped  # which the hook puts before each function and class
jaxtyping.install_import_hook("kohort", "beartype.beartype")
gc.set_threshold(20_000)  # hardly anything that compilers make is garbage
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell turns off for what runs in the background
pytest.register_assert_rewrite("oracle")  # so that its assertions, too, show what differs


# The first case of many is fast, and every seventh: a number that shares no factor with those of stacked parameters.
FAST_OF_MANY = 7


def pytest_addoption(parser):
    parser.addoption(
        "--part", metavar="K/N", default="1/1", help="of the slow tests about every N-th, the K-th of them"
    )


@pytest.hookimpl(tryfirst=True)  # before slow tests are left out
def pytest_collection_modifyitems(config, items):
    """Makes most cases of what has many slow, unless some are asked for; leaves out the slow tests of other parts.

    Parts go by names, so that a new test moves no other to another part.
    """
    seen, are_asked_for = Counter(), config.option.keyword or any("[" in word for word in config.args)
    for item in items:
        if item.get_closest_marker("many") and not are_asked_for:
            name = item.nodeid.partition("[")[0]
            if seen[name] % FAST_OF_MANY:
                item.add_marker("slow")
            seen[name] += 1
    part, parts = map(int, config.getoption("--part").split("/"))
    others = [
        item
        for item in items
        if item.get_closest_marker("slow") and zlib.crc32(item.nodeid.encode()) % parts != part % parts
    ]
    if others:
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item not in others]


@pytest.fixture(autouse=True, scope="module")
def garbage_of_earlier_modules():
    """Exempts from garbage collection what earlier modules leave, and all that was imported.

    `keras.utils.clear_session` collects garbage, and to look at all of that takes 0.2 s and more each time.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def generators_restored():
    """Leaves `random` and `np.random` as the test found them; seeds nothing."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    yield
    random.setstate(python_state)
    np.random.set_state(numpy_state)


@pytest.fixture
def annotations_unchecked():
    """Turns the checks of kohort's annotations off: whoever uses kohort has none, and must be told by kohort itself."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(autouse=True)
def mappings_by_rule(monkeypatch):
    """Lets no clock decide how members are mapped: bits would depend on it. Who tests measuring sets it back."""
    monkeypatch.setattr("kohort.rounds.WORTH_MEASURING", float("inf"))


@pytest.fixture(autouse=True)
def figures_closed():
    """Closes what the test drew."""
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")
