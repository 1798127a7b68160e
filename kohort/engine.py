"""The compiled fit, written for one member.

In come pure functions of one network (Keras's own steps), its state and the row numbers of each batch; out come the
state after any number of epochs and the logs of each epoch. Nothing here knows Keras or many members until the last
lines, which map a program over a leading member axis. The room exists because the time of a small `fit` is dispatch:
one program that holds the whole loop over epochs and batches has none.
"""

import hashlib
import math
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun
from jaxtyping import Array, Bool, Int, UInt

# A call returns to Python after about this long, so that progress moves and Ctrl-C is heard.
CALL_SECONDS = 0.1
# The most epochs of one call: fixed, so that any number of epochs is served by one program.
MAX_EPOCHS = 4096
# The most bytes of row numbers that one call carries.
MAX_ROW_BYTES = 16 * 2**20
# A step that reads fewer bytes of weights than this gets ballast; XLA's own limit is a kilobyte.
LIGHT_BYTES = 4096
# XLA's CPU client takes NumPy's memory as it is when it begins at a multiple of so many bytes.
ALIGNMENT = 64


class State(NamedTuple):
    """All arrays that training changes, as Keras's four lists."""

    trainable_variables: list
    non_trainable_variables: list
    optimizer_variables: list
    metrics_variables: list


class Functions(NamedTuple):
    """One network's steps as pure functions of its `State` and a batch."""

    train_step: Callable[[State, Any], tuple[dict, State]]
    test_step: Callable[[State, Any], tuple[dict, State]]
    predict_step: Callable[[State, Any], Any]
    reset_metrics: Callable[[State], State]
    results: Callable[[State, dict], dict]


class Cut(NamedTuple):
    """How one pass over the rows is cut: `full` batches of `batch_size` rows, then one of `partial` rows (0: none)."""

    batch_size: int
    full: int
    partial: int

    @property
    def rows(self) -> int:
        """Rows of one pass."""
        return self.full * self.batch_size + self.partial


class Schedule(NamedTuple):
    """What each epoch of a call does; None stands for "the same in every epoch" and costs nothing."""

    rows: UInt[Array | np.ndarray, "*member epoch row"] | None = None  # row numbers in batch order; None: as they come
    full: Int[Array | np.ndarray, " epoch"] | None = None  # full batches of the epoch; None: all of the cut
    partial: Int[Array | np.ndarray, " epoch"] | None = None  # partial batches of the epoch, 0 or 1; None: as cut
    validates: Bool[Array | np.ndarray, " epoch"] | None = None  # whether validation follows; None: always


def take(samples: Any, rows: Any) -> Any:
    """Gathers the batch with these row numbers."""
    return jax.tree.map(lambda a: a.at[rows].get(mode="promise_in_bounds"), samples)


class Unknown(NamedTuple):
    """Values that XLA cannot know: with them it must compile a step as if it stood alone, and so rounds as Keras does.

    XLA chooses kernels and merges operations across all that it sees in one computation, which changes last bits. It
    does not look across the border of a loop whose length it cannot know: `one` is such a length. And a loop that
    touches less than a kilobyte becomes one piece of machine code, which rounds otherwise, too: where the weights are
    so few, reading the `zeros` in each step is the ballast against that, some 300 nanoseconds.
    """

    one: Any
    zeros: Any = None

    @classmethod
    def of(cls, count: Any, state: State) -> "Unknown":
        """Makes them from a traced count of at least 1, for loops that read this state."""
        one = jnp.where(count > 0, 1, 2)  # not min(count, 1): a loop of at most one round is no loop to XLA
        weight_bytes = sum(v.size * v.dtype.itemsize for v in state.trainable_variables)
        is_light = weight_bytes < LIGHT_BYTES
        return cls(one, lax.optimization_barrier(jnp.arange(512) * (one - 1)) if is_light else None)

    def place(self, start: Any, i: Any) -> Any:
        """Returns `start`, in a way that makes the loop over `i` heavy enough."""
        return start if self.zeros is None else start + jnp.max(self.zeros * i)


