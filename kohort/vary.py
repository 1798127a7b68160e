"""What differs from member to member beside the seed: numbers that layers, regularizers, losses or optimizers hold.

In come a model and the values to vary, by the dotted path of each number; out go the values, checked, the templates
from which the members are made, and plain models in which a member's values are set. The room exists because a sweep
over a learning rate or a dropout rate is one cohort, as the network keeps its shapes.
"""

import numbers
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import keras
import numpy as np

from kohort import keras_internals, keras_parts
from kohort.checks import FLOAT32_MAX, received
from kohort.data import Inputs
from kohort.engine import State
from kohort.mapping import Form
from kohort.number import Book, MembersState
from kohort.programs import Programs

EXAMPLE = '{"optimizer.learning_rate": [1e-3, 1e-2]}'


# --- where a number is ------------------------------------------------------------------------------------------------


def place_of(model: keras.Model, path: str) -> tuple[Any, str]:
    """Returns the part of a model that holds the number at a path, and the name under which it does.

    Raises:
        ValueError: If there is nothing at the path, or no number that can differ from member to member.
    """
    first = path.split(".")[0]
    part = keras_parts.root(model, first)
    if part is keras_parts.MISSING:
        layers = ", ".join(repr(layer.name) for layer in model.layers)
        step = f"Begin the path with 'optimizer', 'loss' or a layer: {layers}"
        raise refusal(path, f"there is no layer {first!r}", step)
    return _place_in(part, path)


def _place_in(part: Any, path: str) -> tuple[Any, str]:
    (before, *names), holder, name = path.split("."), part, ""
    for name in names:
        holder, part = part, keras_parts.held(part, name)
        if part is keras_parts.MISSING:
            raise refusal(path, f"{_kind(holder)} has no {name!r}", _numbers_at(before, holder))
        before = f"{before}.{name}"
    _check_number(path, holder, name, part)
    return holder, name


def refusal(path: str, why: str, step: str) -> ValueError:
    """Returns the error for a path that cannot be varied."""
    return ValueError(
        "`vary` must name numbers that a layer, a regularizer, a loss or the optimizer holds. "
        f"Received: vary with {path!r}, where {why}. {step}."
    )


def _check_number(path: str, holder: Any, name: str, number: Any) -> None:
    if is_variable(number):
        return
    if isinstance(number, numbers.Integral) and not isinstance(number, bool | np.bool):
        raise refusal(
            path,
            f"{_kind(holder)} holds the whole number {int(number)}, and whole numbers shape a network or count",
            f"Another shape is another cohort; if it is no count, write it as {float(number)} in the model",
        )
    if number is None:
        raise refusal(path, f"{_kind(holder)} holds None", f"Give the model a number there first, such as {name}=1.0")
    is_float = isinstance(number, float) or (getattr(number, "shape", None) == () and "float" in str(number.dtype))
    if not name or not is_float or isinstance(number, keras.Variable):
        what = "a variable, which training changes" if isinstance(number, keras.Variable) else _kind(number)
        raise refusal(path, f"there is {what}", _numbers_at(path, number))
    if not keras_parts.can_hold(holder, name):
        raise refusal(
            path, f"{_kind(holder)} only shows the number of one of its parts", "Name the part, such as 'cell'"
        )


def is_variable(number: Any) -> bool:
    """Says whether a number is a variable of the optimizer, a learning rate: every member has its own anyway."""
    return isinstance(number, keras.Variable) and number.shape == () and number.name == "learning_rate"


def can_vary(model: keras.Model, values: Mapping[str, np.ndarray]) -> bool:
    """Says whether these numbers of a model can differ from member to member."""
    try:
        for path, column in values.items():
            _check_with_model(model, path, column)
    except ValueError:
        return False
    return True


def _kind(part: Any) -> str:
    is_value = isinstance(part, str | int | float | tuple | list | dict) or part is None
    return f"`{part!r}`" if is_value else f"{'an' if type(part).__name__[0] in 'AEIOU' else 'a'} {type(part).__name__}"


