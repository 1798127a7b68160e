"""The compiled fit, written for one member.

In come pure functions of one network (Keras's own steps), its state and the row numbers of each batch; out come the
state after any number of epochs and the logs of each epoch. Nothing here knows Keras, or how many members there are.
The room exists because the time of a small `fit` is dispatch: one program that holds the whole loop over epochs and
batches has none.
"""

import functools
import math
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Int, UInt

from kohort import traced
from kohort.rounding import behind_barrier, canonical_convolutions, op_by_op, traced_once

# A call returns to Python after about this long, so that progress moves and Ctrl-C is heard.
CALL_SECONDS = 0.1
# The most epochs of one call: fixed, so that any number of epochs is served by one program.
MAX_EPOCHS = 4096
# The most bytes of row numbers that one call carries.
MAX_ROW_BYTES = 16 * 2**20
# How long a call is waited for by asking whether it is over.
ASKING_SECONDS = 1e-3
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

    def traced_once(self) -> "Functions":
        """Returns them with steps that are traced once for each form of batch, in all programs together."""
        return self._replace(train_step=traced_once(self.train_step), test_step=traced_once(self.test_step))


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
    resets: Bool[Array | np.ndarray, " epoch"] | None = None  # whether the metrics begin anew; None: always
    validation_rows: UInt[Array | np.ndarray, "*member row"] | None = None  # rows that validate; None: as they come


def take(samples: Any, rows: Any) -> Any:
    """Gathers the batch with these row numbers; past the end, where no step follows, rows of the end.

    Where the row numbers have a second axis, member, it comes last in the batch.
    """
    batch = jax.tree.map(lambda a: a.at[rows].get(mode="promise_in_bounds"), samples)
    return jax.tree.map(lambda a: jnp.moveaxis(a, 1, -1), batch) if rows.ndim == 2 else batch


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

    def slice_of(self, rows: Any, i: Any, start: Any, size: int) -> Any:
        """Returns `size` of the rows from `start` on, in a way that makes the loop over `i` heavy enough."""
        start = start if self.zeros is None else start + jnp.max(self.zeros * i)
        # Not a slice of all row numbers: where that is the whole, XLA knows its start and drops the ballast.
        return start + jnp.arange(size) if rows is None else lax.dynamic_slice_in_dim(rows, start, size)

    def apart(self, function: Callable, *args: Any) -> Any:
        """Does a function where XLA merges nothing into it or with it: in a branch that it may not take."""
        result = jax.eval_shape(function, *args)
        return lax.cond(self.one < 2, function, lambda *_: jnp.zeros(result.shape, result.dtype), *args)


def run_batches(
    step: Callable,
    carry: Any,
    read: Callable,
    cut: Cut,
    unknown: Unknown,
    rows: Any,
    full: Any = None,
    partial: Any = None,
) -> Any:
    """Applies `carry = step(carry, read(rows))` to the batches of one pass, each kind of batch in a loop of its own.

    Each batch is read one round ahead and carried to its step: what a loop carries is there in memory, as the batch of
    Keras's own step is. Read in the same round, it would be merged into the step, which then rounds otherwise.
    """

    def loop(count: Any, first: int, size: int, carry: Any) -> Any:
        def batch(i: Any) -> Any:
            return read(unknown.slice_of(rows, i, first + i * size, size))

        def body(i: Any, carried: tuple) -> tuple:
            return step(*carried), batch(i + 1)

        return lax.fori_loop(0, count, body, (carry, batch(0)))[0]

    if cut.full:
        carry = loop(unknown.one * cut.full if full is None else full, 0, cut.batch_size, carry)
    if cut.partial:
        carry = loop(unknown.one if partial is None else partial, cut.full * cut.batch_size, cut.partial, carry)
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
    resets: Any = None,
    around: Callable = lambda one: one,
) -> tuple[State, Any]:
    """Resets the metrics, runs `step` over one pass of the samples and returns the state and the pass's logs.

    Without `rows` the samples are taken as they come. With `resets` it is a piece of a pass, which goes on with the one
    before where that is false; the logs are then a pair, with those of the last step. `around` may wrap what is done
    with each batch: a function from `((logs, state), batch)` to the logs and the state after it.
    """
    fresh = functions.reset_metrics(state)
    state = fresh if resets is None else jax.tree.map(lambda a, b: jnp.where(resets, a, b), fresh, state)

    def read(rows: Any) -> Any:
        return take(samples, rows)

    def one(carry: tuple, batch: Any) -> tuple:
        return behind_barrier(canonical_convolutions(step))(carry[1], batch)

    batch = read(unknown.slice_of(rows, 0, 0, cut.batch_size if cut.full else cut.partial))
    no_logs, _ = zeros_like_result(step, state, batch)
    logs, state = run_batches(around(one), (no_logs, state), read, cut, unknown, rows, full, partial)
    results = op_by_op(functions.results)(state, logs)
    return state, results if resets is None else (results, logs)