def run_batches(
    step: Callable, carry: Any, cut: Cut, unknown: Unknown, rows: Any, full: Any = None, partial: Any = None
) -> Any:
    """Applies `carry = step(carry, rows)` to the batches of one pass, each kind of batch in a loop of its own."""

    def slice_of(rows: Any, i: Any, start: Any, size: int) -> Any:
        return lax.dynamic_slice_in_dim(rows, unknown.place(start, i), size)

    def body(i: Any, carry: Any) -> Any:
        return step(carry, slice_of(rows, i, i * cut.batch_size, cut.batch_size))

    def last(i: Any, carry: Any) -> Any:
        return step(carry, slice_of(rows, i, cut.full * cut.batch_size, cut.partial))

    if cut.full:
        carry = lax.fori_loop(0, unknown.one * cut.full if full is None else full, body, carry)
    if cut.partial:
        carry = lax.fori_loop(0, unknown.one if partial is None else partial, last, carry)
    return carry


def run_pass(
    functions: Functions,
    step: Callable,
    state: State,
    samples: Any,
    cut: Cut,
    unknown: Unknown,
    rows: Any = None,
    full: Any = None,
    partial: Any = None,
) -> tuple[State, dict]:
    """Resets the metrics, runs `step` over one pass of the samples and returns the state and the pass's logs."""
    rows = jnp.arange(cut.rows) if rows is None else rows
    state = functions.reset_metrics(state)

    def one(carry: tuple, rows: Any) -> tuple:
        return behind_barrier(canonical_convolutions(step))(carry[1], take(samples, rows))

    batch = take(samples, rows[: cut.batch_size if cut.full else cut.partial])
    no_logs, _ = zeros_like_result(step, state, batch)
    logs, state = run_batches(one, (no_logs, state), cut, unknown, rows, full, partial)
    return state, op_by_op(functions.results)(state, logs)


def epochs_program(functions: Functions, cut: Cut, validation_cut: Cut | None, capacity: int) -> Callable:
    """Returns `run(state, samples, validation, schedule, count)`: `count` epochs of training for one member.

    The logs come back as `(training, validation)` with a leading axis `epoch` of length `capacity`; from epoch `count`
    on, and where an epoch did not validate, they hold zeros.
    """

    def train(state: State, samples: Any, schedule: Schedule, e: Any, unknown: Unknown) -> tuple:
        of_epoch = [None if part is None else part[e] for part in schedule[:3]]
        return run_pass(functions, functions.train_step, state, samples, cut, unknown, *of_epoch)

    def one_epoch(state: State, samples: Any, validation: Any, schedule: Schedule, e: Any, unknown: Unknown) -> tuple:
        state, logs = train(state, samples, schedule, e, unknown)
        if validation_cut is None:
            return state, (logs, {})
        pass_cut = validation_cut

        def validate(state: State) -> tuple:
            return run_pass(functions, functions.test_step, state, validation, pass_cut, unknown)

        def skip(state: State) -> tuple:
            return state, zeros_like_result(validate, state)[1]

        if schedule.validates is None:
            state, val_logs = validate(state)
        else:
            state, val_logs = lax.cond(schedule.validates[e], validate, skip, state)
        return state, (logs, val_logs)

    def run(state: State, samples: Any, validation: Any, schedule: Schedule, count: Any) -> tuple:
        unknown = Unknown.of(count, state)
        _, logs = zeros_like_result(one_epoch, state, samples, validation, schedule, 0, unknown)
        history = jax.tree.map(lambda log: jnp.zeros((capacity, *log.shape), log.dtype), logs)

        def body(e: Any, carry: tuple) -> tuple:
            state, logs = one_epoch(carry[0], samples, validation, schedule, e, unknown)
            return state, jax.tree.map(lambda h, log: h.at[e].set(log), carry[1], logs)

        return lax.fori_loop(0, count, body, (state, history))

    return run


