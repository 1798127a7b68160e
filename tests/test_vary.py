"""P2 where members differ beside the seed: a member is a Keras run with its values set."""

import jaxtyping
import keras
import numpy as np
import pytest
from keras import layers
from oracle import by_keras, differences
from test_promises import compilations
from test_wrong_input import refused

import kohort
from kohort import keras_internals

RNG = np.random.default_rng(1)
POINTS = RNG.normal(size=(40, 2)).astype("float32")
SIGNS = (POINTS[:, :1] * POINTS[:, 1:] > 0).astype("float32")
CLASSES = np.eye(2, dtype="float32")[SIGNS[:, 0].astype(int)]
SERIES = RNG.normal(size=(40, 5, 2)).astype("float32")
FIT = {"epochs": 3, "batch_size": 16}


def compiled(*stack, optimizer=None, loss="mse", shape=(2,), units=1, activation="sigmoid"):
    last = layers.Dense(units, activation, name="last")
    model = keras.Sequential([keras.Input(shape), *stack, last])
    model.compile(optimizer or keras.optimizers.SGD(0.1), loss)
    return model


def net(optimizer=None, loss="mse", **options):
    return compiled(layers.Dense(8, "tanh", name="dense"), optimizer=optimizer, loss=loss, **options)


def hidden(layer):
    return compiled(layers.Dense(8, name="dense"), layer)


def regularised(regularizer, **where):
    return compiled(layers.Dense(8, "tanh", name="dense", **{f"{name}_regularizer": regularizer for name in where}))


def constrained(constraint):
    return compiled(layers.Dense(8, "tanh", name="dense", kernel_constraint=constraint))


optimizers, S, L, R = keras.optimizers, keras.optimizers.schedules, keras.losses, keras.regularizers
# path, values, and the model that is built with a value
KINDS = {
    "learning-rate": ("optimizer.learning_rate", [1e-3, 0.03], lambda v: net(optimizers.Adam(v))),
    "schedule": (
        "optimizer.learning_rate.decay_rate",
        [0.5, 0.9],
        lambda v: net(optimizers.SGD(S.ExponentialDecay(0.1, 4, decay_rate=v))),
    ),
    "momentum": ("optimizer.momentum", [0.5, 0.9], lambda v: net(optimizers.SGD(0.1, momentum=v))),
    "rho": ("optimizer.rho", [0.8, 0.95], lambda v: net(optimizers.RMSprop(0.01, rho=v))),
    "beta-1": ("optimizer.beta_1", [0.8, 0.9], lambda v: net(optimizers.Adam(0.01, beta_1=v))),
    "beta-2": ("optimizer.beta_2", [0.99, 0.999], lambda v: net(optimizers.Adam(0.01, beta_2=v))),
    "epsilon": ("optimizer.epsilon", [1e-7, 1e-3], lambda v: net(optimizers.Adam(0.01, epsilon=v))),
    "weight-decay": ("optimizer.weight_decay", [1e-3, 0.1], lambda v: net(optimizers.AdamW(0.01, weight_decay=v))),
    "clipnorm": ("optimizer.clipnorm", [0.01, 0.1], lambda v: net(optimizers.SGD(0.1, clipnorm=v))),
    "global-clipnorm": (
        "optimizer.global_clipnorm",
        [0.01, 0.1],
        lambda v: net(optimizers.SGD(0.1, global_clipnorm=v)),
    ),
    "clipvalue": ("optimizer.clipvalue", [0.001, 0.1], lambda v: net(optimizers.SGD(0.1, clipvalue=v))),
    "ema": (
        "optimizer.ema_momentum",
        [0.5, 0.9],
        lambda v: net(optimizers.SGD(0.1, use_ema=True, ema_momentum=v)),
    ),
    "dropout": ("dropout.rate", [0.2, 0.5], lambda v: hidden(layers.Dropout(v, name="dropout"))),
    "spatial-dropout": (
        "drop.rate",
        [0.2, 0.5],
        lambda v: compiled(layers.SpatialDropout1D(v, name="drop"), layers.Flatten(), shape=(5, 2)),
    ),
    "gaussian-noise": ("noise.stddev", [0.1, 0.7], lambda v: hidden(layers.GaussianNoise(v, name="noise"))),
    "leaky-relu": ("leaky.negative_slope", [0.1, 0.3], lambda v: hidden(layers.LeakyReLU(v, name="leaky"))),
    "elu": ("elu.alpha", [0.5, 1.0], lambda v: hidden(layers.ELU(v, name="elu"))),
    "relu-threshold": ("relu.threshold", [0.1, 0.3], lambda v: hidden(layers.ReLU(threshold=v, name="relu"))),
    "batch-norm": (
        "norm.momentum",
        [0.5, 0.9],
        lambda v: hidden(layers.BatchNormalization(momentum=v, name="norm")),
    ),
    "layer-norm": (
        "norm.epsilon",
        [1e-3, 0.1],
        lambda v: hidden(layers.LayerNormalization(epsilon=v, name="norm")),
    ),
    "rescaling": ("scale.scale", [0.5, 2.0], lambda v: hidden(layers.Rescaling(v, name="scale"))),
    "lstm-dropout": (
        "lstm.cell.dropout",
        [0.2, 0.5],
        lambda v: compiled(layers.LSTM(4, dropout=v, name="lstm"), shape=(5, 2)),
    ),
    "l1": ("dense.kernel_regularizer.l1", [1e-3, 0.1], lambda v: regularised(R.L1(v), kernel=True)),
    "l2": ("dense.kernel_regularizer.l2", [0.0, 0.1], lambda v: regularised(R.L2(v), kernel=True)),
    "l1-l2": ("dense.bias_regularizer.l2", [0.0, 0.1], lambda v: regularised(R.L1L2(l1=0.01, l2=v), bias=True)),
    "activity": ("dense.activity_regularizer.l2", [1e-3, 0.1], lambda v: regularised(R.L2(v), activity=True)),
    "max-norm": ("dense.kernel_constraint.max_value", [0.3, 1.5], lambda v: constrained(keras.constraints.MaxNorm(v))),
    "huber": ("loss.delta", [0.1, 1.0], lambda v: net(loss=L.Huber(delta=v))),
    "label-smoothing": (
        "loss.label_smoothing",
        [0.1, 0.3],
        lambda v: net(loss=L.BinaryCrossentropy(label_smoothing=v)),
    ),
    "focal-gamma": ("loss.gamma", [1.0, 2.5], lambda v: net(loss=L.BinaryFocalCrossentropy(gamma=v))),
}


