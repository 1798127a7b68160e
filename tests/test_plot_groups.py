"""The minima: groups that hold what was put into them, whatever the order of the members."""

import keras
import numpy as np
import pytest
from pictures import Cohort, X, Y, network, overlaps, points, recorded

import kohort
from kohort import plot


def cohort_of(kinds, losses=None):
    """Returns a stand-in whose member of kind k answers `k * x[:, 0]`, nearly; NaN diverged."""
    kinds = np.asarray(kinds, float)
    noise = np.random.default_rng(0).normal(0, 1e-3, len(kinds))
    losses = np.abs(kinds) + noise if losses is None else np.asarray(losses, float)
    log = recorded(range(100, 100 + len(kinds)), loss=losses[:, None])
    return Cohort(log.seeds, log, lambda x: (kinds + noise)[:, None, None] * x[None, :, :1])


def test_members_are_grouped_by_the_function_they_compute():
    kinds = [3, 1, 3, -2, 1, 3, np.nan]

    record = plot.minima(cohort_of(kinds, losses=[0, 0, 0, 0, 0, 0, np.nan]), X, Y)

    np.testing.assert_array_equal(record.group, [0, 1, 0, 2, 1, 0, -1])
    np.testing.assert_array_equal(record.counts, [3, 2, 1])
    assert [kinds[seed - 100] for seed in record.seeds] == [3, 1, -2]
    slopes = record.responses[:, 0, -1] / record.xx0[0, -1]
    np.testing.assert_allclose(slopes, [3, 1, -2], atol=0.01)
    assert [ax.get_title() for ax in record.axes_] == ["3 (42.9 %)\nloss 0", "2 (28.6 %)\nloss 0", "1 (14.3 %)\nloss 0"]
    assert record.ax_.texts[-1].get_text() == "7 members · 1 diverged"


def test_equal_functions_with_other_losses_are_other_minima():
    record = plot.minima(cohort_of([1, 1, 1, 1], losses=[0.1, 0.5, 0.1, 0.5]), X, Y)

    np.testing.assert_array_equal(record.group, [0, 1, 0, 1])
    np.testing.assert_allclose(record.losses, [0.1, 0.5])  # equally frequent: the lower loss first


def test_groups_do_not_depend_on_the_order_of_the_members():
    kinds = np.array([3, 1, 3, -2, 1, 3, 1, 3])
    order = np.random.default_rng(1).permutation(len(kinds))

    record, other = plot.minima(cohort_of(kinds), X, Y), plot.minima(cohort_of(kinds[order]), X, Y)

    np.testing.assert_array_equal(record.group[order], other.group)
    np.testing.assert_array_equal(record.counts, other.counts)


def test_hidden_units_that_change_places_or_signs_change_nothing():
    """Two networks of tanh units, the second with units swapped and one sign flipped, and a third that differs."""
    models = [network(hidden=(2,)) for _ in range(3)]
    kernel, bias, out, last = models[0].get_weights()
    models[1].set_weights([kernel[:, ::-1] * [1, -1], bias[::-1] * [1, -1], out[::-1] * [[1], [-1]], last])
    models[2].set_weights([kernel, bias, -out, last + 1])
    log = recorded((0, 1, 2), loss=np.zeros((3, 1)))
    cohort = Cohort((0, 1, 2), log, lambda x: np.stack([model.predict(x, verbose=0) for model in models]))

    record = plot.minima(cohort, X, Y, tolerance=1e-3)

    np.testing.assert_array_equal(record.group, [0, 0, 1])


def test_functions_are_compared_where_the_samples_lie():
    """Two members differ only outside the samples' limits."""
    log = recorded((0, 1), loss=np.zeros((2, 1)))
    cohort = Cohort((0, 1), log, lambda x: np.stack([x[:, :1], np.where(x[:, :1] > 1, 9, x[:, :1])]))

    np.testing.assert_array_equal(plot.minima(cohort, X, Y).counts, [2])
    np.testing.assert_array_equal(plot.minima(cohort, xlim=(-1, 2), ylim=(-1, 2)).counts, [1, 1])


def test_the_minima_of_xor_are_those_that_algebra_knows():
    """A network of one hidden ReLU unit on XOR ends at a mean squared error of 1/4, 1/6 or 1/8."""
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, "relu"), keras.layers.Dense(1)])
    model.compile(optimizer=keras.optimizers.Adam(0.02), loss="mse")
    cohort = kohort.Cohort(model, seeds=32)
    cohort.fit(X, Y, epochs=1500, verbose=0)

    record = plot.minima(cohort, X, Y)

    assert record.counts.sum() == 32
    for loss in record.losses:
        assert min(abs(loss - np.array([1 / 4, 1 / 6, 1 / 8]))) < 2e-3
    best = cohort.member(record.seeds[0]).predict(points(record), verbose=0).reshape(record.xx0.shape)
    np.testing.assert_allclose(record.responses[0], best, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(record.group >= 0, np.ones(32, bool))


def test_only_the_most_frequent_groups_are_drawn():
    kinds = np.repeat(np.arange(6), [7, 6, 5, 4, 3, 2])

    record = plot.minima(cohort_of(kinds, losses=np.zeros(27)), X, Y, shown=2)

    np.testing.assert_array_equal(record.counts, [7, 6, 5, 4, 3, 2])
    assert len(record.axes_) == 2
    assert record.ax_.texts[-1].get_text() == "27 members · 14 in 4 rarer groups"
    assert overlaps(record.figure_) == []


def test_one_member_is_one_group():
    assert plot.minima(cohort_of([1.0]), X, Y).ax_.texts[-1].get_text() == "1 member"
    np.testing.assert_array_equal(plot.minima(cohort_of([3]), X, Y).group, [0])


# Misuse.


@pytest.mark.usefixtures("annotations_unchecked")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tolerance": 0}, r"`tolerance` must be a finite number above 0\. Received: tolerance=0\. Pass"),
        ({"shown": 0}, r"`shown` must be an integer of at least 1\. Received: shown=0\. Pass"),
        ({"shown": 1.5}, r"`shown` must be an integer of at least 1\. Received: shown=1\.5\. Pass"),
        ({"columns": 0}, r"`columns` must be an integer of at least 1\. Received: columns=0\. Pass"),
        ({"metric": "auc"}, r"`metric` must be one of 'loss'\. Received: metric='auc'"),
        ({"members": [3]}, r"`members` must be a number of at least 1, or seeds among 100, 101"),
    ],
)
def test_arguments_that_do_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        plot.minima(cohort_of([1, 2]), X, Y, **arguments)


def test_cohorts_that_have_no_minima():
    with pytest.raises(ValueError, match="`cohort` must be one of which at least one member did not diverge"):
        plot.minima(cohort_of([np.nan, np.nan]), X, Y)
    with pytest.raises(TypeError, match=r"`cohort` must be a `kohort\.Cohort`"):
        plot.minima(network(), X)
    model = network()
    model.compile(loss="mse")
    with pytest.raises(RuntimeError, match=r"must come after `cohort\.fit`"):
        plot.minima(kohort.Cohort(model, seeds=2), X)
