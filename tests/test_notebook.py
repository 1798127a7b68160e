"""What a notebook shows of a cohort, a history and a picture: well-formed, escaped, small, quick, and true."""

import io
import xml.etree.ElementTree as ElementTree

import keras
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from pictures import X, Y, network, recorded, trained_cohort
from PIL import Image

import kohort
from kohort import notebook, plot
from kohort.comparison import compared
from kohort.history import CohortHistory, success_rate
from kohort.survival import survival_curve


def parsed(text):
    return ElementTree.fromstring(text.replace("<br>", "<br/>"))


def cells(text):
    return [[(cell.text or "") for cell in row] for row in parsed(text).iter("tr")][1:]


def test_a_history_shows_the_last_values_and_a_curve_of_each_metric():
    log = recorded(loss=[[3.0, 2, 1], [5, 4, 3], [9, 9, 2]], accuracy=[[0.1, 0.2, 0.5]] * 3)

    text = log._repr_html_()

    assert cells(text)[0][:3] == ["loss", "2", "1.2 to 2.8"]
    assert cells(text)[1][:3] == ["accuracy", "0.5", "0.5 to 0.5"]
    svgs = list(parsed(text).iter("svg"))
    assert [svg.get("aria-label") for svg in svgs] == [
        "median loss from 5 in epoch 1 to 2 in epoch 3",
        "median accuracy from 0.1 in epoch 1 to 0.5 in epoch 3",
    ]
    assert "COMPLETED: 3" in text


def test_rates_curves_and_comparisons_read_as_sentences():
    log = recorded(loss=[[3.0, 2, 1], [5, 4, 3], [9, 9, 2]])
    curve = survival_curve(log, {"loss": 2.0}, {"loss": "down"})
    rate = success_rate([True, False])

    down = ({"loss": "down"},) * 2
    comparison = compared(log, recorded(loss=[[3.0, 2, 3], [5, 4, 3], [9, 9, 1]]), down, None, "loss", {}, 0.95)
    for each in (curve, rate, comparison):
        assert parsed(each._repr_html_()).text == str(each)


def test_curves_are_quantiles_over_the_members():
    values = np.array([[1.0, 2, 4], [1, 3, 5], [1, 4, 9]])

    svg = next(parsed(notebook.section("x", {"loss": values})).iter("svg"))

    line = np.array([[float(n) for n in pair.split(",")] for pair in svg.find("polyline").get("points").split()])
    heights = np.quantile(values, [0.1, 0.5, 0.9], axis=0)
    scaled = 37 - 34 * (heights[1] - heights.min()) / np.ptp(heights)
    np.testing.assert_allclose(line[:, 1], scaled, atol=0.06)
    np.testing.assert_allclose(line[:, 0], [2, 90, 178], atol=0.06)


def test_a_loss_over_decades_is_drawn_on_a_logarithmic_scale():
    text = notebook.section("x", {"loss": np.array([[1.0, 0.1, 0.01]]), "gain": np.array([[1.0, 0, -1]])})

    labels = [svg.get("aria-label") for svg in parsed(text).iter("svg")]
    assert labels[0].endswith("logarithmic")
    assert not labels[1].endswith("logarithmic")


def test_all_text_is_escaped():
    name = "<script>alert('x')</script>&\""
    log = CohortHistory({name: np.ones((2, 3))}, seeds=[0, 1], epoch=[0, 1, 2])

    text = notebook.section(name, {name: np.ones((2, 3))}, [name])

    assert "<script>" not in text + log._repr_html_()
    assert parsed(text).find("strong").text == name
    assert cells(text)[0][0] == name
    model = network()
    model.name = "a<b"
    model.compile(loss="mse")
    assert parsed(kohort.Cohort(model, seeds=2)._repr_html_()).find("strong").text.startswith("Cohort('a<b'")


def test_a_cohort_shows_what_it_is_before_and_after_training():
    model = network()
    model.compile(loss="mse")
    cohort = kohort.Cohort(model, seeds=3)

    assert "not trained" in cohort._repr_html_()
    assert "<table>" not in cohort._repr_html_()

    cohort.fit(X, Y, epochs=2, verbose=0)
    assert "2 epochs in the last fit" in cohort._repr_html_()
    assert cells(cohort._repr_html_())[0][0] == "loss"


@pytest.mark.parametrize(
    "metrics",
    [
        {},
        {"loss": np.empty((3, 0))},
        {"loss": np.full((3, 4), np.nan)},
        {"loss": np.array([[1.0], [np.inf]])},
        {"loss": np.array([[1.0, np.nan, np.nan], [1.0, 2.0, np.nan]])},
        {"confusion": np.ones((2, 3, 4))},
        {f"metric {i}": np.ones((2, 3)) for i in range(40)},
    ],
    ids=["none", "no epochs", "diverged", "one epoch", "gaps", "matrix", "many"],
)
def test_histories_of_any_kind_show_themselves(metrics):
    log = CohortHistory(metrics, seeds=[0, 1, 2], epoch=[])

    for text in (notebook.section("x", metrics), log._repr_html_()):
        parsed(text)
        assert len(cells(text)) <= 12
        assert "nan," not in text


def test_it_is_small_for_a_thousand_members():
    generator = np.random.default_rng(0)
    log = recorded(range(1000), loss=generator.uniform(size=(1000, 300)))

    assert len(log._repr_html_()) < 5000


def test_a_trained_cohort_is_not_changed_by_being_shown():
    cohort = trained_cohort()
    before = cohort.predict(X)

    cohort._repr_html_()

    np.testing.assert_array_equal(cohort.predict(X), before)
    assert isinstance(cohort.member(0), keras.Model)


@pytest.fixture
def record():
    return plot.history(recorded(loss=[[3.0, 2, 1], [5, 4, 3], [9, 9, 2]]))


def test_a_record_shows_its_picture(record):
    own = record.figure_

    with Image.open(io.BytesIO(record._repr_png_())) as image:
        assert image.size == (640, 440)
    record.figure_ = None  # as one that was computed and not drawn yet
    with Image.open(io.BytesIO(record._repr_png_())) as image:
        assert image.size == (640, 440)
    assert own is not record.figure_


@pytest.mark.parametrize(("backend", "left"), [("module://matplotlib_inline.backend_inline", 0), ("agg", 1)])
def test_a_notebook_does_not_show_a_picture_twice(record, backend, left, monkeypatch):
    monkeypatch.setattr(matplotlib, "get_backend", lambda: backend)

    record._repr_png_()

    assert len(plt.get_fignums()) == left


def test_notebooks_load_and_unload_kohort():
    shell, own = object(), keras.Model.fit
    kohort.load_ipython_extension(shell)
    assert keras.Model.fit is not own
    kohort.unload_ipython_extension(shell)
    assert keras.Model.fit is own
