"""What the processes of the benchmark do: the two problems, and everyone who trains on them.

In comes a pipe and what to measure; out of the pipe come numbers. JAX, Keras, TensorFlow, PyTorch and kohort are
imported inside the functions: each function runs in a process of its own and sees only what it needs.
"""

import functools
import itertools
import random
import resource
import statistics
import sys
import time
from collections.abc import Callable
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, NamedTuple


class Problem(NamedTuple):
    """Data, network and recipe that all contenders share."""

    name: str
    title: str  # what the file says of it
    rows: int
    hidden: tuple[int, ...]
    output: str
    optimizer: str
    loss: str
    metrics: tuple[str, ...]
    batch_size: int
    epochs: int
    slow_epochs: int  # for contenders that would need minutes; their time counts per epoch
    members: int
    is_stream: bool = False  # whether the data come batch by batch, from a PyDataset
    has_callback: bool = False  # whether a callback that does nothing is called at each epoch

    @property
    def network(self) -> str:
        """The widths of its layers."""
        return "-".join(map(str, (2, *self.hidden, 1)))

    @property
    def steps_per_execution(self) -> tuple[int, ...]:
        """1, 2, 4, ... and the steps of an epoch."""
        steps = -(-self.rows // self.batch_size)
        return *itertools.takewhile(lambda k: k < steps, (2**i for i in itertools.count())), steps


XOR = Problem(
    name="xor",
    title="4 points; one hidden ReLU layer, linear output, RMSprop(1e-3), mean squared error",
    rows=4,
    hidden=(2,),
    output="linear",
    optimizer="rmsprop",
    loss="mse",
    metrics=(),
    batch_size=4,
    epochs=3000,
    slow_epochs=100,
    members=1000,
)
MOONS = Problem(
    name="moons",
    title="400 points, noise 0.1; two hidden ReLU layers, sigmoid output, Adam(1e-3), binary cross-entropy, accuracy",
    rows=400,
    hidden=(32, 32),
    output="sigmoid",
    optimizer="adam",
    loss="binary_crossentropy",
    metrics=("accuracy",),
    batch_size=32,
    epochs=100,
    slow_epochs=20,
    members=64,
)
STREAM = MOONS._replace(
    name="stream",
    title=f"3,200 such points from a PyDataset, batch by batch; otherwise {MOONS.title.split('; ', 1)[1]}",
    rows=3200,
    epochs=10,
    slow_epochs=2,
    is_stream=True,
)
CALLBACKS = MOONS._replace(
    name="callbacks",
    title=f"the same with a callback that does nothing at the end of each epoch; {MOONS.title}",
    has_callback=True,
)
STOPPING = MOONS._replace(
    name="stopping",
    title="the same 400 points; two hidden ReLU layers, the first of which is dead in every other member, SGD(0.05)",
    hidden=(8, 8),
    optimizer="sgd",
    metrics=(),
    members=1024,
)


def begin(hidden: set[str], target: Callable, *arguments: Any) -> None:
    """Runs `target` as if what is `hidden` were not installed: Keras imports TensorFlow wherever it finds it."""

    class Finder(PathFinder):
        @classmethod
        def find_spec(cls, name: str, path: Any = None, target: Any = None) -> Any:
            return None if name in hidden else super().find_spec(name, path, target)

    sys.meta_path[:] = [Finder if finder is PathFinder else finder for finder in sys.meta_path]
    target(*arguments)


def data(problem: Problem) -> tuple:
    """Returns x and y without kohort, which would set JAX up for its rivals, too."""
    import numpy as np

    if problem.name == "xor":
        x, y = np.array([[1, 0], [0, 1], [1, 1], [0, 0]]), np.array([1, 1, 0, 0])
    else:
        from sklearn.datasets import make_moons

        x, y = make_moons(n_samples=problem.rows, noise=0.1, random_state=0)
    return x.astype("float32"), y.astype("float32")


def batches(problem: Problem) -> Any:
    """Returns the data as a PyDataset."""
    import keras

    x, y = data(problem)

    class Batches(keras.utils.PyDataset):
        def __len__(self) -> int:
            return -(-problem.rows // problem.batch_size)

        def __getitem__(self, index: int) -> tuple:
            rows = slice(index * problem.batch_size, (index + 1) * problem.batch_size)
            return x[rows], y[rows]

    return Batches()


def compiled(problem: Problem, model: Any = None, steps_per_execution: int = 1) -> Any:
    """Returns the problem's network, or a clone of `model`, compiled."""
    import keras

    if model is None:
        hidden = [keras.layers.Dense(units, activation="relu") for units in problem.hidden]
        output = keras.layers.Dense(1, activation=problem.output)
        model = keras.Sequential([keras.Input(shape=(2,)), *hidden, output])
    else:
        model = keras.models.clone_model(model)
    optimizer = {"rmsprop": keras.optimizers.RMSprop, "adam": keras.optimizers.Adam}[problem.optimizer](1e-3)
    model.compile(optimizer, problem.loss, metrics=list(problem.metrics), steps_per_execution=steps_per_execution)
    return model


# --- who trains -------------------------------------------------------------------------------------------------------
# Each returns `once(epochs)`, which trains seed 0 (a cohort: all seeds) from its beginning.


class Fit(NamedTuple):
    """What one training took, and what it left."""

    seconds: float
    loss: float  # of seed 0, in the last epoch
    median_loss: float | None = None  # of all members


Once = Callable[[int], Fit]


def warm_fit(problem: Problem, train: Callable, steps_per_execution: int) -> Once:
    """Fits one model again and again, each time from the state in which seed 0 begins."""
    import keras
    import numpy as np

    if problem.is_stream:
        arguments: dict[str, Any] = {"x": batches(problem)}
    else:
        arguments = {**dict(zip("xy", data(problem), strict=True)), "batch_size": problem.batch_size}

    class Nothing(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
            pass

    if problem.has_callback:
        arguments["callbacks"] = [Nothing()]
    base = compiled(problem)
    keras.utils.set_random_seed(0)
    model = compiled(problem, base, steps_per_execution)
    model.optimizer.build(model.trainable_variables)
    variables = [*model.variables, *model.optimizer.variables]
    beginning = [np.array(variable.value) for variable in variables]

    def once(epochs: int) -> Fit:
        for variable, value in zip(variables, beginning, strict=True):
            variable.assign(value)
        random.seed(0)
        np.random.seed(0)
        np.random.permutation(problem.rows)  # a fresh model's fit reads one batch more, to build losses and metrics
        start = time.perf_counter()
        history = train(model, epochs=epochs, verbose=0, **arguments)
        return Fit(time.perf_counter() - start, history.history["loss"][-1])

    return once


def kohort_fit(problem: Problem, _: None) -> Once:
    """One network by `kohort.fit`, warm."""
    import kohort

    return warm_fit(problem, kohort.fit, 1)


def keras_fit(problem: Problem, steps_per_execution: int) -> Once:
    """One network by `model.fit`, warm, on the backend of this process."""
    import keras

    return warm_fit(problem, keras.Model.fit, steps_per_execution)


def keras_loop(problem: Problem, _: None) -> Once:
    """Trains the next seed at each call, as a user's loop over seeds would, compiling included."""
    import keras

    x, y = data(problem)
    base, seeds = compiled(problem), itertools.count()

    def once(epochs: int) -> Fit:
        keras.utils.set_random_seed(next(seeds))
        start = time.perf_counter()
        model = compiled(problem, base)
        history = model.fit(x, y, batch_size=problem.batch_size, epochs=epochs, verbose=0)
        return Fit(time.perf_counter() - start, history.history["loss"][-1])

    return once


def cohort_fit(problem: Problem, exact: bool, mapping: str = "auto") -> Once:
    """All members, warm; their initialisation counts."""
    import numpy as np

    import kohort

    x, y = data(problem)
    base = compiled(problem)

    def once(epochs: int) -> Fit:
        start = time.perf_counter()
        cohort = kohort.Cohort(base, problem.members, exact=exact, mapping=mapping)
        history = cohort.fit(x, y, batch_size=problem.batch_size, epochs=epochs, verbose=0)
        seconds = time.perf_counter() - start
        last = np.asarray(history["loss"])[:, -1]
        return Fit(seconds, float(last[0]), float(np.nanmedian(last)))

    return once


def stopping_fit(problem: Problem, stops: bool) -> Once:
    """Members half of which learn nothing, warm; `stops` lets `EarlyStopping` end those at a tenth of the epochs."""
    import keras
    import numpy as np

    import kohort

    @keras.saving.register_keras_serializable("benchmarks")
    class EveryOther(keras.initializers.GlorotUniform):
        """Kernels of zeros in about half of the members: no gradient passes a ReLU that is zero everywhere."""

        def __call__(self, shape: Any, dtype: Any = None) -> Any:
            kernel = super().__call__(shape, dtype)
            return kernel * (kernel[0, 0] > 0)

    x, y = data(problem)
    first, *others = (keras.layers.Dense(width, activation="relu") for width in problem.hidden)
    first.kernel_initializer = EveryOther()
    output = keras.layers.Dense(1, activation=problem.output, use_bias=False)  # which would learn for a while
    base = keras.Sequential([keras.Input((2,)), first, *others, output])
    base.compile(optimizer=keras.optimizers.SGD(0.05), loss=problem.loss)

    def once(epochs: int) -> Fit:
        patience = max(1, epochs // 10 - 1)
        callbacks = [keras.callbacks.EarlyStopping("loss", patience=patience)] if stops else None
        start = time.perf_counter()
        cohort = kohort.Cohort(base, problem.members)
        history = cohort.fit(x, y, problem.batch_size, epochs, verbose=0, callbacks=callbacks)
        seconds = time.perf_counter() - start
        last = np.asarray(history.last("loss"))
        return Fit(seconds, float(last[0]), float(np.nanmedian(last)))

    return once


def torch_loop(problem: Problem, threads: int) -> Once:
    """The plain loop of the tutorials, without accuracy; batches are gathered by index, XOR is one full batch."""
    import torch

    torch.set_num_threads(threads)
    x, y = (torch.from_numpy(array.reshape(problem.rows, -1)) for array in data(problem))
    loss_of = torch.nn.MSELoss() if problem.loss == "mse" else torch.nn.BCELoss()
    is_full = problem.batch_size == problem.rows

    def one_epoch(model: Any, optimizer: Any) -> float:
        total = torch.zeros(())
        for rows in [slice(None)] if is_full else torch.randperm(problem.rows).split(problem.batch_size):
            optimizer.zero_grad()
            targets = y[rows]
            loss = loss_of(model(x[rows]), targets)
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(targets)
        return total.item() / problem.rows

    def once(epochs: int) -> Fit:
        model, optimizer = torch_network(problem)
        start = time.perf_counter()
        losses = [one_epoch(model, optimizer) for _ in range(epochs)]
        return Fit(time.perf_counter() - start, losses[-1])

    return once


def torch_network(problem: Problem) -> tuple:
    """Returns network and optimizer with Keras's initial distribution and its optimizers' numbers."""
    import torch

    torch.manual_seed(0)
    dense = [torch.nn.Linear(*widths) for widths in itertools.pairwise([2, *problem.hidden, 1])]
    for layer in dense:
        torch.nn.init.xavier_uniform_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    hidden = [part for layer in dense[:-1] for part in (layer, torch.nn.ReLU())]
    last = [dense[-1], torch.nn.Sigmoid()] if problem.output == "sigmoid" else [dense[-1]]
    model = torch.nn.Sequential(*hidden, *last)
    if problem.optimizer == "rmsprop":
        return model, torch.optim.RMSprop(model.parameters(), 1e-3, alpha=0.9, eps=1e-7)
    return model, torch.optim.Adam(model.parameters(), 1e-3, eps=1e-7)


def take_turns(pipe: Any, make: Callable, problem: Problem, options: tuple, epochs: int, turn_seconds: float) -> None:
    """Warms up, sends the fastest option, then answers each request with a turn's median time."""
    best = fastest(make, problem, options, max(1, epochs // 10))
    once = make(problem, best)
    if make is not keras_loop:
        once(epochs)
    pipe.send(best)
    while pipe.recv():
        fits = [once(epochs)]
        while sum(fit.seconds for fit in fits) < turn_seconds:
            fits.append(once(epochs))
        pipe.send(fits[0]._replace(seconds=statistics.median(fit.seconds for fit in fits)))


def fastest(make: Callable, problem: Problem, options: tuple, epochs: int) -> Any:
    """Returns the option with which a warm fit of some epochs takes the least time."""
    if len(options) == 1:
        return options[0]
    seconds = {}
    for option in options:
        once = make(problem, option)
        once(epochs)
        seconds[option] = min(once(epochs).seconds for _ in range(3))
    return min(options, key=seconds.__getitem__)


# --- what is not a race -----------------------------------------------------------------------------------------------


def first_fit(pipe: Any, name: str, problem: Problem) -> None:
    """Sends the seconds of importing JAX and Keras, of all that comes after, of the fit in it, of compiling in that."""
    before = time.perf_counter()
    import jax
    import keras

    imported = time.perf_counter()
    x, y = data(problem)
    compiling = listen_to_compilations(jax.monitoring)
    ready = time.perf_counter()
    if name != "model.fit on JAX":
        import kohort
    model = compiled(problem)
    built = time.perf_counter()
    compiling.clear()
    if name == "Cohort.fit":
        fit = kohort.Cohort(model, problem.members).fit
    else:
        fit = functools.partial(kohort.fit if name == "kohort.fit" else keras.Model.fit, model)
    fit(x, y, batch_size=problem.batch_size, epochs=problem.epochs, verbose=0)
    end = time.perf_counter()
    pipe.send((imported - before, end - ready, end - built, sum(compiling)))


def compilations(pipe: Any, problem: Problem) -> None:
    """Sends how many programs XLA compiled in each of several fits, as (who, what is other than before, count)."""
    import jax

    import kohort

    events = listen_to_compilations(jax.monitoring)
    x, y = data(problem)
    model, n, epochs, counts = compiled(problem), problem.members, problem.epochs, []

    def count(who: str, other: str, fit: Callable, x: Any, epochs: int) -> None:
        events.clear()
        fit(x, y, batch_size=problem.batch_size, epochs=epochs, verbose=0)
        counts.append((who, other, len(events)))

    for other, values, more in ("", x, 0), ("other epochs", x, epochs // 2), ("other data", 1 - x, 0):
        count("kohort.fit", other, functools.partial(kohort.fit, model), values, epochs + more)
        count("Cohort.fit", other, kohort.Cohort(model, n).fit, values, epochs + more)
    count("Cohort.fit", "other seeds", kohort.Cohort(model, range(n, 2 * n)).fit, x, epochs)
    pipe.send(counts)


def listen_to_compilations(monitoring: Any) -> list[float]:
    """Returns a list that grows by the seconds of each compilation (or loading of a compiled program) by XLA."""
    seconds = []

    def listen(event: str, duration: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            seconds.append(duration)

    monitoring.register_event_duration_secs_listener(listen)
    return seconds


def memory(pipe: Any, problem: Problem, refits: int) -> None:
    """Sends MiB of resident memory: before a cohort, at its peak, and what re-fits added after the tenth."""
    import kohort

    x, y = data(problem)
    cohort = kohort.Cohort(compiled(problem), problem.members)
    before = resident_mebibytes()
    cohort.fit(x, y, epochs=problem.epochs, verbose=0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    after_ten = 0.0
    for refit in range(1, 11 + refits):
        cohort.fit(x, y, epochs=problem.slow_epochs, verbose=0)
        after_ten = resident_mebibytes() if refit == 10 else after_ten
    pipe.send((before, peak, resident_mebibytes() - after_ten))


def resident_mebibytes() -> float:
    """Reads the resident memory of this process (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20