def data_of(model):
    return (SERIES if len(model.input_shape) == 3 else POINTS), SIGNS


def keras_run(build, value, seed, **arguments):
    """The definition of a member: everything made by the constructors, with the value."""
    model = build(value)
    keras.utils.set_random_seed(seed)
    clone = keras_internals.clone(model)
    compiled = build(value)
    clone.compile(compiled.optimizer, compiled.loss)
    history = by_keras(clone, verbose=0, **arguments)
    return clone, history.history


def values(model):
    return [np.asarray(v.value) for v in [*model.variables, *model.optimizer.variables, *model.metrics_variables]]


def fitted(kind, seeds, **options):
    path, numbers, build = KINDS[kind]
    model = build(numbers[1])
    x, y = data_of(model)
    cohort = kohort.Cohort(model, seeds, vary={path: numbers}, **options)
    cohort.fit(x, y, verbose=0, validation_split=0.25, **FIT)
    runs = [keras_run(build, v, s, x=x, y=y, validation_split=0.25, **FIT) for s, v in zip(seeds, numbers, strict=True)]
    return cohort, runs


@pytest.mark.many
@pytest.mark.parametrize("kind", KINDS)
def test_member_is_keras_to_rounding(kind):
    cohort, runs = fitted(kind, [3, 8])
    for i, (theirs, logs) in enumerate(runs):
        for a, b in zip(values(theirs), values(cohort.member(index=i)), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6)
        for metric, column in logs.items():
            np.testing.assert_allclose(column, cohort.history[metric][i], rtol=1e-5)


@pytest.mark.many
@pytest.mark.parametrize("kind", ["learning-rate", "clipnorm", "dropout", "l2", "huber"])
def test_exact_member_is_bit_for_bit_keras(kind):
    cohort, runs = fitted(kind, [3, 8], exact=True)
    for i, (theirs, logs) in enumerate(runs):
        assert differences(values(theirs), values(cohort.member(index=i))) == []
        for metric, column in logs.items():
            np.testing.assert_array_equal(np.float32(column), cohort.history[metric][i])


