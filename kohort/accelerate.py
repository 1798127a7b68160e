"""The switch: `kohort.install()` lets every `model.fit` of the process run as `kohort.fit` does.

In comes nothing; out go `keras.Model.fit`, `evaluate` and `predict` replaced, and nothing else: models stay Keras's
own, so that saving, pickling, `isinstance` and subclassing do. The room exists so that a script or notebook gets the
compiled fit by one line. It is the only one that touches `keras.Model`.
"""

import functools
import inspect
import re
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np

from kohort import keras_internals, remote
from kohort.checks import NotFiniteError, Recipe, check_backend, check_data, received
from kohort.epochs import ArrayEpochs
from kohort.fit import (
    FallBackWarning,
    Request,
    check_arguments,
    replaced,
    train,
    why_fall_back,
)
from kohort.passes import TO_KERAS, evaluated, predicted
from kohort.progress import Progress
from kohort.report import KERAS, PARTED, VERIFIED, recorded
from kohort.shapes import shape_of, shapes_of
from kohort.stream import check_streams, epochs_of
from kohort.verify import both_ways, why_not_twice


class FallBackError(RuntimeError):
    """Says why a fit cannot run compiled, where `kohort.install(strict=True)` forbids to run it otherwise.

    Example:
        >>> import kohort, keras
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> model.compile(loss="mse")
        >>> stop = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: None)
        >>> with kohort.install(strict=True):
        ...     model.fit(*kohort.data.xor(), callbacks=[stop])
        Traceback (most recent call last):
            ...
        kohort.accelerate.FallBackError: This fit cannot run compiled, because the callback LambdaCallback ...
    """


class DifferenceWarning(UserWarning):
    """Says where a compiled fit parted from Keras's, seen by `kohort.install(verify=True)`.

    Example:
        >>> import warnings, kohort
        >>> warnings.simplefilter("error", kohort.DifferenceWarning)  # makes every difference an error
        >>> warnings.simplefilter("default", kohort.DifferenceWarning)
    """


class Settings(NamedTuple):
    """How the switch is set."""

    strict: bool
    verify: bool
    by_command: bool = False  # by `python -m kohort`, whose script may set it anew


class Installed:
    """What `kohort.install` returns: as a context manager it uninstalls kohort at the end of the block."""

    def __init__(self, before: Settings | None) -> None:
        """Remembers how `python -m kohort` had set the switch, if it had."""
        self._before = before

    def __repr__(self) -> str:
        return "<kohort is installed>" if _settings else "<kohort is not installed>"

    def __enter__(self) -> "Installed":
        return self

    def __exit__(self, *_: Any) -> None:
        _switch(self._before)


_settings: Settings | None = None


def install(strict: bool = False, verify: bool = False) -> Installed:
    """Lets every `model.fit` run compiled that can; whatever else is asked of Keras, Keras does.

    Each fit leaves what Keras leaves. One that cannot run compiled, or that `kohort.fit` would refuse, runs through
    Keras, and a `FallBackWarning` says why. `evaluate` and `predict` on arrays, silent and without callbacks, run
    as one program from that call on with which some 5,000 batches of such data have been asked: before, to
    compile it would take longer than it gains.

    Args:
        strict: Whether a fit that cannot run compiled is an error, a `kohort.FallBackError`, and not run at all.
        verify: Whether each fit on arrays runs both ways, compiled and by Keras. Its result is Keras's, and a
            `kohort.DifferenceWarning` says where the compiled one is another (on a CPU it must be the same bit for bit,
            elsewhere to rounding). Fits with callbacks that may act outside the model run by Keras alone. Needs Keras
            on JAX: another backend draws and rounds in its own way.

    Returns:
        A context manager: `with kohort.install():` uninstalls kohort at its end.

    Raises:
        TypeError: If a flag is not True or False.
        RuntimeError: If kohort is installed already, if something else has put a `fit` of its own into `keras.Model`,
            or if fits are to be verified and Keras runs on another backend than JAX.

    Example:
        >>> import kohort, keras
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> model.compile(optimizer="sgd", loss="mse")
        >>> with kohort.install():
        ...     history = model.fit(*kohort.data.xor(), epochs=1000, verbose=0)  # compiled
        >>> len(history.history["loss"])
        1000
    """
    for name, flag in (("strict", strict), ("verify", verify)):
        if not isinstance(flag, bool):
            raise TypeError(f"`{name}` must be True or False. Received: {received(name, flag)}. Pass one of these.")
    if verify:
        check_backend("kohort.install(verify=True)")
    if _settings is not None and not _settings.by_command:
        raise RuntimeError(
            "`kohort.install` must be called where kohort is not installed. "
            f"Received: a call while it is, with strict={_settings.strict}, verify={_settings.verify}. "
            "Leave this call out, or call `kohort.uninstall()` before it."
        )
    installed = Installed(_settings)
    _switch(Settings(strict, verify))
    return installed


