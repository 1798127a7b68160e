"""`TensorBoard` of a compiled fit writes what it writes for Keras, at epochs and after so many batches."""

import copy
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import keras
import pytest
from keras import callbacks
from oracle import by_keras, by_kohort, differences, run
from test_training import FIT, X, Y, build

from kohort.fit import Request, why_fall_back


def told_to_tensorboard(folder):
    """Returns all that was written for TensorBoard, without the times: file by file each tag, step and value."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    from tensorboard.util.tensor_util import make_ndarray

    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return [
        (str(file.parent.relative_to(folder)), value.tag, event.step, make_ndarray(value.tensor).tolist())
        for file in files
        for event in EventFileLoader(str(file)).Load()
        for value in event.summary.value
    ]


@pytest.mark.parametrize("update_freq", ["epoch", 2])
def test_the_files_are_those_of_keras(update_freq, tmp_path):
    pytest.importorskip("tensorflow")

    def written_by(train):
        folder = tmp_path / train.__name__
        board = callbacks.TensorBoard(folder, histogram_freq=2, update_freq=update_freq)
        run(train, build, 1, [FIT | {"callbacks": [board]}])
        return told_to_tensorboard(folder)

    theirs, ours = written_by(by_keras), written_by(by_kohort)
    assert ours == theirs
    assert {"epoch_loss", "epoch_accuracy", "epoch_learning_rate"} <= {tag for _, tag, *_ in ours}
    assert ("batch_loss" in {tag for _, tag, *_ in ours}) == (update_freq == 2)
    assert {part for part, *_ in ours} == {"train", "validation"}
    assert any("kernel" in tag for _, tag, *_ in ours)


class Board:
    """Takes what `TensorBoard` writes, as `tensorflow.summary` does, which need not be there for it."""

    def __init__(self):
        self.written, self.writers, self.conditions = [], [], []

    def create_file_writer(self, folder):
        return SimpleNamespace(as_default=lambda step=None: self.inside(self.writers, folder), close=lambda: None)

    def record_if(self, condition):
        return self.inside(self.conditions, condition)

    @contextmanager
    def inside(self, those, this):
        those.append(this)
        yield
        those.pop()

    def scalar(self, name, value, step):
        if not self.conditions or self.conditions[-1]():
            self.written.append((Path(self.writers[-1]).name, name, int(step), float(value)))


@pytest.mark.many
@pytest.mark.parametrize(
    ("update_freq", "fit", "options"),
    [
        ("batch", FIT, {}),
        (3, FIT | {"batch_size": 8}, {}),
        (2, FIT | {"batch_size": 8, "validation_freq": 2}, {"steps_per_execution": 3}),
        (4, FIT | {"batch_size": 8, "steps_per_epoch": 2, "validation_steps": 1}, {}),
        (1000, FIT, {}),
    ],
    ids=["each", "some", "several-steps", "fewer-steps", "none"],
)
def test_tensorboard_that_writes_after_so_many_batches(update_freq, fit, options, tmp_path):
    """The epoch is cut there; what is about validation is written where its own batches come to such a number."""

    def written_by(train):
        board = callbacks.TensorBoard("board", update_freq=update_freq, write_graph=False)
        saving = callbacks.ModelCheckpoint(tmp_path / "{batch}.keras", save_freq=3)
        board._summary_module = Board()
        left = run(train, lambda: build(**options), 1, [fit | {"callbacks": [board, saving]}] * 2)
        return left, board._summary_module.written

    theirs = written_by(by_keras)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keras.Model, "fit", None)  # it must not be needed
        ours = written_by(by_kohort)

    assert differences(theirs[0], ours[0]) == []
    assert ours[1] == theirs[1]
    begins = {name.partition("_")[0] for _, name, *_ in ours[1]}
    assert begins == ({"batch", "epoch", "evaluation"} if update_freq != 1000 else set())


def test_tensorboard_runs_compiled_where_it_takes_no_times(tmp_path):
    """TensorFlow itself is not needed to decide it, and need not be there."""
    decided = {}
    for options in ({"update_freq": 2}, {"update_freq": "batch"}, {"update_freq": 2, "write_steps_per_second": True}):
        callback = callbacks.TensorBoard(tmp_path, **options)
        decided[str(options)] = why_fall_back(build(), Request(X, Y, callbacks=[callback]))
    assert list(decided.values())[:2] == [None, None]
    assert "acts inside an epoch" in str(list(decided.values())[2])


@pytest.mark.parametrize(
    "callback",
    [callbacks.TensorBoard("board", update_freq=2), callbacks.ModelCheckpoint("never.keras", save_freq=2)],
    ids=["writes", "saves"],
)
@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_test_batch_end"])
def test_hooks_of_ones_own_at_each_batch_are_called_by_keras(callback, hook):
    callback = copy.copy(callback)
    assert why_fall_back(build(), Request(X, Y, callbacks=[callback])) is None
    setattr(callback, hook, lambda batch, logs=None: None)
    assert "acts inside an epoch" in str(why_fall_back(build(), Request(X, Y, callbacks=[callback])))
