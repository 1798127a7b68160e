"""Many members in one array, against `jax.vmap`, which is the truth here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kohort.abreast import LARGEST_PRODUCT, MOST_TERMS, abreast, suits

RNG = np.random.default_rng(5)
MEMBERS = 8


def merged(function, *arrays):
    return function(*arrays)


def normal(*shape):
    return RNG.standard_normal(shape, "float32")


FUNCTIONS = {
    "elementwise": (lambda a, b: jnp.tanh(a) * b + jnp.where(a > 0, a, -b), (3, 4), (3, 4)),
    "broadcast": (lambda a, b: a + b[:, None], (3, 4), (3,)),
    "matrix-matrix": (lambda a, b: a @ b, (5, 3), (3, 4)),
    "matrix-vector": (lambda a, b: a @ b, (5, 3), (3,)),
    "vector-vector": (lambda a, b: a @ b, (7,), (7,)),
    "two-axes": (lambda a, b: jnp.tensordot(a, b, ((0, 2), (1, 0))), (3, 4, 2), (2, 3, 5)),
    "batched-product": (lambda a, b: jnp.einsum("bij,bjk->bik", a, b), (2, 3, 4), (2, 4, 5)),
    "long-product": (lambda a, b: a @ b, (2, MOST_TERMS + 1), (MOST_TERMS + 1, 3)),
    "sums": (lambda a, b: (a.sum(0), a.sum((0, 1)), b.mean()), (3, 4), (2,)),
    "long-sum": (lambda a, b: a.sum() + b, (MOST_TERMS + 1,), ()),
    "forms": (lambda a, b: (a.T.reshape(2, 6) * b, a[None].squeeze(0)), (3, 4), (6,)),
    "loop": (lambda a, b: jax.lax.fori_loop(0, 3, lambda i, c: c * b + i, a), (3,), ()),
    "random": (lambda a, b: a + jax.random.normal(jax.random.key(3), (3,)) * b, (3,), ()),
    "one-result-of-no-member": (lambda a, b: (a, jnp.arange(3)), (2,), (2,)),
}


@pytest.mark.parametrize("shared", [None, -1])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_as_vmap(name, shared):
    function, *shapes = FUNCTIONS[name]
    a, b = normal(*shapes[0], MEMBERS), normal(*shapes[1], *([] if shared is None else [MEMBERS]))
    expected = jax.vmap(function, in_axes=(-1, shared), out_axes=-1)(a, b)
    result = abreast(function, (-1, shared), MEMBERS, merged)(a, b)
    jax.tree.map(lambda e, r: np.testing.assert_allclose(e, r, rtol=1e-4, atol=1e-5), expected, result)


def test_only_small_products_suit():
    def product(rows, columns):
        return suits(jax.make_jaxpr(jnp.matmul)(normal(32, rows), normal(rows, columns)))

    assert product(8, 8)
    assert product(1, LARGEST_PRODUCT // 32)
    assert not product(32, 32)
    assert not product(MOST_TERMS + 1, 1)


@pytest.mark.parametrize("function", [jnp.sort, jax.jit(jnp.cumsum), lambda a: jax.lax.fori_loop(0, 3, jnp.add, a)])
def test_what_is_not_done_abreast_does_not_suit(function):
    assert not suits(jax.make_jaxpr(function)(normal(3)))