def _numbers_at(path: str, part: Any) -> str:
    """Says what of a part, which is at this path, can be named."""
    if isinstance(part, keras.Model):
        return f"It has the layers {', '.join(repr(f'{path}.{layer.name}') for layer in part.layers)}"
    found = keras_parts.floats_of(part)
    if isinstance(part, keras.optimizers.Optimizer):
        found = ["learning_rate", *found]
    if isinstance(part, str):
        return f"Compile with an object instead, such as `keras.losses.Huber()` in the place of {part!r}"
    return f"It holds {', '.join(repr(f'{path}.{name}') for name in found) or 'no number'}"


# --- the values -------------------------------------------------------------------------------------------------------


def check_vary(model: keras.Model, vary: Any, seeds: int, grid: Any) -> dict[str, np.ndarray]:
    """Returns the values of each path as an array, checked against the model; empty if nothing is varied."""
    if not isinstance(grid, bool | np.bool) or (grid and vary is None):
        raise ValueError(
            "`grid` must be True or False, and False where nothing is varied. "
            f"Received: {received('grid', grid)}{', vary=None' if vary is None else ''}. "
            f"Pass for example vary={EXAMPLE}, grid=True."
        )
    if vary is None:
        return {}
    if not isinstance(vary, Mapping) or not vary or not all(isinstance(path, str) for path in vary):
        raise TypeError(
            "`vary` must be a dict from the path of a number to its values. "
            f"Received: {received('vary', vary)}. Pass for example {EXAMPLE}."
        )
    checked = {path: _check_values(path, values) for path, values in vary.items()}
    for path, values in checked.items():
        if not grid and len(values) != seeds:
            raise ValueError(
                f"`vary` must hold one value per seed ({seeds}) for each path. "
                f"Received: vary with {len(values)} value(s) for {path!r}. "
                "Pass as many values as seeds, or grid=True for every combination with every seed."
            )
        _check_with_model(model, path, values)
    return checked


def _check_values(path: str, values: Any) -> np.ndarray:
    is_listed = isinstance(values, list | tuple | range) or (hasattr(values, "__array__") and np.ndim(values) == 1)
    listed = np.asarray(values).tolist() if is_listed else []
    are_numbers = all(isinstance(value, numbers.Real) and not isinstance(value, bool) for value in listed)
    if not listed or not are_numbers:
        raise TypeError(
            f"`vary` must hold a sequence of numbers for each path. Received: vary with {path!r}: "
            f"{received('values', values)}. Pass for example {EXAMPLE}."
        )
    array = np.array(listed, np.float64)
    if not (np.abs(array) <= FLOAT32_MAX).all():
        raise ValueError(
            f"`vary` must hold finite numbers of at most {FLOAT32_MAX:.2g} in size (float32). "
            f"Received: vary with {path!r}: {array[~(np.abs(array) <= FLOAT32_MAX)][0]}. Remove it."
        )
    return array


def _check_with_model(model: keras.Model, path: str, values: np.ndarray) -> None:
    """Raises unless the model has such a number, and Keras takes the least and the largest of the values."""
    holder, name = place_of(model, path)
    first = keras_parts.root(model, path.split(".")[0])
    if is_variable(keras_parts.held(holder, name)) and (values < 0).any():
        raise ValueError(
            "`vary` must hold learning rates that are not negative. "
            f"Received: vary with {path!r}: {values.min()}. Remove it."
        )
    policy = getattr(first, "compute_dtype", "float32")
    if policy != "float32":
        raise refusal(path, f"the layer computes in {policy}", "Vary numbers of layers that compute in float32")
    for value in (values.min(), values.max()):
        try:
            _with_own_value(first, path, float(value))
        except (TypeError, ValueError) as error:
            said = str(error.__context__ or error).splitlines()[0]  # Keras wraps what a layer says
            raise ValueError(
                f"`vary` must hold values that Keras takes. Received: vary with {path!r}: {value}, of which it says: "
                f"{said} Remove it."
            ) from error


