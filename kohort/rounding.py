"""How a part of a program is made to round as it does alone.

In come functions; out come functions that XLA compiles so that their last bits are those of Keras's own calls. The room
exists because XLA optimises across all that it sees in one program, and what it merges, it rounds otherwise.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun


def traced_once(function: Callable) -> Callable:
    """Returns `function` such that it is traced once for each form of its arguments, however often it is used.

    Tracing a network's step costs as much as compiling it, and a step that counts or prints shows how often it is done.
    """
    known: dict[Any, tuple[ClosedJaxpr, Any]] = {}

    def run(*args: Any) -> Any:
        leaves, structure = jax.tree.flatten(args)
        form = (structure, *map(jax.typeof, leaves))
        if form not in known:
            known[form] = jax.make_jaxpr(function, return_shape=True)(*args)
        closed, shapes = known[form]
        return jax.tree.unflatten(jax.tree.structure(shapes), jaxpr_as_fun(closed)(*leaves))

    return run


def behind_barrier(function: Callable) -> Callable:
    """Returns `function` with a barrier before it, so that XLA merges nothing that comes earlier into it."""

    def run(*args: Any) -> Any:
        return function(*lax.optimization_barrier(args))

    return run


def interpreted(function: Callable, apply: Callable[[Any, Callable, list], list]) -> Callable:
    """Returns `function` with each of its operations done by `apply(equation, as_traced, inputs)`."""

    def run(*args: Any) -> Any:
        closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
        outputs = evaluate(closed, jax.tree.leaves(args), apply)
        return jax.tree.unflatten(jax.tree.structure(shape), outputs)

    return run


def evaluate(closed: ClosedJaxpr, inputs: list, apply: Callable[[Any, Callable, list], list]) -> list:
    """Evaluates a traced program operation by operation."""
    jaxpr = closed.jaxpr
    values = dict(zip(jaxpr.constvars, closed.consts, strict=True)) | dict(zip(jaxpr.invars, inputs, strict=True))

    def read(variable: Any) -> Any:
        return variable.val if isinstance(variable, Literal) else values[variable]

    for equation in jaxpr.eqns:
        variables = [v for v in equation.invars if not isinstance(v, Literal)]
        outputs = apply(equation, jaxpr_as_fun(single(equation, jaxpr)), [values[v] for v in variables])
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(v) for v in jaxpr.outvars]


def single(equation: Any, jaxpr: Any) -> ClosedJaxpr:
    """Returns one operation of a traced program as a program of those of its inputs that are no literals."""
    variables = [v for v in equation.invars if not isinstance(v, Literal)]
    return ClosedJaxpr(Jaxpr((), variables, equation.outvars, [equation], equation.effects, jaxpr.debug_info), ())


def op_by_op(function: Callable) -> Callable:
    """Returns `function` with a barrier after each operation, so that it rounds as it does when run eagerly.

    XLA may merge neighbouring operations of one program (two constant factors become one), or compute one in the
    memory layout that suits the next (a QR decomposition), which changes last bits.
    """

    def plain(output: Any) -> Any:
        is_matrix = output.ndim > 1 and not jnp.issubdtype(output.dtype, jax.dtypes.extended)
        return with_layout_constraint(output, Layout(tuple(range(output.ndim)))) if is_matrix else output

    def apply(equation: Any, as_traced: Callable, inputs: list) -> list:
        inner = equation.params.get("jaxpr")
        if equation.primitive.name in ("jit", "pjit") and len(inputs) < len(equation.invars):
            # Run eagerly, a jitted function takes numbers as arguments; here they would be constants to XLA.
            given = iter(inputs)
            arguments = [behind(v) if isinstance(v, Literal) else next(given) for v in equation.invars]
            return lax.optimization_barrier([plain(output) for output in jaxpr_as_fun(inner)(*arguments)])
        return lax.optimization_barrier([plain(output) for output in as_traced(*inputs)])

    def behind(literal: Any) -> Any:
        return lax.optimization_barrier(jnp.asarray(literal.val, literal.aval.dtype))

    return interpreted(function, apply)


def canonical_convolutions(function: Callable) -> Callable:
    """Returns `function` with the axes of each convolution in the order (batch, space, feature).

    XLA's CPU compiler brings convolutions, such as those of a kernel's gradient, into this form itself, but not inside
    a loop: there they would round otherwise and be many times slower.
    """

    def apply(equation: Any, as_traced: Callable, inputs: list) -> list:
        if equation.primitive.name == "conv_general_dilated":
            return [canonical_convolution(*inputs, **equation.params)]
        inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
        is_literal_free = len(inputs) == len(equation.invars)
        if is_literal_free and equation.primitive.name in INLINED_CALLS and "conv_general_dilated" in str(inner):
            return evaluate(inner, inputs, apply)
        return as_traced(*inputs)

    def run(*args: Any) -> Any:
        has_convolutions = "conv_general_dilated" in str(jax.make_jaxpr(function)(*args))
        return interpreted(function, apply)(*args) if has_convolutions else function(*args)

    return run


# Calls whose body XLA compiles as if it stood at the place of the call.
INLINED_CALLS = {"pjit", "jit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call"}


def canonical_convolution(lhs: Any, rhs: Any, *, dimension_numbers: Any, **params: Any) -> Any:
    """Does a convolution with its axes in the order (batch, space, feature) and (space, feature in, feature out)."""
    lhs_axes, rhs_axes, out_axes = dimension_numbers
    n = len(lhs_axes)
    space = tuple(range(1, n - 1))
    canonical = lax.ConvDimensionNumbers((0, n - 1, *space), (n - 1, n - 2, *range(n - 2)), (0, n - 1, *space))
    lhs = lax.transpose(lhs, (lhs_axes[0], *lhs_axes[2:], lhs_axes[1]))
    rhs = lax.transpose(rhs, (*rhs_axes[2:], rhs_axes[1], rhs_axes[0]))
    out = lax.conv_general_dilated(lhs, rhs, dimension_numbers=canonical, **params)
    place = dict(zip(out_axes, canonical.out_spec, strict=True))
    return lax.transpose(out, tuple(place[axis] for axis in range(n)))
