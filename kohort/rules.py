"""How a member's training is guided from inside the program: stopping, and learning rates.

In come the logs of an epoch of one member and what a rule remembers of the earlier ones; out go whether the member
trains on, its learning rate, and the weights to return to. Each rule is what one callback of Keras does, written as
pure functions of one member, so that a program holds as many epochs as it likes between two returns to Python. The
form of a rule is compiled in; its numbers are arguments, so that another patience needs no other program.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt

from kohort.engine import (
    Cut,
    Functions,
    Schedule,
    State,
    Unknown,
    epoch_function,
    over_epochs,
    zeros_like_result,
)

RATE = "learning_rate"


class Places(NamedTuple):
    """Where in a `State` the rules find what they need."""

    rate: int | None  # of the learning rate, among the optimizer's variables
    weights: tuple[int, ...]  # of what `model.get_weights` returns, among the variables that are not trainable


class Seen(NamedTuple):
    """What a rule sees when an epoch of one member has ended."""

    epoch: Any  # its number
    logs: dict  # the training's and the validation's, by the names of the history
    validated: Any  # whether there are logs of a validation
    state: State

    def recorded(self, metric: str) -> Any:
        """Returns whether the epoch recorded the metric."""
        return self.validated if metric.startswith("val_") else True


class Verdict(NamedTuple):
    """What a rule decides: the state to go on with, what it adds to the logs, whether the member stops."""

    state: State
    logs: dict
    stops: Any = False


def numbers(value: float) -> np.ndarray:
    """Returns a number of Python for a program that knows 32 bits only: the two halves of its 64."""
    return np.array(value, np.float64).reshape(1).view(np.uint32)


def in_double(function: Callable, value: Any, number: UInt[Array | np.ndarray, "2"]) -> Any:
    """Returns `function(value, number)` as Python computes it: in 64 bits, rounded to those of `value` at the end."""
    with jax.enable_x64(True):
        wide = lax.convert_element_type(value, jnp.float64)
        result = function(wide, lax.bitcast_convert_type(number, jnp.float64))
        return lax.convert_element_type(result, value.dtype)


class Monitor(NamedTuple):
    """A metric that a rule watches, and in which direction it gets better."""

    metric: str
    falls: bool

    def current(self, seen: Seen) -> Any:
        """Returns the metric's value."""
        return jnp.asarray(seen.logs[self.metric], jnp.float32)

    def improves(self, current: Any, reference: Any, min_delta: Any) -> Any:
        """Says whether a value is better than another by more than `min_delta`."""
        if self.falls:
            return in_double(jnp.add, current, min_delta) < reference
        return in_double(jnp.subtract, current, min_delta) > reference


class Best(NamedTuple):
    """The best value so far, and how many epochs ago that was."""

    value: Float[Array | np.ndarray, "*member"]
    is_none: Bool[Array | np.ndarray, "*member"]
    wait: Int[Array | np.ndarray, "*member"]

    @classmethod
    def none(cls, lanes: tuple[int, ...]) -> "Best":
        """Returns what is remembered before the first epoch."""
        return cls(np.zeros(lanes, np.float32), np.ones(lanes, bool), np.zeros(lanes, np.int32))


# --- the rules --------------------------------------------------------------------------------------------------------


class EarlyStop(NamedTuple):
    """`keras.callbacks.EarlyStopping`."""

    monitor: Monitor
    has_baseline: bool
    restores: bool
    weights: tuple[int, ...]

    class Memory(NamedTuple):
        """What it remembers; `weights` are those of the best epoch."""

        best: Best
        weights: Any

    def begin(self, lanes: tuple[int, ...], state: State) -> "EarlyStop.Memory":
        """Returns the memory at the beginning of a fit; `lanes` are the leading axes of the state."""
        return self.Memory(Best.none(lanes), self._weights(state))

    def _weights(self, state: State) -> Any:
        if not self.restores:
            return ()
        return list(state.trainable_variables), [state.non_trainable_variables[place] for place in self.weights]

    def end_epoch(self, numbers: dict, memory: "EarlyStop.Memory", seen: Seen) -> tuple["EarlyStop.Memory", Verdict]:
        """Stops where the metric has not improved for `patience` epochs."""
        best, current = memory.best, self.monitor.current(seen)
        is_due = seen.recorded(self.monitor.metric) & (seen.epoch >= numbers["start_from_epoch"])
        improves = best.is_none | self.monitor.improves(current, best.value, numbers["min_delta"])
        is_enough = improves
        if self.has_baseline:
            is_enough &= self.monitor.improves(current, numbers["baseline"], numbers["min_delta"])
        wait = best.wait + 1
        stops = is_due & ~improves & (wait >= numbers["patience"]) & (seen.epoch > 0)
        new = Best(
            jnp.where(improves, current, best.value), jnp.zeros_like(best.is_none), jnp.where(is_enough, 0, wait)
        )
        weights = chosen(is_due & improves, self._weights(seen.state), memory.weights)
        return self.Memory(chosen(is_due, new, best), weights), Verdict(seen.state, {}, stops)

    def end_training(self, memory: "EarlyStop.Memory", state: State) -> State:
        """Returns to the weights of the best epoch."""
        if not self.restores:
            return state
        weights = chosen_members(memory.best.is_none, self._weights(state), memory.weights)
        others = list(state.non_trainable_variables)
        for place, value in zip(self.weights, weights[1], strict=True):
            others[place] = value
        return state._replace(trainable_variables=weights[0], non_trainable_variables=others)


