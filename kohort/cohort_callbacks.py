"""What callbacks mean to a cohort.

In come the callbacks of a cohort's fit; out come rules for those of Keras that act on each member by itself, and
listeners, which look at all members between epochs. The room exists so that every callback is either given its meaning
or refused, before anything is trained.
"""

import math
import numbers
import types
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import keras
import numpy as np
from keras.callbacks import EarlyStopping, LearningRateScheduler, ReduceLROnPlateau, TerminateOnNaN

from kohort import keras_callbacks, rules
from kohort.checks import received
from kohort.engine import State
from kohort.fit import check_callbacks
from kohort.progress import Interrupt
from kohort.rules import Monitor, Places, Rule

# Callbacks of Keras that act on each member by itself, and those that take logs of any shape.
MEMBER_KINDS = (EarlyStopping, ReduceLROnPlateau, TerminateOnNaN, LearningRateScheduler)
LISTENING_KINDS = (keras.callbacks.Callback, keras.callbacks.LambdaCallback, keras.callbacks.CSVLogger)
INT32_MAX = 2**31 - 1


class Guide(NamedTuple):
    """What the callbacks of a fit come to."""

    rules: tuple[Rule, ...] = ()
    numbers: tuple[dict, ...] = ()
    schedulers: tuple[LearningRateScheduler, ...] = ()
    places: Places = Places(None, ())

    @property
    def is_per_epoch(self) -> bool:
        """Whether Python acts at every epoch: it tells a rate that depends on what a rule did to it."""
        return bool(self.schedulers) and any(isinstance(rule, rules.ReduceRate) for rule in self.rules)

    @property
    def may_stop(self) -> bool:
        """Whether members may stop at different epochs."""
        return any(isinstance(rule, rules.EarlyStop | rules.Terminate) for rule in self.rules)

    def end_of_patience(self, initial_epoch: int) -> int:
        """Returns how many epochs, from 0 on, have passed when members stop that never get better."""
        stops = [n for rule, n in zip(self.rules, self.numbers, strict=True) if isinstance(rule, rules.EarlyStop)]
        ends = (max(initial_epoch, int(n["start_from_epoch"])) + int(n["patience"]) + 1 for n in stops)
        return min(ends, default=initial_epoch)

    def current_rates(self, state: State) -> np.ndarray:
        """Returns the learning rates (member,) in the state of one member or of several."""
        return np.atleast_1d(state.optimizer_variables[_rate_place(self.places)])

    def rates(self, epochs: Iterable[int], current: np.ndarray) -> np.ndarray:
        """Returns the learning rates (..., epoch) that schedules set, given the current ones.

        A schedule is called once for each epoch and each rate that some member has.
        """
        told = {}
        for rate in np.unique(current):
            told[rate], now = [], rate
            for epoch in epochs:
                for scheduler in self.schedulers:
                    now = scheduled(scheduler, epoch, now)
                told[rate].append(now)
        distinct, places = np.unique(current, return_inverse=True)
        return np.array([told[rate] for rate in distinct], current.dtype)[places.reshape(current.shape)]


def scheduled(scheduler: LearningRateScheduler, epoch: int, rate: Any) -> Any:
    """Returns the learning rate that Keras's callback sets on an optimizer with this one."""
    optimizer = types.SimpleNamespace(learning_rate=rate)
    scheduler.set_model(types.SimpleNamespace(optimizer=optimizer))
    scheduler.on_epoch_begin(epoch)
    return np.asarray(optimizer.learning_rate, np.asarray(rate).dtype)[()]


