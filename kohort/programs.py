"""The compiled programs of one model.

In comes a Keras model; out go its training, evaluation and prediction as compiled programs, traced once for each way of
cutting the data and kept as long as the model lives and is not compiled anew. The room exists because compiling must
happen once per model, whoever asks.
"""

import functools
import weakref
from collections.abc import Callable
from typing import Any, Literal

import jax
import keras
from jax import lax

from kohort import engine, keras_internals, keras_parts, pieces, python_code, remote, rules, traced
from kohort.data import Inputs
from kohort.engine import Cut, Functions, Pace, Schedule, Unknown
from kohort.mapping import Form, Make, of_block
from kohort.remote import RemotePrograms
from kohort.rules import Rule


class Programs:
    """The compiled programs of one model: traced once for each way of cutting data, compiled once for each shape."""

    spends = True  # whether a call may use up the state that it is given

    def __init__(self, model: keras.Model, functions: Functions | None = None) -> None:
        """Holds the model weakly; nothing is traced yet. Its steps may be given, by somebody who adds to them."""
        self._traced_in: set[tuple] = set()  # the surroundings of all traces of its steps
        self._functions = noted(functions or keras_internals.functions(model), self._traced_in).traced_once()
        self._model = weakref.ref(model) if functions is None else None
        self._marker = keras_internals.compile_marker(model)
        self._settings = settings_of(model)
        self._made: dict[tuple, Any] = {}
        self.room: Any = None  # memory that held the row numbers of the last call

    def is_of(self, model: keras.Model) -> bool:
        """Says whether the model has not been compiled anew since, and its steps do what they did."""
        return self._marker is keras_internals.compile_marker(model) and self._settings == settings_of(model)

    def epochs(
        self,
        cut: Cut,
        validation_cut: Cut | None,
        capacity: int,
        mapping: str | None = None,
        own: tuple = (None, None),
    ) -> Callable:
        """Returns the training program for one member, or for a block of them.

        Args:
            cut: How the samples are cut into batches.
            validation_cut: Likewise for those that validate.
            capacity: The most epochs of a call.
            mapping: For a block, how the members are mapped; one of `mapping.MAPPINGS`.
            own: Which parts of samples and validation samples each member has for itself; see `mapping.of_block`.
        """
        cuts = cut, validation_cut, capacity
        return self._training(
            ("epochs", *cuts), lambda functions, _: engine.epochs_program(functions, *cuts), mapping, own
        )

    def guided(
        self,
        cut: Cut,
        validation_cut: Cut | None,
        capacity: int,
        followed: tuple[Rule, ...],
        mapping: str | None = None,
        own: tuple = (None, None),
    ) -> Callable:
        """Returns the training program that follows rules, for one member, or for a block of them; as above."""
        key = cut, validation_cut, capacity, followed
        return self._training(
            ("guided", *key), lambda functions, either: rules.guided_program(functions, *key, either), mapping, own
        )

    def _training(self, key: tuple, make: Make, mapping: str | None, own: tuple) -> Callable:
        def made() -> Callable:
            if mapping is None:
                return engine.TrainingCall(make(self._functions, lax.cond))
            options = pieces.OPTIONS if mapping == "abreast" and pieces.are_compiled() else None
            identity = functools.partial(self._identity, key, mapping, own)
            return engine.TrainingCall(of_block(make, self._functions, mapping, own), options, identity)

        return self.once((*key, mapping, own), made)

    def _identity(self, *key: Any) -> str | None:
        """Returns all that the trace of a program depends on, if no code but Keras's own is in it.

        Steps are traced once: where something was set otherwise since, a new program still holds what it was before.
        """
        model = self._model and self._model()
        told = None if model is None or self._traced_in - {traced.surroundings()} else python_code.told(model)
        return told and repr((key, told, keras_parts.decay_exclusions(model)))

    def form(self, data: Inputs, state: Any) -> Form:
        """Returns what a step is like, as far as mapping it matters; `state` is that of one member."""
        size = data.cut.batch_size if data.cut.full else data.cut.partial
        batch = jax.tree.map(lambda a: jax.ShapeDtypeStruct((size, *a.shape[1:]), a.dtype), data.training.batch)
        return self.once(("form", size, shapes_of(data)), lambda: Form.of(self._functions.train_step, state, batch))

    def logged(self, data: Inputs, state: Any) -> dict:
        """Returns what an epoch logs, by the names of the history: shapes and types, without running it."""

        def run(state: Any, training: Any, validation: Any) -> Any:
            epoch = engine.epoch_function(self._functions, data.cut, data.validation_cut)
            return epoch(state, training, validation, Schedule(), 0, Unknown.of(1, state))[1]

        def make() -> dict:
            validation = data.validation.batch if data.validation else None
            return rules.joined(jax.eval_shape(run, state, data.training.batch, validation))

        return self.once(("logged", data.cut, data.validation_cut, shapes_of(data)), make)

    def validation(self, cut: Cut) -> Callable:
        """Returns the program of a validation that belongs to a fit: it gives the state back, too."""
        return self.once(
            ("validation", cut), lambda: engine.TrainingCall(engine.validation_program(self._functions, cut))
        )

    def begin(self) -> Callable:
        """Returns the program that begins a pass over a stream."""
        return self.once("begin", lambda: jax.jit(engine.begin_program(self._functions)))

    def batches(self, step: Literal["train_step", "test_step"], capacity: int) -> Callable:
        """Returns the program that runs a step on a stack of batches; it uses up the state that it is given."""

        def make() -> Callable:
            run = engine.batches_program(self._functions, getattr(self._functions, step), capacity)
            return jax.jit(run, donate_argnums=0)

        return self.once((step, capacity), make)

    def evaluate(self, cut: Cut, members: bool = False) -> Callable:
        """Returns the evaluation program."""
        run = engine.evaluate_program(self._functions, cut)
        return self.once(("evaluate", cut, members), lambda: jax.jit(jax.vmap(run, (0, None)) if members else run))

    def predict(self, cut: Cut, members: bool = False) -> Callable:
        """Returns the prediction program."""
        run = engine.predict_program(self._functions, cut)
        return self.once(("predict", cut, members), lambda: jax.jit(jax.vmap(run, (0, None)) if members else run))

    def wait(self, results: tuple, interrupt: Any) -> tuple | None:
        """Waits for what a program computes, state and logs. Returns None as soon as `interrupt` is true."""
        if interrupt is None:
            engine.block_until_ready(results[1])
            return results
        return results if engine.wait(results[1], interrupt) else None

    def pace(self, *key: Any) -> Pace:
        """Returns the measured pace of a program at some shape."""
        return self.once(("pace", *key), Pace)

    def once(self, key: Any, make: Callable) -> Any:
        """Returns what `make` made when it was first asked for under this key."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


def noted(functions: Functions, surroundings: set[tuple]) -> Functions:
    """Returns the functions with steps that note in which surroundings they are traced."""

    def of(step: Callable) -> Callable:
        def run(*args: Any) -> Any:
            surroundings.add(traced.surroundings())
            return step(*args)

        return run

    return functions._replace(train_step=of(functions.train_step), test_step=of(functions.test_step))


def settings_of(model: keras.Model) -> list[Any]:
    """Returns the settings that Keras would see at the next step, where it does not look at the first step only."""
    return python_code.settings(model) if keras_internals.runs_op_by_op(model) else []


_programs: "weakref.WeakKeyDictionary[keras.Model, Programs | RemotePrograms]" = weakref.WeakKeyDictionary()


def programs_of(model: keras.Model) -> Programs | RemotePrograms:
    """Returns the programs of the model, new ones after each `model.compile`: here, or in the worker."""
    return _kept(model, RemotePrograms if remote.is_needed() else Programs)


def local_programs_of(model: keras.Model) -> Programs:
    """Returns the programs of a model that trains in this process."""
    return _kept(model, Programs)


def _kept(model: keras.Model, kind: type) -> Any:
    known: Any = _programs.get(model)
    if type(known) is not kind or not known.is_of(model):
        known = _programs[model] = kind(model)
    return known


def shapes_of(data: Inputs) -> tuple:
    """Returns shapes and types of all arrays of a fit: programs for others have another pace."""
    batches = [samples.batch for samples in (data.training, data.validation) if samples is not None]
    return tuple((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(batches))
