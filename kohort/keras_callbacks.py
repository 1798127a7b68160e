"""What Keras's own callbacks do inside an epoch, decided from how each is set.

In comes a callback; out goes whether it must be called at every batch. The room exists because several callbacks of
Keras define batch hooks that do nothing, or nothing that needs the batch, as they are usually set.
"""

import copy
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import keras
from keras.callbacks import BackupAndRestore, ModelCheckpoint, OrbaxCheckpoint, TensorBoard, TerminateOnNaN

BATCH_HOOKS = (
    "on_batch_begin", "on_batch_end", "on_train_batch_begin", "on_train_batch_end",
    "on_test_batch_begin", "on_test_batch_end",
)  # fmt: skip
VALIDATION_HOOKS = ("on_test_begin", "on_test_end")
# Those that save at epochs, or after so many batches: all of them count alike.
SAVING = (ModelCheckpoint, BackupAndRestore, OrbaxCheckpoint)


def listed(callbacks: Any) -> list[keras.callbacks.Callback]:
    """Returns the callbacks that were passed as one, a list, or a `CallbackList`."""
    if isinstance(callbacks, keras.callbacks.CallbackList):
        return callbacks.callbacks
    return keras.tree.flatten(callbacks) if callbacks else []


def inner_hook(callback: keras.callbacks.Callback, model: keras.Model) -> str | None:
    """Returns a hook in which the callback acts inside an epoch, or None when it acts at epochs only."""
    for hook in BATCH_HOOKS:
        if _is_own(callback, hook):
            is_idle = IDLE.get(_function(callback, hook))
            if is_idle is None or not is_idle(callback, model):
                return hook
    return None


def looks_at_validation(callback: keras.callbacks.Callback) -> bool:
    """Says whether the callback acts between training and validation."""
    return validation_hook(callback) is not None


def validation_hook(callback: keras.callbacks.Callback) -> str | None:
    """Returns a hook in which the callback acts between training and validation, or None."""
    return next((hook for hook in VALIDATION_HOOKS if _is_own(callback, hook)), None)


def direction(callback: Any, model: Any) -> str | None:
    """Returns "up" or "down", the way in which the callback takes its metric to get better; None if Keras cannot say.

    Of the model its metrics are looked at, which must be built.
    """
    twin = copy.copy(callback)
    twin.set_model(model)
    twin.monitor_op = None
    with suppress(ValueError):  # how Keras says that it does not know
        twin._set_monitor_op()
    return None if twin.monitor_op is None else "down" if twin.monitor_op is keras.ops.less else "up"


def watches_loss(callback: keras.callbacks.Callback) -> bool:
    """Says whether the callback is Keras's `TerminateOnNaN`."""
    return _function(callback, "on_batch_end") is TerminateOnNaN.on_batch_end


def saves_at_batches(callback: Any) -> bool:
    """Says whether the callback is Keras's own and saves after so many batches: between them it only counts."""
    return type(callback) in SAVING and callback.save_freq != "epoch"


def writes_at_batches(callback: Any) -> bool:
    """Says whether the callback is Keras's `TensorBoard` and writes after so many batches: between them it only counts.

    Not where it takes the time of batches, or profiles them.
    """
    is_plain = type(callback) is TensorBoard and not callback._should_trace and not callback.write_steps_per_second
    return is_plain and isinstance(callback.update_freq, int) and callback.update_freq > 0


def acts_at_batches(callback: Any) -> bool:
    """Says whether the callback is Keras's own and acts after so many batches, and between them only counts."""
    hooks = [_function(callback, hook) for hook in BATCH_HOOKS if _is_own(callback, hook)]
    return all(hook in IDLE for hook in hooks) and (saves_at_batches(callback) or writes_at_batches(callback))


def batches_to_act(callback: Any, ends: Sequence[int]) -> int | None:
    """Returns after how many of the executions, given by the numbers of their last batches, it acts next, if it does.

    It counts as Keras's `_should_save_on_batch` does, or as `TensorBoard` does, to which an execution is a batch.
    """
    if writes_at_batches(callback):
        nth = callback.update_freq - callback._global_train_batch % callback.update_freq
        return nth if nth <= len(ends) else None
    seen, last = callback._batches_seen_since_last_saving, callback._last_batch_seen
    for nth, end in enumerate(ends, 1):
        seen += end + 1 if last is None or end <= last else end - last
        last = end
        if seen >= callback.save_freq:
            return nth
    return None


def _function(callback: keras.callbacks.Callback, hook: str) -> Any:
    method = getattr(callback, hook)
    return getattr(method, "__func__", method)


def _is_own(callback: keras.callbacks.Callback, hook: str) -> bool:
    return _function(callback, hook) is not getattr(keras.callbacks.Callback, hook)


def _saves_at_epochs(callback: Any, model: keras.Model) -> bool:
    is_keras_own = type(callback)._should_save_on_batch in [kind._should_save_on_batch for kind in SAVING]
    return is_keras_own and callback.save_freq == "epoch"


def _counts_batches(callback: Any, model: keras.Model) -> bool:
    return callback.update_freq == "epoch" and not callback._should_trace


def _loss_is_a_running_mean(callback: Any, model: keras.Model) -> bool:
    """Says whether a loss that is not finite stays so until the epoch ends, so that one look then tells."""
    own = ("train_step", "compute_metrics", "get_metrics_result", "metrics")
    return all(getattr(type(model), name) is getattr(keras.Model, name) for name in own)


IDLE: dict[Any, Callable[[Any, keras.Model], bool]] = {
    **{kind.on_train_batch_end: _saves_at_epochs for kind in SAVING},
    TensorBoard.on_train_batch_begin: _counts_batches,
    TensorBoard.on_train_batch_end: _counts_batches,
    TensorBoard.on_test_batch_begin: _counts_batches,
    TerminateOnNaN.on_batch_end: _loss_is_a_running_mean,
}
