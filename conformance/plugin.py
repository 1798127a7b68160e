"""A pytest plugin for Keras's own tests: says what became of every test, and of every fit in it.

In come the tests of the installed Keras and a mode, "plain" or "kohort"; out goes one JSON file. Two runs can be
compared fit by fit, because the generators are seeded before each test by its name. The mode "kohort" installs kohort
and nothing else differs.
"""

import functools
import hashlib
import json
import random
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras.src.backend.jax import trainer as jax_trainer

MODES = ("plain", "kohort")
COMPILED = "compiled"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the mode and the place of the report."""
    parser.addoption("--conformance-mode", choices=MODES, required=True)
    parser.addoption("--conformance-report", type=Path, required=True)


def pytest_configure(config: pytest.Config) -> None:
    """Puts a recorder on top of `keras.Model.fit`, in the mode "kohort" on top of kohort's."""
    way = keras_way
    if config.getoption("--conformance-mode") == "kohort":
        import kohort

        kohort.install()
        way = kohort_way
    recorder = Recorder(way, config.getoption("--conformance-report"))
    keras.Model.fit = recorder.counting(keras.Model.fit)
    config.pluginmanager.register(recorder, "conformance-recorder")


def keras_way() -> str:
    """Says how the last fit ran, where there is one way only."""
    return "Keras"


def kohort_way() -> str:
    """Says how the last fit ran: compiled, or why it did not."""
    import kohort

    ways = [COMPILED if row.way == COMPILED else row.reason for row in kohort.report(clear=True)]
    return ways[0] if len(ways) == 1 else f"{len(ways)} records"


# --- the trainers of Keras's trainer tests ----------------------------------------------------------------------------

BARE = jax_trainer.JAXTrainer


class Promoted(keras.Model):
    """Stands in for the bare trainer that Keras's trainer tests mix into layers: the same, but a `keras.Model`.

    kohort switches `keras.Model.fit`, which a bare trainer never reaches. Both runs, plain and with kohort, use it.
    """

    layers: Any = ()  # one of the tests keeps something of its own under this name

    def __init__(self) -> None:
        """Begins as the bare trainer does; the layer has begun by itself."""
        BARE.__init__(self)

    def __init_subclass__(cls, **options: Any) -> None:
        """Lets what the layer defines come before what `keras.Model` adds to the trainer."""
        super().__init_subclass__(**options)
        for name in ("build", "call"):
            owner = next(base for base in cls.__mro__ if name in vars(base) and base is not keras.Model)
            setattr(cls, name, vars(owner)[name])


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Promotes the trainers of the test modules, which are imported here."""
    jax_trainer.JAXTrainer = Promoted
    try:
        return (yield)
    finally:
        jax_trainer.JAXTrainer = BARE


# --- the record -------------------------------------------------------------------------------------------------------


SOURCES = Path(keras.src.__file__).parent


def name_of(node: pytest.Item | pytest.Collector) -> str:
    """Returns the name of a test by its module, such as `trainers.trainer_test::TestTrainer::test_fit_flow0`."""
    module = ".".join(node.path.relative_to(SOURCES).with_suffix("").parts)
    return "::".join([module, *node.nodeid.split("::")[1:]])


def first_line(report: Any) -> str:
    """Returns the first line of what a failed test or module says."""
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash else str(report.longrepr).strip().splitlines()[-1]
    return next((line.strip() for line in text.splitlines() if line.strip()), "")[:200]


def fingerprint(model: keras.Model, history: Any) -> str:
    """Returns a short text that stands for every bit of the weights and of the history that a fit left."""
    found = hashlib.sha256()
    for variable in model.weights:
        found.update(np.asarray(variable.value).tobytes())
    for name, values in sorted(history.history.items()):
        found.update(name.encode())
        for value in values:
            found.update(np.asarray(value, "float64").tobytes())
    return found.hexdigest()[:16]


class Recorder:
    """Watches the tests and the fits in them."""

    def __init__(self, way: Callable[[], str], path: Path) -> None:
        """Has seen nothing yet."""
        self.way, self.path, self.started = way, path, time.monotonic()
        self.names: dict[str, str] = {}
        self.tests: dict[str, dict] = {}
        self.fits: list[dict] = []
        self.test, self.is_in_fit = "", False

    def counting(self, fit: Callable) -> Callable:
        """Returns `fit` with a note of each call: its test, its way, and what it left, None if it failed."""

        @functools.wraps(fit)
        def counted(model: keras.Model, *args: Any, **options: Any) -> Any:
            if self.is_in_fit:
                return fit(model, *args, **options)
            note: dict = {"test": self.test, "is_promoted": isinstance(model, Promoted), "left": None}
            self.fits.append(note)
            self.is_in_fit = True
            try:
                history = fit(model, *args, **options)
                note["left"] = fingerprint(model, history)
                return history
            finally:
                self.is_in_fit = False
                note["way"] = self.way()

        return counted

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(self, collector: pytest.Collector) -> Iterator[None]:
        """Takes in a module that cannot be imported, such as for want of a package."""
        report = yield
        if report.failed:
            self.tests[name_of(collector)] = {"outcome": "failed", "line": first_line(report)}
        return report

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Learns the names of the tests."""
        self.names = {item.nodeid: name_of(item) for item in items}

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Seeds the generators by the test's name; also where Keras's `get_test_data` would seed by the clock."""
        self.test = self.names[item.nodeid]
        seed = zlib.crc32(self.test.encode())
        random.seed(seed)
        SEED(seed)
        if "tensorflow" in sys.modules:  # of which some tests draw their data
            sys.modules["tensorflow"].random.set_seed(seed)
        np.random.seed = lambda given=None: SEED(seed if given is None else given)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Takes in how a test went; a failure in any phase counts."""
        known = self.tests.setdefault(self.names[report.nodeid], {"outcome": "passed", "line": ""})
        if report.outcome != "passed" and known["outcome"] != "failed":
            known |= {"outcome": report.outcome, "line": first_line(report) if report.failed else ""}

    def pytest_sessionfinish(self) -> None:
        """Writes the report."""
        seconds = time.monotonic() - self.started
        self.path.write_text(json.dumps({"tests": self.tests, "fits": self.fits, "seconds": seconds}))


SEED = np.random.seed
