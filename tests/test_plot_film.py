"""Films: what networks answer through their training, as a record and as files."""

import base64
import io
import re

import keras
import matplotlib.pyplot as plt
import numpy as np
import pytest
from pictures import LIMITS, X, Y, compiled, network, overlaps
from PIL import Image
from refusals import refused

import kohort
from kohort import plot

PLANE = {"grid_resolution": 6, "verbose": 0}


def watched(model, epochs, points, **options):
    """Trains with plain Keras, and returns its answers before the first epoch and after each of them."""
    seen = [model.predict(points, verbose=0)]
    look = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: seen.append(model.predict(points, verbose=0)))
    history = model.fit(X, Y, epochs=epochs, verbose=0, callbacks=[look], **options)
    return np.stack(seen), history.history["loss"]


def by_hand(model, seed):
    keras.utils.set_random_seed(seed)
    clone = keras.models.clone_model(model)
    clone.compile("adam", "mse")
    return clone


@pytest.fixture(scope="module")
def film():
    return plot.animate(kohort.Cohort(compiled(), seeds=(4, 0, 7)), X, Y, epochs=8, frames=[0, 3, 8], **PLANE)


# The record is what plain Keras answers on its way.


def test_a_cohorts_film_is_what_keras_answers_at_these_epochs(film):
    assert film.epochs.tolist() == [0, 3, 8]
    assert film.seeds == (4, 0, 7)
    assert film.metric == "loss"
    for member, seed in enumerate(film.seeds):
        answers, losses = watched(by_hand(compiled(), seed), 8, film.points)
        expected = answers[[0, 3, 8], :, 0].reshape(3, 6, 6)
        np.testing.assert_allclose(film.responses[:, member], expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(film.values[:, member], [np.nan, losses[2], losses[7]], rtol=1e-5)


def test_a_models_film_is_what_keras_answers_and_leaves_what_its_fit_leaves():
    model, other = compiled(activation="sigmoid"), compiled(activation="sigmoid")
    random_state = np.random.get_state()

    picture = plot.animate(model, X, Y, epochs=6, frames=4, batch_size=2, **PLANE)
    after = np.random.get_state()[1].tolist()
    np.random.set_state(random_state)
    answers, losses = watched(other, 6, picture.points, batch_size=2)

    assert picture.epochs.tolist() == [0, 2, 4, 6]
    np.testing.assert_allclose(picture.responses[:, 0], answers[::2, :, 0].reshape(4, 6, 6), rtol=1e-6, atol=1e-6)
    assert picture.values[1:, 0].tolist() == losses[1::2]
    assert np.random.get_state()[1].tolist() == after
    for ours, theirs in zip(model.weights, other.weights, strict=True):
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


def test_a_cohort_is_left_as_one_fit_leaves_it(film):
    plain, filmed = (kohort.Cohort(compiled(), seeds=(4, 0, 7)) for _ in range(2))
    plain.fit(X, Y, epochs=8, verbose=0)

    plot.animate(filmed, X, Y, epochs=8, frames=[0, 3, 8], **PLANE)

    np.testing.assert_array_equal(filmed.history["loss"], plain.history["loss"])
    np.testing.assert_array_equal(filmed.predict(X), plain.predict(X))


def test_the_program_runs_from_one_chosen_epoch_to_the_next(monkeypatch):
    cohort, rounds = kohort.Cohort(compiled(), seeds=2), []
    monkeypatch.setattr("kohort.rounds.ROUND_SECONDS", 100.0)
    cohort.fit(X, Y, epochs=300, verbose=0)  # its pace is then known
    whole = kohort.rounds.Rounds._round
    monkeypatch.setattr(
        "kohort.rounds.Rounds._round",
        lambda self, trained, epochs, *rest: rounds.append(epochs) or whole(self, trained, epochs, *rest),
    )

    plot.animate(cohort, X, Y, epochs=200, frames=[50, 200], **PLANE)

    ends = [epochs.stop for epochs in rounds]
    assert {50, 200} <= set(ends)
    assert len(rounds) < 10


def test_what_goes_on_begins_at_its_epoch_and_callbacks_are_kept():
    cohort, seen = kohort.Cohort(compiled(), seeds=2), []
    watch = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(epoch))

    picture = plot.animate(cohort, X, Y, epochs=9, initial_epoch=5, frames=3, callbacks=watch, **LIMITS, **PLANE)

    assert picture.limits == LIMITS
    assert picture.epochs.tolist() == [5, 7, 9]
    assert seen == [5, 6, 7, 8]
    assert np.isnan(picture.values[0]).all()
    np.testing.assert_array_equal(picture.values[1:].T, cohort.history["loss"][:, [1, 3]])


