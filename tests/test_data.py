"""What goes in: the classic problems, and the row numbers of every batch as Keras draws them."""

import concurrent.futures
import warnings

import keras
import numpy as np
import pytest
import sklearn.datasets
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from oracle import differences

import kohort
from kohort.checks import Recipe
from kohort.data import BatchOrder, samples
from kohort.engine import Schedule
from kohort.generators import MemberGenerators, permutations

# The classic problems.


def test_xor():
    x, y = kohort.data.xor()

    assert (x.dtype, y.dtype) == (np.float32, np.float32)
    assert sorted(map(tuple, x)) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    np.testing.assert_array_equal(y, [a != b for a, b in x])


def test_xor_is_given_anew_each_time():
    kohort.data.xor()[0][:] = 7

    assert kohort.data.xor()[0].max() == 1


def test_moons_are_those_of_scikit_learn():
    before = np.random.get_state()
    x, y = kohort.data.moons(50, noise=0.3, random_state=4)
    theirs = sklearn.datasets.make_moons(50, noise=0.3, random_state=4)

    assert (x.dtype, y.dtype, x.shape, y.shape) == (np.float32, np.float32, (50, 2), (50,))
    assert differences([a.astype("float32") for a in theirs], [x, y]) == []
    assert differences(before, np.random.get_state()) == []


def test_moons_by_default():
    x, y = kohort.data.moons()

    assert (x.shape, y.mean()) == ((400, 2), 0.5)
    assert differences([x, y], list(kohort.data.moons())) == []
    assert differences([x, y], list(kohort.data.moons(random_state=1))) != []


@pytest.mark.parametrize("arguments", [{"n_samples": -1}, {"noise": -0.1}, {"random_state": -1}])
def test_moons_out_of_range(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        kohort.data.moons(**arguments)


# Permutations.


@pytest.fixture(params=["compiled", "numpy"])
def drawn_by(request, monkeypatch):
    """What draws permutations: `shuffle.c` where it was compiled, or NumPy alone."""
    if request.param == "numpy":
        monkeypatch.setattr("kohort.generators._permute", lambda: None)
    elif kohort.generators._permute() is None:
        pytest.skip("kohort was installed without a C compiler")


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.sampled_from([*range(1, 13), 33, 255, 256, 400]),
    count=st.integers(0, 40),
    seed=st.integers(0, 2**32 - 1),
    drawn_before=st.integers(0, 700),
)
@example(rows=4, count=4096, seed=0, drawn_before=1)
@example(rows=6, count=2000, seed=2**32 - 1, drawn_before=623)
@example(rows=65537, count=2, seed=1, drawn_before=0)
def test_permutations_are_numpys(drawn_by, rows, count, seed, drawn_before):
    (ours,), theirs = MemberGenerators([seed]).each([0], np.empty((1, 625), np.uint32)), np.random.RandomState(seed)
    for generator in (ours, theirs):
        generator.randint(9, size=drawn_before)
    drawn = permutations(ours, rows, count)

    assert drawn.shape == (count, rows)
    np.testing.assert_array_equal(drawn, np.reshape([theirs.permutation(rows) for _ in range(count)], (count, rows)))
    assert differences(ours.get_state(), theirs.get_state()) == []


@pytest.mark.parametrize("rows", [1, 3, 6, 7])
def test_permutations_of_the_global_generator(drawn_by, rows):
    np.random.seed(8)
    np.random.normal()  # leaves a second normal number waiting, which belongs to the state
    state = np.random.get_state()
    ours = permutations(np.random, rows, 5)
    after = np.random.get_state()
    np.random.set_state(state)

    np.testing.assert_array_equal(ours, [np.random.permutation(rows) for _ in range(5)])
    assert differences(after, np.random.get_state()) == []


@pytest.mark.parametrize(("rows", "dtype"), [(4, "uint8"), (255, "uint8"), (256, "uint16"), (70_000, "uint32")])
def test_permutations_are_kept_small(rows, dtype):
    assert permutations(np.random.RandomState(0), rows, 1).dtype == dtype


# The generators of members.

SEEDS = [0, 1, 17, 2**31, 2**32 - 1]


def test_member_generators_begin_as_numpys():
    generators = MemberGenerators(SEEDS)
    for member, seed in enumerate(SEEDS):
        np.random.seed(seed)
        for generator in generators.each([member], generators.states):
            np.testing.assert_array_equal(generator.permutation(50), np.random.permutation(50))
            assert generator.randint(1000) == np.random.randint(1000)


