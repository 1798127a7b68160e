"""Every picture's record, field by field, against plain Keras: models trained one at a time, and what they predict.

What is more than an answer (shares, quantiles, intervals, groups) is counted here anew, by loops and formulas that the
pictures do not use. No field is left out: a new one fails its test until somebody says what it must be.
"""

import dataclasses
import math
import statistics

import keras
import numpy as np
import pytest
from pictures import X, Y, compiled, network, one_by_one, trained_cohort
from test_plot_film import by_hand, watched

import kohort
from kohort import plot

SEEDS, EPOCHS, GRID = (4, 0, 7, 2, 9, 5, 11, 3), 40, 7
RATE = 0.3  # of plain gradient descent: in so many epochs some members are on the way to one place, others are not
CLASSES = {"labels": Y.astype(int), "classes": (0, 1), "threshold": 0.5, "levels": None, "targets": None}
CLOUD = np.random.default_rng(5).normal(size=(40, 2)).astype("float32")
Z = statistics.NormalDist().inv_cdf(0.975)


def made():
    return compiled(keras.optimizers.SGD(RATE))


@pytest.fixture(scope="module")
def trained():
    return trained_cohort(SEEDS, EPOCHS, optimizer=keras.optimizers.SGD(RATE))


@pytest.fixture(scope="module")
def members():
    """The same members, each trained by plain Keras."""
    return one_by_one(made(), SEEDS, EPOCHS)


@pytest.fixture(scope="module")
def losses(members):
    """Their losses, (member, epoch)."""
    return np.array([member.history["loss"] for member in members])


def compare(record, rtol=1e-5, **expected):
    """Compares all that a record keeps: arrays to float32 rounding, the rest exactly."""
    assert expected.keys() == {field.name for field in dataclasses.fields(record) if field.init}
    for name, theirs in expected.items():
        compare_values(name, getattr(record, name), theirs, rtol)


def compare_values(name, ours, theirs, rtol):
    if isinstance(theirs, list) and all(isinstance(each, np.ndarray) for each in theirs):
        assert len(ours) == len(theirs), name
        for one, other in zip(ours, theirs, strict=True):
            compare_values(name, one, other, rtol)
    elif isinstance(theirs, np.ndarray) and theirs.dtype.kind == "U":
        assert ours.tolist() == theirs.tolist(), name
    elif isinstance(theirs, np.ndarray | float):
        assert np.shape(ours) == np.shape(theirs), name
        np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=rtol, err_msg=name)
    else:
        assert ours == theirs, name


def plane(x, n=GRID):
    """Returns what a record keeps of a plane of two features: a grid to a quarter of the samples' span around them."""
    ends = [(min(column), max(column)) for column in x.astype(float).T]
    ends = [(low - (high - low) / 4, high + (high - low) / 4) for low, high in ends]
    across, up = ([low + (high - low) * i / (n - 1) for i in range(n)] for low, high in ends)
    return {
        "xx0": np.array([across for _ in up]),
        "xx1": np.array([[height for _ in across] for height in up]),
        "points": np.array([[place, height] for height in up for place in across], "float32"),
        "x": x.astype(float),
        "names": ("x[:, 0]", "x[:, 1]"),
        "note": "",
    }


def said(model, points):
    """Returns what a model answers on a grid, (grid, grid) or (grid, grid, class)."""
    answers, n = model.predict(points, verbose=0), math.isqrt(len(points))
    return answers.reshape(n, n, *[each for each in answers.shape[1:] if each > 1])


def of_units(model, layer, points):
    """Returns what each unit of a layer answers on a grid, (unit, grid, grid)."""
    answers, n = keras.Model(model.inputs[0], layer.output).predict(points, verbose=0), math.isqrt(len(points))
    return np.array([answers[:, unit].reshape(n, n) for unit in range(answers.shape[1])])


def quantile(values, share):
    """Returns a quantile, linear between the two values beside it."""
    ordered, place = sorted(values), share * (len(values) - 1)
    below, above = ordered[math.floor(place)], ordered[math.ceil(place)]
    return below + (above - below) * (place - math.floor(place))


