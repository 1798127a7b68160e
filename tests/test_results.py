"""What comes out of a cohort, asked of the cohort itself."""

import keras
import numpy as np
import pandas as pd
import pytest
from keras import layers
from oracle import differences

import kohort

RNG = np.random.default_rng(7)
X = RNG.normal(size=(24, 2)).astype("float32")
Y = (X[:, 0] > 0).astype("float32")


pytestmark = pytest.mark.usefixtures("annotations_unchecked")


def network(units=3):
    model = keras.Sequential([keras.Input((2,)), layers.Dense(units, "tanh"), layers.Dense(1, "sigmoid")], name="net")
    model.compile(keras.optimizers.Adam(0.02), "binary_crossentropy", metrics=["accuracy", "mae"])
    return model


def cohort_of(model, seeds):
    cohort = kohort.Cohort(model, seeds)
    cohort.fit(X, Y, epochs=4, verbose=0)
    return cohort


@pytest.fixture(scope="module")
def cohort():
    keras.utils.set_random_seed(0)
    return cohort_of(network(), [3, 17, 5, 8])


@pytest.fixture(scope="module")
def other():
    keras.utils.set_random_seed(0)
    return cohort_of(network(6), [8, 1, 3, 2, 5])


def test_survival_is_of_the_last_fit(cohort):
    made = cohort.survival(accuracy=0.6, loss=10)

    met = cohort.history["accuracy"] >= 0.6
    expected = np.where(met.any(axis=1), met.argmax(axis=1) + 1, np.nan)
    np.testing.assert_array_equal(made.first, expected)
    drawn = kohort.plot.survival(cohort, accuracy=0.6, loss=10)
    assert differences([*made[:5]], [drawn.epochs, drawn.share, drawn.low, drawn.high, drawn.first]) == []


def test_cohorts_are_compared_on_the_seeds_that_they_share(cohort, other):
    bound = float(np.median(cohort.history.last("loss")))
    made = cohort.compare(other, loss=bound)

    mine = cohort.history.last("loss")[[0, 2, 3]] <= bound  # of the seeds 3, 5, 8
    theirs = other.history.last("loss")[[2, 4, 0]] <= bound
    assert made.seeds == 3
    assert (made.better, made.worse) == (int((mine & ~theirs).sum()), int((~mine & theirs).sum()))
    assert made.effect == pytest.approx(mine.mean() - theirs.mean())
    assert cohort.compare(other, lambda history: history.last("loss") <= bound) == made
    assert other.compare(cohort, loss=bound).effect == -made.effect
    last = cohort.history.last("mae")[[0, 2, 3]] - other.history.last("mae")[[2, 4, 0]]
    assert cohort.compare(other, by="loss").seeds == 3
    assert np.isfinite(last).all()


def test_the_seed_of_the_best(cohort):
    seed = cohort.best_seed()

    assert seed == cohort.seeds[int(cohort.history["loss"][:, -1].argmin())]
    assert differences(cohort.best().get_weights(), cohort.member(seed).get_weights()) == []
    assert cohort.best_seed("accuracy") == cohort.seeds[int(cohort.history["accuracy"][:, -1].argmax())]


def test_summary_is_that_of_keras_with_lines_of_the_cohort(cohort):
    theirs, ours = [], []
    cohort.member(3).summary(print_fn=theirs.append)
    cohort.summary(print_fn=ours.append)

    assert ours[0] == theirs[0]
    lines = ours[1].split("\n")
    assert lines[:2] == [" Members: 4 (seeds 3, 17, 5, 8)", " Last fit: 4 epochs, outcomes: COMPLETED 4"]
    low, middle, high = np.quantile(cohort.history["loss"][:, -1], [0.1, 0.5, 0.9])
    assert lines[3] == f" Last loss: median {middle:.4g}, 10 to 90 % {low:.4g} to {high:.4g}"


def test_summary_of_what_is_not_trained_is_printed(capsys):
    kohort.Cohort(network(), [7], exact=True).summary(line_length=60, show_trainable=True)

    printed = capsys.readouterr().out
    assert 'Model: "net"' in printed
    assert "Trainable" in printed
    assert printed.endswith(" Members: 1 (seed 7), exact\n Trained: not yet\n")


