"""What pictures are asked that cannot be drawn: each mistake, for each picture that one can make it with."""

import re
import types

import matplotlib.pyplot as plt
import numpy as np
import pytest
from pictures import Cohort, Study, X, Y, compiled, network, recorded, trained_cohort
from refusals import refused
from test_unwritable import permissions

import kohort
from kohort import plot

__all__ = ["permissions"]  # a fixture

THREE = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
LOG = recorded(loss=[[1.0, 0.1]] * 3, accuracy=[[0.5, 0.9]] * 3)


def begun():
    """Returns a cohort that is not trained."""
    return kohort.Cohort(compiled(), seeds=2)


@pytest.fixture(scope="module")
def of_three():
    return trained_cohort(features=3, x=THREE)


# Three features, and no word on which plane through them.

OF_THREE = {
    "decision_boundary": lambda cohort: plot.decision_boundary(network(features=3), THREE, Y),
    "network": lambda cohort: plot.network(network(features=3), THREE),
    "units": lambda cohort: plot.units(network(features=3), 0, THREE),
    "wall": lambda cohort: plot.wall(cohort, THREE, Y),
    "spread": lambda cohort: plot.spread(cohort, THREE, Y),
    "minima": lambda cohort: plot.minima(cohort, THREE, Y),
    "animate": lambda cohort: plot.animate(compiled(features=3), THREE, Y, epochs=2, verbose=0),
}