# Which members there are, and how they are asked for.

SWEEP = {"optimizer.learning_rate": [1e-3, 1e-2, 1e-1], "dropout.rate": [0.0, 0.5]}


def dropped(rate=0.2, optimizer=None):
    return compiled(layers.Dense(8, "relu", name="dense"), layers.Dropout(rate, name="dropout"), optimizer=optimizer)


def test_a_grid_crosses_all_values_with_all_seeds():
    cohort = kohort.Cohort(dropped(), [3, 8], vary=SWEEP, grid=True)
    history = cohort.fit(POINTS, SIGNS, verbose=0, **FIT)
    table = cohort.parameters

    assert len(cohort) == 12
    assert history["loss"].shape == (12, 3)
    assert cohort.seeds == tuple(history.seeds) == (3, 8) * 6
    assert list(table) == ["seed", "optimizer.learning_rate", "dropout.rate"]
    assert table["optimizer.learning_rate"].tolist() == [1e-3] * 4 + [1e-2] * 4 + [1e-1] * 4
    assert table["dropout.rate"].tolist() == [0.0, 0.0, 0.5, 0.5] * 3

    member = cohort.member(8, **{"optimizer.learning_rate": 1e-2, "dropout.rate": 0.5})
    assert differences(values(member), values(cohort.member(index=7))) == []
    assert member.get_layer("dropout").rate == 0.5
    assert member.optimizer.learning_rate == np.float32(1e-2)
    np.testing.assert_array_equal(cohort.predict(POINTS)[7], cohort.predict(POINTS)[7])
    best = int(np.argmin(history["loss"][:, -1]))
    assert differences(values(cohort.best()), values(cohort.member(index=best))) == []


def test_members_without_dropout_are_those_of_a_model_without():
    """Where its rate is 0 Keras makes no seed for it: later layers draw other weights."""
    build = lambda v: dropped(v)  # noqa: E731
    cohort = kohort.Cohort(dropped(), [3, 8, 5], vary={"dropout.rate": [0.0, 0.3, 0.0]}, exact=True)
    cohort.fit(POINTS, SIGNS, verbose=0, **FIT)
    for i, (seed, rate) in enumerate(zip([3, 8, 5], [0.0, 0.3, 0.0], strict=True)):
        theirs, _ = keras_run(build, rate, seed, x=POINTS, y=SIGNS, **FIT)
        assert differences(values(theirs), values(cohort.member(index=i))) == []


def test_the_order_of_members_is_that_of_the_seeds_whatever_their_kind():
    rates = [0.0, 0.3, 0.0, 0.3, 0.3]
    both = kohort.Cohort(dropped(), 5, vary={"dropout.rate": rates})
    history = both.fit(POINTS, SIGNS, verbose=0, **FIT)
    for rate in (0.0, 0.3):
        alone = kohort.Cohort(dropped(), 5, vary={"dropout.rate": [rate] * 5})
        alone.fit(POINTS, SIGNS, verbose=0, **FIT)
        own = np.array(rates) == rate
        np.testing.assert_array_equal(history["loss"][own], alone.history["loss"][own])
        np.testing.assert_array_equal(both.predict(POINTS)[own], alone.predict(POINTS)[own])
        np.testing.assert_array_equal(
            both.evaluate(POINTS, SIGNS)["loss"][own], alone.evaluate(POINTS, SIGNS)["loss"][own]
        )


def test_members_of_two_kinds_go_on_in_blocks_of_another_width():
    both = kohort.Cohort(dropped(), 5, vary={"dropout.rate": [0.0, 0.3, 0.0, 0.3, 0.3]})
    both.fit(POINTS, SIGNS, verbose=0, **FIT)
    before = both.predict(POINTS)
    both._members.cut_anew([2, 1])
    assert [len(block.members) for block in both._members.blocks] == [2, 1, 1, 1]
    np.testing.assert_allclose(both.predict(POINTS), before, atol=1e-6)
    both.fit(POINTS, SIGNS, verbose=0, **FIT)