def install_by_command(strict: bool, verify: bool) -> None:
    """Installs kohort for a script that is run unchanged: where it installs kohort itself, that counts."""
    install(strict, verify)
    _switch(Settings(strict, verify, by_command=True))


def uninstall() -> None:
    """Gives `keras.Model` its own `fit` back; does nothing where kohort is not installed.

    Example:
        >>> import kohort
        >>> _ = kohort.install()
        >>> kohort.uninstall()
    """
    _switch(None)


def load_ipython_extension(ipython: Any) -> None:
    """Installs kohort where a notebook says `%load_ext kohort`."""
    install()


def unload_ipython_extension(ipython: Any) -> None:
    """Uninstalls it where a notebook says `%unload_ext kohort`."""
    uninstall()


def _switch(settings: Settings | None) -> None:
    global _settings
    if settings is not None:
        _put()
    else:
        # Where somebody else has wrapped our function meanwhile, it stays and hands everything to Keras.
        for name in MAKERS:
            if replaced.pop(vars(keras.Model).get(name, TO_KERAS), None):
                delattr(keras.Model, name)
    _settings = settings


def _put() -> None:
    """Puts our methods into `keras.Model`, which inherits Keras's from the trainer of its backend."""
    there = {ours.__name__ for ours in replaced}  # below what somebody else has put on top, too
    missing = [name for name in MAKERS if name not in there]
    for name in missing:
        if name in vars(keras.Model):
            raise RuntimeError(
                f"`keras.Model.{name}` must be Keras's own when kohort is installed. Received: one of "
                f"{getattr(keras.Model, name).__module__}. Install kohort first, and the other on top of it."
            )
    for name in missing:
        original = getattr(keras.Model, name)
        ours = MAKERS[name](original)
        replaced[ours] = original
        setattr(keras.Model, name, ours)


def _compiling(keras_fit: Callable) -> Callable:
    """Returns the `fit` that stands in the place of Keras's."""
    signature = inspect.signature(keras_fit)

    @functools.wraps(keras_fit)
    def fit(self: keras.Model, *args: Any, **kwargs: Any) -> keras.callbacks.History:
        settings = _settings
        if settings is None:
            return keras_fit(self, *args, **kwargs)
        try:
            _, *arguments = signature.bind(self, *args, **kwargs).arguments.items()
        except TypeError:
            return keras_fit(self, *args, **kwargs)  # which raises it, too
        by_keras = functools.partial(keras_fit, self, *args, **kwargs)
        request, reason = _decide(self, dict(arguments))
        if reason is None and settings.verify:
            reason = why_not_twice(request)
        if reason is None:
            return _run_both_ways(self, request, by_keras) if settings.verify else train(self, request)
        if settings.strict:
            raise FallBackError(
                f"This fit cannot run compiled, because {reason}. Change that, or install kohort without `strict`."
            )
        warnings.warn(f"kohort: Keras runs this fit itself, because {reason}.", FallBackWarning, stacklevel=2)
        with recorded(self, KERAS, reason):
            return by_keras()

    return fit


def _in_one_pass(compiled: Callable) -> Callable[[Callable], Callable]:
    """Returns what makes the method that stands in the place of Keras's `evaluate` or `predict`."""

    def made(by_keras: Callable) -> Callable:
        @functools.wraps(by_keras)
        def method(self: keras.Model, *args: Any, **kwargs: Any) -> Any:
            result = TO_KERAS
            # `verify` compares fits, and a call that Python refuses is refused by Keras.
            if _settings is not None and not _settings.verify and _takes(compiled, self, args, kwargs):
                result = compiled(self, *args, **kwargs)
            return by_keras(self, *args, **kwargs) if result is TO_KERAS else result

        return method

    return made