def quantiles(rows):
    """Returns the three quantiles of each column, (3, column)."""
    return np.array([[quantile(column, share) for column in rows.T] for share in (0.1, 0.5, 0.9)])


def between(values, k):
    """Returns a bound that the k lowest of the values keep, half way to the next, so that no rounding decides."""
    ordered = sorted(values)
    assert ordered[k] - ordered[k - 1] > 1e-4
    return (ordered[k - 1] + ordered[k]) / 2


# One network.


def test_the_record_of_decision_boundary():
    model, several, at = network(), network(3, "softmax"), plane(X)
    three = {"labels": np.array([2, 0, 1, 2]), "classes": (0, 1, 2)}

    one = plot.decision_boundary(model, X, Y, grid_resolution=GRID)
    other = plot.decision_boundary(several, X, three["labels"], grid_resolution=GRID)

    compare(one, **at, **CLASSES, response=said(model, at["points"]))
    compare(other, **at, **CLASSES | three, response=said(several, at["points"]))


def test_the_record_of_decision_boundary_of_a_regression():
    model, at, y = network(), plane(X), np.array([0.0, 0.3, 0.8, 2.0])

    record = plot.decision_boundary(model, X, y, grid_resolution=GRID)

    response = said(model, at["points"])
    low, high = float(min(response.min(), y.min())), float(max(response.max(), y.max()))
    step = next(step for step in (0.1, 0.2, 0.25, 0.5, 1.0) if step >= (high - low) / 9)
    levels = np.array([step * k for k in range(math.floor(low / step), math.ceil(high / step) + 1)])
    means = {"labels": None, "levels": levels, "targets": y}
    compare(record, **at, **CLASSES | means, response=response)


def test_the_record_of_network():
    model, at = network(2, "sigmoid", hidden=(3,)), plane(X)
    first, last = model.layers

    record = plot.network(model, X, grid_resolution=GRID)

    compare(record.plane, **at)
    inputs = np.array([at["points"][:, feature].reshape(GRID, GRID) for feature in (0, 1)])
    maps = [inputs, *(of_units(model, layer, at["points"]) for layer in model.layers)]
    sums = []
    for before, layer in zip(maps, model.layers, strict=False):
        kernel, bias = layer.get_weights()
        rows = [sum(kernel[i, k] * before[i] for i in range(len(kernel))) + bias[k] for k in range(len(bias))]
        sums.append(np.array(rows))
    compare(
        record,
        weights=[layer.get_weights()[0] for layer in model.layers],
        biases=[layer.get_weights()[1] for layer in model.layers],
        captions=["input", f"{first.name}\ntanh", f"{last.name}\nsigmoid"],
        names=at["names"],
        plane=record.plane,
        maps=maps,
        sums=sums,
        grid=None,
    )


def test_the_record_of_network_that_is_drawn_as_layers():
    inputs = keras.Input((2,), name="in")
    wide = keras.layers.Dense(20, name="wide")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(1, name="out")(wide))

    described = [("in", "InputLayer", "(n, 2)", 0), ("wide", "Dense", "(n, 20)", 60), ("out", "Dense", "(n, 1)", 21)]
    compare(plot.network(model), layers=described, flows=[(0, 1), (1, 2)], rows=[0, 1, 2])


def test_the_record_of_units():
    model, at = network(), plane(X)

    record, of_classes = (plot.units(model, 0, X, *y, grid_resolution=GRID) for y in ((), (Y,)))

    maps = of_units(model, model.layers[0], at["points"])
    cells = {"activations": maps, "shown": tuple(range(6)), "units": 6, "layer": model.layers[0].name}
    none = {"labels": None, "classes": ()}
    compare(record, **at, **cells, columns=None, **none)
    compare(of_classes, **at, **cells, columns=None, labels=Y.astype(int), classes=(0.0, 1.0))