def test_one_value_for_all_is_a_cohort_of_a_model_with_it():
    varied = kohort.Cohort(dropped(0.4), 3, vary={"dropout.rate": [0.3] * 3, "optimizer.learning_rate": [0.05] * 3})
    plain = kohort.Cohort(dropped(0.3, optimizers.SGD(0.05)), 3)
    for cohort in (varied, plain):
        cohort.fit(POINTS, SIGNS, verbose=0, **FIT)
    np.testing.assert_allclose(varied.history["loss"], plain.history["loss"], rtol=1e-6)


def test_other_values_compile_nothing():
    model = net(optimizers.Adam(0.01))
    vary = {"optimizer.beta_1": [0.8, 0.9], "optimizer.learning_rate": [1e-3, 1e-2]}
    kohort.Cohort(model, 2, vary=vary).fit(POINTS, SIGNS, verbose=0, **FIT)
    again = kohort.Cohort(model, [7, 9], vary={"optimizer.beta_1": [0.5, 0.7], "optimizer.learning_rate": [0.1, 0.2]})
    with compilations() as seen:
        again.fit(POINTS, SIGNS, verbose=0, **FIT)
    assert seen == []


def test_going_on_and_the_model_left_alone():
    model = dropped()
    before = [np.asarray(v) for v in model.variables]
    once, twice = (kohort.Cohort(model, 2, vary={"dropout.rate": [0.1, 0.4]}) for _ in range(2))
    once.fit(POINTS, SIGNS, verbose=0, epochs=4, batch_size=16)
    for _ in range(2):
        twice.fit(POINTS, SIGNS, verbose=0, epochs=2, batch_size=16)
    np.testing.assert_array_equal(once.predict(POINTS), twice.predict(POINTS))
    assert differences(before, [np.asarray(v) for v in model.variables]) == []
    assert model.get_layer("dropout").rate == 0.2
    assert all(template.network.get_layer("dropout").rate == 0.1 for template in once._members.templates)


def test_a_member_goes_on_with_its_values_and_saves_them(tmp_path):
    cohort = kohort.Cohort(dropped(), 2, vary={"dropout.rate": [0.1, 0.4]})
    cohort.fit(POINTS, SIGNS, verbose=0, **FIT)
    cohort.member(1).save(tmp_path / "member.keras")
    loaded = keras.models.load_model(tmp_path / "member.keras")
    assert loaded.get_layer("dropout").rate == 0.4
    by_keras(cohort.member(0), x=POINTS, y=SIGNS, verbose=0)


def test_parts_that_the_model_shares_keep_their_numbers():
    loss, schedule = L.Huber(delta=0.7), S.ExponentialDecay(0.1, 4, decay_rate=0.9)
    vary = {"loss.delta": [0.1, 0.2], "optimizer.learning_rate.decay_rate": [0.5, 0.6]}
    cohort = kohort.Cohort(net(optimizers.SGD(schedule), loss), 2, vary=vary)
    cohort.fit(POINTS, SIGNS, verbose=0, **FIT)
    assert schedule.decay_rate == 0.9
    assert loss._fn_kwargs["delta"] == 0.7
    members = [cohort.member(seed) for seed in (0, 1)]
    assert [member.loss._fn_kwargs["delta"] for member in members] == [0.1, 0.2]
    assert [member.optimizer._learning_rate.decay_rate for member in members] == [0.5, 0.6]


