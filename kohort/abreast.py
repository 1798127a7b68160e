"""Many members in one array: a member axis at the end, along which a processor computes several at a time.

In comes a function of one member; out comes the same function of many. `jax.vmap` does that with a member axis in
front, for which XLA's CPU compiler calls a matrix product for each member: where a product has a dozen terms, the call
costs more than the terms. Here the terms are written out, and each is one operation over all members. The room exists
because that trains small networks several times faster.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun

from kohort.rounding import INLINED_CALLS, single

# Sums of more terms are left to XLA: written out they would make programs that take long to compile.
MOST_TERMS = 64
# Products of more terms in all are faster as XLA does them, one member after the other.
LARGEST_PRODUCT = 2**14
# Operations that do the same at each place of their operands.
ELEMENTWISE = set(
    "abs add add_any and atan2 cbrt ceil clamp convert_element_type copy cos digamma div eq erf erf_inv exp exp2 expm1 "
    "floor ge gt integer_pow is_finite le lgamma log log1p logistic lt max min mul ne neg nextafter not or pow rem "
    "round rsqrt select_n sign sin sqrt square sub tan tanh xor".split()
)


class Lanes:
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
        leaves = [a if axis is None else Lanes(a) for arg, axis in _paired(args) for a in jax.tree.leaves(arg)]
        outputs = [_wide(value, members) for value in _Lifted(members, apart).evaluate(closed, leaves)]
        return jax.tree.unflatten(jax.tree.structure(shape), outputs)

    def _paired(args: tuple) -> list[tuple]:
        return list(zip(args, in_axes, strict=True))

    return run


def _one(array: Any) -> Any:
    return jax.ShapeDtypeStruct(array.shape[:-1], array.dtype)


def _wide(value: Any, members: int) -> Any:
    return value.array if isinstance(value, Lanes) else jnp.broadcast_to(_stretched(value), (*np.shape(value), members))


def _stretched(value: Any) -> Any:
    """Returns the array with a last axis member, of length 1 if the members share it."""
    return value.array if isinstance(value, Lanes) else jnp.asarray(value)[..., None]


def suits(closed: ClosedJaxpr) -> bool:
    """Says whether a traced function of one member gains: all that it does can be done abreast, in small products."""
    of_member = set(closed.jaxpr.invars)
    for equation in closed.jaxpr.eqns:
        if any(not isinstance(variable, Literal) and variable in of_member for variable in equation.invars):
            if not _suits(equation):
                return False
            of_member.update(equation.outvars)
    return True


def _suits(equation: Any) -> bool:
    name = equation.primitive.name
    if name in INLINED_CALLS:
        return suits(_called(equation))
    if name == "dot_general":
        (axes, _), (batch, _) = equation.params["dimension_numbers"]
        terms = math.prod(equation.invars[0].aval.shape[axis] for axis in axes)
        return (
            not batch and terms <= MOST_TERMS and terms * math.prod(equation.outvars[0].aval.shape) <= LARGEST_PRODUCT
        )
    return name in ELEMENTWISE or name in ("iota", "optimization_barrier") or hasattr(_Lifted, name)


def _called(equation: Any) -> ClosedJaxpr:
    inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
    return inner if isinstance(inner, ClosedJaxpr) else ClosedJaxpr(inner, ())


class _Lifted:
    """The operations of a traced program, each done for all members."""

    def __init__(self, members: int, apart: Callable) -> None:
        self.members, self.apart = members, apart

    def evaluate(self, closed: ClosedJaxpr, inputs: list) -> list:
        jaxpr = closed.jaxpr
        known = dict(zip(jaxpr.constvars, closed.consts, strict=True)) | dict(zip(jaxpr.invars, inputs, strict=True))

        def read(variable: Any) -> Any:
            return variable.val if isinstance(variable, Literal) else known[variable]

        for equation in jaxpr.eqns:
            outputs = self.apply(equation, jaxpr, [read(variable) for variable in equation.invars])
            known.update(zip(equation.outvars, outputs, strict=True))
        return [read(variable) for variable in jaxpr.outvars]

    def apply(self, equation: Any, jaxpr: Any, inputs: list) -> list:
        """Returns the results of one operation of a traced program."""
        name, params = equation.primitive.name, equation.params
        if not any(isinstance(value, Lanes) for value in inputs):
            return jaxpr_as_fun(single(equation, jaxpr))(*_given(equation, inputs))
        if name in INLINED_CALLS:
            return self.evaluate(_called(equation), inputs)
        if name in ELEMENTWISE:
            arrays = jnp.broadcast_arrays(*map(_stretched, inputs))
            return [Lanes(equation.primitive.bind(*arrays, **params))]
        written = getattr(self, name, None)
        result = written(*inputs, **params) if written else None
        return [Lanes(result)] if result is not None else self.by_vmap(equation, jaxpr, inputs)

    def by_vmap(self, equation: Any, jaxpr: Any, inputs: list) -> list:
        """Does any operation as `jax.vmap` does."""
        given = _given(equation, inputs)
        axes = tuple(-1 if isinstance(value, Lanes) else None for value in given)
        mapped = jax.vmap(jaxpr_as_fun(single(equation, jaxpr)), in_axes=axes, out_axes=-1)
        return [Lanes(output) for output in mapped(*(v.array if isinstance(v, Lanes) else v for v in given))]

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


def _given(equation: Any, inputs: list) -> list:
    """Returns the inputs that are no literals."""
    return [v for v, variable in zip(inputs, equation.invars, strict=True) if not isinstance(variable, Literal)]


def _written_out(left: Any, right: Any, *, left_axes: tuple, right_axes: tuple) -> Any:
    """Returns the product of two arrays (..., member), term by term."""
    n = len(left_axes)
    left = jnp.moveaxis(left, left_axes, range(n))
    right = jnp.moveaxis(right, right_axes, range(n))
    left = left.reshape(*left.shape[:-1], *[1] * (right.ndim - 1 - n), left.shape[-1])
    terms = itertools.product(*map(range, left.shape[:n]))
    return functools.reduce(lax.add, (left[term] * right[term] for term in terms))
