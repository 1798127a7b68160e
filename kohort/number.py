"""Numbers that stand for one value per member while a network is traced.

In come the paths of numbers in a model and, for each member, their values; out go Keras's own steps, traced once, that
read those numbers from an array. The room exists because Keras keeps such numbers as floats of Python, which a compiled
program would hold fast.
"""

import contextlib
import numbers
import operator
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from kohort import keras_parts
from kohort.engine import Functions, State

# What is computed in Python from one number, such as `1 - beta_1`, takes a column of its own; so many for each path.
COLUMNS_PER_PATH = 16
EXACT = "Pass exact=True, which compiles a program for each value"


class MembersState(State):
    """The state of a network some of whose numbers are the member's own: Keras's four lists, with its values beside."""

    values: Any  # as people give them, float64 (path,); inside a program its columns, float32 (column,)

    def __new__(cls, state: Any, values: Any) -> "MembersState":
        """Puts the values beside the lists."""
        self = super().__new__(cls, *state)
        self.values = values
        return self

    def _replace(self, **lists: Any) -> "MembersState":  # type: ignore[override]
        """Returns the same member with another list."""
        return MembersState(State(*self)._replace(**lists), self.values)


jax.tree_util.register_pytree_node(
    MembersState, lambda state: ((*state, state.values), None), lambda _, parts: MembersState(parts[:4], parts[4])
)


class Number:
    """A number of Keras's that is the member's own, or what Python computes from it with other numbers.

    Arithmetic with numbers is done as Python does it, in double precision, before the program runs: the program reads
    the result. Arithmetic with arrays reads the value and goes on in the program. What Python asks ("is it above 0?")
    decides how the network is built and must have one answer for all members.
    """

    # JAX's arrays have these, and so say what they are.
    dtype, shape, ndim = np.dtype("float32"), (), 0
    __array_ufunc__ = None  # NumPy leaves arithmetic to this class
    __hash__ = object.__hash__

    def __init__(self, book: "Book", text: str, compute: Callable[[np.ndarray], Any]) -> None:
        """Keeps how the number is computed from the values of all paths, (..., path)."""
        self.book, self.text, self.compute = book, text, compute

    def __jax_array__(self) -> Any:
        """Gives JAX the value that the program reads."""
        return self.book.column(self)

    def __repr__(self) -> str:
        """Reads as Python would compute it."""
        return self.text

    def __bool__(self) -> bool:
        """Answers for all members."""
        return self.book.answer(f"{self.text} != 0", lambda values: self.compute(values) != 0)

    def __float__(self) -> float:
        """Refuses: a float of Python would be the same in all members."""
        raise self.book.refuse(
            f"`vary` must name numbers that Keras computes with arrays. Received: {self.book.named(self.text)}, of "
            f"which it makes a float of Python, the same for all members. {EXACT}."
        )

    __int__ = __index__ = __complex__ = __float__


def _with(operation: Callable, form: str, swapped: bool = False) -> Callable:
    """Returns the method for arithmetic, or a comparison, with something else."""
    asks = operation in (operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne)

    def method(self: Number, other: Any) -> Any:
        def computed(values: np.ndarray) -> Any:
            theirs = other.compute(values) if isinstance(other, Number) else other
            with np.errstate(all="ignore"):
                return operation(theirs, self.compute(values)) if swapped else operation(self.compute(values), theirs)

        text = form.format(*((other, self) if swapped else (self, other)))
        if isinstance(other, numbers.Real | Number):
            return self.book.answer(text, computed) if asks else Number(self.book, f"({text})", computed)
        if other is None or isinstance(other, str):
            return NotImplemented
        pair = (other, self.book.column(self)) if swapped else (self.book.column(self), other)
        return operation(*pair)

    return method


def _alone(operation: Callable, form: str) -> Callable:
    """Returns the method for arithmetic with the number alone."""
    return lambda self: Number(self.book, form.format(self), lambda values: operation(self.compute(values)))


ARITHMETIC = {
    "add": "{} + {}", "sub": "{} - {}", "mul": "{} * {}", "truediv": "{} / {}", "pow": "{} ** {}", "mod": "{} % {}",
    "floordiv": "{} // {}",
}  # fmt: skip
COMPARISONS = {"lt": "{} < {}", "le": "{} <= {}", "gt": "{} > {}", "ge": "{} >= {}", "eq": "{} == {}", "ne": "{} != {}"}
for _name, _form in {**ARITHMETIC, **COMPARISONS}.items():
    setattr(Number, f"__{_name}__", _with(getattr(operator, _name), _form))
for _name, _form in ARITHMETIC.items():
    setattr(Number, f"__r{_name}__", _with(getattr(operator, _name), _form, swapped=True))
for _name, _form in {"neg": "-{}", "pos": "+{}", "abs": "abs({})"}.items():
    setattr(Number, f"__{_name}__", _alone(getattr(operator, _name), _form))

# A function that JAX compiles takes a number as the array that it reads.
jax.tree_util.register_pytree_node(
    Number, lambda number: ((number.__jax_array__(),), None), lambda _, arrays: arrays[0]
)