def _with_own_value(part: Any, path: str, value: float) -> None:
    """Makes an optimizer or a layer anew, with a value in it that its own `__init__` judges."""
    if isinstance(part, keras.optimizers.Optimizer | keras.layers.Layer):
        with keras_internals.default_seeds(lambda: 1):
            own = keras_parts.own_part(part)
            holder, name = _place_in(own, path)
            number = keras_parts.held(holder, name)
            if not is_variable(number):
                keras_parts.hold(holder, name, with_value(number, value))
                keras_parts.own_part(own)


def with_value(number: Any, value: float) -> Any:
    """Returns a value in the form in which the number that it replaces is held."""
    return value if isinstance(number, float) else keras.ops.convert_to_tensor(value, dtype=number.dtype)


def set_values(model: keras.Model, values: Mapping[str, float]) -> None:
    """Sets the values of one member in a model of its own."""
    for path, value in values.items():
        holder, name = place_of(model, path)
        number = keras_parts.held(holder, name)
        if is_variable(number):
            number.assign(value)
        else:
            keras_parts.hold(holder, name, with_value(number, float(value)))


# --- templates and programs -------------------------------------------------------------------------------------------


class Kind(NamedTuple):
    """What members have in common that are made from one template."""

    own: tuple[str, ...] = ()  # paths of the numbers that each of them has for itself
    common: tuple[tuple[str, float], ...] = ()  # paths of all others with their values, or of all with their signs


def kinds_of(
    model: keras.Model, varied: Mapping[str, np.ndarray], members: int, exact: bool
) -> tuple[list[Kind], tuple[int, ...]]:
    """Returns the kinds of the members, and the place of each member's kind among them.

    Numbers of one sign go together: Keras builds a network without dropout where its rate is 0, and such members draw
    fewer seeds and hold less state. With `exact`, equal numbers: as in Keras they are constants, which round otherwise
    in a compiled program than numbers that it reads. Learning rates it reads in any case.
    """
    are_rates = {path: is_variable(keras_parts.held(*place_of(model, path))) for path in varied}
    own = tuple(path for path, is_rate in are_rates.items() if is_rate or not exact)
    marks = {p: v if exact else np.sign(v) for p, v in varied.items() if not are_rates[p]}
    if not marks:
        return [Kind(own)], (0,) * members
    found, kind_of = np.unique(np.stack(list(marks.values()), axis=-1), axis=0, return_inverse=True)
    kinds = [Kind(own, tuple(zip(marks, row.tolist(), strict=True))) for row in found]
    return kinds, tuple(np.ravel(kind_of).tolist())