class Snapshots(keras.callbacks.Callback):
    """Looks at what is trained before the first epoch, at the ends of chosen ones, and where training ends sooner.

    Beside it, and nothing else that acts at epochs, a cohort's programs run from one chosen epoch to the next.
    """

    def __init__(self, look: Callable[[Any, int], None], epochs: Iterable[int], initial_epoch: int = 0) -> None:
        """Takes what shall look, and when.

        Args:
            look: Called with the model or cohort, and how many epochs it has been trained.
            epochs: These numbers: 0 is before the first epoch, 1 after it.
            initial_epoch: How many there were before the fit begins.
        """
        super().__init__()
        self._look, self._left, self._done = look, sorted(epochs), initial_epoch

    @property
    def next_look(self) -> int | float:
        """The number of epochs at which it looks next."""
        return self._left[0] if self._left else math.inf

    def on_train_begin(self, logs: Any = None) -> None:
        """Looks at what is not trained yet."""
        self._look_at(self._done)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Looks, if this is one of the epochs."""
        self._done = epoch + 1
        self._look_at(self._done)

    def on_train_end(self, logs: Any = None) -> None:
        """Looks once more, where it was to look later."""
        if self._left:
            self._look(self.model, self._done)

    def _look_at(self, epochs: int) -> None:
        if self.next_look <= epochs:
            self._left = [each for each in self._left if each > epochs]
            self._look(self.model, epochs)


class Listeners:
    """The callbacks that look at all members between epochs: their `model` is the cohort."""

    def __init__(self, callbacks: list, cohort: Any, params: dict) -> None:
        """Introduces them to the cohort; nobody is called yet."""
        self._callbacks = [each for each in callbacks if type(each) not in MEMBER_KINDS]
        self._cohort = cohort
        cohort.stop_training = False
        for callback in self._callbacks:
            callback.set_params(params)
            callback.set_model(cohort)

    def __len__(self) -> int:
        """Returns how many there are."""
        return len(self._callbacks)

    def epochs_alone(self, epoch: int, remaining: int) -> int:
        """Returns how many of the remaining epochs may run from this one on until one of them looks again."""
        looks = [each.next_look if isinstance(each, Snapshots) else epoch + 1 for each in self._callbacks]
        return int(min(remaining, *(max(1, look - epoch) for look in looks))) if looks else remaining

    def tell(self, interrupt: Interrupt, hook: str, *args: Any) -> None:
        """Calls this method of all of them; Ctrl-C is heard meanwhile."""
        logs: tuple = ({},) if hook.endswith("begin") else ()  # as from Keras, whose callers need not name them
        if self._callbacks:
            with interrupt.opened():
                for callback in self._callbacks:
                    getattr(callback, hook)(*args, *logs)

    @property
    def stop(self) -> bool:
        """Whether one of them has asked for the end."""
        asked = self._cohort.stop_training
        if not isinstance(asked, bool | np.bool):
            raise TypeError(
                "`stop_training` of a cohort must be True or False, for all members. "
                f"Received: {received('stop_training', asked)}. "
                "To stop members one by one, pass keras.callbacks.EarlyStopping."
            )
        return bool(asked)


# --- refusals that need no data ---------------------------------------------------------------------------------------


def check_cohort_callbacks(callbacks: Any, network: keras.Model) -> list[keras.callbacks.Callback]:
    """Returns the callbacks, or raises for the first one that has no meaning to a cohort.

    Raises:
        TypeError: If something is not a callback of Keras.
        ValueError: If a callback acts inside an epoch, or can act on one model only.
    """
    check_callbacks(callbacks)
    if isinstance(callbacks, keras.callbacks.CallbackList):
        raise TypeError(
            f"`callbacks` must be a callback or a list of them. Received: {received('callbacks', callbacks)}. "
            "Pass the list that was given to it."
        )
    listed = keras_callbacks.listed(callbacks)
    for callback in listed:
        _check_kind(callback)
        if type(callback) not in MEMBER_KINDS:
            _check_hooks(callback, network)
    return listed


def _check_kind(callback: keras.callbacks.Callback) -> None:
    name = type(callback).__name__
    own = next(kind for kind in type(callback).__mro__ if kind.__module__.startswith("keras."))
    if type(callback) not in MEMBER_KINDS and own not in LISTENING_KINDS:
        kinds = ", ".join(kind.__name__ for kind in MEMBER_KINDS)
        raise ValueError(
            f"`callbacks` must be Keras's {kinds}, which act on each member by itself, or callbacks that take logs of "
            f"arrays (member,), such as CSVLogger and your own. Received: callbacks with {name}, a {own.__name__}, "
            "which acts on one model. Leave it out, or train members one by one with `kohort.fit`."
        )
    if type(callback) is TerminateOnNaN and callback.raise_error:
        raise ValueError(
            "`callbacks` must let a member that diverges stop by itself. "
            "Received: callbacks with TerminateOnNaN(raise_error=True), which would end the fit of all. "
            "Pass TerminateOnNaN(), and look at `history.outcome`."
        )


def _check_hooks(callback: keras.callbacks.Callback, network: keras.Model) -> None:
    hook = keras_callbacks.inner_hook(callback, network) or keras_callbacks.validation_hook(callback)
    if hook:
        raise ValueError(
            "`callbacks` must act when an epoch or the training begins or ends. "
            f"Received: callbacks with {type(callback).__name__}, which acts inside an epoch (`{hook}`). "
            "Use `on_epoch_end`, or train members one by one with `kohort.fit`."
        )


# --- rules ------------------------------------------------------------------------------------------------------------


def guide_of(callbacks: list, network: keras.Model, places: Places, metrics: Iterable[str]) -> Guide:
    """Returns what the callbacks come to, in their order.

    Args:
        callbacks: Of `check_cohort_callbacks`.
        network: A network that is built and like every member.
        places: Where a member's state holds what rules need.
        metrics: The names that an epoch logs.

    Raises:
        ValueError: If a metric is not logged or has no direction, a number is none, or there is no rate to set.
    """
    made, known = [], set(metrics)
    for callback in callbacks:
        if type(callback) not in MEMBER_KINDS:
            continue
        known |= _check_rate(callback, network, places)
        _check_monitor(callback, network, known)
        _check_numbers(callback)
        made.append(rule_of(callback, network, places))
    schedulers = tuple(each for each in callbacks if type(each) is LearningRateScheduler)
    return Guide(tuple(rule for rule, _ in made), tuple(n for _, n in made), schedulers, places)


def rule_of(callback: Any, network: Any, places: Places) -> tuple[Rule, dict]:
    """Returns the rule of one of Keras's callbacks, and its numbers."""
    if type(callback) is TerminateOnNaN:
        return rules.Terminate(), {}
    if type(callback) is LearningRateScheduler:
        return rules.ScheduleRate(_rate_place(places)), {}
    monitor = Monitor(callback.monitor, keras_callbacks.direction(callback, network) == "down")
    told = {"min_delta": rules.numbers(float(abs(callback.min_delta))), "patience": _count(callback.patience)}
    if type(callback) is EarlyStopping:
        has_baseline = callback.baseline is not None
        told |= {"baseline": np.float32(callback.baseline if has_baseline else 0)}
        told |= {"start_from_epoch": _count(callback.start_from_epoch)}
        return rules.EarlyStop(monitor, has_baseline, bool(callback.restore_best_weights), places.weights), told
    told |= {"factor": rules.numbers(float(callback.factor)), "min_lr": np.float32(callback.min_lr)}
    return rules.ReduceRate(monitor, _rate_place(places)), told | {"cooldown": _count(callback.cooldown)}


