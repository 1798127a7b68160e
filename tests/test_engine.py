"""The engine by itself, on functions that are no Keras network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kohort import engine, traced
from kohort.engine import Cut, Functions, Pace, Schedule, State

RNG = np.random.default_rng(3)


def counting_functions():
    """A network whose weight takes the sum of each batch as its next digit: the order of the batches shows."""

    def train_step(state, batch):
        weight, step = state.trainable_variables[0], state.optimizer_variables[0]
        seen = weight * 10 + batch.sum()
        total = state.metrics_variables[0] + batch.sum()
        return {"total": total}, State([seen], [], [step + 1], [total])

    def test_step(state, batch):
        total = state.metrics_variables[0] - batch.sum()
        return {"total": total}, state._replace(metrics_variables=[total])

    def predict_step(state, batch):
        return batch + state.trainable_variables[0]

    def reset_metrics(state):
        return state._replace(metrics_variables=[jnp.zeros(())])

    return Functions(train_step, test_step, predict_step, reset_metrics, lambda state, logs: logs)


def begin():
    return State([np.float32(0)], [], [np.int32(0)], [np.float32(0)])


def test_batches_come_in_the_order_of_the_schedule():
    run = jax.jit(engine.epochs_program(counting_functions(), Cut(2, 1, 1), None, capacity=4))
    rows = np.zeros((4, 3), np.uint8)
    rows[:2] = [[2, 0, 1], [1, 2, 0]]
    samples = np.array([1, 2, 3], "float32")
    state, (logs, _) = run(begin(), samples, None, Schedule(rows), 2)
    # epoch 1: 3+1, then 2; epoch 2: 2+3, then 1
    assert float(state.trainable_variables[0]) == 4251
    assert int(state.optimizer_variables[0]) == 4
    np.testing.assert_array_equal(logs["total"], [6, 6, 0, 0])


def test_an_epoch_may_have_fewer_batches_than_the_cut():
    run = jax.jit(engine.epochs_program(counting_functions(), Cut(1, 2, 1), None, capacity=3))
    rows = np.tile(np.arange(3, dtype=np.uint8), (3, 1))
    schedule = Schedule(rows, full=np.array([2, 1, 0], np.int32), partial=np.array([1, 0, 1], np.int32))
    state, (logs, _) = run(begin(), np.array([1, 2, 3], "float32"), None, schedule, 3)
    np.testing.assert_array_equal(logs["total"], [6, 1, 3])
    assert int(state.optimizer_variables[0]) == 5


def test_validation_only_where_it_is_due():
    run = jax.jit(engine.epochs_program(counting_functions(), Cut(3, 1, 0), Cut(2, 1, 0), capacity=3))
    samples, validation = np.array([1, 2, 3], "float32"), np.array([5, 6], "float32")
    schedule = Schedule(validates=np.array([False, True, False]))
    _, (logs, val_logs) = run(begin(), samples, validation, schedule, 3)
    np.testing.assert_array_equal(logs["total"], [6, 6, 6])
    np.testing.assert_array_equal(val_logs["total"], [0, -11, 0])


def test_stacked_batches_run_in_order_as_far_as_they_are_told():
    functions = counting_functions()
    run = jax.jit(engine.batches_program(functions, functions.train_step, capacity=4))
    stack = np.array([[1, 1], [3, 0], [5, 4], [7, 7]], "float32")
    state = jax.jit(engine.begin_program(functions))(begin()._replace(metrics_variables=[np.float32(5)]))

    state, logs, results = run(state, stack, 3)
    assert float(state.trainable_variables[0]) == 239
    assert int(state.optimizer_variables[0]) == 3
    assert float(logs["total"]) == float(results["total"]) == 14
    state, logs, results = run(state, stack, 1)
    assert float(state.trainable_variables[0]) == 2392
    assert float(results["total"]) == 16


@pytest.mark.parametrize("cut", [Cut(2, 2, 1), Cut(5, 1, 0), Cut(8, 0, 5)])
def test_prediction_keeps_the_order_of_the_samples(cut):
    samples = np.arange(5, dtype="float32")
    run = jax.jit(engine.predict_program(counting_functions(), cut))
    np.testing.assert_array_equal(run(begin()._replace(trainable_variables=[np.float32(10)]), samples), samples + 10)


def test_a_training_call_leaves_the_state_of_its_caller():
    call = engine.TrainingCall(engine.epochs_program(counting_functions(), Cut(3, 1, 0), None, capacity=1))
    state = jax.tree.map(jnp.asarray, begin())
    first, _ = call(state, np.array([1, 2, 3], "float32"), None, Schedule(), 1)
    second, _ = call(state, np.array([1, 2, 3], "float32"), None, Schedule(), 1)
    assert float(first.trainable_variables[0]) == float(second.trainable_variables[0]) == 6


def test_to_ask_for_the_memory_of_a_call_compiles_it_once():
    call = engine.TrainingCall(engine.epochs_program(counting_functions(), Cut(3, 1, 0), None, capacity=2))
    state, rest = begin(), (np.array([1, 2, 3], "float32"), None, Schedule(), 1)
    jax.block_until_ready(traced.copied(state))  # that is compiled already
    seen = []

    def listen(event, *_, **__):
        seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        sizes = [call.memory(state, *rest) for _ in range(2)]
        call(state, *rest)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert sizes[0] == sizes[1] > rest[0].nbytes
    assert seen.count("/jax/core/compile/backend_compile_duration") == 1


def test_pace_follows_the_clock():
    pace = Pace()
    assert pace.epochs(remaining=100, capacity=50) == 1
    pace.record(epochs=1, seconds=0.001)
    assert pace.epochs(remaining=1000, capacity=5000, seconds=0.1) == 100
    assert pace.epochs(remaining=30, capacity=5000, seconds=0.1) == 30
    assert pace.epochs(remaining=1000, capacity=7, seconds=0.1) == 7
    pace.record(epochs=1, seconds=60.0)
    assert pace.epochs(remaining=1000, capacity=5000) == 1


def test_pace_tells_epochs_from_calls_where_their_lengths_differ_much():
    """Of two calls of nearly one length, the difference is noise."""
    pace = Pace()
    pace.record(epochs=9, seconds=0.103)
    pace.record(epochs=10, seconds=0.084)
    assert pace.seconds_per_epoch == pytest.approx(0.0084)
    pace.record(epochs=20, seconds=0.134)
    assert pace.seconds_per_epoch == pytest.approx(0.005)
    pace.record(epochs=10, seconds=0.2)  # it must be something else that took long
    assert pace.seconds_per_epoch == pytest.approx(0.02 / 20)


def test_capacity_is_bounded_by_epochs_and_bytes():
    assert engine.capacity(0) == engine.capacity(4) == engine.MAX_EPOCHS
    assert engine.capacity(engine.MAX_ROW_BYTES // 3) == 3
    assert engine.capacity(10 * engine.MAX_ROW_BYTES) == 1
