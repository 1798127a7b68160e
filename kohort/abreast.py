"""Many members in one array: a member axis at the end, along which a processor computes several at a time.

In comes a function of one member; out comes the same function of many. `jax.vmap` does that with a member axis in
front, for which XLA's CPU compiler calls a matrix product for each member: where a product has a dozen terms, the call
costs more than the terms. Here the terms are written out, and each is one operation over all members. The room exists
because that trains small networks several times faster.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, Literal

from kohort.rounding import evaluate, inlined

# Sums of more terms are left to XLA: written out they would make programs that take long to compile.
MOST_TERMS = 64
# Products of more terms in all are faster as XLA does them, one member after the other.
LARGEST_PRODUCT = 20_000
# Operations that do the same at each place of their operands.
ELEMENTWISE = set(
    "abs add add_any and atan2 cbrt ceil clamp convert_element_type copy cos digamma div eq erf erf_inv exp exp2 expm1 "
    "floor ge gt integer_pow is_finite le lgamma log log1p logistic lt max min mul ne neg nextafter not or pow rem "
    "round rsqrt select_n sign sin sqrt square sub tan tanh xor".split()
)


class Wide:
    """An array whose last axis is member."""

    def __init__(self, array: Any) -> None:
        """Takes the array as it is."""
        self.array = array


def abreast(function: Callable, in_axes: tuple, members: int, apart: Callable) -> Callable:
    """Returns `function`, which is written for one member, for many; all its results have a last axis member.

    Args:
        function: Function of structures of arrays.
        in_axes: For each argument -1, if its arrays have a last axis member, or None, if all members share them.
        members: Length of the member axis.
        apart: Called as `apart(function, *arrays)`, does the function such that XLA merges it with nothing else:
            merged, a product would be computed anew in each place that reads it.
    """

    def run(*args: Any) -> Any:
        shared = [jax.tree.map(lambda a, axis=axis: a if axis is None else _one(a), arg) for arg, axis in _paired(args)]
        closed, shape = jax.make_jaxpr(function, return_shape=True)(*shared)
        leaves = [a if axis is None else Wide(a) for arg, axis in _paired(args) for a in jax.tree.leaves(arg)]
        outputs = [_wide(value, members) for value in evaluate(closed, leaves, _Lifted(members, apart).apply)]
        return jax.tree.unflatten(jax.tree.structure(shape), outputs)

    def _paired(args: tuple) -> list[tuple]:
        return list(zip(args, in_axes, strict=True))

    return run


def _one(array: Any) -> Any:
    return jax.ShapeDtypeStruct(array.shape[:-1], array.dtype)


def _wide(value: Any, members: int) -> Any:
    return value.array if isinstance(value, Wide) else jnp.broadcast_to(_stretched(value), (*np.shape(value), members))


def _stretched(value: Any) -> Any:
    """Returns the array with a last axis member, of length 1 if the members share it."""
    return value.array if isinstance(value, Wide) else jnp.asarray(value)[..., None]


def suits(closed: ClosedJaxpr) -> bool:
    """Says whether a traced function of one member gains: all that it does can be done abreast, in small products."""
    return all(_suits(equation) for equation in _of_member(closed))


def largest_array(closed: ClosedJaxpr) -> int:
    """Returns the bytes of the largest array that a traced function computes for one member."""
    sizes = [4]
    for equation in _of_member(closed):
        called = inlined(equation)
        results = (variable.aval for variable in equation.outvars)
        sizes += map(largest_array, called) if called else (math.prod(a.shape) * a.dtype.itemsize for a in results)
    return max(sizes)


def _of_member(closed: ClosedJaxpr) -> Iterator[Any]:
    """Gives the operations of a traced function that depend on its arguments."""
    known = set(closed.jaxpr.invars)
    for equation in closed.jaxpr.eqns:
        if any(not isinstance(variable, Literal) and variable in known for variable in equation.invars):
            known.update(equation.outvars)
            yield equation


def _suits(equation: Any) -> bool:
    name = equation.primitive.name
    if inlined(equation):
        return all(map(suits, inlined(equation)))
    if name == "dot_general":
        (axes, _), (batch, _) = equation.params["dimension_numbers"]
        terms = math.prod(equation.invars[0].aval.shape[axis] for axis in axes)
        return (
            not batch and terms <= MOST_TERMS and terms * math.prod(equation.outvars[0].aval.shape) <= LARGEST_PRODUCT
        )
    return name in ELEMENTWISE or name == "optimization_barrier" or hasattr(_Lifted, name)


class _Lifted:
    """The operations of a traced program, each done for all members."""

    def __init__(self, members: int, apart: Callable) -> None:
        self.members, self.apart = members, apart

    def apply(self, equation: Any, as_traced: Callable, inputs: list) -> list:
        """Returns the results of one operation of a traced program."""
        name, params = equation.primitive.name, equation.params
        if not any(isinstance(value, Wide) for value in inputs):
            return as_traced(*inputs)
        for called in inlined(equation):
            return evaluate(called, inputs, self.apply)
        if name in ELEMENTWISE:
            arrays = jnp.broadcast_arrays(*map(_stretched, inputs))
            return [Wide(equation.primitive.bind(*arrays, **params))]
        written = getattr(self, name, None)
        result = written(*inputs, **params) if written else None
        return [Wide(result)] if result is not None else by_vmap(as_traced, inputs)

    # Operations by their names; None where `jax.vmap` does better.

    def broadcast_in_dim(self, operand: Any, *_: Any, shape: tuple, broadcast_dimensions: tuple, **_params: Any) -> Any:
        return lax.broadcast_in_dim(operand.array, (*shape, self.members), (*broadcast_dimensions, len(shape)))

    def reshape(self, operand: Any, *_: Any, new_sizes: tuple, **_params: Any) -> Any:
        return operand.array.reshape(*new_sizes, self.members)

    def squeeze(self, operand: Any, *, dimensions: tuple) -> Any:
        return lax.squeeze(operand.array, dimensions)

    def transpose(self, operand: Any, *, permutation: tuple) -> Any:
        return lax.transpose(operand.array, (*permutation, len(permutation)))

    def reduce_sum(self, operand: Any, *, axes: tuple, **_params: Any) -> Any:
        array = jnp.moveaxis(operand.array, axes, range(len(axes)))
        terms = list(itertools.product(*map(range, array.shape[: len(axes)])))
        return functools.reduce(lax.add, (array[term] for term in terms)) if 0 < len(terms) <= MOST_TERMS else None

    def dot_general(self, lhs: Any, rhs: Any, *, dimension_numbers: tuple, **params: Any) -> Any:
        (lhs_axes, rhs_axes), (batch, _) = dimension_numbers
        left, right = _stretched(lhs), _stretched(rhs)
        is_long = math.prod(left.shape[axis] for axis in lhs_axes) > MOST_TERMS
        if batch or is_long or {left.dtype, right.dtype, params["preferred_element_type"]} != {left.dtype}:
            return None
        product = functools.partial(_written_out, left_axes=lhs_axes, right_axes=rhs_axes)
        return self.apart(product, left, right)


def by_vmap(function: Callable, inputs: list) -> list:
    """Does any operation as `jax.vmap` does."""
    axes = tuple(-1 if isinstance(value, Wide) else None for value in inputs)
    arrays = [value.array if isinstance(value, Wide) else value for value in inputs]
    return [Wide(output) for output in jax.vmap(function, in_axes=axes, out_axes=-1)(*arrays)]


def _written_out(left: Any, right: Any, *, left_axes: tuple, right_axes: tuple) -> Any:
    """Returns the product of two arrays (..., member), term by term."""
    n = len(left_axes)
    left = jnp.moveaxis(left, left_axes, range(n))
    right = jnp.moveaxis(right, right_axes, range(n))
    left = left.reshape(*left.shape[:-1], *[1] * (right.ndim - 1 - n), left.shape[-1])
    terms = itertools.product(*map(range, left.shape[:n]))
    return functools.reduce(lax.add, (left[term] * right[term] for term in terms))
