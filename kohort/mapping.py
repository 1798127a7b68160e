"""How the program of one member becomes that of a block of them.

In come a program written for one member and the name of a mapping; out goes the program of many, which does the same to
rounding. The room exists because which mapping is fastest depends on the network: the arithmetic of a tiny one is
cheap enough to be written out for all members at once, that of a large one keeps a core busy by itself.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kohort import pieces
from kohort.abreast import abreast, largest_array, suits
from kohort.engine import OWN_SCHEDULE, Functions, Schedule, State, Unknown
from kohort.rounding import evaluate, inlined, interpreted
from kohort.rules import Guidance, both

# abreast: members side by side in the last axis of each array; vectorized: `jax.vmap`; loop: one after the other.
# sharded: as vectorized, with the member axis spread over all devices.
MAPPINGS = ("abreast", "vectorized", "loop", "sharded")

# What the arrays of one step should take in all: what a core's nearest cache holds, and then some.
BLOCK_BYTES = 2**16
NARROWEST, WIDEST = 8, 1024
# Members abreast are the lanes of vector instructions, and gain up to about so many whatever the cache says.
NARROWEST_ABREAST = 56
# Arrays whose rows are a multiple of so many lanes apart crowd into a few places of the cache: 64 members of a network
# with two layers of 8 take 1.4 times as long as 56 or 72.
CROWDED = 64

OWN_GUIDANCE = Guidance(first_epoch=None, numbers=None, rates=0)  # type: ignore[arg-type]

# Makes the program of one member of its functions and what decides between two ways to go on: `lax.cond`, or `both`.
Make = Callable[[Functions, Callable], Callable]


class Form(NamedTuple):
    """What a network's step is like, as far as mapping it matters."""

    is_small: bool  # all its products are so small that members go abreast
    largest_bytes: int  # of the largest array that it computes for one member
    text: str  # the step as it was traced

    @classmethod
    def of(cls, step: Callable, state: Any, batch: Any) -> "Form":
        """Looks at the traced step of one member."""
        closed = jax.make_jaxpr(step)(state, batch)
        return cls(suits(closed), largest_array(closed), str(closed))

    @property
    def width(self) -> int:
        """Members of a block, so that what a step reads and writes stays near the core: a multiple of 8."""
        narrowest = NARROWEST_ABREAST if self.is_small else NARROWEST
        fitting = BLOCK_BYTES // self.largest_bytes // NARROWEST * NARROWEST
        if fitting < WIDEST and fitting % CROWDED == 0:
            fitting -= NARROWEST
        return max(narrowest, min(WIDEST, fitting))


def of_block(make: Make, functions: Functions, mapping: str, own: tuple = (None, None)) -> Callable:
    """Returns the program of a block of members: what it carries on has a leading axis member, its logs a second one.

    Args:
        make: Makes the program of one: `run(carry, samples, validation, schedule, count, *guidance)`.
        functions: Of which it is made.
        mapping: One of `MAPPINGS`.
        own: Which parts of samples and validation samples each member has for itself: a 0 where it has, as
            (None, None, 0) for weights, else None.
    """
    if mapping == "abreast":
        return _abreast(make, functions)

    def run(carry: Any, samples: Any, validation: Any, schedule: Schedule, count: Any, *guidance: Guidance) -> tuple:
        axes = (0, *own, OWN_SCHEDULE, None, *(OWN_GUIDANCE for _ in guidance))
        args = carry, samples, validation, schedule, count, *guidance
        if mapping == "loop":
            trained, logs = _looped(make(functions, lax.cond), axes)(*args)
        else:
            of_many = functions._replace(train_step=batched_products(functions.train_step))
            trained, logs = jax.vmap(make(of_many, both), in_axes=axes)(*args)
        return trained, jax.tree.map(lambda log: jnp.swapaxes(log, 0, 1), logs)

    return run


def batched_products(function: Callable) -> Callable:
    """Returns `function` with products that XLA's CPU compiler does for all members at once when it is vectorised.

    Where both operands are summed over their first axes, as in the gradient of a kernel, it would otherwise call a
    library for each member. What a recurrent layer does in its loop stays as it is.
    """

    def apply(equation: Any, as_traced: Callable, inputs: list) -> list:
        if _is_slow_product(equation):
            return [_product(*inputs, **equation.params)]
        if any(map(_has_slow_products, inlined(equation))):
            (called,) = inlined(equation)
            return evaluate(called, inputs, apply)
        return as_traced(*inputs)

    return interpreted(function, apply)


def _has_slow_products(closed: ClosedJaxpr) -> bool:
    return any(_is_slow_product(e) or any(map(_has_slow_products, inlined(e))) for e in closed.jaxpr.eqns)