class VariedPrograms(Programs):
    """The compiled programs of a network some of whose numbers are each member's own."""

    def __init__(self, model: keras.Model, paths: tuple[str, ...]) -> None:
        """Finds out which numbers are traced, and which are variables of the optimizer."""
        places = {path: place_of(model, path) for path in paths}
        held = {path: keras_parts.held(*place) for path, place in places.items()}
        optimizer = keras_internals.variables_of(model).optimizer_variables
        places_of_rates = {p: [i for i, v in enumerate(optimizer) if v is held[p]] for p in paths}
        self._rates = {path: found[0] for path, found in places_of_rates.items() if found}
        self.book = Book(tuple(path for path in paths if path not in self._rates))
        traced = [places[path] for path in self.book.paths]
        super().__init__(model, self.book.steps(keras_internals.functions(model), traced))
        self._plain = Programs(model)

    def fits(self, values: Mapping[str, np.ndarray]) -> bool:
        """Says whether members with these values are built as those that were traced."""
        return self.book.agrees(self._traced(values))

    def begin_with(self, state: State, values: Mapping[str, np.ndarray]) -> MembersState:
        """Returns the state of members, (member, ...), with their values, each (member,)."""
        optimizer = list(state.optimizer_variables)
        for path, place in self._rates.items():
            optimizer[place] = jnp.asarray(values[path], optimizer[place].dtype)
        return self.with_values(state._replace(optimizer_variables=optimizer), values)

    def with_values(self, state: State, values: Mapping[str, np.ndarray]) -> MembersState:
        """Returns the state of members that are trained already, (member, ...), likewise: their rates are in it."""
        return MembersState(state, self._traced(values))

    def _traced(self, values: Mapping[str, np.ndarray]) -> np.ndarray:
        members = len(next(iter(values.values())))
        return np.array([values[path] for path in self.book.paths]).reshape(-1, members).T

    def epochs(self, *key: Any, **options: Any) -> Callable:
        """Returns the training program of a block of members, or of one."""
        return self.once(
            ("varied", key, *options.items()),
            lambda: self._reading(Programs.epochs(self, *key, **options), trains=True),
        )

    def guided(self, *key: Any, **options: Any) -> Callable:
        """Returns the training program that follows rules: of `(state, course)`, as the others of the state."""
        return self.once(
            ("varied guided", key, *options.items()),
            lambda: self._reading(Programs.guided(self, *key, **options), trains=True),
        )

    def logged(self, data: Inputs, state: Any) -> dict:
        """Returns what an epoch logs, which no number changes: that of the network as it is."""
        return self._plain.logged(data, state)

    def form(self, data: Inputs, state: Any) -> Form:
        """Returns what a step is like, as far as mapping it matters: that of the network as it is."""
        return self._plain.form(data, state)

    def evaluate(self, *key: Any, **options: Any) -> Callable:
        """Returns the evaluation program."""
        name = ("varied evaluate", key, *options.items())
        return self.once(name, lambda: self._reading(Programs.evaluate(self, *key, **options)))

    def predict(self, *key: Any, **options: Any) -> Callable:
        """Returns the prediction program."""
        name = ("varied predict", key, *options.items())
        return self.once(name, lambda: self._reading(Programs.predict(self, *key, **options)))

    def _reading(self, program: Callable, trains: bool = False) -> "Reading":
        return Reading(program, self.book, trains)


class Reading:
    """A program as a function of what holds the members' values, of which it computes the columns that it reads.

    Which columns it reads is known once it is traced, so it is traced before the first call.
    """

    def __init__(self, program: Any, book: Book, trains: bool) -> None:
        """Traces nothing yet."""
        self._program, self._book, self._trains = program, book, trains
        self._known: set = set()

    def __call__(self, carry: Any, *args: Any, **options: Any) -> Any:
        """Runs the program for a state, or for a pair of a state and what else is carried."""
        values = self._traced(carry, args)
        self._book.check(values)
        results = self._program(_holding(carry, self._book.read(values)), *args, **options)
        return (_holding(results[0], values), *results[1:]) if self._trains else results

    def memory(self, carry: Any, *args: Any) -> int:
        """Returns the bytes that a call takes."""
        values = self._traced(carry, args)
        return self._program.memory(_holding(carry, self._book.read(values)), *args)

    def _traced(self, carry: Any, args: tuple) -> np.ndarray:
        """Traces the program if it was not for such arguments, and returns the members' values."""
        values = (carry if isinstance(carry, MembersState) else carry[0]).values
        empty = _holding(carry, np.zeros((*values.shape[:-1], self._book.most), np.float32))
        form = (jax.tree.structure((empty, args)), *map(jax.typeof, jax.tree.leaves((empty, args))))
        if form not in self._known:
            with self._book.traced_for(values):
                self._program.eval_shape(empty, *args)
                if self._trains:
                    self._book.check_read()
            self._known.add(form)
        return values


def _holding(carry: Any, values: Any) -> Any:
    """Returns the carried state with other values."""
    if isinstance(carry, MembersState):
        return MembersState(carry, values)
    return (MembersState(carry[0], values), *carry[1:])
