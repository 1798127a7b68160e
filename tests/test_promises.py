"""P4 compiled once, P5 nothing lost, and the cache of compiled programs."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
from contextlib import contextmanager
from pathlib import Path

import jax
import keras
import numpy as np
import pytest
from keras import layers
from oracle import differences, outcome

import kohort
from kohort import engine
from kohort.epochs import ArrayEpochs
from kohort.programs import programs_of
from kohort.progress import held_interrupt

RNG = np.random.default_rng(2)
X = RNG.normal(size=(40, 2)).astype("float32")
Y = (X[:, 0] * X[:, 1] > 0).astype("float32")


def build():
    stack = [layers.Dense(8, activation="tanh"), layers.Dropout(0.2), layers.Dense(1, activation="sigmoid")]
    model = keras.Sequential([keras.Input((2,)), *stack])
    model.compile("adam", "binary_crossentropy", metrics=["accuracy"])
    return model


@contextmanager
def compilations():
    """Counts what XLA compiles (or loads from the cache on disk) inside the block."""
    seen = []

    def listen(event, *_, **__):
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


FIT = {"batch_size": 16, "verbose": 0, "validation_split": 0.2}


def test_the_counter_counts():
    with compilations() as seen:
        jax.jit(lambda a: a * 3.25 + 1)(np.float32(2))
    assert seen


def test_a_second_fit_compiles_nothing():
    model = build()
    kohort.fit(model, X, Y, epochs=3, **FIT)
    with compilations() as seen:
        kohort.fit(model, X, Y, epochs=57, **FIT)
        kohort.fit(model, X[::-1].copy(), 1 - Y, epochs=9, initial_epoch=4, **FIT)
        kohort.fit(model, X, Y, epochs=2, **FIT)
    assert seen == []


@pytest.mark.parametrize("exact", [True, False])
def test_a_second_cohort_fit_compiles_nothing(exact):
    model = build()
    cohort = kohort.Cohort(model, 20, exact=exact)
    cohort.fit(X, Y, epochs=3, **FIT)
    with compilations() as seen:
        cohort.fit(X, 1 - Y, epochs=31, **FIT)
        kohort.Cohort(model, range(1000, 1020), exact=exact).fit(X, Y, epochs=5, **FIT)
    assert seen == []


@pytest.mark.parametrize("exact", [True, False])
def test_prediction_and_evaluation_compile_once(exact):
    model = build()
    cohort = kohort.Cohort(model, 3, exact=exact)
    cohort.fit(X, Y, epochs=1, **FIT)
    cohort.predict(X), cohort.evaluate(X, Y)
    with compilations() as seen:
        cohort.predict(X + 1), cohort.evaluate(X + 1, Y)
    assert seen == []


def test_compiling_the_model_anew_makes_new_programs():
    model = build()
    kohort.fit(model, X, Y, epochs=1, **FIT)
    old = programs_of(model)
    model.compile("sgd", "mse")
    kohort.fit(model, X, Y, epochs=1, **FIT)
    assert programs_of(model) is not old


def test_a_changed_learning_rate_is_seen_by_the_next_cohort():
    model = build()
    first = kohort.Cohort(model, 2).fit(X, Y, epochs=3, **FIT)
    model.optimizer.learning_rate = 0.5
    second = kohort.Cohort(model, 2).fit(X, Y, epochs=3, **FIT)
    assert not np.array_equal(first["loss"], second["loss"])


def resident():
    """Returns the KB that this process holds now: the most it ever held may lie far behind, in another test."""
    pages = Path("/proc/self/statm")
    if not pages.exists():
        pytest.skip("only Linux tells")
    return int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


def assert_flat_over_refits(fit, most=20_000, refits=1000):
    """Asserts that memory grows by at most so many KB after the tenth fit, and that the first compiles for all."""
    fit()
    with compilations() as seen:
        for _ in range(9):
            fit()
        before = resident()
        for _ in range(refits - 10):
            fit()
    assert resident() - before < most
    assert seen == []


def test_memory_is_flat_over_refits():
    model = build()
    assert_flat_over_refits(lambda: kohort.fit(model, X, Y, epochs=5, **FIT), most=10_000)


@pytest.mark.slow
def test_memory_is_flat_over_refits_with_callbacks(tmp_path):
    model = build()

    def fit():
        callbacks = [
            keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: None),
            keras.callbacks.EarlyStopping("val_loss", patience=2, restore_best_weights=True),
            keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate),
            keras.callbacks.ModelCheckpoint(tmp_path / "best.weights.h5", save_weights_only=True, save_best_only=True),
        ]
        kohort.fit(model, X, Y, epochs=5, callbacks=callbacks, **FIT)

    assert_flat_over_refits(fit)


@pytest.mark.slow
def test_memory_is_flat_over_refits_through_install():
    model = build()
    kohort.report(clear=True)
    with kohort.install():
        assert_flat_over_refits(lambda: model.fit(X, Y, epochs=5, **FIT))
    told = kohort.report(clear=True)
    assert told.compiled_calls == told.calls == 1000


@pytest.mark.slow
def test_memory_is_flat_over_refits_on_a_stream():
    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 5

        def __getitem__(self, place):
            return X[8 * place :][:8], Y[8 * place :][:8]

    model, batches = build(), Batches()
    assert_flat_over_refits(lambda: kohort.fit(model, batches, epochs=2, verbose=0))


class press_at:
    """Presses Ctrl-C in the middle of a fit: when it asks for the pace of its n-th call."""

    def __init__(self, monkeypatch, calls):
        self.left = calls
        epochs = engine.Pace.epochs

        def counted(pace, remaining, capacity, *seconds):
            self.left -= 1
            if self.left == 0:
                signal.raise_signal(signal.SIGINT)
            return min(epochs(pace, remaining, capacity, *seconds), 7)

        monkeypatch.setattr(engine.Pace, "epochs", counted)


def test_interrupt_leaves_the_model_at_the_end_of_an_epoch(monkeypatch):
    keras.utils.clear_session()
    keras.utils.set_random_seed(3)
    model = build()
    press_at(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        kohort.fit(model, X, Y, epochs=10_000, **FIT)
    done = len(model.history.epoch)
    assert 0 < done < 10_000
    ours = outcome(model, model.history)
    keras.utils.clear_session()
    keras.utils.set_random_seed(3)
    theirs_model = build()
    theirs = outcome(theirs_model, theirs_model.fit(X, Y, epochs=done, **FIT))
    assert differences(theirs, ours) == []


@pytest.mark.parametrize("exact", [True, False])
def test_interrupt_leaves_all_members_at_the_same_epoch(monkeypatch, exact):
    model = build()
    cohort = kohort.Cohort(model, 20, exact=exact)
    with monkeypatch.context() as patch:
        press_at(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            cohort.fit(X, Y, epochs=10_000, **FIT)
    done = len(cohort.history.epoch)
    assert 0 < done < 10_000
    whole = kohort.Cohort(model, 20, exact=exact)
    whole.fit(X, Y, epochs=done, **FIT)
    np.testing.assert_array_equal(cohort.history["loss"], whole.history["loss"])
    np.testing.assert_array_equal(cohort.predict(X), whole.predict(X))


def test_failure_in_the_first_round_leaves_the_cohort_untrained(monkeypatch):
    cohort = kohort.Cohort(build(), 3)

    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr("kohort.rounds.Rounds._advance", fail)
    with pytest.raises(MemoryError):
        cohort.fit(X, Y, epochs=5, **FIT)
    with pytest.raises(RuntimeError, match=r"must come after `cohort\.fit`"):
        cohort.predict(X)


def test_failure_in_a_later_call_keeps_the_finished_epochs(monkeypatch):
    model = build()
    advance = ArrayEpochs.advance
    calls = []

    def failing(source, state, epochs, interrupt):
        calls.append(epochs.start)
        if len(calls) == 3:
            raise MemoryError
        return advance(source, state, epochs, interrupt)

    monkeypatch.setattr(ArrayEpochs, "advance", failing)
    with pytest.raises(MemoryError):
        kohort.fit(model, X, Y, epochs=100_000, **FIT)
    assert len(model.history.epoch) == calls[-1]
    assert all(np.isfinite(np.asarray(v)).all() for v in model.trainable_variables)


def test_a_long_epoch_is_given_up_at_ctrl_c():
    """A call of one epoch that takes longer than a moment is abandoned, with the state before it kept."""

    class Never:
        def is_ready(self):
            signal.raise_signal(signal.SIGINT)
            return False

    with pytest.raises(KeyboardInterrupt), held_interrupt() as interrupt:
        assert not engine.wait([Never()], interrupt)


def test_other_threads_and_other_handlers_are_left_alone():
    reached = []

    def work():
        with held_interrupt() as interrupt:
            reached.append(bool(interrupt))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert reached == [False]
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with held_interrupt():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, handler)
    assert signal.getsignal(signal.SIGINT) is handler


def fresh_process(code, **environment):
    command = [sys.executable, "-W", "error::UserWarning", "-c", textwrap.dedent(code)]
    kept = {k: v for k, v in os.environ.items() if k not in ("KERAS_BACKEND",)}
    return subprocess.run(command, env=kept | environment, capture_output=True, text=True, timeout=300)


TINY_FIT = """
    import kohort, keras
    x, y = kohort.data.xor()
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    kohort.fit(model, x, y, epochs=2, verbose=0)
    print("trained")