def test_members_that_stop_stay_and_the_film_ends_with_them():
    stop = keras.callbacks.EarlyStopping("loss", patience=1, min_delta=10.0)
    cohort = kohort.Cohort(compiled(), seeds=2)

    picture = plot.animate(cohort, X, Y, epochs=50, frames=[0, 1, 40], callbacks=stop, **PLANE)

    assert cohort.history.stopped_epoch.tolist() == [1, 1]
    assert picture.epochs[0] == 0
    assert picture.epochs[-1] < 40
    np.testing.assert_allclose(picture.responses[-1].reshape(2, -1, 1), cohort.predict(picture.points), rtol=1e-6)
    np.testing.assert_array_equal(picture.values[-1], cohort.history["loss"][:, 1])
    assert not picture.failed.any()


def test_members_that_diverge_are_marked_from_there_on():
    cohort = kohort.Cohort(compiled(keras.optimizers.SGD(1e6)), seeds=2)

    picture = plot.animate(cohort, X, Y, epochs=40, frames=[0, 40], **PLANE)

    assert picture.failed.tolist() == [[False, False], [True, True]]
    assert [ax.get_title() for ax in picture.axes_] == ["× 0", "× 1"]
    assert [ax.get_title() for ax in picture.plot(frame=0).axes_] == ["0", "1"]
    assert len(picture.images()) == 2


def test_only_some_members_are_shown_and_all_are_trained():
    cohort = kohort.Cohort(compiled(), seeds=5)

    picture = plot.animate(cohort, X, Y, epochs=2, frames=2, members=iter([3, 1]), columns=1, **PLANE)

    assert (picture.seeds, picture.members) == ((3, 1), 5)
    np.testing.assert_allclose(picture.responses[-1, 0].ravel(), cohort.predict(picture.points)[3, :, 0], rtol=1e-6)
    assert any("2 of 5 members: seed · loss" in text.get_text() for text in picture.ax_.texts)


def test_a_film_of_folds_shows_each_members_own():
    cohort = kohort.Cohort(compiled(), seeds=[4, 7])

    picture = plot.animate(cohort, X, Y, epochs=3, frames=[0, 3], folds=2, **PLANE)

    assert (picture.seeds, picture.members) == ((4, 4, 7, 7), 4)
    np.testing.assert_allclose(picture.responses[-1].reshape(4, -1, 1), cohort.predict(picture.points), rtol=1e-6)
    np.testing.assert_array_equal(picture.values[-1], cohort.history["loss"][:, -1])


# The pictures.


def test_a_frame_is_drawn_and_says_its_epoch(film):
    first, last = film.plot(frame=0).ax_.texts[-1].get_text(), film.plot().ax_.texts[-1].get_text()

    assert (first, last) == ("epoch 0 of 8", "epoch 8 of 8")
    assert [ax.get_title() for ax in film.axes_] == [
        f"{seed} · {value:.3g}" for seed, value in zip(film.seeds, film.values[-1], strict=True)
    ]
    assert overlaps(film.figure_) == []


def test_the_pixels_of_a_frame_are_those_that_matplotlib_draws(film):
    drawn = film.images(dpi=80)

    for frame, image in enumerate(drawn):
        figure = film.plot(frame=frame).figure_
        figure.set_dpi(80)
        figure.canvas.draw()
        expected = np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(int)
        assert np.asarray(image).shape == expected.shape
        apart = np.abs(np.asarray(image).astype(int) - expected).max(axis=2) > 60
        assert apart.mean() < 0.01


def test_frames_take_the_colours_of_the_style_and_leave_nothing_behind(film):
    plt.close("all")
    before = dict(plt.rcParams)
    with plt.style.context("dark_background"):
        dark = film.images()[0]
    light = film.images()[0]

    assert (light.getpixel((1, 1)), dark.getpixel((1, 1))) == ((255, 255, 255), (0, 0, 0))
    assert dict(plt.rcParams) == before
    assert plt.get_fignums() == []