class ReduceRate(NamedTuple):
    """`keras.callbacks.ReduceLROnPlateau`."""

    monitor: Monitor
    place: int

    class Memory(NamedTuple):
        """What it remembers."""

        best: Best
        cooldown: Int[Array | np.ndarray, "*member"]

    def begin(self, lanes: tuple[int, ...], state: State) -> "ReduceRate.Memory":
        """Returns the memory at the beginning of a fit."""
        return self.Memory(Best.none(lanes), np.zeros(lanes, np.int32))

    def end_epoch(self, numbers: dict, memory: "ReduceRate.Memory", seen: Seen) -> tuple["ReduceRate.Memory", Verdict]:
        """Multiplies the learning rate by `factor` where the metric has not improved for `patience` epochs."""
        rate = seen.state.optimizer_variables[self.place]
        seen = seen._replace(logs=seen.logs | {RATE: rate})
        best, current = memory.best, self.monitor.current(seen)
        is_due = jnp.asarray(seen.recorded(self.monitor.metric))
        cooldown = jnp.maximum(memory.cooldown - 1, 0)
        improves = best.is_none | self.monitor.improves(current, best.value, numbers["min_delta"])
        counts = ~improves & (cooldown == 0)
        wait = jnp.where(memory.cooldown > 0, 0, best.wait) + counts
        reduces = counts & (wait >= numbers["patience"]) & (rate > numbers["min_lr"].astype(rate.dtype))
        reduced = jnp.maximum(in_double(jnp.multiply, rate, numbers["factor"]), numbers["min_lr"].astype(rate.dtype))
        value, none = jnp.where(improves, current, best.value), jnp.zeros_like(best.is_none)
        new = self.Memory(
            Best(value, none, jnp.where(improves | reduces, 0, wait)), jnp.where(reduces, numbers["cooldown"], cooldown)
        )
        state = with_rate(seen.state, self.place, jnp.where(is_due & reduces, reduced, rate))
        return chosen(is_due, new, memory), Verdict(state, {RATE: rate})

    def end_training(self, memory: "ReduceRate.Memory", state: State) -> State:
        """Changes nothing."""
        return state


class ScheduleRate(NamedTuple):
    """`keras.callbacks.LearningRateScheduler`: Python tells the rates beforehand, this records them."""

    place: int

    def begin(self, lanes: tuple[int, ...], state: State) -> tuple:
        """Remembers nothing."""
        return ()

    def end_epoch(self, numbers: dict, memory: tuple, seen: Seen) -> tuple[tuple, Verdict]:
        """Records the learning rate."""
        return memory, Verdict(seen.state, {RATE: seen.state.optimizer_variables[self.place]})

    def end_training(self, memory: tuple, state: State) -> State:
        """Changes nothing."""
        return state


class Terminate(NamedTuple):
    """`keras.callbacks.TerminateOnNaN`: within an epoch by `until_not_finite`, and between epochs here."""

    def begin(self, lanes: tuple[int, ...], state: State) -> tuple:
        """Remembers nothing."""
        return ()

    def end_epoch(self, numbers: dict, memory: tuple, seen: Seen) -> tuple[tuple, Verdict]:
        """Stops where the loss is not finite."""
        return memory, Verdict(seen.state, {}, ~jnp.isfinite(seen.logs["loss"]))

    def end_training(self, memory: tuple, state: State) -> State:
        """Changes nothing."""
        return state


Rule = EarlyStop | ReduceRate | ScheduleRate | Terminate


