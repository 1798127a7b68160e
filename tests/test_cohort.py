"""P2: a member is a Keras run. P3: members do not know of each other."""

import concurrent.futures
import random
import warnings

import keras
import numpy as np
import pytest
from keras import layers
from oracle import by_keras, differences

import kohort
from kohort import keras_internals

RNG = np.random.default_rng(1)
POINTS = RNG.normal(size=(40, 2)).astype("float32")
SIGNS = (POINTS[:, 0] * POINTS[:, 1] > 0).astype("float32")
IMAGES = RNG.normal(size=(20, 8, 8, 1)).astype("float32")
TOKENS = RNG.integers(0, 12, size=(20, 6))
SERIES = RNG.normal(size=(20, 6, 3)).astype("float32")
CLASSES = RNG.integers(0, 3, size=20)


def sequential(*stack):
    return keras.Sequential([keras.Input(stack[0]), *stack[1:]])


def functional():
    inputs = keras.Input((2,))
    hidden = layers.Dense(8, activation="tanh")(inputs)
    joined = layers.Concatenate()([hidden, inputs])
    return keras.Model(inputs, layers.Dense(1, activation="sigmoid")(joined))


INITIALIZERS = ["truncated_normal", "he_normal", "lecun_uniform", "random_uniform", "orthogonal", "random_normal"]
INITIALIZERS.append(keras.initializers.RandomUniform(-0.3, 0.7))


# No bias before the normalisation: its gradient is zero but for rounding, which Adam would blow up.
def normalised():
    return [layers.Dense(8, use_bias=False), layers.BatchNormalization(), layers.Dropout(0.3)]


MODELS = {
    "dense": (lambda: sequential((2,), layers.Dense(8, "relu"), layers.Dense(1, "sigmoid")), POINTS, SIGNS),
    "functional": (functional, POINTS, SIGNS),
    "batch-norm-dropout": (
        lambda: sequential((2,), *normalised(), layers.Dense(1, "sigmoid")),
        POINTS,
        SIGNS,
    ),
    "initializers": (
        lambda: sequential((2,), *(layers.Dense(4, kernel_initializer=i) for i in INITIALIZERS), layers.Dense(1)),
        POINTS,
        SIGNS,
    ),
    "convolution": (
        lambda: sequential((8, 8, 1), layers.Conv2D(3, 3), layers.MaxPool2D(), layers.Flatten(), layers.Dense(1)),
        IMAGES,
        CLASSES.astype("float32"),
    ),
    "embedding-lstm": (
        lambda: sequential((6,), layers.Embedding(12, 4), layers.LSTM(5), layers.Dense(1, "sigmoid")),
        TOKENS,
        (CLASSES > 0).astype("float32"),
    ),
    "gru-noise": (
        lambda: sequential((6, 3), layers.GaussianNoise(0.1), layers.GRU(4), layers.Dense(3, "softmax")),
        SERIES,
        CLASSES,
    ),
}
SEEDS = [0, 1, 2, 17, 1234, 2**31, 2**32 - 1, 5]


def recipe(name):
    if name == "gru-noise":
        return {"loss": "sparse_categorical_crossentropy", "metrics": ["accuracy"]}
    return {"loss": "mse", "metrics": ["mae"]}


def build(name):
    model = MODELS[name][0]()
    model.compile(keras.optimizers.Adam(0.01), **recipe(name))
    return model


def keras_run(model, name, seed, *fits):
    """The definition of a member."""
    keras.utils.set_random_seed(seed)
    clone = keras.models.clone_model(model)
    clone.compile(keras.optimizers.Adam(0.01), **recipe(name))
    initial = [np.asarray(v) for v in clone.variables]
    histories = [by_keras(clone, verbose=0, **arguments) for arguments in fits]
    return clone, initial, [h.history for h in histories]


def values(model):
    return [np.asarray(v.value) for v in [*model.variables, *model.optimizer.variables, *model.metrics_variables]]


FIT = {"epochs": 3, "batch_size": 16}


@pytest.mark.many
@pytest.mark.parametrize("name", MODELS)
def test_initial_state_is_bit_for_bit_keras(name):
    model = build(name)
    _, x, y = MODELS[name]
    cohort = kohort.Cohort(model, SEEDS)
    cohort.fit(x, y, verbose=0, **FIT | {"initial_epoch": 3})  # builds the members and trains no epoch
    for seed in SEEDS:
        _, initial, _ = keras_run(model, name, seed)
        ours = [np.asarray(v) for v in cohort.member(seed).variables]
        assert differences(initial, ours) == [], seed