@pytest.mark.parametrize(
    ("ask", "received"),
    [
        (lambda c: c[3], r"cohort\[3\]"),
        (lambda c: c[:2], r"cohort\[slice\(None, 2, None\)\]"),
        (lambda c: list(c), r"iter\(cohort\)"),
        (lambda c: 3 in c, r"3 in cohort"),
    ],
)
def test_a_cohort_is_no_list(cohort, ask, received):
    match = rf"`cohort` must be asked for a member by its seed\. Received: {received}\. Write `cohort\.member\(seed\)`"
    with pytest.raises(TypeError, match=match):
        ask(cohort)


ASKED_EARLY = {
    "survival": lambda c: c.survival(loss=1),
    "compare": lambda c: c.compare(c, loss=1),
    "best_seed": lambda c: c.best_seed(),
    "best": lambda c: c.best(),
    "ensemble": lambda c: c.ensemble(),
    "save": lambda c: c.save("x.kohort"),
    "success_rate": lambda c: c.success_rate(loss=1),
}


@pytest.mark.parametrize("name", ASKED_EARLY)
def test_what_comes_out_comes_after_the_fit(name):
    untrained = kohort.Cohort(network(), 2)
    with pytest.raises(
        RuntimeError, match=rf"`cohort\.{name}` must come after `cohort\.fit`\. Received: a cohort that"
    ):
        ASKED_EARLY[name](untrained)


@pytest.mark.parametrize(
    ("ask", "error", "message"),
    [
        (
            lambda c, o: c.compare(o.best(), loss=1),
            TypeError,
            r"`other` must be a `kohort\.Cohort`\. Received: other=<Seq",
        ),
        (lambda c, o: c.compare(o), ValueError, r"`compare` must be given .* Received: by=None, crit"),
        (
            lambda c, o: c.compare(o, by="loss", mae=1),
            ValueError,
            r"`compare` must be given a metric as `by`, or .*bounds=\{'mae': 1\}\. Write",
        ),
        (
            lambda c, o: c.compare(o, by="val_loss"),
            ValueError,
            r"`by` must be a metric of the history .*by='val_loss'\.",
        ),
        (lambda c, o: c.compare(o, val_loss=1), ValueError, r"`val_loss` must be a metric of the history: "),
        (lambda c, o: c.survival(), ValueError, r"`bounds` must be at least one metric with its bound\."),
        (
            lambda c, o: c.survival(auc=1),
            ValueError,
            r"`auc` must be a metric of the history: accuracy, loss, mae\. Received: auc=1",
        ),
        (lambda c, o: c.best_seed("auc"), ValueError, r"`metric` must be a metric of the history .*metric='auc'\."),
        (lambda c, o: c.compare(o, loss=1, confidence=2), ValueError, r"`confidence` must be between 0 and 1\."),
        (lambda c, o: c.compare(o, by="loss", confidence=2), ValueError, r"`confidence` must be between 0 and 1\."),
    ],
)
def test_wrong_questions(cohort, other, ask, error, message):
    with pytest.raises(error, match=message):
        ask(cohort, other)


def test_cohorts_without_shared_seeds(cohort):
    with pytest.raises(
        ValueError,
        match=r"`other` must share seeds with this cohort, .*, with none of this cohort's seeds\. Train both",
    ):
        cohort.compare(cohort_of(network(), [1, 2]), loss=1)


def test_histories_of_a_cohort_go_to_tables(cohort):
    table, arrays = cohort.history.to_pandas(), cohort.history.to_xarray()

    assert isinstance(table, pd.DataFrame)
    np.testing.assert_array_equal(table.loc[17, "loss"], cohort.history["loss"][1])
    np.testing.assert_array_equal(arrays.loss.sel(member=17), cohort.history["loss"][1])


def test_modules_show_what_is_for_users():
    assert dir(kohort.plot) == sorted(kohort.plot.__all__)
    assert dir(kohort.data) == sorted(kohort.data.__all__)
    assert dir(kohort.history) == sorted(kohort.history.__all__)