def zeros_like_result(function: Callable, *args: Any) -> Any:
    """Returns zeros of the shapes that `function(*args)` would return, without running it."""
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(function, *args))


def validation_program(functions: Functions, cut: Cut) -> Callable:
    """Returns `run(state, samples, count)`: the state and the logs after one pass of `test_step`; `count` is 1."""

    def run(state: State, samples: Any, count: Any) -> tuple[State, dict]:
        return run_pass(functions, functions.test_step, state, samples, cut, Unknown.of(count, state))

    return run


def evaluate_program(functions: Functions, cut: Cut) -> Callable:
    """Returns `run(state, samples)`: the logs of one pass of `test_step` for one member."""

    def run(state: State, samples: Any) -> dict:
        return run_pass(functions, functions.test_step, state, samples, cut, Unknown.of(1, state))[1]

    return run


def predict_program(functions: Functions, cut: Cut) -> Callable:
    """Returns `run(state, samples)`: the outputs for all rows (leading axis `sample`) for one member."""

    def run(state: State, samples: Any) -> Any:
        parts = []
        if cut.full:
            whole = cut.full * cut.batch_size
            batches = jax.tree.map(lambda a: a[:whole].reshape(cut.full, cut.batch_size, *a.shape[1:]), samples)
            outputs = lax.map(lambda batch: functions.predict_step(state, batch), batches)
            parts.append(jax.tree.map(lambda o: o.reshape(whole, *o.shape[2:]), outputs))
        if cut.partial:
            rest = jax.tree.map(lambda a: a[cut.full * cut.batch_size :], samples)
            parts.append(functions.predict_step(state, rest))
        return jax.tree.map(lambda *outputs: jnp.concatenate(outputs), *parts)

    return run


def behind_barrier(function: Callable) -> Callable:
    """Returns `function` with a barrier before it, so that XLA merges nothing that comes earlier into it."""

    def run(*args: Any) -> Any:
        return function(*lax.optimization_barrier(args))

    return run


def interpreted(function: Callable, apply: Callable[[Any, Callable, list], list]) -> Callable:
    """Returns `function` with each of its operations done by `apply(equation, as_traced, inputs)`."""

    def run(*args: Any) -> Any:
        closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
        outputs = evaluate(closed, jax.tree.leaves(args), apply)
        return jax.tree.unflatten(jax.tree.structure(shape), outputs)

    return run


def evaluate(closed: ClosedJaxpr, inputs: list, apply: Callable[[Any, Callable, list], list]) -> list:
    """Evaluates a traced program operation by operation."""
    jaxpr = closed.jaxpr
    values = dict(zip(jaxpr.constvars, closed.consts, strict=True)) | dict(zip(jaxpr.invars, inputs, strict=True))

    def read(variable: Any) -> Any:
        return variable.val if isinstance(variable, Literal) else values[variable]

    for equation in jaxpr.eqns:
        variables = [v for v in equation.invars if not isinstance(v, Literal)]
        single = Jaxpr((), variables, equation.outvars, [equation], equation.effects, jaxpr.debug_info)
        outputs = apply(equation, jaxpr_as_fun(ClosedJaxpr(single, ())), [values[v] for v in variables])
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(v) for v in jaxpr.outvars]


