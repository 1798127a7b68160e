"""`kohort.install`: `model.fit` of every Keras model runs compiled, with Keras's numbers; all else stays Keras's."""

import copy
import functools
import inspect
import pickle
import random
import re
import warnings

import keras
import numpy as np
import pytest
from keras import callbacks, layers
from oracle import by_keras, by_kohort, differences, run

import kohort
from kohort import accelerate
from kohort.fit import keras_fit, replaced

RNG = np.random.default_rng(3)
X = RNG.normal(size=(40, 3)).astype("float32")
Y = (X[:, :1] * X[:, 1:2] > 0).astype("float32")
FIT = {"x": X, "y": Y, "epochs": 4, "batch_size": 16}
NAN = np.where(np.arange(40) == 7, np.nan, X.T).T.astype("float32")
LARGE = "`kohort.fit` would refuse it: `x` must hold integers of at most 2147483647 in size (JAX computes in 32 bits)"


@pytest.fixture(autouse=True)
def switched_off():
    """Leaves nothing installed, and counts anew."""
    kohort.report(clear=True)
    yield
    kohort.uninstall()
    assert "fit" not in vars(keras.Model)
    assert replaced == {}


def build(kind=keras.Sequential, optimizer="adam", loss="binary_crossentropy", **options):
    model = kind([keras.Input((3,)), layers.Dense(6, "relu"), layers.Dropout(0.2), layers.Dense(1, "sigmoid")])
    model.compile(keras.optimizers.get(optimizer), loss, metrics=["accuracy"], **options)
    return model


def own_error(y, p):
    """A metric that is the user's own: where Keras runs each step as Python, it has to run this one, too."""
    return keras.ops.abs(y - p)


def installed(train=by_keras, **flags):
    """Returns `train` with kohort installed around it."""

    def fit(model, **arguments):
        with kohort.install(**flags):
            return train(model, **arguments)

    return fit


def reasons():
    return [row.reason for row in kohort.report() if row.reason]


def assert_compiled(build, *fits):
    """Asserts that `model.fit` runs compiled, and leaves what Keras leaves."""
    theirs = run(by_keras, build, 1, list(fits))
    ours = run(installed(strict=True), build, 1, list(fits))
    assert differences(theirs, ours) == []
    assert kohort.report().compiled_calls == len(fits)


def assert_falls_back(reason, build, *fits):
    """Asserts that Keras runs what is asked, as ever, that the reason is told and counted, and that `strict` raises."""
    theirs = run(by_keras, build, 1, list(fits))
    with pytest.warns(kohort.FallBackWarning, match=f"kohort: Keras runs this fit itself, because {re.escape(reason)}"):
        ours = run(installed(), build, 1, list(fits))
    assert differences(theirs, ours) == []
    assert reasons() == [reason]
    with pytest.raises(kohort.FallBackError, match=f"cannot run compiled, because {re.escape(reason)}. Change that"):
        run(installed(strict=True), build, 1, list(fits))


# What it switches.


def test_fits_run_compiled_with_the_same_numbers():
    options = {"validation_split": 0.25, "class_weight": {0: 1.0, 1: 2.0}}

    assert_compiled(build, FIT, FIT | options, FIT | {"epochs": 6, "initial_epoch": 4, "shuffle": False})


def test_arguments_by_position():
    def by_position(model, verbose):
        return model.fit(X, Y, 16, 3, verbose, [callbacks.EarlyStopping("loss")], 0.2)

    theirs = run(by_position, build, 1, [{}])
    ours = run(installed(by_position, strict=True), build, 1, [{}])
    assert differences(theirs, ours) == []


def test_the_unbound_method():
    def unbound(model, **arguments):
        return keras.Model.fit(model, **arguments)

    assert differences(run(unbound, build, 1, [FIT]), run(installed(unbound, strict=True), build, 1, [FIT])) == []
    assert kohort.report().compiled_calls == 1


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.inner = layers.Dense(1)

    def call(self, inputs):
        return self.inner(inputs)


def functional():
    inputs = keras.Input((3,))
    return keras.Model(inputs, layers.Dense(1)(inputs))


def sequential():
    return keras.Sequential([layers.Dense(1)])


@pytest.mark.parametrize("make", [sequential, functional, Subclassed])
def test_it_reaches_every_kind_of_model(make):
    def compiled():
        model = make()
        model.compile("sgd", "mse")
        return model

    assert_compiled(compiled, FIT)


