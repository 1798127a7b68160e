"""How a part of a program is made to round as it does alone.

In come functions; out come functions that XLA compiles so that their last bits are those of Keras's own calls. The room
exists because XLA optimises across all that it sees in one program, and what it merges, it rounds otherwise.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Trace, Tracer
from jax.experimental.xla_metadata import set_xla_metadata
from jax.extend.core import (
    ClosedJaxpr,
    Jaxpr,
    Literal,
    jaxpr_as_fun,
    set_current_trace,
    take_current_trace,
)


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
        outputs = apply(equation, _as_traced(equation, jaxpr), [read(variable) for variable in equation.invars])
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(variable) for variable in jaxpr.outvars]


def _as_traced(equation: Any, jaxpr: Any) -> Callable:
    """Returns one operation of a traced program as a function of its inputs; literals are those that were traced."""
    variables = [v for v in equation.invars if not isinstance(v, Literal)]
    single = Jaxpr((), variables, equation.outvars, [equation], equation.effects, jaxpr.debug_info)

    def run(*inputs: Any) -> list:
        pairs = zip(inputs, equation.invars, strict=True)
        return jaxpr_as_fun(ClosedJaxpr(single, ()))(*(value for value, v in pairs if not isinstance(v, Literal)))

    return run


def op_by_op(function: Callable) -> Callable:
    """Returns `function` with each operation compiled as if it stood alone, so that it rounds as when run eagerly.

    XLA may merge neighbouring operations of one program (two constant factors become one), or compute one in the
    memory layout that suits the next (a QR decomposition), which changes last bits. On another device than a CPU last
    bits are not promised, and `function` is left as it is: there a call that is not merged may be more than a call.
    """

    def run(*args: Any) -> Any:
        if jax.default_backend() != "cpu":
            return function(*args)
        with take_current_trace() as outer, set_current_trace(Eagerly(outer)):
            return function(*args)

    return run


class Eagerly(Trace):
    """Records operations as JAX's own trace does, each as a call that XLA must not merge into what stands around it.

    What is one call here is one program when run eagerly: an operation of its own, or all of a jitted function, also
    of one that JAX's own trace would inline (most of `jax.numpy`).
    """

    def __init__(self, outer: Trace) -> None:
        """Records into the trace that is the current one."""
        super().__init__()
        self._outer = outer
        self.requires_low = outer.requires_low

    def process_primitive(self, primitive: Any, args: Any, params: dict, /) -> Any:
        """Records one operation."""
        if primitive.name in COMPOSED:
            with set_current_trace(self):
                return primitive.impl(*args, **params)
        with set_current_trace(self._outer):
            # Numbers are arguments of the program when run eagerly; here they would be constants to XLA.
            args = [arg if isinstance(arg, Tracer) else lax.optimization_barrier(jnp.asarray(arg)) for arg in args]
            is_jitted = primitive.name in ("jit", "pjit")
            program = params["jaxpr"] if is_jitted else jax.make_jaxpr(lambda *a: primitive.bind(*a, **params))(*args)
            function = canonical_convolutions(jaxpr_as_fun(program)) if has_odd(program) else jaxpr_as_fun(program)
            # Traced beforehand, so that only the call is marked, and not what is inside.
            call = jax.make_jaxpr(jax.jit(function))(*args)
            with set_xla_metadata(inlineable="false"):
                results = jaxpr_as_fun(call)(*args)
        return results if primitive.multiple_results else results[0]

    def process_custom_jvp_call(self, primitive: Any, fun: Any, jvp: Any, args: Any, /, **_: Any) -> Any:
        """Records the operations of a function with a derivative of its own, where none is asked for."""
        with set_current_trace(self):
            return fun.call_wrapped(*args)

    def process_custom_vjp_call(self, primitive: Any, fun: Any, fwd: Any, bwd: Any, args: Any, /, **_: Any) -> Any:
        """Records them likewise."""
        with set_current_trace(self):
            return fun.call_wrapped(*args)

    def process_call(self, primitive: Any, fun: Any, args: Any, params: dict, /) -> Any:
        """Records the operations of a call."""
        with set_current_trace(self):
            return primitive.impl(fun, *args, **params)

    def stage_value(self, val: Any) -> Any:
        """Takes in a number."""
        return self._outer.stage_value(val)

    def __getattr__(self, name: str) -> Any:
        """Leaves all else to the trace that is recorded into."""
        return getattr(self._outer, name)


# What JAX runs eagerly as the operations that it is made of.
COMPOSED = {"checkpoint", "remat2", "closed_call", "eval_jaxpr", "custom_linear_solve", "linear_call"}


def canonical_convolutions(function: Callable) -> Callable:
    """Returns `function` with the axes of each convolution in the order (batch, space, feature).

    XLA's CPU compiler brings convolutions, such as those of a kernel's gradient, into this form itself, but not inside
    a loop: there they would round otherwise and be many times slower.
    """

    def apply(equation: Any, as_traced: Callable, inputs: list) -> list:
        if equation.primitive.name == "conv_general_dilated":
            return [canonical_convolution(*inputs, **equation.params)]
        is_literal_free = not any(isinstance(variable, Literal) for variable in equation.invars)
        if is_literal_free and any(map(has_odd, inlined(equation))):
            (called,) = inlined(equation)
            return evaluate(called, inputs, apply)
        return as_traced(*inputs)

    def run(*args: Any) -> Any:
        closed = jax.make_jaxpr(function)(*args)
        return interpreted(function, apply)(*args) if has_odd(closed) else function(*args)

    return run


# Calls whose body XLA compiles as if it stood at the place of the call.
INLINED_CALLS = {"pjit", "jit", "closed_call", "core_call", "eval_jaxpr", "custom_jvp_call", "custom_vjp_call"}


def inlined(equation: Any) -> list[ClosedJaxpr]:
    """Returns what an equation calls, if XLA compiles it at that place."""
    if equation.primitive.name not in INLINED_CALLS:
        return []
    called = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
    return [called if isinstance(called, ClosedJaxpr) else ClosedJaxpr(called, ())]


def has_odd(closed: ClosedJaxpr) -> bool:
    """Says whether a convolution in a traced program has its axes in another order than `canonical_convolution`."""

    def is_odd(equation: Any) -> bool:
        if equation.primitive.name != "conv_general_dilated":
            return any(map(has_odd, inlined(equation)))
        dimensions = equation.params["dimension_numbers"]
        return tuple(dimensions) != canonical_axes(len(dimensions.lhs_spec))

    return any(map(is_odd, closed.jaxpr.eqns))


def canonical_axes(n: int) -> lax.ConvDimensionNumbers:
    """Returns the places of (batch, feature, space) in an array of `n` axes, and of (out, in, space) in a kernel."""
    space = tuple(range(1, n - 1))
    return lax.ConvDimensionNumbers((0, n - 1, *space), (n - 1, n - 2, *range(n - 2)), (0, n - 1, *space))


def canonical_convolution(lhs: Any, rhs: Any, *, dimension_numbers: Any, **params: Any) -> Any:
    """Does a convolution with its axes in the order (batch, space, feature) and (space, feature in, feature out)."""
    lhs_axes, rhs_axes, out_axes = dimension_numbers
    n = len(lhs_axes)
    canonical = canonical_axes(n)
    lhs = lax.transpose(lhs, (lhs_axes[0], *lhs_axes[2:], lhs_axes[1]))
    rhs = lax.transpose(rhs, (*rhs_axes[2:], rhs_axes[1], rhs_axes[0]))
    out = lax.conv_general_dilated(lhs, rhs, dimension_numbers=canonical, **params)
    place = dict(zip(out_axes, canonical.out_spec, strict=True))
    return lax.transpose(out, tuple(place[axis] for axis in range(n)))