def _rate_place(places: Places) -> int:
    if places.rate is None:
        raise RuntimeError("There is no learning rate to set: ask `_check_rate` first.")
    return places.rate


def _count(number: Any) -> np.int32:
    """Returns the least integer that is not below the number: a count of epochs reaches both at once."""
    return np.int32(math.ceil(min(max(number, -INT32_MAX), INT32_MAX)))


def _check_rate(callback: keras.callbacks.Callback, network: keras.Model, places: Places) -> set[str]:
    """Returns what the callback adds to the logs; raises if it needs a learning rate that can be set."""
    if type(callback) not in (ReduceLROnPlateau, LearningRateScheduler):
        return set()
    if places.rate is None:
        raise ValueError(
            "`callbacks` must leave the learning rate alone where the optimizer does not hold it as one number. "
            f"Received: callbacks with {type(callback).__name__}, beside {type(network.optimizer).__name__} with a "
            "schedule of its own. Compile the model with a number as learning rate."
        )
    return {rules.RATE}


def _check_monitor(callback: Any, network: keras.Model, known: set[str]) -> None:
    name = type(callback).__name__
    if type(callback) is TerminateOnNaN:
        if network.steps_per_execution != 1:
            raise ValueError(
                "`callbacks` must not hold TerminateOnNaN where several steps are one execution. "
                f"Received: steps_per_execution={network.steps_per_execution}. "
                "Compile the model without `steps_per_execution`: a cohort is compiled whole in any case."
            )
        return
    if type(callback) is LearningRateScheduler:
        return
    if callback.monitor not in known:
        raise ValueError(
            f"`callbacks` must monitor what an epoch logs: {', '.join(sorted(known))}. "
            f"Received: {name}(monitor={callback.monitor!r}). Pass one of these as `monitor`"
            f"{', or validation data' if str(callback.monitor).startswith('val_') else ''}."
        )
    if keras_callbacks.direction(callback, network) is None:
        raise ValueError(
            "`callbacks` must say in which direction a metric gets better where Keras does not know it. "
            f"Received: {name}(monitor={callback.monitor!r}, mode={callback.mode!r}). "
            'Pass mode="min" or mode="max".'
        )


NUMBERS = ("patience", "min_delta", "baseline", "start_from_epoch", "factor", "cooldown", "min_lr")


def _check_numbers(callback: Any) -> None:
    for name in NUMBERS:
        value = getattr(callback, name, None)
        if value is not None and (not isinstance(value, numbers.Real) or math.isnan(value)):
            raise ValueError(
                f"`callbacks` must hold numbers. Received: {type(callback).__name__}({received(name, value)}). "
                "Pass a number such as 3."
            )
