"""One fit of one model: the loop over epochs.

In come a compiled Keras model and a source of epochs; out goes the model at the end of its last finished epoch, with
its `History`. The room exists so that callbacks, progress, interrupts and the bookkeeping of epochs are in one place,
whatever the batches come from.
"""

from typing import Any

import keras

from kohort import keras_internals
from kohort.checks import Recipe
from kohort.epochs import Advanced, Epochs
from kohort.progress import Interrupt, Progress, held_interrupt


class Training:
    """One compiled fit of one model."""

    def __init__(self, model: keras.Model, source: Epochs, recipe: Recipe, callbacks: Any, verbose: Any) -> None:
        """Takes a model that is built; nothing is trained yet."""
        self.model, self.source, self.recipe = model, source, recipe
        self.callbacks = keras.callbacks.CallbackList(
            callbacks, add_history=True, verbose=verbose, epochs=recipe.epochs, steps=source.steps, model=model
        )
        self.has_callbacks = bool(callbacks)
        self.progress = Progress(recipe.epochs, verbose)

    def train(self) -> keras.callbacks.History:
        """Runs all epochs and leaves the model at the end of the last one that finished."""
        model = self.model
        model.stop_training = False
        self.callbacks.on_train_begin()
        epoch = keras_internals.first_epoch(model, self.recipe.initial_epoch)
        self.logs: dict = {}
        self.state = keras_internals.read_state(model)
        with held_interrupt() as interrupt:
            try:
                while epoch < self.recipe.epochs and not interrupt:
                    epoch += self._call(epoch, interrupt)
                    if model.stop_training:
                        break
            finally:
                # With callbacks the model is up to date, also where one of them failed half-way.
                if not self.has_callbacks:
                    keras_internals.write_state(model, self.state)
                model.optimizer.finalize_variable_values(model.trainable_weights)
                self.progress.finish()
        self.callbacks.on_train_end(self.logs)
        return model.history

    def _call(self, epoch: int, interrupt: Interrupt) -> int:
        """Runs one call of the source from `epoch` on and returns the number of epochs that were finished."""
        if self.has_callbacks:
            return self._call_with_callbacks(epoch, interrupt)
        count = self.source.most(1 if self.progress.is_per_epoch else self.recipe.epochs - epoch)
        advanced = self._take(self.source.advance(self.state, range(epoch, epoch + count), interrupt))
        if advanced is None:
            return 0
        self.model.history.epoch.extend(range(epoch, epoch + count))
        for name, values in advanced.columns.items():
            self.model.history.history.setdefault(name, []).extend(values)
        self.progress.update(epoch, count, self.logs)
        return count

    def _call_with_callbacks(self, epoch: int, interrupt: Interrupt) -> int:
        """Runs one epoch between the callbacks, which see the model as it then is and may change it."""
        self.model.reset_metrics()
        self.callbacks.on_epoch_begin(epoch)
        self.state = keras_internals.read_state(self.model)
        if not self._run_epoch(epoch, interrupt):
            return 0
        keras_internals.write_state(self.model, self.state)
        self.callbacks.on_epoch_end(epoch, self.logs)
        self.state = keras_internals.read_state(self.model)
        self.progress.update(epoch, 1, self.logs)
        return 1

    def _run_epoch(self, epoch: int, interrupt: Interrupt) -> bool:
        """Runs one epoch and says whether it was finished."""
        if not self.model.stop_training:
            return self._take(self.source.advance(self.state, range(epoch, epoch + 1), interrupt)) is not None
        # Keras looks whether it shall stop after each execution: stopped before an epoch, it still runs the first.
        batches = self.model.steps_per_execution
        trained = self._take(self.source.train(self.state, epoch, interrupt, batches=batches))
        if trained is None or not self.source.validates_at(epoch):
            return trained is not None
        logs = self.logs
        validated = self._take(self.source.validate(self.state, epoch, interrupt))
        if validated is not None:
            self.logs = {**logs, **{f"val_{name}": value for name, value in validated.logs.items()}}
        return validated is not None

    def _take(self, advanced: Advanced | None) -> Advanced | None:
        """Takes over state and logs of what was finished."""
        if advanced is not None:
            self.state, self.logs = advanced.state, advanced.logs
        return advanced