def chosen(condition: Any, new: Any, old: Any) -> Any:
    """Returns the new values where the condition holds: of one member, or of those in the last axis of all arrays."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


def chosen_members(condition: Any, new: Any, old: Any) -> Any:
    """Returns the new values where the condition holds, whose axes, if any, are the leading ones of all arrays."""

    def each(a: Any, b: Any) -> Any:
        return jnp.where(jnp.reshape(condition, jnp.shape(condition) + (1,) * (a.ndim - jnp.ndim(condition))), a, b)

    return jax.tree.map(each, new, old)


def with_rate(state: State, place: int, rate: Any) -> State:
    """Returns the state with another learning rate."""
    variables = list(state.optimizer_variables)
    variables[place] = jnp.asarray(rate, variables[place].dtype)
    return state._replace(optimizer_variables=variables)


# --- a program that follows them --------------------------------------------------------------------------------------


class Course(NamedTuple):
    """How far one member has come in a fit, and what the rules remember of it."""

    goes_on: Bool[Array | np.ndarray, "*member"]
    epochs: Int[Array | np.ndarray, "*member"]  # that it has run in this fit
    memories: tuple

    @classmethod
    def begin(cls, rules: tuple[Rule, ...], lanes: tuple[int, ...], state: State) -> "Course":
        """Returns the course at the beginning of a fit; `lanes` are the leading axes of the state."""
        memories = tuple(rule.begin(lanes, state) for rule in rules)
        return cls(np.ones(lanes, bool), np.zeros(lanes, np.int32), memories)


class Guidance(NamedTuple):
    """What the rules are told in a call."""

    first_epoch: Any  # the number of the call's first epoch
    numbers: tuple[dict, ...]  # one dict for each rule
    rates: Float[Array | np.ndarray, "*member epoch"] | None = None  # what `ScheduleRate` sets, each epoch


def guided_program(
    functions: Functions,
    cut: Cut,
    validation_cut: Cut | None,
    capacity: int,
    rules: tuple[Rule, ...],
    either: Callable = lax.cond,
) -> Callable:
    """Returns `run((state, course), samples, validation, schedule, count, guidance)` for one member.

    It does what `engine.epochs_program` does as long as the member goes on, and leaves it as it is from there on.
    `either` decides between the two, for one member as `lax.cond`.
    """
    around = until_not_finite(either) if any(isinstance(rule, Terminate) for rule in rules) else None
    epoch = epoch_function(functions, cut, validation_cut, around)

    def run(
        carry: tuple, samples: Any, validation: Any, schedule: Schedule, count: Any, guidance: Guidance
    ) -> tuple[tuple, tuple]:
        unknown = Unknown.of(count, carry[0])

        def train(carry: tuple, e: Any) -> tuple[tuple, tuple]:
            state = begin_epoch(rules, guidance, carry[0], e)
            state, logs = epoch(state, samples, validation, schedule, e, unknown)
            validated = validation_cut is not None and (schedule.validates is None or schedule.validates[e])
            seen = Seen(guidance.first_epoch + e, joined(logs), validated, state)
            state, added, course = end_epoch(rules, guidance.numbers, carry[1], seen)
            return (state, course), (logs[0] | added, logs[1])

        no_logs = zeros_like_result(train, carry, 0)[1]

        def rest(carry: tuple, e: Any) -> tuple[tuple, tuple]:
            return carry, no_logs

        return over_epochs(lambda carry, e: either(carry[1].goes_on, train, rest, carry, e), carry, count, capacity)

    return run


def begin_epoch(rules: tuple[Rule, ...], guidance: Guidance, state: State, e: Any) -> State:
    """Sets the learning rate that a schedule told."""
    places = [rule.place for rule in rules if isinstance(rule, ScheduleRate)]
    return with_rate(state, places[0], guidance.rates[e]) if guidance.rates is not None else state


def end_epoch(rules: tuple[Rule, ...], numbers: tuple, course: Course, seen: Seen) -> tuple[State, dict, Course]:
    """Lets each rule act in turn; returns the state, what they add to the logs, and the member's course."""
    memories, goes_on, added = [], course.goes_on, {}
    for rule, its_numbers, memory in zip(rules, numbers, course.memories, strict=True):
        memory, verdict = rule.end_epoch(its_numbers, memory, seen)
        memories.append(memory)
        added |= verdict.logs
        seen = seen._replace(state=verdict.state, logs=seen.logs | verdict.logs)
        goes_on &= ~jnp.asarray(verdict.stops)
    return seen.state, added, Course(goes_on, course.epochs + 1, tuple(memories))


def joined(logs: tuple[dict, dict]) -> dict:
    """Returns the logs of training and validation by the names of the history."""
    return logs[0] | {f"val_{name}": value for name, value in logs[1].items()}


def until_not_finite(either: Callable) -> Callable:
    """Returns what wraps that which is done with each batch, so that nothing is once the loss is not finite."""

    def around(one: Callable) -> Callable:
        def run(carry: tuple, batch: Any) -> tuple:
            return either(jnp.isfinite(carry[0]["loss"]), one, lambda carry, batch: carry, carry, batch)

        return run

    return around


def both(condition: Any, do: Callable, rest: Callable, *args: Any) -> Any:
    """Does what `lax.cond` does by doing both, which many members at once have to.

    `jax.vmap` would do so, too, but first give each member a copy of all that they share.
    """
    return chosen(condition, do(*args), rest(*args))


def end_training(rules: tuple[Rule, ...], course: Course, state: State) -> State:
    """Returns the state as the rules leave it when a member's fit has ended."""
    for rule, memory in zip(rules, course.memories, strict=True):
        state = rule.end_training(memory, state)
    return state