def test_it_reaches_models_made_before():
    model = build()
    with kohort.install(strict=True):
        model.fit(**FIT, verbose=0)
    model.fit(**FIT, verbose=0)

    assert kohort.report().compiled_calls == kohort.report().calls == 1


def test_it_reaches_what_fits_inside_keras():
    with kohort.install(strict=True):
        estimator = keras.wrappers.SKLearnRegressor(lambda X, y: build(), fit_kwargs={"epochs": 2, "verbose": 0})
        estimator.fit(X, Y[:, 0])

    assert kohort.report().compiled_calls == 1


class OwnFit(keras.Sequential):
    def fit(self, x, y, twice=False, **options):
        return super().fit(np.concatenate([x, x]) if twice else x, np.concatenate([y, y]) if twice else y, **options)


def test_a_fit_that_calls_its_parents():
    make = functools.partial(build, OwnFit)

    assert_compiled(make, FIT, FIT | {"twice": True})
    theirs = run(by_keras, make, 1, [FIT])
    with pytest.warns(kohort.FallBackWarning, match="OwnFit overrides `fit`"):
        ours = run(installed(by_kohort), make, 1, [FIT])
    assert differences(theirs, ours) == []


METHODS = ("fit", "evaluate", "predict")


def test_it_changes_three_methods_and_nothing_else():
    def attributes():
        kinds = (keras.Model, keras.Sequential, *keras.Model.__mro__[1:], keras.callbacks.CallbackList)
        return [dict(vars(kind)) for kind in kinds]

    before, keras_own = attributes(), [getattr(keras.Model, name) for name in METHODS]
    with kohort.install():
        during, own = attributes(), [getattr(keras.Model, name) for name in METHODS]
        for ours, original in zip(own, keras_own, strict=True):
            assert ours is not original
            for what in ("__name__", "__qualname__", "__module__", "__doc__"):
                assert getattr(ours, what) == getattr(original, what)
            assert inspect.signature(ours) == inspect.signature(original)
    assert [during[0].pop(name) for name in METHODS] == own
    assert during == before == attributes()
    assert [getattr(keras.Model, name) for name in METHODS] == keras_own


@keras.saving.register_keras_serializable("test_accelerate")
class Kept(keras.Sequential):
    pass


def test_models_are_keras_own(tmp_path):
    with kohort.install(strict=True):
        model = build(Kept)
        model.fit(**FIT, verbose=0)
        model.save(tmp_path / "model.keras")
        copies = [
            keras.saving.load_model(tmp_path / "model.keras"),
            pickle.loads(pickle.dumps(model)),
            copy.deepcopy(model),
        ]
        assert type(model) is Kept
        assert "fit" not in vars(model)
        for each in copies:
            assert type(each) is Kept
            assert differences(model.get_weights(), each.get_weights()) == []
            each.fit(**FIT, verbose=0)
    assert kohort.report().compiled_calls == 4
    assert pickle.loads(pickle.dumps(model)).fit(**FIT, verbose=0).epoch == [0, 1, 2, 3]


# What Keras runs.


def batches():
    while True:
        yield X[:8], Y[:8]