def test_member_generators_go_on_where_they_were_left():
    generators = MemberGenerators(SEEDS)
    theirs = [np.random.RandomState(seed) for seed in SEEDS]
    for draws in (3, 700, 1):  # 624 words make the generator turn
        for member, their in enumerate(theirs):
            for generator in generators.each([member], generators.states):
                np.testing.assert_array_equal(generator.randint(2**31, size=draws), their.randint(2**31, size=draws))


def test_member_generators_are_left_only_where_asked():
    generators = MemberGenerators([5, 6])
    before = generators.states.copy()
    others = generators.like()
    for generator in generators.each([1], others.states):
        first = generator.permutation(9)

    np.testing.assert_array_equal(generators.states, before)
    assert (others.states[1] != before[1]).any()
    for generator in generators.each([1], others.states):
        np.testing.assert_array_equal(generator.permutation(9), first)


@pytest.mark.parametrize(("rows", "dtype"), [(4, np.uint8), (300, np.uint16), (70_000, np.uint32)])
def test_member_generators_draw_in_bulk(drawn_by, rows, dtype):
    generators, counts, places = MemberGenerators(SEEDS), [3, 0, 2, 3], [2, 0, 1, 3]
    before, others = generators.states.copy(), generators.like()
    others.states[:] = 7
    room = np.full((4, 3, rows), 9, dtype)
    generators.draw(others, np.array([4, 0, 1, 3]), counts, room, places)

    np.testing.assert_array_equal(generators.states, before)
    np.testing.assert_array_equal(others.states[2], 7)  # who draws nothing is not touched
    for member, count, place in zip([4, 0, 1, 3], counts, places, strict=True):
        their = np.random.RandomState(SEEDS[member])
        drawn = [their.permutation(rows) for _ in range(count)]
        np.testing.assert_array_equal(room[place, :count], np.reshape(drawn, (count, rows)))
        np.testing.assert_array_equal(room[place, count:], 9)
        np.testing.assert_array_equal(others.states[member], [*their.get_state()[1], their.get_state()[2]])


def test_looking_whether_it_draws_as_numpy_disturbs_nobody():
    for generator in MemberGenerators([3]).each([0], np.empty((1, 625), np.uint32)):
        kohort.generators._permute.cache_clear()
        drawn = permutations(generator, 50, 9)
    np.testing.assert_array_equal(drawn, list(map(np.random.RandomState(3).permutation, [50] * 9)))


def test_what_does_not_draw_as_numpy_is_not_used():
    assert kohort.generators._draws_as_numpy(kohort.generators._permute() or pytest.skip("no C compiler"))
    assert not kohort.generators._draws_as_numpy(lambda before, after, members, counts, room, places: room.fill(0))


def test_member_generators_leave_the_global_one_alone():
    before = np.random.get_state()
    generators = MemberGenerators([5])
    for generator in generators.each([0], generators.states):
        generator.permutation(9)

    assert differences(before, np.random.get_state()) == []


def test_permutations_that_are_owed_are_drawn_when_somebody_looks():
    generators = MemberGenerators(SEEDS).owing(4, 1).owing(4, 100).owing(7, 3)
    further = generators.owing(9, 2)
    for seed, state, later in zip(SEEDS, generators.states, further.states, strict=True):
        their = np.random.RandomState(seed)
        for rows in [4] * 101 + [7] * 3:
            their.permutation(rows)
        np.testing.assert_array_equal(state, [*their.get_state()[1], their.get_state()[2]])
        their.permutation(9), their.permutation(9)
        np.testing.assert_array_equal(later, [*their.get_state()[1], their.get_state()[2]])


def test_member_generators_in_threads_do_not_mix():
    generators = MemberGenerators(range(64))

    def draw(member):
        for generator in generators.each([member], generators.states):
            return [generator.permutation(200) for _ in range(20)]

    with concurrent.futures.ThreadPoolExecutor(8) as executor:
        drawn = list(executor.map(draw, range(64)))
    for seed, ours in enumerate(drawn):
        theirs = np.random.RandomState(seed)
        np.testing.assert_array_equal(ours, [theirs.permutation(200) for _ in range(20)])


# The order of the batches. The oracle is `model.fit`: a model that writes down the rows it is given.