@pytest.mark.many
@pytest.mark.parametrize("name", MODELS)
def test_exact_member_is_bit_for_bit_keras(name):
    model = build(name)
    _, x, y = MODELS[name]
    cohort = kohort.Cohort(model, SEEDS, exact=True)
    arguments = FIT | {"x": x, "y": y, "validation_split": 0.25}
    history = cohort.fit(verbose=0, **arguments)
    for i, seed in enumerate(SEEDS):
        theirs, _, (logs,) = keras_run(model, name, seed, arguments)
        assert differences(values(theirs), values(cohort.member(seed))) == [], seed
        for metric, column in logs.items():
            np.testing.assert_array_equal(np.float32(column), history[metric][i])


@pytest.mark.many
@pytest.mark.parametrize("name", MODELS)
def test_member_is_keras_to_rounding(name):
    model = build(name)
    _, x, y = MODELS[name]
    cohort = kohort.Cohort(model, SEEDS)
    history = cohort.fit(x, y, verbose=0, **FIT)
    for i, seed in enumerate(SEEDS):
        theirs, _, (logs,) = keras_run(model, name, seed, FIT | {"x": x, "y": y})
        for a, b in zip(values(theirs), values(cohort.member(seed)), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)
        np.testing.assert_allclose(logs["loss"], history["loss"][i], rtol=1e-4, atol=1e-6)


ARGUMENTS = {
    "in-order": {"shuffle": False},
    "shuffled-in-batches": {"shuffle": "batch"},
    "steps": {"steps_per_epoch": 2},
    "weights": {"sample_weight": np.linspace(0.1, 2, 40).astype("float32")},
    "class-weights": {"class_weight": {0: 0.3, 1: 2.0}},
    "validation": {"validation_data": (POINTS[:11], SIGNS[:11]), "validation_freq": 2},
}


@pytest.mark.many
@pytest.mark.parametrize("arguments", ARGUMENTS.values(), ids=ARGUMENTS)
def test_arguments_of_fit_and_a_second_fit(arguments):
    model = build("batch-norm-dropout")
    cohort = kohort.Cohort(model, [3, 4, 5], exact=True)
    fit = FIT | arguments | {"x": POINTS, "y": SIGNS}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*ran out of data")
        cohort.fit(verbose=0, **fit)
        history = cohort.fit(verbose=0, **fit)
    for i, seed in enumerate(cohort.seeds):
        theirs, _, (_, logs) = keras_run(model, "batch-norm-dropout", seed, fit, fit)
        assert differences(values(theirs), values(cohort.member(seed))) == [], seed
        for metric, column in logs.items():
            recorded = history[metric][i][~np.isnan(history[metric][i])]
            np.testing.assert_array_equal(np.float32(column), recorded)


def trained(seeds, **options):
    cohort = kohort.Cohort(build("batch-norm-dropout"), seeds, **options)
    cohort.fit(POINTS, SIGNS, verbose=0, **FIT)
    return cohort


def test_permuted_seeds_permute_results():
    seeds = list(range(20))
    shuffled = random.Random(0).sample(seeds, 20)
    a, b = trained(seeds), trained(shuffled)
    np.testing.assert_array_equal(a.history["loss"][shuffled], b.history["loss"])


@pytest.mark.many
@pytest.mark.parametrize("exact", [True, False])
def test_cohort_of_many_equals_cohorts_of_one(exact):
    many = trained(range(10), exact=exact)
    for seed in (0, 7, 8):
        one = trained([seed], exact=exact)
        np.testing.assert_allclose(many.history["loss"][seed], one.history["loss"][0], rtol=1e-6)
        np.testing.assert_allclose(many.predict(POINTS)[seed], one.predict(POINTS)[0], rtol=1e-5, atol=1e-6)


def test_blocks_do_not_change_a_bit(monkeypatch):
    whole = trained(range(30))
    monkeypatch.setattr("kohort.mapping.WIDEST", 8)
    cut = trained(range(30))
    assert len(cut._members.blocks) > len(whole._members.blocks)
    np.testing.assert_array_equal(whole.history["loss"], cut.history["loss"])


def test_diverged_member_leaves_its_neighbours():
    healthy = trained(range(16))
    cohort = kohort.Cohort(build("batch-norm-dropout"), range(16))
    cohort.fit(POINTS, SIGNS, verbose=0, **FIT | {"initial_epoch": 3})
    trained_members = cohort._members.trained
    for state in trained_members.states[:1]:
        kernel = np.array(state.trainable_variables[0])
        kernel[3] = np.nan
        state.trainable_variables[0] = kernel
    history = cohort.fit(POINTS, SIGNS, verbose=0, **FIT)
    assert np.isnan(history["loss"][3]).all()
    assert [o.name for o in history.outcome].index("DIVERGED") == 3
    others = [i for i in range(16) if i != 3]
    np.testing.assert_array_equal(healthy.history["loss"][others], history["loss"][others])
    assert not cohort.success_rate(lambda h: h["loss"][:, -1] < 1).k == 16