def test_the_record_of_feature_space():
    model, kinds = network(), (CLOUD[:, 0] * CLOUD[:, 1] > 0).astype(int)
    first, last = model.layers
    hidden = keras.Model(model.inputs[0], first.output).predict(CLOUD, verbose=0)
    middle = hidden.mean(axis=0)
    _, sizes, directions = np.linalg.svd(hidden - middle, full_matrices=False)
    shares = sizes**2 / (sizes**2).sum()

    record = plot.feature_space(model, 0, CLOUD, kinds, grid_resolution=GRID)

    components = directions[:2] * np.sign((record.x * ((hidden - middle) @ directions[:2].T)).sum(axis=0))[:, None]
    at = plane((hidden - middle) @ components.T)
    at["points"] = (at["points"] @ components + middle).astype("float32")
    at["names"] = tuple(f"{first.name}, component {k + 1} ({100 * shares[k]:.3g} %)" for k in (0, 1))
    at["note"] = f"2 components of 6 units: {100 * shares[:2].sum():.3g} % of the variance"
    rest = np.asarray(last(at["points"])).reshape(GRID, GRID)
    space = {"response": rest, "layer": first.name, "units": 6, "hidden": hidden, "variance": float(shares[:2].sum())}
    compare(record, rtol=1e-4, **at, **CLASSES | {"labels": kinds}, **space)


def test_the_record_of_loss_landscape():
    model, n, span = compiled(), 3, 0.7
    center = [np.array(weights) for weights in model.get_weights()]

    record = plot.loss_landscape(model, X, Y, grid_resolution=n, span=span)

    generator, directions = np.random.default_rng(0), []
    for _ in range(2):
        drawn = [generator.standard_normal(w.shape).astype("float32") if w.ndim > 1 else 0 * w for w in center]
        for direction, weights in zip(drawn, center, strict=True):
            for unit in range(weights.shape[1] if weights.ndim > 1 else 0):
                direction[:, unit] *= np.linalg.norm(weights[:, unit]) / np.linalg.norm(direction[:, unit])
        directions.append(drawn)
    steps, loss = [-span, 0.0, span], np.empty((n, n))
    for row, b in enumerate(steps):
        for column, a in enumerate(steps):
            model.set_weights([w + a * u + b * v for w, u, v in zip(center, *directions, strict=True)])
            loss[row, column] = model.evaluate(X, Y, verbose=0)
    grid = {"aa": np.array([steps] * n), "bb": np.array([[b] * n for b in steps]), "loss": loss}
    compare(record, **grid, center=center, first=directions[0], second=directions[1])


# Many networks.


def test_the_record_of_wall(trained, members, losses):
    bound, at = between(losses[:, -1], 5), plane(X)

    record = plot.wall(trained, X, Y, by="loss", grid_resolution=GRID, loss=bound)

    order = sorted(range(len(SEEDS)), key=lambda i: losses[i, -1])
    cells = {"seeds": tuple(SEEDS[i] for i in order), "metric": "loss", "criterion": f"loss ≤ {bound:g}"}
    cells |= {"failed": np.array([False] * 5 + [True] * 3), "members": len(SEEDS), "columns": None}
    responses = np.array([said(members[i], at["points"]) for i in order])
    compare(record, **at, **CLASSES, **cells, responses=responses, values=np.sort(losses[:, -1]))


def test_the_record_of_spread(trained, members):
    at = plane(X)

    record = plot.spread(trained, X, Y, grid_resolution=GRID)

    answers = [said(member, at["points"]) for member in members]
    votes = [np.where(abs(each - 0.5) < 1e-3, 0.5, each > 0.5) for each in answers]  # who is undecided says half of it
    share = sum(votes) / len(SEEDS)
    assert len(set(share.ravel())) > 2
    compare(record, **at, **CLASSES, share=share, label=1, members=len(SEEDS), diverged=0)