class Witness(keras.Model):
    """Writes down the rows of each batch, epoch by epoch; it runs eagerly, so it sees them."""

    def __init__(self):
        super().__init__()
        self.epochs = []

    def call(self, x):
        return x

    def train_step(self, state, data):
        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        self.epochs[-1].append(np.asarray(x)[:, 0].astype(int).tolist())
        return {}, state


class Epochs(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        self.model.epochs.append([])


def batches_of_keras(rows, epochs, steps_per_execution, **arguments):
    model = Witness()
    model.compile("sgd", run_eagerly=True, steps_per_execution=steps_per_execution)
    model.built = True
    model.fit(np.arange(rows)[:, None], epochs=epochs, verbose=0, callbacks=[Epochs()], **arguments)
    return model.epochs


def batches_of(order, schedule, epochs):
    """Reads a schedule as the compiled program does."""
    cut, read = order.cut, []
    for epoch in range(epochs):
        rows = np.arange(cut.rows) if schedule.rows is None else schedule.rows[epoch]
        full = cut.full if schedule.full is None else schedule.full[epoch]
        partial = bool(cut.partial) if schedule.partial is None else schedule.partial[epoch]
        batches = [rows[i * cut.batch_size : (i + 1) * cut.batch_size] for i in range(full)]
        read.append([batch.tolist() for batch in [*batches, *([rows[cut.full * cut.batch_size :]] if partial else [])]])
    return read


@pytest.mark.filterwarnings("ignore:.*ran out of data")
@pytest.mark.parametrize("shuffle", [True, False, "batch"])
@pytest.mark.parametrize("rows", [1, 4, 7, 20])
@pytest.mark.parametrize(
    ("batch_size", "steps_per_epoch", "steps_per_execution"),
    [(None, None, 1), (3, None, 1), (5, None, 2), (3, 2, 1), (None, 3, 1), (4, 9, 1), (3, 4, 3), (2, 1, 1)],
)
def test_batches_are_those_of_keras(shuffle, rows, batch_size, steps_per_epoch, steps_per_execution):
    epochs = 5
    arguments = {"batch_size": batch_size, "steps_per_epoch": steps_per_epoch, "shuffle": shuffle}
    np.random.seed(11)
    theirs = batches_of_keras(rows, epochs, steps_per_execution, **arguments)
    after = np.random.get_state()
    np.random.seed(11)
    order = BatchOrder(rows, Recipe(**arguments), steps_per_execution)
    ours = batches_of(order, order.draw(2, 4), 2) + batches_of(order, order.draw(epochs - 2, 4), epochs - 2)

    assert ours == theirs
    assert differences(after, np.random.get_state()) == []


@pytest.mark.parametrize("shuffle", [True, False, "batch"])
@pytest.mark.parametrize("steps_per_epoch", [None, 2])
def test_a_batch_that_is_read_ahead_draws_what_keras_draws(shuffle, steps_per_epoch):
    recipe = Recipe(batch_size=3, shuffle=shuffle, steps_per_epoch=steps_per_epoch)
    np.random.seed(2)
    order = BatchOrder(10, recipe, 1)
    order.read_a_batch()
    ours = batches_of(order, order.draw(3, 3), 3)

    model = Witness()
    model.compile("sgd", "mse", run_eagerly=True)  # Keras reads a batch to build the loss
    np.random.seed(2)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*ran out of data")
        model.fit(
            np.arange(10.0)[:, None], np.zeros((10, 1)), epochs=3, verbose=0, callbacks=[Epochs()],
            batch_size=3, shuffle=shuffle, steps_per_epoch=steps_per_epoch,
        )  # fmt: skip
    assert ours == model.epochs


def test_an_order_that_is_as_it_comes_carries_nothing():
    order = BatchOrder(10, Recipe(batch_size=4, shuffle=False), 1)

    assert order.row_bytes == 0
    assert order.draw(3, 8) == Schedule()


def test_room_that_is_not_drawn_is_empty():
    order = BatchOrder(5, Recipe(shuffle=True), 1)
    rows = order.draw(2, 6).rows

    assert rows.shape == (6, 5)
    assert order.row_bytes == rows[0].nbytes
    assert (np.sort(rows[:2], axis=1) == np.arange(5)).all()
    assert not rows[2:].any()


@pytest.mark.parametrize("rows", [10, 40_000])
def test_what_is_written_into_x_later_is_not_seen(rows):
    x = np.ones((rows, 2), "float32")
    batch = samples(x).batch
    x[:] = 5

    np.testing.assert_array_equal(np.asarray(batch[0]), 1)