@pytest.mark.parametrize("name", OF_THREE)
def test_three_features_without_a_plane(name, of_three):
    message = (
        "`features` must be given where the model takes 3 features: `features`, `fixed` or a `projection`. "
        "Received: features=None. Pass for example `features=(0, 1)`, which holds the others at the samples' medians."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        OF_THREE[name](of_three)
    assert plt.get_fignums() == []


def test_a_response_curve_of_three_features(of_three):
    for source in (network(features=3), of_three):
        with pytest.raises(ValueError, match=r"`source` must be a network of one feature\. Received: source=.*Of more"):
            plot.response_curve(source, X[:, 0])


# A cohort, or a study, that was not trained.

NOT_TRAINED = {
    "wall": lambda: plot.wall(begun(), X, Y),
    "wall by a metric": lambda: plot.wall(begun(), X, Y, by="loss"),
    "spread": lambda: plot.spread(begun(), X, Y),
    "minima": lambda: plot.minima(begun(), X, Y),
    "history": lambda: plot.history(begun()),
    "survival": lambda: plot.survival(begun(), loss=0.1),
    "response_curve": lambda: plot.response_curve(kohort.Cohort(compiled(features=1), seeds=2), X[:, 0]),
}


@pytest.mark.parametrize("name", NOT_TRAINED)
def test_a_cohort_that_is_not_trained(name):
    message = r"^`cohort\.\w+` must come after `cohort\.fit`\. Received: a cohort that is not trained\. \S+"
    with pytest.raises(RuntimeError, match=message):
        NOT_TRAINED[name]()
    assert plt.get_fignums() == []


def test_a_study_that_has_not_run():
    message = r"^`study` must have members that are trained\. Received: study=.*\. Call `study\.run` first\.$"
    with pytest.raises(RuntimeError, match=message):
        plot.success(Study({"hidden": [2]}, members=0), loss=0.1)


# A metric that nobody recorded.

OF_A_METRIC = {
    "wall": (lambda: plot.wall(Cohort(history=LOG), X, Y, by="auc"), "by='auc'"),
    "minima": (lambda: plot.minima(Cohort(history=LOG), X, Y, metric="auc"), "metric='auc'"),
    "history": (lambda: plot.history(LOG, "auc"), "metric='auc'"),
}
OF_A_BOUND = {
    "wall": lambda: plot.wall(Cohort(history=LOG), X, Y, auc=0.9),
    "survival": lambda: plot.survival(Cohort(history=LOG), auc=0.9),
}  # of a study, test_plot_rates.py has it


@pytest.mark.parametrize("name", OF_A_METRIC)
def test_a_metric_that_was_not_recorded(name):
    draw, received = OF_A_METRIC[name]
    argument = received.split("=")[0]
    message = (
        f"`{argument}` must be one of 'loss', 'accuracy'. Received: {received}. "
        "Metrics are named in `model.compile(metrics=...)`."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        draw()
    assert plt.get_fignums() == []


@pytest.mark.parametrize("name", OF_A_BOUND)
def test_a_bound_of_a_metric_that_was_not_recorded(name):
    message = r"^`auc` must be a metric of the history: loss, accuracy\. Received: auc=0\.9\. Metrics are named in"
    with pytest.raises(ValueError, match=message):
        OF_A_BOUND[name]()
    assert plt.get_fignums() == []


# A name that is written wrongly, of an argument that the function has.

MISSPELT = {
    "wall": (lambda: plot.wall(Cohort(history=LOG), X, Y, colums=3), "colums=3", "columns", "a metric of the history"),
    "survival": (
        lambda: plot.survival(Cohort(history=LOG), confidense=0.9, loss=0.1),
        "confidense=0.9",
        "confidence",
        "a metric of the history",
    ),
    "animate": (lambda: plot.animate(compiled(), X, Y, epochs=2, frams=4), "frams=4", "frames", "one of `fit`"),
    "animate, of fit": (
        lambda: plot.animate(kohort.Cohort(compiled(), seeds=2), X, Y, epochs=2, bootstap=True),
        "bootstap=True",
        "bootstrap",
        "one of `fit`",
    ),
}


@pytest.mark.parametrize("name", MISSPELT)
def test_an_argument_that_is_misspelt(name):
    draw, received, meant, else_ = MISSPELT[name]
    wrong, function = received.split("=")[0], name.split(",")[0]
    message = rf"^`{wrong}` must be an argument of `kohort\.plot\.{function}`, or {else_}.*\. Received: {received}\. "
    with pytest.raises(TypeError, match=message + rf"Did you mean `{meant}`\?$"):
        draw()
    assert plt.get_fignums() == []


def test_a_metric_is_no_argument_that_is_misspelt():
    named = recorded(by_=[[1.0, 0.1]] * 3, loss=[[1.0, 0.1]] * 3)

    assert plot.survival(Cohort(history=named), by_=0.5).criterion == "by_ ≥ 0.5"


# What leads to what a picture takes.

TRIAL = types.SimpleNamespace(cohort=lambda: None)
OF_A_COHORT = r"Take the cohort of one of its trials: `study\.trial\(\.\.\.\)\.cohort\(\)`\.$"
LEADS = {
    "history of a study": (
        lambda: plot.history(Study({"hidden": [2]})),
        r"Take one of its trials: `study\.trial\(\.\.\.\)`",
    ),
    "wall of a study": (lambda: plot.wall(Study({"hidden": [2]}), X), OF_A_COHORT),
    "survival of a study": (lambda: plot.survival(Study({"hidden": [2]}), loss=1), OF_A_COHORT),
    "film of a study": (lambda: plot.animate(Study({"hidden": [2]}), X, Y, epochs=2), OF_A_COHORT),
    "curve of a study": (lambda: plot.response_curve(Study({"hidden": [2]}), X[:, 0]), OF_A_COHORT),
    "wall of a trial": (lambda: plot.wall(TRIAL, X), r"Take its cohort: `trial\.cohort\(\)`\.$"),
    "spread of a path": (lambda: plot.spread("a.kohort", X), r"Read it first: `kohort\.open\(path\)\.trial"),
    "success of a path": (lambda: plot.success("a.kohort", loss=1), r"Open it: `kohort\.open\(path\)`\.$"),
}


@pytest.mark.parametrize("name", LEADS)
def test_a_study_a_trial_or_a_path_in_the_place_of_a_cohort(name):
    draw, step = LEADS[name]
    with pytest.raises(TypeError, match=step):
        draw()
    assert plt.get_fignums() == []


# No member at all.


def test_no_cohort_is_empty():
    with pytest.raises(ValueError, match=r"`seeds` must be a number of members from 1 to 1000000, .*seeds=0\."):
        kohort.Cohort(compiled(), seeds=0)
    with pytest.raises(ValueError, match=r"`seeds` must hold at least one seed and at most 1000000\. Received: none"):
        kohort.Cohort(compiled(), seeds=[])


# An axis that is no place to draw on, and a path that is no place to write to: test_plot_style.py has the axes of each
# picture, test_plot_film.py the paths of the one that writes files.


def test_a_film_goes_where_it_can_be_written(tmp_path):
    film = plot.animate(compiled(), X, Y, epochs=2, frames=2, grid_resolution=4, verbose=0)
    (tmp_path / "file").write_text("")

    in_a_file = r"`path` must be in a folder\. .*, where .*file' is a file\. Choose another place\.$"
    in_none = r"`path` must be in a folder that exists\. Received: path=.* Make it first"
    without_ending = r"`path` must be a path that ends in \.webp, \.gif, \.html\. Received: path="
    for path, error, message in (
        (tmp_path / "file" / "film.webp", NotADirectoryError, in_a_file),
        (tmp_path / "none" / "film.html", FileNotFoundError, in_none),
        (tmp_path / "film", ValueError, without_ending),
    ):
        with pytest.raises(error, match=message):
            film.save(path)
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("mode", [0o500, 0o000], ids=["read only", "closed"])
@pytest.mark.parametrize("ending", [".webp", ".gif", ".html"])
def test_a_folder_that_may_not_be_written(tmp_path, permissions, mode, ending):
    film = plot.animate(compiled(), X, Y, epochs=2, frames=2, grid_resolution=4, verbose=0)
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / f"film{ending}"
    path.write_bytes(b"old")
    folder.chmod(mode)
    try:
        with refused(PermissionError, r"`path` must be .*can be written\. Received: path='.*' \(Permission denied\)"):
            film.save(path)
    finally:
        folder.chmod(0o700)
    assert [each.name for each in folder.iterdir()] == [path.name]
    assert path.read_bytes() == b"old"