class Book:
    """What a network's programs ask of its members' numbers: the columns that they read, the questions in between."""

    def __init__(self, paths: tuple[str, ...]) -> None:
        """Knows the paths; columns and questions come with the first tracing."""
        self.paths = paths
        self.most = COLUMNS_PER_PATH * len(paths)
        self._columns: dict[str, tuple[int, Number]] = {}
        self._questions: dict[str, tuple[Callable, bool]] = {}
        self._read: Any = None  # the columns, while a step is traced
        self._values: Any = None  # the values of the members for whom it is traced
        self._refusal: ValueError | None = None
        self._lock = threading.RLock()

    def numbers(self) -> list[Number]:
        """Returns the number of each path."""
        return [Number(self, path, lambda values, i=i: values[..., i]) for i, path in enumerate(self.paths)]

    def column(self, number: Number) -> Any:
        """Returns the value of a number in the program that is being traced."""
        if self._read is None:
            raise RuntimeError(f"The number {number} was read outside of the program that it belongs to.")
        place, _ = self._columns.setdefault(number.text, (len(self._columns), number))
        if place >= self.most:
            raise self.refuse(
                f"`vary` must name numbers of which Keras computes at most {self.most} others. Received: "
                f"{self.named(number.text)}, of which it computes more. {EXACT}."
            )
        return self._read[place]

    def answer(self, text: str, compute: Callable) -> bool:
        """Answers what Python asks while a step is traced, the same for all members."""
        if text not in self._questions:
            self._questions[text] = (compute, self._same(text, compute, self._values))
        return self._questions[text][1]

    def _same(self, text: str, compute: Callable, values: np.ndarray, wanted: bool | None = None) -> bool:
        answers = np.atleast_1d(compute(values))
        first = bool(answers[0]) if wanted is None else wanted
        if (answers != first).any():
            counts = f"it is so in {int(answers.sum())} of {len(answers)} members"
            among = f"{counts}, and in the others it is not" if 0 < answers.sum() < len(answers) else counts
            raise self.refuse(
                f"`vary` must hold values for which Keras builds one network. Received: {self.named(text)}, where it "
                f"asks whether `{text}`: {among}. {EXACT}, or train those for which it is so as a cohort of their own."
            )
        return first

    def agrees(self, values: Float[np.ndarray, "*member path"]) -> bool:
        """Says whether all that was asked while tracing has the same answer for these members."""
        return all((np.atleast_1d(c(values)) == known).all() for c, known in self._questions.values())

    def read(self, values: Float[np.ndarray, "*member path"]) -> Float[np.ndarray, "*member column"]:
        """Returns the columns that programs read, computed in double precision and then rounded."""
        columns = np.zeros((*values.shape[:-1], self.most), np.float32)
        for place, number in self._columns.values():
            columns[..., place] = number.compute(values)
        return columns

    def check(self, values: Float[np.ndarray, "*member path"]) -> None:
        """Raises unless all that was asked while tracing has the same answer for these members."""
        for text, (compute, known) in self._questions.items():
            self._same(text, compute, values, known)

    def check_read(self) -> None:
        """Raises if what was traced, a training, looks at one of the numbers nowhere."""
        texts = [*self._columns, *self._questions]
        for path in self.paths:
            if not any(path in text for text in texts):
                raise self.refuse(
                    "`vary` must name numbers that training looks at. "
                    f"Received: {path!r}, which nothing reads while the model trains. Leave it out."
                )

    def refuse(self, message: str) -> ValueError:
        """Returns an error, and keeps it: Keras wraps what is raised inside a layer."""
        self._refusal = ValueError(message)
        return self._refusal

    def named(self, text: str) -> str:
        """Names the path that a computation begins with."""
        return ", ".join(repr(path) for path in self.paths if path in text)

    @contextlib.contextmanager
    def traced_for(self, values: np.ndarray) -> Iterator[None]:
        """Lets questions that come up inside the block be answered for these members."""
        with self._lock:
            self._values, self._refusal = values, None
            try:
                yield
            except (TypeError, ValueError, RuntimeError):
                if self._refusal is not None:
                    raise self._refusal from None
                raise

    def steps(self, functions: Functions, parts: list[tuple[Any, str]]) -> Functions:
        """Returns Keras's steps as functions of a `MembersState`, in which the parts' numbers are the member's."""

        @contextlib.contextmanager
        def own_numbers(state: MembersState) -> Iterator[State]:
            with self._lock:
                before, self._read = self._read, state.values
                kept = [keras_parts.held(*part) for part in parts]
                try:
                    for part, number in zip(parts, self.numbers(), strict=True):
                        keras_parts.hold(*part, number)
                    yield State(*state)
                finally:
                    self._read = before
                    for part, number in zip(parts, kept, strict=True):
                        keras_parts.hold(*part, number)

        def step_of(function: Callable) -> Callable:
            def step(state: MembersState, batch: Any) -> tuple[dict, MembersState]:
                with own_numbers(state) as of_keras:
                    logs, new = function(of_keras, batch)
                return logs, MembersState(new, state.values)

            return step

        def predict_step(state: Any, batch: Any) -> Any:
            with own_numbers(state) as of_keras:
                return functions.predict_step(of_keras, batch)

        def reset_metrics(state: Any) -> MembersState:
            return MembersState(functions.reset_metrics(State(*state)), state.values)

        def results(state: Any, logs: dict) -> dict:
            return functions.results(State(*state), logs)

        train_step, test_step = step_of(functions.train_step), step_of(functions.test_step)
        return Functions(train_step, test_step, predict_step, reset_metrics, results)