class Scaled(layers.Layer):
    """A layer of the user's own that computes in Python with a number that it holds."""

    def __init__(self, scale=1.0, **kwargs):
        super().__init__(**kwargs)
        self.scale = scale

    def call(self, x):
        return self.compute(x)

    def compute(self, x):
        return x * (2 - abs(-self.scale) ** 2 / 3) + (1 / self.scale - self.scale // 2 % 1) * -x

    def get_config(self):
        return {**super().get_config(), "scale": self.scale}


class ByMath(Scaled):
    def compute(self, x):
        return x * float(self.scale)


class Branching(Scaled):
    def compute(self, x):
        return x if self.scale < 0.5 else 2 * x


def test_arithmetic_in_python_is_done_as_python_does_it():
    cohort = kohort.Cohort(hidden(Scaled(name="own")), 2, vary={"own.scale": [0.3, 1.7]})
    cohort.fit(POINTS, SIGNS, verbose=0, **FIT)
    for seed, value in ((0, 0.3), (1, 1.7)):
        _, logs = keras_run(lambda v: hidden(Scaled(v, name="own")), value, seed, x=POINTS, y=SIGNS, **FIT)
        np.testing.assert_allclose(logs["loss"], cohort.history["loss"][seed], rtol=1e-5)


@pytest.mark.parametrize(
    ("layer", "match"),
    [
        (
            ByMath,
            r"`vary` must name numbers that Keras computes with arrays\. Received: 'own.scale', of which it makes a",
        ),
        (
            Branching,
            r"`vary` must hold values for which Keras builds one network\. .* asks whether `own.scale < 0.5`: it",
        ),
    ],
)
def test_what_python_must_know_is_refused_unless_each_value_is_compiled(layer, match):
    model, vary = hidden(layer(name="own")), {"own.scale": [0.3, 1.7]}
    cohort = kohort.Cohort(model, 2, vary=vary)
    with pytest.raises(ValueError, match=match):
        cohort.fit(POINTS, SIGNS, verbose=0)
    with pytest.raises(RuntimeError, match=r"must come after `cohort\.fit`"):
        cohort.predict(POINTS)
    exact = kohort.Cohort(model, 2, vary=vary, exact=True)
    history = exact.fit(POINTS, SIGNS, verbose=0, **FIT)
    for seed, value in ((0, 0.3), (1, 1.7)):
        _, logs = keras_run(lambda v: hidden(layer(v, name="own")), value, seed, x=POINTS, y=SIGNS, **FIT)
        np.testing.assert_array_equal(np.float32(logs["loss"]), history["loss"][seed])


def test_a_number_that_training_does_not_look_at_is_refused():
    cohort = kohort.Cohort(net(optimizers.SGD(0.1)), 2, vary={"optimizer.ema_momentum": [0.5, 0.9]})
    with pytest.raises(
        ValueError, match=r"`vary` must name numbers that training looks at\. Received: 'optimizer.ema_m"
    ):
        cohort.fit(POINTS, SIGNS, verbose=0)


PATHS = {
    "no layer": (
        "denser.rate",
        r"'denser.rate', where there is no layer 'denser'\. .* a layer: 'dense', 'dropout', 'last'",
    ),
    "no attribute": ("dropout.stddev", r"where a Dropout has no 'stddev'\. It holds 'dropout.rate'\."),
    "the optimizer's": ("optimizer.lr", r"where a SGD has no 'lr'\. It holds 'optimizer.learning_rate', 'opt"),
    "units": (
        "dense.units",
        r"a Dense holds the whole number 8, and whole numbers shape .*Another shape is another cohort",
    ),
    "a part": ("dense", r"there is a Dense\. It holds no number\."),
    "weights": ("dense.kernel", r"there is a variable, which training changes\."),
    "none": ("optimizer.clipnorm", r"a SGD holds None\. Give the model a number there first, such as clipnorm=1\.0\."),
    "a truth value": ("optimizer.use_ema", r"there is `False`\."),
    "a loss by name": (
        "loss.delta",
        r"`'mse'` has no 'delta'\. Compile with an object instead, such as `keras.losses.H",
    ),
    "private": ("dense._dtype_policy", r"a Dense has no '_dtype_policy'"),
}


@pytest.mark.parametrize("name", PATHS)
def test_a_path_that_leads_to_no_number(name):
    path, match = PATHS[name]
    head = (
        r"`vary` must name numbers that a layer, a regularizer, a loss or the optimizer holds\. Received: vary with .*"
    )
    model = dropped()
    with refused(ValueError, head + match, model):
        kohort.Cohort(model, 2, vary={path: [0.1, 0.2]})


def test_a_number_that_a_layer_only_shows():
    model = compiled(layers.LSTM(4, dropout=0.2, name="lstm"), shape=(5, 2))
    with pytest.raises(ValueError, match=r"a LSTM only shows the number of one of its parts\. Name the part, such as"):
        kohort.Cohort(model, 2, vary={"lstm.dropout": [0.1, 0.2]})


def test_a_layer_of_half_precision():
    model = hidden(layers.LeakyReLU(0.1, dtype="mixed_float16", name="leaky"))
    with pytest.raises(
        ValueError, match=r"the layer computes in float16\. Vary numbers of layers that compute in float32"
    ):
        kohort.Cohort(model, 2, vary={"leaky.negative_slope": [0.1, 0.2]})


@pytest.fixture
def unchecked():
    """Turns the checks of kohort's annotations off, which its users do not have."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


WRONG = {
    "no dict": (
        [0.1],
        {},
        TypeError,
        r"`vary` must be a dict from the path of a number to its values\. Received: vary=",
    ),
    "empty": ({}, {}, TypeError, r"`vary` must be a dict .*Received: vary=\{\}"),
    "one number": (
        {"dropout.rate": 0.1},
        {},
        TypeError,
        r"`vary` must hold a sequence of numbers for each path\. .*=0\.1",
    ),
    "no values": ({"dropout.rate": []}, {}, TypeError, r"`vary` must hold a sequence of numbers .*values=\[\]"),
    "text": ({"dropout.rate": ["a", "b"]}, {}, TypeError, r"`vary` must hold a sequence of numbers .*'a', 'b'"),
    "infinite": (
        {"dropout.rate": [0.1, np.inf]},
        {},
        ValueError,
        r"`vary` must hold finite numbers .*'dropout.rate': inf",
    ),
    "not a number": ({"dropout.rate": [np.nan, 0.1]}, {}, ValueError, r"`vary` must hold finite numbers .*nan"),
    "too few": (
        {"dropout.rate": [0.1]},
        {},
        ValueError,
        r"`vary` must hold one value per seed \(2\) .*with 1 value\(s\) for",
    ),
    "out of range": (
        {"dropout.rate": [0.1, 1.5]},
        {},
        ValueError,
        r"`vary` must hold values that Keras takes\. .*1\.5, of which it says: Inv",
    ),
    "negative rate": (
        {"optimizer.learning_rate": [0.1, -1]},
        {},
        ValueError,
        r"`vary` must hold learning rates that are n",
    ),
    "grid of nothing": (None, {"grid": True}, ValueError, r"`grid` must be True or False, .*grid=True, vary=None"),
    "grid of 1": ({"dropout.rate": [0.1]}, {"grid": 1}, ValueError, r"`grid` must be True or False, .*grid=1\. Pass"),
    "a huge grid": (
        {"dropout.rate": np.linspace(0, 1, 2000), "optimizer.learning_rate": np.linspace(0, 1, 2000)},
        {"grid": True},
        ValueError,
        r"`grid` must be of at most 1000000 members\. Received: 2 x 2000 x 2000 = 8000000 members",
    ),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.usefixtures("unchecked")
def test_wrong_values(name):
    vary, options, error, match = WRONG[name]
    model = dropped()
    with refused(error, match, model):
        kohort.Cohort(model, 2, vary=vary, **options)


@pytest.fixture(scope="module")
def grid():
    cohort = kohort.Cohort(net(), [3, 8], vary={"optimizer.learning_rate": [1e-3, 1e-2]}, grid=True)
    cohort.fit(POINTS, SIGNS, verbose=0)
    return cohort


ASKED = {
    "a seed alone": (
        (3,),
        {},
        r"`cohort.member` must be told which of 2 members is meant\. Received: seed=3\. Name also o",
    ),
    "nothing": ((), {}, r"`seed` must be one of the cohort's seeds \(3, 8\)\. Received: seed=None"),
    "another value": (
        (3,),
        {"optimizer.learning_rate": 0.5},
        r"`optimizer.learning_rate` must be a value that a member has: 0.001, 0.01\. Received: optimizer.learning_ra",
    ),
    "another path": ((3,), {"rate": 0.5}, r"`rate` must be one of 'optimizer.learning_rate'\. Received: rate=0\.5"),
    "an index beyond": ((), {"index": 4}, r"`index` must be an integer from 0 to 3, .*Received: index=4\."),
    "both": ((3,), {"index": 1}, r"`index` must be .*It names a member alone, without a seed or values beside it\."),
}


@pytest.mark.parametrize("name", ASKED)
def test_a_member_that_is_not_named_rightly(name, grid):
    arguments, options, match = ASKED[name]
    with refused(ValueError, match, grid):
        grid.member(*arguments, **options)