def op_by_op(function: Callable) -> Callable:
    """Returns `function` with a barrier after each operation, so that it rounds as it does when run eagerly.

    XLA may merge neighbouring operations of one program (two constant factors become one), or compute one in the
    memory layout that suits the next (a QR decomposition), which changes last bits.
    """

    def plain(output: Any) -> Any:
        is_matrix = output.ndim > 1 and not jnp.issubdtype(output.dtype, jax.dtypes.extended)
        return with_layout_constraint(output, Layout(tuple(range(output.ndim)))) if is_matrix else output

    def apply(equation: Any, as_traced: Callable, inputs: list) -> list:
        inner = equation.params.get("jaxpr")
        if equation.primitive.name in ("jit", "pjit") and len(inputs) < len(equation.invars):
            # Run eagerly, a jitted function takes numbers as arguments; here they would be constants to XLA.
            given = iter(inputs)
            arguments = [behind(v) if isinstance(v, Literal) else next(given) for v in equation.invars]
            return lax.optimization_barrier([plain(output) for output in jaxpr_as_fun(inner)(*arguments)])
        return lax.optimization_barrier([plain(output) for output in as_traced(*inputs)])

    def behind(literal: Any) -> Any:
        return lax.optimization_barrier(jnp.asarray(literal.val, literal.aval.dtype))

    return interpreted(function, apply)


def canonical_convolutions(function: Callable) -> Callable:
    """Returns `function` with the axes of each convolution in the order (batch, space, feature).

    XLA's CPU compiler brings convolutions, such as those of a kernel's gradient, into this form itself, but not inside
    a loop: there they would round otherwise and be many times slower.
    """

    def apply(equation: Any, as_traced: Callable, inputs: list) -> list:
        if equation.primitive.name == "conv_general_dilated":
            return [canonical_convolution(*inputs, **equation.params)]
        inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
        is_literal_free = len(inputs) == len(equation.invars)
        if is_literal_free and equation.primitive.name in INLINED_CALLS and "conv_general_dilated" in str(inner):
            return evaluate(inner, inputs, apply)
        return as_traced(*inputs)

    def run(*args: Any) -> Any:
        has_convolutions = "conv_general_dilated" in str(jax.make_jaxpr(function)(*args))
        return interpreted(function, apply)(*args) if has_convolutions else function(*args)

    return run


# Calls whose body XLA compiles as if it stood at the place of the call.
INLINED_CALLS = {"pjit", "jit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call"}


def canonical_convolution(lhs: Any, rhs: Any, *, dimension_numbers: Any, **params: Any) -> Any:
    """Does a convolution with its axes in the order (batch, space, feature) and (space, feature in, feature out)."""
    lhs_axes, rhs_axes, out_axes = dimension_numbers
    n = len(lhs_axes)
    space = tuple(range(1, n - 1))
    canonical = lax.ConvDimensionNumbers((0, n - 1, *space), (n - 1, n - 2, *range(n - 2)), (0, n - 1, *space))
    lhs = lax.transpose(lhs, (lhs_axes[0], *lhs_axes[2:], lhs_axes[1]))
    rhs = lax.transpose(rhs, (*rhs_axes[2:], rhs_axes[1], rhs_axes[0]))
    out = lax.conv_general_dilated(lhs, rhs, dimension_numbers=canonical, **params)
    place = dict(zip(out_axes, canonical.out_spec, strict=True))
    return lax.transpose(out, tuple(place[axis] for axis in range(n)))


def training_call(run: Callable) -> Callable:
    """Compiles a training program; each call gets a copy of the state to work in, the caller's own stays as it is.

    Keras donates the state to its step, and that, too, is seen in last bits: where an array is updated in place, the
    compiler vectorises otherwise. A copy costs less than it would to lose the state when a call fails.
    """
    program = jax.jit(run, donate_argnums=0)

    def call(state: State, samples: Any, validation: Any, schedule: Schedule, count: int) -> tuple:
        return program(_copied(state), samples, validation, on_device(schedule), count)

    return call


@jax.jit
def _copied(state: State) -> State:
    return jax.tree.map(jnp.copy, state)


