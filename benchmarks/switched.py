"""What it costs, and what it gains, to leave kohort switched on.

In come models and data; out go rows of the first table. Fall backs are timed as fits of one step that Keras runs in
either case, with kohort installed and without, by turns. The figures that each must reach are those of issue 3.
"""

import importlib.util
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import contenders
from contenders import XOR

MOST_MILLISECONDS, MOST_GROWN_MEGABYTES = 1.0, 20.0
LAYERS = 200  # of the deep model that is judged
PASSES = ("evaluate", "predict")


class Sizes(NamedTuple):
    """How thoroughly to measure."""

    turns: int = 5
    calls: int = 100  # a turn
    rows: int = 20_000  # that `evaluate` and `predict` go through
    refits: int = 1000


QUICK = Sizes(turns=1, calls=2, rows=64, refits=20)


# --- in processes of their own ----------------------------------------------------------------------------------------


def fall_backs(pipe: Any, sizes: Sizes) -> None:
    """Sends milliseconds a call: Keras alone, and what it takes more with kohort installed; one of each a turn."""
    plain, more = [], []
    for _ in range(sizes.turns):
        alone, installed = by_turns(sizes.calls)
        plain.append(statistics.median(alone))
        more.append(statistics.median(b - a for a, b in zip(alone, installed, strict=True)))
    pipe.send((plain, more))


def by_turns(calls: int) -> tuple[list[float], list[float]]:
    """Returns the milliseconds of fits that Keras runs, without and with kohort installed."""
    import kohort

    import keras  # isort: skip - after kohort, which picks the backend

    class EachBatch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
            pass

    x, y = kohort.data.xor()
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, "relu"), keras.layers.Dense(1)])
    model.compile("rmsprop", "mse")

    def fit() -> None:
        model.fit(x, y, verbose=0, callbacks=[EachBatch()])

    fit()  # compiles
    plain, installed = [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", kohort.FallBackWarning)
        for _ in range(calls):
            plain.append(milliseconds_of(fit))
            with kohort.install():
                installed.append(milliseconds_of(fit))
    return plain, installed


def judged(pipe: Any, sizes: Sizes) -> None:
    """Sends the milliseconds in which somebody else's code is found in a deep model, once for each compilation."""
    pipe.send(judge(sizes.turns))


def judge(turns: int) -> list[float]:
    """Returns the milliseconds in which code that is not Keras's is found in a deep model that runs eagerly."""
    from kohort import python_code

    import keras  # isort: skip - after kohort, which picks the backend

    def own_loss(y: Any, prediction: Any) -> Any:
        return keras.ops.mean((y - prediction) ** 2)

    model = keras.Sequential([keras.Input((4,)), *(keras.layers.Dense(4) for _ in range(LAYERS))])
    model.compile("adam", own_loss, run_eagerly=True)
    return [milliseconds_of(lambda: python_code.somebody_elses(model)) for _ in range(turns)]


def passes(pipe: Any, sizes: Sizes) -> None:
    """Sends how many times faster `evaluate` and `predict` are with kohort installed, for each a list."""
    import numpy as np

    import kohort

    x, y = contenders.data(contenders.MOONS)
    x, y = (np.resize(array, (sizes.rows, *array.shape[1:])) for array in (x, y))
    model = contenders.compiled(contenders.MOONS)
    calls = {"evaluate": lambda: model.evaluate(x, y, verbose=0), "predict": lambda: model.predict(x, verbose=0)}
    found = {}
    for name, call in calls.items():
        expected = call()  # compiles
        with kohort.install():
            for _ in range(10):  # it is compiled from that call on with which it will have paid
                call()
            if not np.array_equal(expected, call()):
                raise RuntimeError(f"{name} returns something else with kohort installed")
        found[name] = []
        for _ in range(sizes.turns):
            plain = milliseconds_of(call)
            with kohort.install():
                found[name].append(plain / milliseconds_of(call))
    pipe.send(found)


def refits(pipe: Any, sizes: Sizes) -> None:
    """Sends the MB that re-fits with kohort installed add after the tenth, and how many programs after the first."""
    import jax

    import kohort

    events = contenders.listen_to_compilations(jax.monitoring)
    x, y = contenders.data(XOR)
    model, tenth = contenders.compiled(XOR), 0.0
    with kohort.install():
        for fit in range(1, sizes.refits + 1):
            model.fit(x, y, batch_size=XOR.batch_size, epochs=XOR.slow_epochs, verbose=0)
            if fit == 1:
                events.clear()
            tenth = contenders.resident_mebibytes() if fit == 10 else tenth
    pipe.send(((contenders.resident_mebibytes() - tenth) * 1.048576, len(events)))


def milliseconds_of(function: Callable[[], Any]) -> float:
    """Returns how long a call takes."""
    start = time.perf_counter()
    function()
    return 1e3 * (time.perf_counter() - start)


# --- rows -------------------------------------------------------------------------------------------------------------


def rows(measured: Callable[..., Any], sizes: Sizes) -> Iterator[tuple]:
    """Gives what the columns of the first table hold: case, measured, against, numbers, unit, least or most.

    Args:
        measured: Runs one of the functions above in a process of its own and returns what it sends.
        sizes: How thoroughly to measure.
    """
    plain, more = measured(fall_backs, sizes)
    case, alone = "xor, one step, a callback at each batch", f"Keras alone: {statistics.median(plain):.2f} ms a call"
    yield case, "model.fit that falls back, what it takes more", alone, more, "ms", -MOST_MILLISECONDS
    against, more = "not there", "not installed"
    if importlib.util.find_spec("tensorflow") is not None:
        plain, more = measured(fall_backs, sizes, needs="tensorflow")
        against = f"Keras alone: {statistics.median(plain):.2f} ms a call"
    what = "model.fit on TensorFlow that falls back, what it takes more"
    yield case, what, against, more, "ms", -MOST_MILLISECONDS
    case, what = f"{LAYERS} dense layers that run eagerly", "to find code that is not Keras's"
    yield case, what, "– (once for each model.compile)", measured(judged, sizes), "ms", -MOST_MILLISECONDS
    ratios = measured(passes, sizes)
    for name in PASSES:
        case = f"moons {contenders.MOONS.network}, {sizes.rows:,} points in batches of 32"
        yield case, f"model.{name}, kohort installed", f"model.{name} on JAX", ratios[name], "times", None
    grown, compilations = measured(refits, sizes)
    case = f"xor {XOR.network}, {XOR.slow_epochs} epochs, {sizes.refits:,} fits in one process"
    yield case, "model.fit, kohort installed, growth", "memory after the tenth", [grown], "MB", -MOST_GROWN_MEGABYTES
    what = "model.fit, kohort installed, XLA compilations"
    yield case, what, "after the first", [float(compilations)], "compilations", -0.0
