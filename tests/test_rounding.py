"""What keeps last bits, on functions that are no Keras network."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from kohort import rounding

RNG = np.random.default_rng(3)


def test_a_step_is_traced_once_for_each_form_of_its_arguments():
    forms = []

    def step(state, batch):
        forms.append(batch.shape)
        return {"state": state + batch.sum()}

    traced = rounding.traced_once(step)
    for _ in range(2):
        program = jax.jit(lambda state, batch, last: traced(traced(state, batch)["state"], last))
        result = program(1.0, np.ones(3, "float32"), np.ones(2, "float32"))
        again = program(np.float32(2), np.ones(3, "float32"), np.ones(2, "float32"))
    assert (result, again, forms) == ({"state": 6.0}, {"state": 7.0}, [(3,), (2,), (3,)])


def test_op_by_op_rounds_as_eager_code_does():
    def scaled(x):
        return (x * np.float32(1.4142135)) * np.float32(0.05)

    x = RNG.normal(size=1000).astype("float32")
    eager = np.asarray(scaled(jnp.asarray(x)))
    np.testing.assert_array_equal(jax.jit(rounding.op_by_op(scaled))(x), eager)
    assert not np.array_equal(jax.jit(scaled)(x), eager), "XLA no longer merges the factors: op_by_op may go"


def test_op_by_op_keeps_what_runs_as_one_program_together():
    """A jitted function, such as `jnp.var`, is one program when run eagerly; what is around it is none of it."""

    def step(weights, x):
        def loss(weights):
            return jnp.mean(jnp.square(jax.nn.gelu(x @ weights) * 2.0 - jnp.var(x) / 3.0))

        value, slope = jax.value_and_grad(loss)(weights)
        return value, weights - 0.1 * slope

    weights, x = (jnp.asarray(RNG.normal(size=shape), "float32") for shape in ((5, 70), (330, 5)))
    eager = step(weights, x)
    jax.tree.map(np.testing.assert_array_equal, jax.jit(rounding.op_by_op(step))(weights, x), eager)
    assert not np.array_equal(jax.jit(step)(weights, x)[1], eager[1]), "XLA merges nothing any more: op_by_op may go"


SPECS = [("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW"), ("CHWN", "IHWO", "HWNC"), ("NWHC", "HWOI", "CNHW")]


@pytest.mark.parametrize(("spec", "groups"), list(itertools.product(SPECS, [1, 2])))
def test_canonical_convolution_is_the_same_convolution(spec, groups):
    sizes = {"N": 3, "H": 6, "W": 5, "C": 4}
    kernel_sizes = {"H": 3, "W": 2, "I": 4 // groups, "O": 6}
    lhs = RNG.normal(size=[sizes[axis] for axis in spec[0]]).astype("float32")
    rhs = RNG.normal(size=[kernel_sizes[axis] for axis in spec[1]]).astype("float32")

    def convolve(lhs, rhs):
        # Window sizes go by the order of the spatial axes in the left operand.
        return lax.conv_general_dilated(lhs, rhs, (1, 2), "SAME", dimension_numbers=spec, feature_group_count=groups)

    ours = rounding.canonical_convolutions(lambda *args: jax.jit(convolve)(*args) * 2)(lhs, rhs)
    np.testing.assert_allclose(ours, 2 * convolve(lhs, rhs), rtol=1e-5, atol=1e-5)


def test_kernel_gradient_in_a_loop_is_that_outside_bit_for_bit():
    images = RNG.normal(size=(16, 8, 8, 1)).astype("float32")
    kernel = RNG.normal(size=(3, 3, 1, 3)).astype("float32")

    def loss(kernel, images):
        return (lax.conv_general_dilated(images, kernel, (1, 1), "VALID", dimension_numbers=SPECS[0]) ** 2).sum()

    outside = jax.jit(jax.grad(loss))(kernel, images)
    gradient = rounding.canonical_convolutions(jax.grad(loss))
    inside = jax.jit(lambda k, x, n: lax.fori_loop(0, n, lambda _, g: gradient(k, x), jnp.zeros_like(k)))
    np.testing.assert_array_equal(inside(kernel, images, 1), outside)