@pytest.mark.parametrize(("tolerance", "sizes"), [(0.1, [2, 2, 2, 1, 1]), (0.2, [4, 3, 1])])
def test_the_record_of_minima(trained, members, losses, tolerance, sizes):
    """Complete linkage, step by step: the two nearest groups are joined until the next two are too far apart."""
    at = plane(X)

    record = plot.minima(trained, X, Y, grid_resolution=GRID, tolerance=tolerance)

    answers, last = [said(member, at["points"]).ravel() for member in members], losses[:, -1]
    inside = [((0 <= point) & (point <= 1)).all() for point in at["points"]]
    near = 0.05 * max(statistics.median(losses[:, 0]), statistics.median(last))
    apart = np.zeros((len(members), len(members)))
    for i, j in np.ndindex(*apart.shape):
        root = math.sqrt(statistics.fmean(((answers[i] - answers[j])[inside] ** 2).tolist()))
        apart[i, j] = max(root / tolerance, abs(last[i] - last[j]) / near)
    groups = [[i] for i in range(len(members))]
    while len(groups) > 1:
        ways = [(max(apart[i, j] for i in a for j in b), a, b) for a in groups for b in groups if a is not b]
        far, one, other = min(ways, key=lambda way: way[0])
        assert abs(far - 1) > 1e-3  # no rounding decides
        if far > 1:
            break
        groups = [each for each in groups if each is not one and each is not other] + [one + other]
    groups.sort(key=lambda each: (-len(each), statistics.median(last[each])))
    middles = [min(each, key=lambda i: sum(apart[i, j] for j in each)) for each in groups]
    assert [len(each) for each in groups] == sizes  # as plain Keras has them: not all in one, and not each by itself
    compare(
        record,
        **at,
        **CLASSES,
        responses=np.array([said(members[i], at["points"]) for i in middles]),
        seeds=tuple(SEEDS[i] for i in middles),
        counts=np.array([len(each) for each in groups]),
        losses=np.array([statistics.median(last[each]) for each in groups]),
        group=np.array([next(k for k, each in enumerate(groups) if i in each) for i in range(len(members))]),
        metric="loss",
        shown=12,
        columns=None,
    )


def test_the_record_of_response_curve():
    line = np.linspace(-1, 1, 12).astype("float32")
    model = compiled(features=1)
    cohort = kohort.Cohort(model, seeds=[3, 1, 4])
    cohort.fit(line[:, None], line**2, epochs=2, verbose=0)

    record = plot.response_curve(cohort, line, line**2, grid_resolution=5)

    grid = np.array([-1.5, -0.75, 0, 0.75, 1.5])
    alone = one_by_one(compiled(features=1), (3, 1, 4), 2, line[:, None], line**2)
    answers = [member.predict(grid[:, None].astype("float32"))[:, 0] for member in alone]
    data = {"x": line.astype(float), "y": (line**2).astype(float), "name": "x"}
    compare(record, grid=grid, responses=np.array(answers), diverged=0, **data)
    np.testing.assert_allclose(record.quantiles, quantiles(np.array(answers)), rtol=1e-5)


# Training.


def test_the_record_of_history():
    held_out = (X, 1 - Y)
    cohort = kohort.Cohort(compiled(), seeds=[4, 0, 7])
    cohort.fit(X, Y, epochs=3, validation_data=held_out, verbose=0)

    record = plot.history(cohort)

    logs = [each.history for each in one_by_one(compiled(), (4, 0, 7), 3, validation_data=held_out)]
    values = {metric: np.array([log[metric] for log in logs]) for metric in ("loss", "val_loss")}
    shared = {"epochs": np.array([1, 2, 3]), "ends": np.array(["", "", ""])}
    for curves, twin in ((record, record.validation), (record.validation, None)):
        own = {"values": values[curves.metric], "quantiles": quantiles(values[curves.metric])}
        metric = "loss" if twin else "val_loss"
        compare(curves, metric=metric, **shared, **own, validation=twin)


