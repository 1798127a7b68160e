"""Comparisons: exact tests by hand, published intervals, and members that diverged."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, quantile_test

from kohort.comparison import compared_successes, compared_values

NAN = np.nan


def of_table(both, ours, theirs, neither):
    """Two lists of truth values with so many seeds that both, one of them, or neither solved."""
    table = [(True, True)] * both + [(True, False)] * ours + [(False, True)] * theirs + [(False, False)] * neither
    return map(list, zip(*table, strict=True))


@pytest.mark.parametrize(
    ("table", "low", "high"),
    [  # method 10 in the published comparison of Newcombe (1998), Statistics in Medicine 17, 2635-2650, table III
        ((36, 12, 2, 0), 0.0569, 0.3404),
        ((20, 12, 2, 16), 0.0562, 0.3292),
        ((54, 0, 0, 0), -0.0664, 0.0664),
    ],
)
def test_published_intervals(table, low, high):
    made = compared_successes(*of_table(*table))

    assert (round(made.low, 4), round(made.high, 4)) == (low, high)
    assert made.effect == pytest.approx((table[1] - table[2]) / sum(table))


@given(st.tuples(*[st.integers(0, 40)] * 4).filter(any), st.floats(0.5, 0.99))
def test_mcnemar_is_exact_and_fair(table, confidence):
    ours, theirs = of_table(*table)
    made, turned = compared_successes(ours, theirs, confidence), compared_successes(theirs, ours, confidence)
    n = table[1] + table[2]
    tail = sum(math.comb(n, k) for k in range(min(table[1], table[2]) + 1)) / 2**n

    assert made.p_value == pytest.approx(min(1, 2 * tail))
    assert (made.seeds, made.better, made.worse) == (sum(table), table[1], table[2])
    assert -1 <= made.low <= made.effect + 1e-12
    assert made.effect <= made.high + 1e-12 <= 1 + 2e-12
    assert (turned.better, turned.worse, turned.p_value) == (made.worse, made.better, made.p_value)
    assert (turned.low, turned.high) == pytest.approx((-made.high, -made.low), abs=1e-9)


def test_values_are_compared_pair_by_pair():
    rng = np.random.default_rng(0)
    ours = rng.normal(size=30)
    theirs = ours + rng.normal(0.4, 0.5, size=30)

    made = compared_values(ours, theirs, "down", 0.9, "last loss")

    differences = ours - theirs
    interval = quantile_test(differences, q=0, p=0.5).confidence_interval(0.9)
    better = int((differences < 0).sum())
    assert (made.better, made.worse) == (better, 30 - better)
    assert (made.effect, made.low, made.high) == (np.median(differences), interval.low, interval.high)
    assert made.p_value == pytest.approx(binomtest(better, 30).pvalue)
    assert str(made).startswith("median of last loss -0.")
    upside_down = compared_values(ours, theirs, "up", 0.9, "last loss")
    assert (upside_down.better, upside_down.effect) == (made.worse, made.effect)


def test_who_diverged_is_worse_than_anybody_and_two_of_them_are_alike():
    made = compared_values(np.array([NAN, 1.0, np.inf, 2.0]), np.array([1.0, NAN, NAN, 2.0]), "down", 0.95, "last loss")

    assert (made.seeds, made.better, made.worse, made.effect) == (4, 1, 1, 0)
    assert compared_values(np.array([NAN]), np.array([0.1]), "up", 0.95, "last accuracy").worse == 1
    nothing = compared_values(np.full(3, NAN), np.full(3, NAN), "down", 0.95, "last loss")
    assert (nothing.better, nothing.worse, nothing.effect, nothing.p_value) == (0, 0, 0, 1)