def epoch_function(
    functions: Functions, cut: Cut, validation_cut: Cut | None, around: Callable | None = None
) -> Callable:
    """Returns `run(state, samples, validation, schedule, e, unknown)`: the epoch at place `e` of a call.

    It gives the state after it and the logs `(training, validation)`; `around` as in `run_pass`, for the training.
    """
    options: dict[str, Any] = {} if around is None else {"around": around}

    def run(state: State, samples: Any, validation: Any, schedule: Schedule, e: Any, unknown: Unknown) -> tuple:
        rows, full, partial, _, resets = (None if part is None else part[e] for part in schedule[:5])
        state, logs = run_pass(
            functions, functions.train_step, state, samples, cut, unknown, rows, full, partial, resets, **options
        )
        if validation_cut is None:
            return state, (logs, {})
        pass_cut = validation_cut

        def validate(state: State) -> tuple:
            rows = schedule.validation_rows
            return run_pass(functions, functions.test_step, state, validation, pass_cut, unknown, rows)

        def skip(state: State) -> tuple:
            return state, zeros_like_result(validate, state)[1]

        if schedule.validates is None:
            state, val_logs = validate(state)
        else:
            state, val_logs = lax.cond(schedule.validates[e], validate, skip, state)
        return state, (logs, val_logs)

    return run


def epochs_program(functions: Functions, cut: Cut, validation_cut: Cut | None, capacity: int) -> Callable:
    """Returns `run(state, samples, validation, schedule, count)`: `count` epochs of training for one member.

    The logs come back as `(training, validation)` with a leading axis `epoch` of length `capacity`; from epoch `count`
    on, and where an epoch did not validate, they hold zeros.
    """
    epoch = epoch_function(functions, cut, validation_cut)

    def run(state: State, samples: Any, validation: Any, schedule: Schedule, count: Any) -> tuple:
        unknown = Unknown.of(count, state)
        return over_epochs(
            lambda state, e: epoch(state, samples, validation, schedule, e, unknown), state, count, capacity
        )

    return run


def over_epochs(epoch: Callable, carry: Any, count: Any, capacity: int) -> tuple:
    """Applies `carry, logs = epoch(carry, e)` `count` times, and stacks the logs in arrays of length `capacity`."""
    epoch = jax.jit(epoch, inline=True)  # traced once, for the shapes of its logs and for the loop
    _, logs = zeros_like_result(epoch, carry, jax.typeof(count))
    history = jax.tree.map(lambda log: jnp.zeros((capacity, *log.shape), log.dtype), logs)

    def body(e: Any, carry: tuple) -> tuple:
        after, logs = epoch(carry[0], e)
        return after, jax.tree.map(lambda h, log: lax.dynamic_update_index_in_dim(h, log, e, 0), carry[1], logs)

    return lax.fori_loop(0, count, body, (carry, history))


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


def begin_program(functions: Functions) -> Callable:
    """Returns `run(state)`: a copy of the state to work in, with its metrics reset, as a pass over batches begins."""

    def run(state: State) -> State:
        return functions.reset_metrics(jax.tree.map(jnp.copy, state))

    return run


def batches_program(functions: Functions, step: Callable, capacity: int) -> Callable:
    """Returns `run(state, batches, count)`: the first `count` of a stack of batches that all have the same shape.

    A pass is any number of such calls. Each returns the state, the logs of its last step, and the logs of the pass as
    they would be if it ended there. The arrays of the stack have a leading axis of length `capacity`.
    """

    def run(state: State, batches: Any, count: Any) -> tuple[State, dict, dict]:
        def read(place: Any) -> Any:
            return jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, place[0], keepdims=False), batches)

        def one(carry: tuple, batch: Any) -> tuple:
            return behind_barrier(canonical_convolutions(step))(carry[1], batch)

        no_logs, _ = zeros_like_result(step, state, read([0]))
        stack = Cut(batch_size=1, full=capacity, partial=0)
        places = jnp.arange(capacity)
        carry = run_batches(one, (no_logs, state), read, stack, Unknown.of(count, state), places, count)
        return carry[1], carry[0], op_by_op(functions.results)(carry[1], carry[0])

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