def _takes(function: Callable, *call: Any) -> bool:
    model, args, kwargs = call
    try:
        inspect.signature(function).bind(model, *args, **kwargs)
    except TypeError:
        return False
    return True


def _run_both_ways(model: keras.Model, request: Request, by_keras: Callable) -> keras.callbacks.History:
    with recorded(model, VERIFIED) as call:
        history, parting = both_ways(model, request, by_keras)
        if parting:
            call.way = PARTED
    if parting:
        text = f"kohort: the compiled fit parted from Keras's: {parting}. The model holds Keras's result."
        warnings.warn(text, DifferenceWarning, stacklevel=3)
    return history


def _decide(model: keras.Model, given: dict[str, Any]) -> tuple[Request, str | None]:
    """Returns what a call of `model.fit` asks, and why Keras must run it, or None."""
    recipe = Recipe(**{name: given.pop(name) for name in Recipe._fields if name in given})
    request = Request(**{name: given.pop(name) for name in Request._fields if name in given}, recipe=recipe)
    unknown = next(iter(given), None)
    reason = (
        (f"kohort does not know the argument `{unknown}`" if unknown else None)
        or _refusal(check_arguments, model, request)
        or why_fall_back(model, request, inside_fit=True)
        or _refusal(remote.check, model)
        or shapes_of(model).why_not_compile(request)  # before the data are looked through, which takes its time
        or _refusal(_check_all_but_numbers, model, *request[:4], recipe)
        or _refusal(check_streams, request.x, request.validation_data)
        or _why_the_worker_cannot(model, request)
    )
    if reason is None:
        shapes_of(model).compile(request)
    return request, reason


def _why_the_worker_cannot(model: keras.Model, request: Request) -> str | None:
    """Returns what the worker meets that trains models of another backend, when it shall compile such a fit, or None.

    Where `kohort.fit` raises, the switch leaves it to Keras: its own backend may run what JAX cannot.
    """
    if not remote.is_needed():
        return None
    types = tuple(str(getattr(leaf, "dtype", "")) for leaf in keras.tree.flatten(request[:4]))
    known, key = shapes_of(model).rehearsed, (shape_of(request), types)
    if key not in known:
        try:
            known[key] = _rehearsed(model, request) or ""
        except remote.WorkerError as error:  # of the process, and not of the model: the next fit may find another
            return str(error).split(". ")[0]
    said = known[key]
    return f"the worker process, where Keras runs on JAX, cannot run it: {said}" if said else None


def _rehearsed(model: keras.Model, request: Request) -> str | None:
    progress = Progress(request.recipe.epochs, request.verbose)
    progress.begin(request.recipe.initial_epoch)
    try:
        source = epochs_of(model, *request[:4], request.recipe)
        # Streams do not go to the worker.
        return source.rehearse(keras_internals.read_state(model)) if isinstance(source, ArrayEpochs) else None
    finally:
        progress.rewind()


def _check_all_but_numbers(model: keras.Model, *data_and_recipe: Any) -> None:
    """Checks data as `kohort.fit` does, but for numbers that are not finite: compiled they give what Keras gives."""
    *data, recipe = data_and_recipe
    try:
        check_data(model, *data, recipe=recipe)
    except NotFiniteError:
        check_data(model, *(keras.tree.map_structure(_finite, part) for part in data), recipe=recipe)


def _finite(leaf: Any) -> Any:
    is_float = isinstance(leaf, np.ndarray) and leaf.dtype.kind == "f"
    return np.nan_to_num(leaf, posinf=0.0, neginf=0.0) if is_float else leaf


def _refusal(check: Callable, *arguments: Any) -> str | None:
    """Returns what `kohort.fit` would refuse, or None: Keras takes more than it.

    What came is left out, as it is different in each fit of a loop: the line of reason is told once for all of them.
    """
    try:
        check(*arguments)
    except (TypeError, ValueError) as refused:
        part = OF_A_MODEL.search(str(refused))  # that cannot cross: which it is
        of_it = f" ({part[1]})" if part else ""
        return f"`kohort.fit` would refuse it: {str(refused).split('. Received:')[0]}{of_it}"
    return None


OF_A_MODEL = re.compile(r" Received: model='[^']*' with (.+?)\. [A-Z]")
# What `kohort.install` replaces in `keras.Model`, with what makes ours of Keras's.
MAKERS = {"fit": _compiling, "evaluate": _in_one_pass(evaluated), "predict": _in_one_pass(predicted)}