@pytest.mark.parametrize("ending", ["webp", "gif", "WEBP"])
def test_files_hold_all_frames(film, tmp_path, ending):
    path = tmp_path / f"film.{ending}"

    film.save(path, seconds=1.5)

    with Image.open(path) as image:
        assert image.n_frames == 3
        assert image.info["loop"] == 0
        image.seek(1)
        image.load()
        assert image.info["duration"] == 500
        shown = np.asarray(image.convert("RGB")).astype(int)
    expected = np.asarray(film.images()[1]).astype(int)
    assert shown.shape == expected.shape
    assert np.abs(shown - expected).mean() < (0.01 if ending.lower() == "webp" else 3)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_a_gif_has_the_colours_of_all_frames(film, tmp_path):
    """Each frame is of one colour, which the others lack, and no legend holds it."""
    at = {"xx0": film.xx0, "xx1": film.xx1, "levels": np.linspace(0, 1, 11), "epochs": np.arange(5)}
    heights = np.array([0.05, 0.95, 0.25, 0.75, 0.55])
    plain = plot.Film(**at, responses=np.broadcast_to(heights[:, None, None, None], (5, 1, *film.xx0.shape)))

    plain.save(tmp_path / "plain.gif")

    with Image.open(tmp_path / "plain.gif") as image:
        for k, drawn in enumerate(plain.images()):
            image.seek(k)
            middle = [each // 2 for each in drawn.size]
            apart = np.subtract(image.convert("RGB").getpixel(middle), drawn.getpixel(middle))
            assert np.abs(apart).max() <= 8, k


def test_the_page_needs_nothing_else(film, tmp_path):
    film.save(tmp_path / "film.html")

    page = (tmp_path / "film.html").read_text()
    pictures = re.search(r"frames = \[(.*?)\]", page)[1].split(", ")
    assert len(pictures) == 3
    with Image.open(io.BytesIO(base64.b64decode(pictures[0].strip('"')))) as image:
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), np.asarray(film.images()[0]))
    assert "epochs = [0, 3, 8]" in page
    assert not re.search(r"""(src|href)=["']?http|@import|url\(""", page)
    assert page.count("<button") == page.count('type="range"') == 1
    assert "prefers-reduced-motion" in page
    assert 'alt="What 3 networks answer, from epoch 0 to epoch 8"' in page


def test_a_notebook_shows_the_page(film):
    shown = film._repr_html_()

    assert shown.startswith('<iframe title="film"')
    assert "&lt;!doctype html&gt;" in shown


def test_a_film_of_a_regression_of_more_features():
    x = np.random.default_rng(1).normal(size=(20, 3)).astype("float32")

    picture = plot.animate(compiled(features=3), x, x[:, 0], epochs=2, frames=2, features=(2, 0), **PLANE)

    assert picture.levels is not None
    assert picture.names == ("x[:, 2]", "x[:, 0]")
    texts = [text.get_text() for text in picture.ax_.texts]
    assert any(text.startswith("lines at answers from") for text in texts)
    assert texts[-1] == f"epoch 2 of 2 · loss {picture.values[-1, 0]:.3g}"
    assert overlaps(picture.figure_) == []
    assert len(picture.images()) == 2


def test_a_film_in_the_place_of_axes_of_ones_own(film):
    _, (left, right) = plt.subplots(1, 2, figsize=(9, 5))

    assert film.plot(right).ax_ is right
    assert left.axison


# Misuse: nothing is trained.


@pytest.mark.usefixtures("annotations_unchecked")
@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"epochs": 0}, ValueError, r"`epochs` must be an integer of at least 1\."),
        ({"frames": 1}, ValueError, r"`frames` must be an integer of at least 2\."),
        ({"frames": [5, 9]}, ValueError, r"`frames` must be a number of at least 2, or epochs from 0 to 4\."),
        ({"frames": 2.5}, TypeError, r"`frames` must be a number of at least 2, or epochs from 0 to 4\. .*frames=2\.5"),
        ({"frames": []}, ValueError, r"`frames` must be a number of at least 2, or epochs"),
        ({"columns": 0}, ValueError, r"`columns` must be an integer of at least 1\."),
        ({"members": [8]}, ValueError, r"`members` must be a number of at least 1, or seeds among 0, 1\."),
        ({"ax": 3}, TypeError, r"`ax` must be Matplotlib axes or None\."),
        ({"y": np.arange(4)}, ValueError, r"`y` must be labels of two classes\."),
        ({"grid_resolution": 1}, ValueError, r"`grid_resolution` must be an integer of at least 2\."),
        ({"batch_size": 0}, ValueError, r"`batch_size` must be an integer of at least 1\."),
        ({"batchsize": 3}, TypeError, r"`batchsize` must be .*\. Did you mean `batch_size`\?"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)  # fmt: skip