"""


def test_programs_are_kept_for_the_user_alone(tmp_path):
    assert fresh_process(TINY_FIT, KOHORT_CACHE_DIR=str(tmp_path)).stdout == "trained\n"
    folder = next(tmp_path.iterdir())
    assert folder.stat().st_mode & 0o077 == 0
    assert any("jit_run" in file.name for file in folder.iterdir())


def test_a_damaged_program_is_compiled_anew(tmp_path):
    fresh_process(TINY_FIT, KOHORT_CACHE_DIR=str(tmp_path))
    for file in Path(next(tmp_path.iterdir())).iterdir():
        file.write_bytes(file.read_bytes()[:100])
    code = "import warnings; warnings.simplefilter('ignore')" + TINY_FIT.replace("\n    ", "\n")
    assert fresh_process(code, KOHORT_CACHE_DIR=str(tmp_path)).stdout == "trained\n"


@pytest.mark.slow
def test_a_folder_that_others_can_write_is_not_used(tmp_path):
    fresh_process(TINY_FIT, KOHORT_CACHE_DIR=str(tmp_path))
    folder = next(tmp_path.iterdir())
    for file in folder.iterdir():
        file.unlink()
    folder.chmod(0o777)
    assert fresh_process(TINY_FIT, KOHORT_CACHE_DIR=str(tmp_path)).stdout == "trained\n"
    assert list(folder.iterdir()) == []


def test_a_cache_that_is_set_up_already_stays(tmp_path):
    code = "import kohort, jax; print(jax.config.jax_compilation_cache_dir)"
    printed = fresh_process(code, JAX_COMPILATION_CACHE_DIR=str(tmp_path), KOHORT_CACHE_DIR=str(tmp_path / "other"))
    assert printed.stdout == f"{tmp_path}\n"


def test_keras_that_was_imported_on_jax_is_fine():
    code = "import keras" + TINY_FIT.replace("\n    ", "\n")
    assert fresh_process(code, KERAS_BACKEND="jax", KOHORT_CACHE_DIR="").stdout == "trained\n"
