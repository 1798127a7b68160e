"""What all members of a model's cohorts share: a clone of the model and its compiled programs.

In comes a Keras model; out go the state that any seed begins with, computed for thousands of seeds in one traced call,
and plain Keras models to put a member's state into. The room exists because tracing and compiling must happen once per
model, not once per cohort.
"""

import functools
import random
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import keras
import numpy as np
from jaxtyping import UInt32

from kohort import keras_internals, keras_parts, python_code, rounding, traced
from kohort.data import Inputs
from kohort.engine import State
from kohort.programs import Programs
from kohort.vary import Kind, VariedPrograms, set_values

# How members begin is computed in a moment, by many operations, each of which rounds as it does alone: XLA would take
# longer to make them fast than a small network trains.
QUICKLY_COMPILED = {"xla_backend_optimization_level": 1}
# It is computed for at least and at most so many members, each time twice as many, where the states of so few take no
# more than these bytes: blocks of other widths then need no other program, and narrow ones no call of their own.
BEGINNERS, MOST_BEGINNERS, SMALL_BYTES = 64, 1024, 2**20


def generator_states() -> tuple:
    """Returns the states of Python's and NumPy's global generators, to be compared."""
    name, key, *rest = np.random.get_state(legacy=True)
    return random.getstate(), name, bytes(np.asarray(key)), *rest