def test_wrong_arguments(wrong, error, message):
    cohort = kohort.Cohort(compiled(), seeds=2)
    arguments = {"y": Y, "epochs": 4, "frames": 2} | PLANE | wrong

    with pytest.raises(error, match=message):
        plot.animate(cohort, X, **arguments)

    assert "0 epochs" in repr(cohort) or "not trained" in repr(cohort)


@pytest.mark.parametrize("kind", ["model", "cohort", "subclass"])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"y": np.arange(4)}, r"`y` must be labels of two classes\..* Of a regression pass `regression=True`\."),
        ({"threshold": np.nan}, r"`threshold` must be a finite number or None\."),
        ({"initial_epoch": 2}, r"`initial_epoch` must be an integer from 0 to 1, below `epochs`\. .*initial_epoch=2\."),
        ({"initial_epoch": 2, "frames": 3}, r"`initial_epoch` must be an integer from 0 to 1, below `epochs`\."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)  # fmt: skip
def test_what_is_wrong_is_said_before_the_training(kind, wrong, message):
    model = compiled()
    if kind == "subclass":
        model = Wrapped(model)
        model.compile("adam", "mse")
        model(X)  # builds it, as asking it for its answers would
    source = kohort.Cohort(model, seeds=2) if kind == "cohort" else model

    with refused(ValueError, message, source):
        plot.animate(source, X, **{"y": Y, "epochs": 2, "frames": [2]} | PLANE | wrong)


class Wrapped(keras.Model):
    """A network that does not say which shape its output has."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def call(self, inputs):
        return self.inner(inputs)


def test_two_outputs_are_refused_before_the_training():
    inputs = keras.Input((2,))
    model = keras.Model(inputs, [keras.layers.Dense(1)(inputs), keras.layers.Dense(1)(inputs)])
    model.compile("adam", "mse")

    with refused(ValueError, r"`model` must be a model with one output \(sample, class\)\.", model):
        plot.animate(model, X, [Y, Y], epochs=2, frames=[2], **PLANE)


def test_what_is_neither_model_nor_cohort():
    with pytest.raises(TypeError, match=r"`source` must be a `keras\.Model` or a `kohort\.Cohort`\."):
        plot.animate("xor", X, Y, epochs=2)
    with pytest.raises(ValueError, match=r"`model` must be compiled"):
        plot.animate(network(), X, Y, epochs=2)


@pytest.mark.parametrize(
    ("path", "options", "error", "message"),
    [
        ("film.mp4", {}, ValueError, r"`path` must be a path that ends in \.webp, \.gif, \.html\. .*film\.mp4"),
        (3, {}, ValueError, r"`path` must be a path that ends in"),
        ("none/film.webp", {}, FileNotFoundError, r"`path` must be in a folder that exists\."),
        ("film.webp", {"seconds": 0}, ValueError, r"`seconds` must be a finite number above 0\."),
        ("film.webp", {"dpi": 1}, ValueError, r"`dpi` must be an integer of at least 10\."),
    ],
)
def test_files_that_cannot_be(film, tmp_path, monkeypatch, path, options, error, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        film.save(path, **options)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_the_place_of_the_file_and_a_frame_that_is_none(film, tmp_path):
    (tmp_path / "film.webp").mkdir()
    with pytest.raises(IsADirectoryError, match=r"`path` must be a file\."):
        film.save(tmp_path / "film.webp")
    with pytest.raises(ValueError, match=r"`frame` must be a number of a frame, from 0 to 2\. Received: frame=3"):
        film.plot(frame=3)


def test_a_save_that_fails_leaves_the_old_file(film, tmp_path, monkeypatch):
    path = tmp_path / "film.webp"
    path.write_bytes(b"old")
    full = OSError(28, "No space left on device")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(full))

    with pytest.raises(OSError, match=r"`path` must be a place that can be written\."):
        film.save(path)

    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["film.webp"]