class Pace:
    """How many epochs one call may run, so that it returns after about `seconds`."""

    def __init__(self) -> None:
        """Starts without a measurement: the first call then runs a single epoch."""
        self.seconds_per_epoch: float | None = None
        self._last: tuple[int, float] | None = None

    def epochs(self, remaining: int, capacity: int, seconds: float = CALL_SECONDS) -> int:
        """Returns the epochs of the next call, at least 1."""
        affordable = 1 if self.seconds_per_epoch is None else int(seconds / self.seconds_per_epoch)
        return max(1, min(remaining, capacity, affordable))

    def record(self, epochs: int, seconds: float) -> None:
        """Takes in what the last call took.

        Two calls of different lengths tell what an epoch costs beyond what a call costs; as clocks and machines are
        noisy, an epoch counts for at least a twentieth of its share of the call.
        """
        share = max(seconds, 1e-9) / epochs
        self.seconds_per_epoch = share
        if self._last is not None and self._last[0] != epochs:
            slope = (seconds - self._last[1]) / (epochs - self._last[0])
            self.seconds_per_epoch = min(share, max(slope, share / 20))
        self._last = (epochs, seconds)


def room(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Returns zeros in memory that nothing has touched yet, aligned so that a CPU computes in it without a copy.

    A call has room for more epochs than it mostly runs: what is never written is then never paid for.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.zeros(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


def on_device(schedule: Schedule) -> Schedule:
    """Hands the row numbers of a `room` to the device; nobody may write into them afterwards."""
    return schedule if schedule.rows is None else schedule._replace(rows=jax.device_put(schedule.rows))


def capacity(row_bytes: int) -> int:
    """Returns the most epochs of one call, given the bytes of row numbers that one epoch carries."""
    return max(1, min(MAX_EPOCHS, MAX_ROW_BYTES // max(1, row_bytes)))


def wait(results: Any, interrupt: Any) -> bool:
    """Waits for the arrays. Returns False as soon as `interrupt` is true: they are then left to finish unused."""
    pause = 1e-4
    leaves = jax.tree.leaves(results)
    while not all(leaf.is_ready() for leaf in leaves):
        if interrupt:
            return False
        time.sleep(pause)
        pause = min(2 * pause, 0.02)
    return True


def over_members(run: Callable) -> Callable:
    """Maps a training program over members: state and row numbers have a leading member axis, all else is shared."""
    shared_schedule = Schedule(rows=0, full=None, partial=None, validates=None)  # type: ignore[arg-type]
    return jax.vmap(run, in_axes=(0, None, None, shared_schedule, None))


def keep_programs_on_disk() -> None:
    """Lets JAX keep compiled programs for the next process, in a folder that this user alone can read and write.

    The folder is `KOHORT_CACHE_DIR` (empty: keep nothing), by default `kohort` in the user's cache folder. A cache that
    is set up already, by `JAX_COMPILATION_CACHE_DIR` or in `jax.config`, stays as it is.
    """
    if os.environ.get("KOHORT_CACHE_DIR") == "" or getattr(jax.config, "jax_compilation_cache_dir", None):
        return
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        own = Path(os.environ.get("KOHORT_CACHE_DIR") or cache / "kohort") / f"programs-{_processor()}"
        own.mkdir(mode=0o700, parents=True, exist_ok=True)
        is_private = _is_private(own)
    except (OSError, RuntimeError):
        return  # no home, or one that is read-only: then every process compiles anew
    if not is_private:
        return  # programs that somebody else could have put there are not run
    jax.config.update("jax_compilation_cache_dir", str(own))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def _is_private(folder: Path) -> bool:
    """Says whether nobody but this user can put a file into the folder, or another folder in its place."""
    own, parent = folder.lstat(), folder.parent.stat()
    if not hasattr(os, "getuid"):
        return True
    is_own = stat.S_ISDIR(own.st_mode) and own.st_uid == os.getuid() and not own.st_mode & 0o077
    return is_own and (not parent.st_mode & 0o022 or bool(parent.st_mode & stat.S_ISVTX))


def _processor() -> str:
    """Names this processor's instruction set: programs that were compiled for another must not be run."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return hashlib.sha256(flags.encode()).hexdigest()[:12]