@pytest.mark.parametrize("exact", [True, False])
def test_predict_and_evaluate_are_those_of_the_members(exact):
    cohort = trained([4, 9, 2], exact=exact)
    outputs, logs = cohort.predict(POINTS), cohort.evaluate(POINTS, SIGNS)
    compare = np.testing.assert_array_equal if exact else np.testing.assert_allclose
    options = {} if exact else {"rtol": 1e-5, "atol": 1e-6}
    for i, seed in enumerate(cohort.seeds):
        member = cohort.member(seed)
        compare(outputs[i], member.predict(POINTS, verbose=0), **options)
        theirs = member.evaluate(POINTS, SIGNS, verbose=0, return_dict=True)
        assert list(logs) == list(theirs)
        for metric, value in theirs.items():
            compare(logs[metric][i], np.float32(value), **options)


def test_nested_inputs_and_outputs():
    a, b = keras.Input((2,), name="a"), keras.Input((2,), name="b")
    outputs = {"p": layers.Dense(1, name="p")(a), "q": layers.Dense(3, name="q")(b)}
    model = keras.Model({"a": a, "b": b}, outputs)
    model.compile("sgd", {"p": "mse", "q": "mse"})
    cohort = kohort.Cohort(model, 3)
    x, y = {"a": POINTS, "b": POINTS}, {"p": SIGNS, "q": np.eye(3, dtype="float32")[np.arange(40) % 3]}
    cohort.fit(x, y, verbose=0)
    assert {k: v.shape for k, v in cohort.predict(x).items()} == {"p": (3, 40, 1), "q": (3, 40, 3)}


def test_member_is_a_plain_model_that_saves_and_loads(tmp_path):
    cohort = trained([4, 9])
    member = cohort.member(9)
    member.save(tmp_path / "member.keras")
    loaded = keras.models.load_model(tmp_path / "member.keras")
    np.testing.assert_array_equal(loaded.predict(POINTS, verbose=0), member.predict(POINTS, verbose=0))
    by_keras(member, x=POINTS, y=SIGNS, epochs=1, verbose=0)  # it goes on training
    np.testing.assert_array_equal(cohort.member(9).predict(POINTS, verbose=0), loaded.predict(POINTS, verbose=0))


def test_best_is_the_member_with_the_best_last_value():
    cohort = trained(range(12))
    best = cohort.best("loss")
    seed = cohort.seeds[int(np.argmin(cohort.history["loss"][:, -1]))]
    assert differences(values(best), values(cohort.member(seed))) == []


def test_best_by_accuracy_is_the_highest():
    model = MODELS["dense"][0]()
    model.compile("adam", "binary_crossentropy", metrics=["accuracy"])
    cohort = kohort.Cohort(model, 12)
    history = cohort.fit(POINTS, SIGNS, verbose=0, epochs=5)
    seed = cohort.seeds[int(np.argmax(history["accuracy"][:, -1]))]
    assert differences(values(cohort.best("accuracy")), values(cohort.member(seed))) == []


def test_best_passes_over_diverged_members():
    cohort = trained([4, 9, 2])
    last = cohort.history["loss"][:, -1]
    first, second = np.argsort(last)[:2]
    last[first] = np.nan
    assert differences(values(cohort.best("loss")), values(cohort.member(cohort.seeds[second]))) == []


def test_success_rate_counts_bounds_and_criteria():
    cohort = trained(range(12))
    last = cohort.history["loss"][:, -1]
    bound = float(np.median(last))
    assert cohort.success_rate(loss=bound).k == int((last <= bound).sum())
    assert cohort.success_rate(lambda h: h["mae"][:, -1] < 10).k == 12
    both = cohort.success_rate(lambda h: h["loss"][:, -1] > last.min(), loss=bound)
    assert both.k == int(((last <= bound) & (last > last.min())).sum())


def test_generators_of_the_caller_are_left_alone():
    model = build("batch-norm-dropout")
    before = (np.random.get_state(), random.getstate())
    cohort = kohort.Cohort(model, 3)
    cohort.fit(POINTS, SIGNS, verbose=0, **FIT)
    cohort.member(2)
    assert differences(before, (np.random.get_state(), random.getstate())) == []


def test_the_model_is_left_alone():
    model = build("dense")
    before = [np.asarray(v) for v in model.variables]
    kohort.Cohort(model, 3).fit(POINTS, SIGNS, verbose=0)
    assert differences(before, [np.asarray(v) for v in model.variables]) == []
    assert not model.optimizer.built or model.optimizer.iterations == 0
    assert keras_internals.fresh_fit_reads_a_batch(model)
    assert not model._compile_loss.built


def test_functions_and_lambdas_as_loss_and_metric():
    def loss(y, p):
        return keras.ops.mean(keras.ops.square(y - p))

    model = MODELS["dense"][0]()
    model.compile("adam", loss, metrics=[lambda y, p: keras.ops.mean(p)])
    assert kohort.Cohort(model, 2).fit(POINTS, SIGNS, verbose=0)["loss"].shape == (2, 1)