class TrainingCall:
    """A compiled training program; each call gets a copy of the state to work in, the caller's own stays as it is.

    Keras donates the state to its step, and that, too, is seen in last bits: where an array is updated in place, the
    compiler vectorises otherwise. A copy costs less than it would to lose the state when a call fails; where it counts,
    `spends=True` does without.
    """

    def __init__(
        self,
        run: Callable,
        options: dict[str, Any] | None = None,
        identity: Callable[[], str | None] | None = None,
    ) -> None:
        """Compiles nothing yet.

        Args:
            run: The program.
            options: Those of XLA that differ from its own.
            identity: Tells all that its trace depends on, or None; it may then be one that an earlier process traced.
        """
        self._run, self._options, self._identity = run, options, identity
        self._program = jax.jit(run, donate_argnums=0, compiler_options=options)
        self._kept: dict[Any, Any] = {}
        self._memory: dict[Any, int] = {}

    def __call__(self, state: Any, *args: Any, spends: bool = False) -> Any:
        """Runs the program, and returns what it carries on and what it logs."""
        return self._program_of(state, *args)(state if spends else self._copied(state), *args)[:2]

    def _copied(self, state: Any) -> Any:
        return traced.copied(state) if self._identity is None else traced.bound(state)

    def _program_of(self, *args: Any) -> Any:
        """Returns the program for such arguments."""
        if self._identity is None or not traced.are_kept():
            return self._program
        form = _form(args)
        if form not in self._kept:
            self._kept[form] = self._carrying(self._identity(), args) or self._program
        return self._kept[form]

    def _carrying(self, identity: str | None, args: tuple) -> "Carrying | None":
        def flat(*args: Any) -> tuple:
            carried, *results = self._run(*args)
            return jax.tree.leaves(carried), *results

        program = identity and traced.program(identity, flat, args, donated=1, options=self._options)
        return Carrying(program) if program else None

    def eval_shape(self, *args: Any) -> Any:
        """Traces the program, and returns the shapes of its results."""
        return self._program.eval_shape(*args)

    def memory(self, state: Any, *args: Any) -> int:
        """Returns the bytes that a call with such arguments takes; it is compiled for it, and not again for a call."""
        form = _form((state, *args))
        if form not in self._memory:
            args = self._copied(state), *args
            told = self._program_of(*args).lower(*args).compile().memory_analysis()
            sizes = (told.argument_size_in_bytes, told.output_size_in_bytes, told.temp_size_in_bytes) if told else ()
            self._memory[form] = sum(sizes)
        return self._memory[form]


class Carrying(NamedTuple):
    """A program that is kept for the next process, and returns the leaves of what it carries on."""

    program: traced.Traced

    def __call__(self, state: Any, *args: Any) -> tuple:
        """Runs it."""
        carried, *results = self.program(state, *args)
        return jax.tree.unflatten(jax.tree.structure(state), carried), *results

    def lower(self, *args: Any) -> Any:
        """Returns it as it is given to XLA."""
        return self.program.lower(*args)


def _form(args: Any) -> tuple:
    """Returns what programs for such arguments have in common; it is asked at each call."""
    leaves, structure = jax.tree.flatten(args)
    return structure, *[(leaf.shape, leaf.dtype) if hasattr(leaf, "shape") else type(leaf) for leaf in leaves]


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

        Two calls, one of which is twice as long as the other, tell what an epoch costs beyond what a call costs; as
        clocks and machines are noisy, an epoch counts for at least a twentieth of its share of the call.
        """
        share = max(seconds, 1e-9) / epochs
        self.seconds_per_epoch = share
        if self._last is not None and not self._last[0] / 2 < epochs < self._last[0] * 2:
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


def capacity(row_bytes: int, most_bytes: int = MAX_ROW_BYTES) -> int:
    """Returns the most epochs of one call, given the bytes of row numbers that one epoch carries."""
    return max(1, min(MAX_EPOCHS, most_bytes // max(1, row_bytes)))


def block_until_ready(results: Any) -> None:
    """Waits for the arrays of one program, which are there all at once.

    To be woken up takes a third as long as a short epoch: for a moment it asks again and again, and gives its turn to
    others in between.
    """
    first, last = jax.tree.leaves(results)[:1], time.perf_counter() + ASKING_SECONDS
    while not all(leaf.is_ready() for leaf in first) and time.perf_counter() < last:
        _give_turn()
    jax.block_until_ready(results)  # raises what went wrong, too


_give_turn = getattr(os, "sched_yield", functools.partial(time.sleep, 0))


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


# Of a schedule, each member of a block has its own row numbers.
OWN_SCHEDULE = Schedule(rows=0, validation_rows=0)  # type: ignore[arg-type]
