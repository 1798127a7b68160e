"""Programs that XLA compiles for a CPU as one piece of machine code, loops and all.

In comes a function of arrays; out goes one that computes the same. XLA otherwise calls many small pieces in each round
of a loop, a fifth of the time of a small network, and gives some of them to other threads, which train the next block
meanwhile. The room exists because this stands on a mark of XLA's own passes that nobody promises: it holds all that is
known of it, and is used with those versions alone that it was seen with.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.xla_metadata import set_xla_metadata
from jax.extend.core import jaxpr_as_fun
from jaxlib.version import __version__ as VERSION

from kohort.abreast import ELEMENTWISE

# An XLA that does not take what it is given here may end the process, which no program can catch.
SEEN_WITH = {"0.10.2"}  # versions of jaxlib
# The mark of XLA's pass `small_while_loop_hoisting_pass`, which sets it on loops that touch less than a kilobyte.
MARKS = {"inlineable": "false", "xla_cpu_small_call": "true"}
OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": ""}  # a piece cannot call that library
# Large products, sorting and random bits XLA leaves to libraries, or to what a piece cannot hold.
OPERATIONS = ELEMENTWISE | set(
    "bitcast_convert_type broadcast_in_dim concatenate cond dynamic_slice dynamic_update_slice gather iota jit "
    "optimization_barrier pad reduce_and reduce_max reduce_min reduce_or reduce_prod reduce_sum reshape rev scan slice "
    "squeeze transpose while".split()
)


def are_compiled() -> bool:
    """Says whether programs are compiled as pieces here."""
    return jax.default_backend() == "cpu" and VERSION in SEEN_WITH


def in_one_piece(function: Callable) -> Callable:
    """Returns the function to be compiled as one piece, by an XLA that is given `OPTIONS`.

    It returns one result more, which nobody needs but XLA: see `_of_each`. What has other operations is left as it is.
    """

    def run(*args: Any) -> tuple:
        leaves, structure = jax.tree.flatten(args)

        def inner(*leaves: Any) -> tuple:
            return *function(*jax.tree.unflatten(structure, leaves)), _of_each(leaves)

        closed, form = jax.make_jaxpr(jax.jit(inner), return_shape=True)(*leaves)
        if not _operations(closed) <= OPERATIONS:
            return function(*args)
        # Traced beforehand, so that only the call is marked, and not what is inside.
        with set_xla_metadata(**MARKS):
            results = jaxpr_as_fun(closed)(*leaves)
        return jax.tree.unflatten(jax.tree.structure(form), results)

    return run


def _of_each(arrays: Any) -> Any:
    """Returns a number that is computed from one of each array.

    XLA drops an array that is overwritten before anything reads it, a learning rate that a schedule sets, from those
    that it has places for in the piece, still asks for its place as it is an argument, and ends the process because
    there is none. One that a result is computed from is read.
    """
    return sum(jnp.ravel(array)[0].astype(float) for array in arrays if jnp.size(array))


def _operations(jaxpr: Any) -> set[str]:
    """Returns the names of all operations of a traced function, and of what it calls."""
    names = {equation.primitive.name for equation in jaxpr.eqns}
    for part in jax.tree.leaves([list(equation.params.values()) for equation in jaxpr.eqns]):
        names |= _operations(part) if hasattr(part, "eqns") else set()
    return names