class Halving(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule of the user's own, known to nobody by name."""

    def __init__(self, first):
        self.first = first

    def __call__(self, step):
        return self.first * 0.5 ** (keras.ops.cast(step, "float32") / 10)

    def get_config(self):
        return {"first": self.first}


def tenth():
    return 0.1


@pytest.mark.parametrize("rate", [Halving(0.1), tenth], ids=["schedule", "function"])
def test_learning_rates_of_the_users_own(rate):
    model = MODELS["dense"][0]()
    model.compile(keras.optimizers.SGD(rate), "mse")
    cohort = kohort.Cohort(model, [7], exact=True)
    history = cohort.fit(POINTS, SIGNS, verbose=0, **FIT)
    plain = MODELS["dense"][0]()  # not compiled: Keras's own clone of a compiled model would not know the schedule
    keras.utils.set_random_seed(7)
    theirs = keras.models.clone_model(plain)
    theirs.compile(keras.optimizers.SGD(rate), "mse")
    logs = by_keras(theirs, x=POINTS, y=SIGNS, verbose=0, **FIT).history
    np.testing.assert_array_equal(history["loss"][0], np.float32(logs["loss"]))


class Shifted(keras.metrics.Mean):
    """A metric that takes an argument and does not tell it."""

    def __init__(self, shift, name="shifted"):
        super().__init__(name)
        self.shift = shift


def test_a_part_that_cannot_be_copied_is_refused():
    model = MODELS["dense"][0]()
    model.compile("sgd", "mse", metrics=[Shifted(5.0)])
    with pytest.raises(
        ValueError, match=r"Received: Shifted, which has an `__init__` of its own but no `get_config`\."
    ):
        kohort.Cohort(model, 2)


class FromNumPy(layers.Layer):
    """A layer whose initial weights are NumPy's."""

    def build(self, shape):
        start = np.random.normal(size=(shape[-1], 1)).astype("float32")
        self.kernel = self.add_weight(shape=start.shape, initializer=lambda *_, **__: start)

    def call(self, x):
        return x @ self.kernel


def test_weights_that_are_drawn_elsewhere_are_refused(monkeypatch):
    monkeypatch.setattr("threading.active_count", lambda: 1)  # pytest has threads of its own
    model = sequential((2,), FromNumPy())
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="a layer draws from the generator of Python or NumPy"):
        kohort.Cohort(model, 2)


@pytest.mark.slow
def test_cohorts_of_several_threads():
    before = keras_internals.seed_generator.make_default_seed

    def train(_):
        cohort = kohort.Cohort(build("dense"), [3, 4])
        return cohort.fit(POINTS, SIGNS, verbose=0, **FIT)["loss"].shape

    with concurrent.futures.ThreadPoolExecutor(3) as executor:
        assert list(executor.map(train, range(6))) == [(2, 3)] * 6
    assert keras_internals.seed_generator.make_default_seed is before


@pytest.mark.slow
def test_an_order_that_nobody_sees_is_drawn_when_somebody_looks():
    """One batch of all rows: their order is seen in rounding only, until later fits draw further orders."""
    plans = [(POINTS[:4], SIGNS[:4], 4), (POINTS[:7], SIGNS[:7], 7), (POINTS, SIGNS, 8), (POINTS[:4], SIGNS[:4], 2)]
    histories = []
    for exact in (False, True):
        model = MODELS["dense"][0]()
        model.compile(keras.optimizers.SGD(0.5), "mse")
        cohort = kohort.Cohort(model, [0, 5, 17], exact=exact)
        histories.append([cohort.fit(x, y, batch, epochs=9, verbose=0)["loss"] for x, y, batch in plans])

    np.testing.assert_allclose(np.hstack(histories[0]), np.hstack(histories[1]), rtol=1e-4)


def test_an_order_that_the_loss_sees_is_kept():
    rows = np.arange(4, dtype="float32").reshape(4, 1)
    model = sequential((2,), layers.Dense(1))
    model.compile(keras.optimizers.SGD(0.1), lambda y, outputs: rows * (outputs - y) ** 2)
    ours, exact = (
        kohort.Cohort(model, 3, exact=exact).fit(POINTS[:4], SIGNS[:4], epochs=5, verbose=0) for exact in (False, True)
    )

    np.testing.assert_allclose(ours["loss"], exact["loss"], rtol=1e-5)


def test_a_plain_cohort_varies_nothing():
    cohort = trained([3, 8])
    assert list(cohort.parameters) == ["seed"]
    with pytest.raises(ValueError, match=r"`rate` must be left out: this cohort varies nothing\. Received: rate=1"):
        cohort.member(3, rate=1)