def test_the_record_of_survival(trained, losses):
    """The Kaplan-Meier curve of members of which none left early, and Greenwood's interval on the scale log(-log)."""
    bound = between(losses.min(axis=1), 5)

    record = plot.survival(trained, loss=bound)

    first = np.array([next((k + 1.0 for k, loss in enumerate(row) if loss <= bound), math.nan) for row in losses])
    share, low, high = [1.0], [1.0], [1.0]
    for epoch in range(1, EPOCHS + 1):
        left = sum(not each <= epoch for each in first)
        share.append(left / len(SEEDS))
        if left == len(SEEDS):
            low, high = [*low, 1.0], [*high, 1.0]
            continue
        solved = [sum(first == each) for each in range(1, epoch + 1)]
        at_risk = [len(SEEDS) - sum(solved[:k]) for k in range(epoch)]
        variance = sum(d / (n * (n - d)) for d, n in zip(solved, at_risk, strict=True))
        aside = Z * math.sqrt(variance) / abs(math.log(share[-1]))
        low.append(share[-1] ** math.exp(aside))
        high.append(share[-1] ** math.exp(-aside))
    curve = {"share": np.array(share), "low": np.array(low), "high": np.array(high), "first": first}
    assert len({*first[np.isfinite(first)]}) > 2
    words = {"criterion": f"loss ≤ {bound:g}", "confidence": 0.95, "stopped": 0, "diverged": 0, "censored": np.empty(0)}
    compare(record, epochs=np.arange(EPOCHS + 1), **curve, **words)


def of_width(hidden=2):
    model = network(hidden=(hidden,))
    model.compile(keras.optimizers.SGD(0.5), "mse")
    return model


def test_the_record_of_success(tmp_path):
    study = kohort.Study(tmp_path / "study", of_width, {"hidden": [3, 2]}, seeds=[4, 0, 7])
    study.run(X, Y, epochs=3, verbose=0)
    last = {n: [each.history["loss"][-1] for each in one_by_one(of_width(n), (4, 0, 7), 3)] for n in (2, 3)}
    bound = between([*last[2], *last[3]], 3)

    record = plot.success(study, loss=bound)

    solved = [sum(loss <= bound for loss in last[n]) for n in (2, 3)]
    rates = [k / 3 for k in solved]
    middles = [(p + Z**2 / 6) / (1 + Z**2 / 3) for p in rates]  # Wilson (1927), of three members
    asides = [Z / (1 + Z**2 / 3) * math.sqrt(p * (1 - p) / 3 + Z**2 / 36) for p in rates]
    ends = {"low": np.subtract([middles], [asides]), "high": np.add([middles], [asides])}
    places = {"over": "hidden", "places": (2, 3), "by": None, "groups": (None,), "note": "", "is_map": False}
    counts = {"solved": np.array([solved]), "members": np.array([[3, 3]]), "rate": np.array([rates])}
    compare(record, **places, **counts, **ends, criterion=f"loss ≤ {bound:g}", confidence=0.95)


def test_the_record_of_animate():
    at, seeds = plane(X), (4, 0)

    record = plot.animate(
        kohort.Cohort(compiled(), seeds=seeds), X, Y, epochs=6, frames=[0, 2, 6], grid_resolution=GRID, verbose=0
    )

    seen = [watched(by_hand(compiled(), seed), 6, at["points"]) for seed in seeds]
    responses = np.array([[answers[k, :, 0].reshape(GRID, GRID) for answers, _ in seen] for k in (0, 2, 6)])
    values = np.array([[math.nan, math.nan], *([losses[k - 1] for _, losses in seen] for k in (2, 6))])
    frames = {"responses": responses, "values": values, "epochs": np.array([0, 2, 6]), "seeds": seeds}
    compare(record, **at, **CLASSES, **frames, metric="loss", members=2, begun=0, columns=None)


def test_every_picture_is_compared_here():
    drawn = {name for name in plot.__all__ if name[0].islower()}

    assert {f"test_the_record_of_{name}" for name in drawn} <= globals().keys()