def _is_slow_product(equation: Any) -> bool:
    if equation.primitive.name != "dot_general":
        return False
    summed, (batch, _) = equation.params["dimension_numbers"]
    first = tuple(range(len(summed[0])))
    return not batch and bool(first) and tuple(map(tuple, summed)) == (first, first)


def _product(left: Any, right: Any, *, dimension_numbers: Any, **params: Any) -> Any:
    """Returns the product of two arrays that are summed over their first axes."""
    n = len(dimension_numbers[0][0])
    last = tuple(range(right.ndim - n, right.ndim))
    # Behind a barrier, or XLA puts the axes back where they were.
    right = lax.optimization_barrier(jnp.moveaxis(right, range(n), last))
    if isinstance(params["precision"], tuple):  # that of each operand
        params["precision"] = params["precision"][::-1]
    product = lax.dot_general(right, left, ((last, tuple(range(n))), ((), ())), **params)
    return jnp.moveaxis(product, range(right.ndim - n), range(left.ndim - n, product.ndim))


def spread(arguments: tuple, own: tuple) -> tuple:
    """Returns the arguments of a block's program with the member axis spread over all devices, the rest on each.

    Varied values stay as they are: programs read them before JAX does, which would round them.
    """
    mesh = Mesh(np.array(jax.local_devices()), ("member",))
    axes = (0, *own, OWN_SCHEDULE, None, *(OWN_GUIDANCE for _ in arguments[5:]))
    owned = jax.tree.map(lambda axis: axis is not None, axes, is_leaf=lambda axis: axis is None)

    def placed(own: bool, array: Any) -> Any:
        if getattr(array, "dtype", None) == np.float64:
            return array
        return jax.device_put(array, NamedSharding(mesh, PartitionSpec("member") if own else PartitionSpec()))

    return jax.tree.map(placed, jax.tree.broadcast(owned, arguments), arguments)


def _abreast(make: Make, functions: Functions) -> Callable:
    """Returns the program with the members side by side in the last axis of all that they do not share."""

    def run(carry: Any, samples: Any, validation: Any, schedule: Schedule, count: Any, *guidance: Guidance) -> tuple:
        members = jax.tree.leaves(carry)[0].shape[0]
        unknown = Unknown.of(count, carry if isinstance(carry, State) else carry[0])

        def lifted(function: Callable, *in_axes: Any) -> Callable:
            return abreast(function, in_axes, members, unknown.apart)

        of_all = functions._replace(
            train_step=lifted(functions.train_step, -1, None if schedule.rows is None else -1),
            test_step=lifted(functions.test_step, -1, None if schedule.validation_rows is None else -1),
            reset_metrics=lifted(functions.reset_metrics, -1),
            results=lifted(functions.results, -1, -1),
        )
        rows: Any = None if schedule.rows is None else EpochRows(schedule.rows)
        schedule = schedule._replace(rows=rows, validation_rows=_last(schedule.validation_rows))
        told = [guided._replace(rates=_last(guided.rates)) for guided in guidance]
        program = make(of_all, both)
        trained, logs = program(_last(carry), samples, validation, schedule, count, *told)
        return _moved(trained, to=0), _moved(logs, to=1)

    return pieces.in_one_piece(run) if pieces.are_compiled() else run


class EpochRows:
    """Row numbers (member, epoch, row) of which an epoch's are read as (row, member).

    To move the member axis of all of them takes as long as a few epochs: a call has room for many that it does not run.
    """

    def __init__(self, rows: Any) -> None:
        """Moves nothing yet."""
        self._rows = rows

    def __getitem__(self, epoch: Any) -> Any:
        """Returns the row numbers of an epoch."""
        return _last(self._rows[:, epoch])


def _moved(arrays: Any, to: int) -> Any:
    """Moves the last axis, member, to that place."""
    return jax.tree.map(lambda a: jnp.moveaxis(a, -1, to), arrays)


def _last(arrays: Any) -> Any:
    """Moves the leading axis, member, to the end."""
    return jax.tree.map(lambda a: jnp.moveaxis(a, 0, -1), arrays)


def _looped(run: Callable, in_axes: tuple) -> Callable:
    """Returns `run` for members one after the other: what `jax.vmap(run, in_axes)` returns."""
    owned = jax.tree.map(lambda axis: axis is not None, in_axes, is_leaf=lambda axis: axis is None)

    def of_all(*args: Any) -> Any:
        leaves, structure = jax.tree.flatten(args)
        is_own = jax.tree.leaves(jax.tree.broadcast(owned, args))

        def one(of_member: list) -> Any:
            rest = iter(of_member)
            parts = [next(rest) if own else leaf for own, leaf in zip(is_own, leaves, strict=True)]
            return run(*jax.tree.unflatten(structure, parts))

        return lax.map(one, [leaf for own, leaf in zip(is_own, leaves, strict=True) if own])

    return of_all