@contextmanager
def preserved_generators() -> Iterator[None]:
    """Leaves Python's and NumPy's global generators as they were before the block."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


class Template:
    """A clone of the model whose variables stand in for those of every member, with its compiled programs."""

    def __init__(self, model: keras.Model, paths: tuple[str, ...] = (), tracing: Any = None) -> None:
        """Clones the model and counts the seeds that a clone draws.

        Args:
            model: A compiled model.
            paths: Of numbers that are each member's own.
            tracing: The lock that who builds or traces the network holds, if it has one in common with others.
        """
        self.draws, self.paths, self.tracing = 0, paths, tracing or threading.RLock()

        def count() -> int:
            self.draws += 1
            return self.draws

        with preserved_generators(), keras_internals.default_seeds(count):
            before = generator_states()
            self.network = keras_internals.clone(model)
            draws_elsewhere = generator_states() != before
        # The generators are global: in a program of several threads, it may have been another one that drew.
        if draws_elsewhere and threading.active_count() == 1:
            raise ValueError(
                "`model` must draw its initial weights with Keras's initializers, so that each member draws its own. "
                f"Received: model={model.name!r}, of which a layer draws from the generator of Python or NumPy. "
                "Use `keras.initializers` or a `keras.random.SeedGenerator` in that layer."
            )
        keras_parts.compile_like(self.network, model)
        self.programs = VariedPrograms(self.network, paths) if paths else Programs(self.network)
        self._initial: dict[int, Any] = {}
        self._built_with: Any = None
        self._others: dict[Any, Template] = {}

    def _begin(self, seeds: Any) -> State:
        """Returns the state that a clone begins with, given the default seeds it draws: traced, shape (draw,)."""
        drawn = iter(range(self.draws))
        with keras_internals.default_seeds(lambda: keras_internals.TracedSeed(seeds[next(drawn)])):
            network = keras_internals.clone(self.network)
        keras_parts.compile_like(network, self.network)
        network.optimizer.build(network.trainable_variables)
        return keras_internals.read_state(network)._replace(metrics_variables=[])

    def fits(self, values: Mapping[str, np.ndarray]) -> bool:
        """Says whether members with these values are built as the one that the programs were traced for."""
        return not isinstance(self.programs, VariedPrograms) or self.programs.fits(values)

    def built_for(self, data: Inputs) -> "Template":
        """Returns a template whose losses, metrics and optimizer are built for data of this form: itself, or another.

        Keras chooses a metric by the form of the first targets ("accuracy" stands for several) and keeps it.
        """
        form = _form(data.training.batch)
        if self._built_with is None:
            with preserved_generators():
                keras_internals.symbolic_build(self.network, data.build_iterator)
            self._built_with = jax.tree.map(lambda a: a[:1], data.training.batch)
            self._others[form] = self
        if form not in self._others:
            self._others[form] = Template(self.network, self.paths, self.tracing).built_for(data)
        return self._others[form]

    def built_like(self, batch: Any, metric_names: list[str]) -> "Template":
        """Builds losses, metrics and optimizer for batches of this form, under the names that they had; returns it."""
        with preserved_generators():
            keras_internals.build_like(self.network, batch)
        keras_parts.set_metric_names(self.network, metric_names)
        self._built_with = batch
        self._others[_form(batch)] = self
        return self

    @property
    def batch(self) -> Any:
        """A batch of one row, of the form for which losses, metrics and optimizer are built."""
        return self._built_with

    def finalized(self, state: State, members: bool) -> State:
        """Returns the state of a member, or of a block of them, as a fit leaves it at its end."""
        if not keras_internals.ends_with_averages(self.network):
            return state

        def weights(state: State) -> list:
            return keras_internals.finalize(self.network, state).trainable_variables

        of_keras = State(*state)  # without values beside, which JAX would round
        return state._replace(trainable_variables=jax.vmap(weights)(of_keras) if members else weights(of_keras))

    def initial(self, seeds: tuple[int, ...], values: Mapping[str, np.ndarray]) -> State:
        """Returns the state that members begin with: leading axis member. It draws from the generators.

        Args:
            seeds: The seed of each member.
            values: Path of each varied number to its values, (member,).
        """
        draws = _all_drawn(seeds, self.draws)
        count = BEGINNERS << (max(0, len(draws) - 1) // BEGINNERS).bit_length() if self.most_at_once else len(draws)
        padded = draws[np.minimum(np.arange(count), len(draws) - 1)]
        state = State(*self._beginning(padded)(padded))
        if len(padded) > len(draws):
            state = jax.tree.map(lambda array: np.asarray(array)[: len(draws)], state)
        metrics = keras_internals.read_state(self.network).metrics_variables
        stacked = [np.repeat(np.asarray(value)[None], len(seeds), 0) for value in metrics]
        state = state._replace(metrics_variables=stacked)
        return self.programs.begin_with(state, values) if isinstance(self.programs, VariedPrograms) else state

    @functools.cached_property
    def most_at_once(self) -> int:
        """Of how many members it is computed at once how they begin: 0 where a few more cost more than nothing."""
        own = sum(array.nbytes for array in jax.tree.leaves(keras_internals.read_state(self.network)))
        is_small = BEGINNERS * own <= SMALL_BYTES and jax.default_backend() == "cpu"
        return MOST_BEGINNERS if is_small else 0

    def _beginning(self, draws: np.ndarray) -> Callable:
        """Returns the program that computes how members begin from the seeds that they draw (member, draw)."""
        if len(draws) not in self._initial:
            run = jax.vmap(rounding.op_by_op(self._begin))
            options = QUICKLY_COMPILED if jax.default_backend() == "cpu" else None
            told = python_code.told(self.network) if traced.are_kept() else None
            kept = told and traced.program(f"begin {told}", lambda of: tuple(run(of)), (draws,), options=options)
            self._initial[len(draws)] = kept or jax.jit(run, compiler_options=options)
        return self._initial[len(draws)]

    def with_values(self, state: State, values: Mapping[str, np.ndarray]) -> State:
        """Returns the state of members, leading axis member, with their values beside it where programs read them."""
        return self.programs.with_values(state, values) if isinstance(self.programs, VariedPrograms) else state

    def member(self, state: State, values: dict[str, float]) -> keras.Model:
        """Returns a member as a compiled, built model of its own."""
        with preserved_generators():
            network = keras_internals.clone(self.network)
        keras_parts.compile_like(network, self.network)
        set_values(network, values)
        keras_internals.build_like(network, self._built_with)
        keras_internals.write_state(network, state)
        return network


@functools.lru_cache(maxsize=2**7)  # blocks of members: trials of a study, and fits again, begin from the same seeds
def _all_drawn(seeds: tuple[int, ...], count: int) -> UInt32[np.ndarray, "member draw"]:
    """Returns what is drawn for each of these seeds."""
    drawn = np.array([_drawn(seed, count) for seed in seeds], np.uint32)
    drawn.flags.writeable = False
    return drawn


@functools.lru_cache(maxsize=2**14)
def _drawn(seed: int, count: int) -> tuple[int, ...]:
    """Returns the default seeds that Keras draws, so many, after `keras.utils.set_random_seed(seed)`."""
    generator = random.Random(seed)
    return tuple(keras_internals.default_seed(generator) for _ in range(count))


def _form(batch: Any) -> tuple:
    return jax.tree.structure(batch), *((a.shape[1:], a.dtype) for a in jax.tree.leaves(batch))


class Known(NamedTuple):
    """The templates of one model as it is configured and compiled."""

    marker: Any
    configurations: tuple[str, str]
    templates: dict[Kind, Template]
    tracing: Any  # a lock, that of all the templates


_looking_up = threading.RLock()
_templates: "weakref.WeakKeyDictionary[keras.Model, Known]" = weakref.WeakKeyDictionary()


def template_of(model: keras.Model, kind: Kind, values: Mapping[str, np.ndarray]) -> Template:
    """Returns the template of the model; a new one when its configuration or how it is compiled has changed.

    Args:
        model: A compiled model.
        kind: Which numbers are each member's own.
        values: The values of all varied numbers in the members of this kind.
    """
    marker = keras_internals.compile_marker(model)
    configurations = (repr(model.get_config()), repr(model.optimizer.get_config()))
    with _looking_up:
        known = _templates.get(model)
        if known is None or known.marker is not marker or known.configurations != configurations:
            known = _templates[model] = Known(marker, configurations, {}, threading.RLock())
        template = known.templates.get(kind)
        if template is None or not template.fits(values):
            template = known.templates[kind] = Template(_like(model, values), kind.own, known.tracing)
        return template


def _like(model: keras.Model, values: Mapping[str, np.ndarray]) -> keras.Model:
    """Returns the model, or where values are given a copy that is made with those of the first member."""
    if not values:
        return model
    with preserved_generators():
        copy = keras_internals.clone(model)
    keras_parts.compile_like(copy, model)
    set_values(copy, {path: float(of_members[0]) for path, of_members in values.items()})
    return copy
