"""One fit of one model: the loop over epochs.

In come a compiled Keras model and a source of epochs; out goes the model at the end of its last finished epoch, with
its `History`. The room exists so that callbacks, progress, interrupts and the bookkeeping of epochs are in one place,
whatever the batches come from.
"""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from kohort import keras_callbacks, keras_internals
from kohort.checks import Recipe
from kohort.engine import State
from kohort.epochs import Advanced, ArrayEpochs, Epochs
from kohort.progress import Interrupt, Progress, held_interrupt, told


class Training:
    """One compiled fit of one model."""

    def __init__(self, model: keras.Model, source: Epochs, recipe: Recipe, callbacks: Any, verbose: Any) -> None:
        """Takes a model that is built; nothing is trained yet."""
        self.model, self.source, self.recipe = model, source, recipe
        self.has_callbacks = bool(callbacks)
        self.callbacks: keras.callbacks.CallbackList | keras.callbacks.History
        if isinstance(callbacks, keras.callbacks.CallbackList):
            self.callbacks, verbose = callbacks, 0  # complete as it is: Keras adds neither a history nor a bar to it
        elif not callbacks:
            self.callbacks = lone_history(model, verbose=verbose, epochs=recipe.epochs, steps=source.steps)
        else:
            self.callbacks = keras.callbacks.CallbackList(
                callbacks, add_history=True, verbose=verbose, epochs=recipe.epochs, steps=source.steps, model=model
            )
        listed = getattr(self.callbacks, "callbacks", [])
        self.watching = [each for each in listed if keras_callbacks.watches_loss(each)]
        self.acting = [each for each in listed if keras_callbacks.acts_at_batches(each)]
        self.looks_at_validation = any(map(keras_callbacks.looks_at_validation, listed))
        self.progress = Progress(recipe.epochs, verbose)
        self.marker = keras_internals.compile_marker(model)
        self.logs: dict = {}
        self.finished: int | None = None  # the number of the last epoch that was
        self.blank: list = []  # the arrays of the metrics when they are reset

    def train(self) -> keras.callbacks.History:
        """Runs all epochs and leaves the model at the end of the last one that finished."""
        try:
            return self._train()
        except KeyboardInterrupt as error:
            raise told(error, "the model", self.finished, self.recipe.epochs) from None

    def _train(self) -> keras.callbacks.History:
        model = self.model
        model.stop_training = False
        self.callbacks.on_train_begin()
        epoch = keras_internals.first_epoch(model, self.recipe.initial_epoch)
        self.progress.begin(epoch)
        self.variables = keras_internals.variables_of(model)
        self.state = keras_internals.values_of(self.variables)
        with held_interrupt() as interrupt:
            try:
                while epoch < self.recipe.epochs and not interrupt:
                    count = self._call(epoch, interrupt)
                    epoch += count
                    self.finished = epoch if count else self.finished
                    if model.stop_training:
                        break
            finally:
                # With callbacks the model is up to date, also where one of them failed half-way.
                if not self.has_callbacks:
                    keras_internals.attach(self.variables, self.state)
                # After an error, too, as by Keras. After Ctrl-C one goes on, and so from the weights as they are.
                if not interrupt:
                    model.optimizer.finalize_variable_values(model.trainable_weights)
                self.progress.finish()
        self.callbacks.on_train_end(self.logs)
        return model.history

    def _call(self, epoch: int, interrupt: Interrupt) -> int:
        """Runs one call of the source from `epoch` on and returns the number of epochs that were finished."""
        if self.has_callbacks:
            return self._call_with_callbacks(epoch, interrupt)
        count = self.source.most(1 if self.progress.is_per_epoch else self.recipe.epochs - epoch)
        advanced = self._take(self.source.advance, range(epoch, epoch + count), interrupt)
        if advanced is None:
            return 0
        self.model.history.epoch.extend(range(epoch, epoch + count))
        for name, values in advanced.columns.items():
            self.model.history.history.setdefault(name, []).extend(values)
        self.progress.update(epoch, count, self.logs)
        return count

    def _take(self, run: Callable, *args: Any, **options: Any) -> Advanced | None:
        """Runs a method of the source and takes over the state and the logs of what was finished."""
        advanced, is_over = None, False
        try:
            advanced = run(self.state, *args, **options)
            is_over = True
        finally:
            if not is_over and self.has_callbacks:  # what the source was given may be used up, and is then replaced
                keras_internals.attach(self.variables, self.state)
        if advanced is not None:
            self.state, self.logs = advanced.state, advanced.logs
        return advanced

    # Between callbacks, which see the model as it then is and may change it.

    def _call_with_callbacks(self, epoch: int, interrupt: Interrupt) -> int:
        before = keras_internals.values_of(self.variables)
        self._reset_metrics()
        try:
            with interrupt.opened(presses=2):
                self.callbacks.on_epoch_begin(epoch)
        except KeyboardInterrupt:
            keras_internals.attach(self.variables, before)
            raise
        self._read_state(before)
        if not self._run_epoch(epoch, interrupt):
            keras_internals.attach(self.variables, before)
            return 0
        keras_internals.attach(self.variables, self.state)
        self.finished = epoch + 1
        with interrupt.opened(presses=2):
            self.callbacks.on_epoch_end(epoch, self.logs)
        self.progress.update(epoch, 1, self.logs)
        return 1

    def _run_epoch(self, epoch: int, interrupt: Interrupt) -> bool:
        """Runs one epoch and says whether it was finished."""
        validates = self.source.validates_at(epoch)
        is_cut = self.watching or self.acting or self.model.stop_training
        if not (is_cut or (validates and self.looks_at_validation)):
            return self._take(self.source.advance, range(epoch, epoch + 1), interrupt) is not None
        # Keras looks whether it shall stop after each execution: stopped before an epoch, it still runs the first.
        batches = self.model.steps_per_execution if self.model.stop_training else None
        watched = bool(self.watching)
        generator = np.random.get_state()
        if self.acting:
            trained = self._train_in_pieces(batches, interrupt)
        else:
            trained = self._take(self.source.train, epoch, interrupt, batches=batches, watched=watched)
        if trained is None:
            np.random.set_state(generator)
            return False
        if trained.stopped_at is not None:
            keras_internals.attach(self.variables, self.state)
            for callback in self.watching:
                callback.on_batch_end(trained.stopped_at, dict(self.logs))
        if validates and not self._validate(epoch, interrupt):
            np.random.set_state(generator)
            return False
        return True

    def _train_in_pieces(self, most: int | None, interrupt: Interrupt) -> Advanced | None:
        """Trains an epoch on arrays, at most so many batches, with a call for those until a callback acts."""
        source, trained = self.source, None
        if not isinstance(source, ArrayEpochs):
            raise TypeError("Only epochs on arrays can be cut into pieces.")
        count = source.begin_pieces() if most is None else min(source.begin_pieces(), most)
        steps = self.model.steps_per_execution
        left = range(steps - 1, count + steps - 1, steps)  # Keras's number of the last batch of each execution
        start = 0
        while left:
            if interrupt:
                return None
            nexts = [keras_callbacks.batches_to_act(each, left) for each in self.acting]
            ends = left[: min((nth for nth in nexts if nth), default=len(left))]
            left = left[len(ends) :]
            trained = self._take(source.train_piece, range(start, min(ends[-1] + 1, count)), interrupt)
            if trained is None:
                return None
            keras_internals.attach(self.variables, self.state)
            start = ends[-1] + 1
            for end in ends:
                for callback in self.acting:
                    callback.on_train_batch_begin(end)
                    callback.on_train_batch_end(end, trained.step_logs)
        return trained

    def _validate(self, epoch: int, interrupt: Interrupt) -> bool:
        """Runs the validation of an epoch, between the callbacks that look at it, and says whether it was finished."""
        logs = self.logs
        if self.looks_at_validation:
            keras_internals.attach(self.variables, self.state)
            self.callbacks.on_test_begin()
            self._count_validation()
            self._read_state(self.state)
        validated = self._take(self.source.validate, epoch, interrupt)
        if validated is None:
            return False
        if self.looks_at_validation:
            keras_internals.attach(self.variables, self.state)
            self.callbacks.on_test_end(validated.logs)
            self._read_state(self.state)
        self.logs = {**logs, **{f"val_{name}": value for name, value in validated.logs.items()}}
        return True

    def _count_validation(self) -> None:
        """Lets those that act at batches count the ones of the validation, too."""
        data = self.source.data if isinstance(self.source, ArrayEpochs) else None
        batches = data.validation_cut.full + bool(data.validation_cut.partial) if data and data.validation_cut else 0
        for step in range(0, batches, self.model.steps_per_execution):
            for callback in self.acting:
                callback.on_test_batch_begin(step)

    def _reset_metrics(self) -> None:
        """Resets the metrics as Keras does, from the second time on with the arrays of the first."""
        variables = self.variables.metrics_variables
        is_known = keras_internals.on_jax() and len(variables) == len(self.blank)
        if is_known and not any(array.is_deleted() for array in self.blank):
            keras_internals.attach_to(variables, self.blank)
            return
        self.model.reset_metrics()
        self.blank = keras_internals.read_state(self.model).metrics_variables

    def _read_state(self, before: State) -> None:
        """Takes the state from the model, which callbacks may have changed."""
        if keras_internals.compile_marker(self.model) is not self.marker:
            raise TypeError(
                "`model` must stay compiled as it is until its fit ends. "
                f"Received: model={self.model.name!r}, which a callback compiled anew. "
                "Compile it after the fit, and fit it again."
            )
        self.variables = keras_internals.variables_of(self.model)
        state = keras_internals.values_of(self.variables)
        # A program resets the metrics itself and may use up what it gets: `blank` is not given away.
        is_blank = all(a is b for a, b in zip(state.metrics_variables, self.blank, strict=False))
        self.state = state._replace(metrics_variables=before.metrics_variables) if is_blank else state


def lone_history(model: keras.Model, **params: Any) -> keras.callbacks.History:
    """Returns a history in the place of a list that holds nothing else, for which Keras would keep threads ready."""
    history = keras.callbacks.History()
    history.set_params(params)
    history.set_model(model)
    model.history = history
    return history