class Inner(callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        self.model.optimizer.learning_rate = 0.01 / (batch + 1)


def test_what_cannot_be_compiled():
    assert_falls_back(
        "the callback Inner acts inside an epoch (`on_train_batch_end`)", build, FIT | {"callbacks": [Inner()]}
    )


@pytest.mark.parametrize(
    ("fit", "reason"),
    [
        (FIT | {"x": X.astype("int64") + 2**40}, LARGE),
        (FIT | {"epochs": 0}, "`kohort.fit` would refuse it: `epochs` must be an integer of at least 1"),
        (FIT | {"batch_size": 0}, "`kohort.fit` would refuse it: `batch_size` must be an integer of at least 1"),
        (FIT | {"verbose": None}, "`kohort.fit` would refuse it: `verbose` must be 'auto', 0, 1 or 2"),
        (
            FIT | {"y": Y * 2},
            "`kohort.fit` would refuse it: `y` must hold numbers from 0 to 1, as the loss binary_crossentropy takes",
        ),
    ],
    ids=["data", "epochs", "batch_size", "verbose", "targets"],
)
def test_what_kohort_refuses_and_keras_takes(fit, reason):
    """Switched on, kohort refuses nothing: the model is trained as ever."""
    verbose = {"verbose": fit.pop("verbose")} if "verbose" in fit else {}

    def train(model, **arguments):
        try:
            return by_keras(model, **arguments | verbose)
        except (ZeroDivisionError, ValueError) as error:
            model.history = callbacks.History()
            model.history.epoch, model.history.history = [], {"error": str(error)}
            return model.history

    theirs = run(train, build, 1, [fit])
    with pytest.warns(kohort.FallBackWarning, match=re.escape(reason)):
        ours = run(installed(train), build, 1, [fit])
    assert differences(theirs, ours) == []
    assert reasons() == [reason]


@pytest.mark.parametrize(
    ("fit", "make"),
    [
        (FIT | {"x": NAN}, build),
        (FIT | {"y": np.where(Y > 0, np.inf, Y), "callbacks": [callbacks.TerminateOnNaN()]}, lambda: build(loss="mse")),
        (FIT | {"validation_data": (NAN, Y), "sample_weight": np.full(40, -np.inf)}, build),
    ],
    ids=["x", "y", "weights"],
)
def test_numbers_that_are_not_finite(fit, make):
    """`kohort.fit` refuses them, for they are mistakes; the switch lets them through, compiled."""
    assert_compiled(make, fit)
    with pytest.raises(ValueError, match="must hold finite numbers"):
        kohort.fit(make(), **fit)


def test_what_else_is_wrong_beside_them():
    with kohort.install(), pytest.warns(kohort.FallBackWarning, match="`y` must have one row per sample"):
        with pytest.raises(ValueError, match="cardinality"):
            build().fit(NAN, Y[:-1], verbose=0)


def test_a_rate_that_kohort_refuses():
    assert_falls_back(
        "`kohort.fit` would refuse it: `model` must have a learning rate that is finite and not negative",
        lambda: build(optimizer=keras.optimizers.SGD(-0.1)),
        FIT,
    )


def uncompiled():
    return keras.Sequential([keras.Input((3,)), layers.Dense(1)])


@pytest.mark.filterwarnings("ignore::kohort.FallBackWarning")
@pytest.mark.parametrize(
    ("make", "arguments"),
    [
        (uncompiled, FIT),
        (build, {"x": X.tolist(), "y": Y}),
        (build, {"x": X, "y": Y[:-1]}),
        (build, {"x": X[:, :2], "y": Y}),
        (build, {"x": X, "y": Y, "nonsense": 1}),
        (build, {"x": X, "y": Y, "callbacks": ["early"]}),
        (build, {"x": None}),
        (build, {"x": "text", "y": Y}),
    ],
    ids=["uncompiled", "lists", "lengths", "features", "unknown", "callbacks", "nothing", "text"],
)
def test_what_keras_refuses_gives_keras_errors(make, arguments):
    def error_of(train):
        keras.utils.clear_session()
        with pytest.raises(Exception) as caught:  # noqa: PT011 - whatever Keras raises
            train(make(), verbose=0, **arguments)
        return type(caught.value), str(caught.value)

    assert error_of(installed()) == error_of(by_keras)


def test_an_argument_of_a_newer_keras():
    _, reason = accelerate._decide(build(), {**FIT, "callbacks": None, "novel": 1})

    assert reason == "kohort does not know the argument `novel`"


def test_a_reason_is_told_once_for_each_line_of_the_caller():
    """Also where each fit of a loop has its own number in another place; test_main.py shows the line it points to."""
    model = build()
    with kohort.install(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for row in range(3):
            x = np.where(np.arange(40) == row, 2**40 + row, 1)[:, None] * np.ones((40, 3), "int64")
            model.fit(x, Y, verbose=0)

    assert [str(w.message) for w in caught] == [f"kohort: Keras runs this fit itself, because {LARGE}."]
    assert kohort.report().calls == 3


def state_of(model):
    return model.built, model.optimizer.built, [w.tolist() for w in model.get_weights()], random.getstate()


@pytest.mark.parametrize(("flags", "error"), [({"strict": True}, kohort.FallBackError), ({}, kohort.FallBackWarning)])
def test_an_error_leaves_everything_as_it_was(flags, error):
    """Raised by `strict`, or by a filter that makes warnings errors: this suite's, or `python -W error`."""
    model = keras.Sequential([layers.Dense(1)])
    model.compile("adam", "mse")
    before, numpy_before = state_of(model), np.random.get_state()
    with kohort.install(**flags), pytest.raises(error, match="would refuse it"):
        model.fit(X.astype("int64") + 2**40, Y)

    assert state_of(model) == before
    assert differences(numpy_before, np.random.get_state()) == []
    assert kohort.report() == ()


def test_kohort_fit_falls_back_past_the_switch():
    """One line, one count: Keras's own `fit` runs it, not the one that kohort put in its place."""
    model = build(run_eagerly=True, weighted_metrics=[own_error])
    with kohort.install(), pytest.warns(kohort.FallBackWarning, match="run_eagerly") as caught:
        kohort.fit(model, X, Y, verbose=0)

    assert len(caught) == 1
    assert kohort.report().calls == 1


@pytest.mark.slow
def test_ever_new_shapes_are_left_to_keras():
    model = build()
    with kohort.install(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for rows in range(32, 37):
            model.fit(X[:rows], Y[:rows], verbose=0)

    assert ["to compile for a few steps would take longer" in str(w.message) for w in caught] == [True] * 2
    assert kohort.report().compiled_calls == 3


# The switch itself.


def flags():
    return accelerate._settings and accelerate._settings[:2]


def test_to_install_twice_is_an_error():
    shown = kohort.install(strict=True)
    assert repr(shown) == "<kohort is installed>"
    ours = keras.Model.fit
    message = (
        "`kohort.install` must be called where kohort is not installed. "
        "Received: a call while it is, with strict=True, verify=False. "
        "Leave this call out, or call `kohort.uninstall()` before it."
    )
    for again in ({}, {"strict": True}):
        with pytest.raises(RuntimeError, match=re.escape(message)):
            kohort.install(**again)

    assert keras.Model.fit is ours
    assert flags() == (True, False)
    kohort.uninstall()
    assert "fit" not in vars(keras.Model)
    assert repr(shown) == "<kohort is not installed>"


def test_uninstalling_what_is_not_installed_does_nothing():
    before = keras.Model.fit
    kohort.uninstall()

    assert keras.Model.fit is before


def test_a_block_ends_uninstalled():
    with kohort.install(strict=True):
        assert flags() == (True, False)
    assert flags() is None
    with pytest.raises(KeyError), kohort.install():
        raise KeyError
    assert flags() is None
    assert "fit" not in vars(keras.Model)


def test_a_block_ends_also_where_it_was_uninstalled_inside():
    with kohort.install():
        kohort.uninstall()
    assert flags() is None


@pytest.mark.usefixtures("annotations_unchecked")
@pytest.mark.parametrize("name", ["strict", "verify"])
def test_wrong_flags_are_refused(name):
    with pytest.raises(TypeError, match=rf"`{name}` must be True or False. Received: {name}='yes'. Pass one of these."):
        kohort.install(**{name: "yes"})
    assert flags() is None


def test_unknown_flags_are_refused():
    with pytest.raises(TypeError, match="unexpected keyword argument 'strickt'"):
        kohort.install(strickt=True)


@pytest.fixture
def others():
    """Gives a way to put another `fit` on top of what is there, as a tracker of experiments does."""
    seen = []

    def put():
        below = keras.Model.fit

        @functools.wraps(below)
        def fit(self, *args, **kwargs):
            seen.append(self)
            return below(self, *args, **kwargs)

        keras.Model.fit = fit

    yield put, seen
    del keras.Model.fit
    replaced.clear()


def test_somebody_else_was_there_before(others):
    others[0]()
    with pytest.raises(
        RuntimeError,
        match=r"`keras.Model.fit` must be Keras's own .* Install kohort first, and the other on top of it.",
    ):
        kohort.install()
    assert flags() is None


def test_somebody_else_on_top(others):
    """Uninstalled, kohort stays below the other and does nothing; installed again, it is not there a second time."""
    put, seen = others
    model = build()
    kohort.install()
    put()
    model.fit(**FIT, verbose=0)
    kohort.uninstall()
    model.fit(**FIT, verbose=0)
    with kohort.install():
        assert {"fit", "evaluate", "predict"} <= set(vars(keras.Model))
        model.fit(**FIT, verbose=0)

    assert seen == [model] * 3
    assert kohort.report().calls == kohort.report().compiled_calls == 2


def test_keras_fit_is_found_below_the_switch():
    model, own = build(), keras.Model.fit
    assert keras_fit(model).__func__ is own
    with kohort.install():
        assert keras_fit(model).func is own
        assert keras_fit(model).args == (model,)
