"""What is told of held-out rows is what plain Keras says of them, and no held-out row has a hand in it."""

import csv
import json

import keras
import numpy as np
import pytest
from refusals import refused
from sklearn.metrics import accuracy_score, root_mean_squared_error

from kohort import cli, held_out, networks, tables
from kohort.comparison import compared_successes, compared_values
from kohort.held_out import Told, Way
from kohort.history import success_rate
from kohort.tables import Table, Target

pytestmark = pytest.mark.usefixtures("annotations_unchecked")

RNG = np.random.default_rng(11)
ROWS, FOLDS = 30, 3
WAY = Way({"hidden": [4], "learning_rate": 0.05}, [3, 8], 4, 8)


def table_of(rows=ROWS):
    u, v = RNG.normal(3, 2, (2, rows))
    words = RNG.choice(["red", "green", "blue"], rows).astype(object)
    signal = np.where(np.isnan(u), 0, u) + v + (words == "red")
    u[::6], words[::7] = np.nan, None
    return Table("a.csv", {"u": u, "v": v, "w": words}), signal


TABLE, SIGNAL = table_of()
CLASSES = Target("y", np.digitize(SIGNAL, np.quantile(SIGNAL, [0.3, 0.6])), ["low", "middle", "high"])
TWO = Target("y", (np.median(SIGNAL) < SIGNAL).astype(int), ["no", "yes"])
NUMBER = Target("y", 1000 + 50 * SIGNAL, [])
TARGETS = {"classes": CLASSES, "two": TWO, "number": NUMBER}


@pytest.fixture(scope="module", params=TARGETS)
def told(request):
    target = TARGETS[request.param]
    splits = held_out.splits_of(target, FOLDS)
    return target, splits, held_out.out_of_fold(TABLE, target, WAY, splits, verbose=0)


def by_keras(target, seed, training, held):
    """What one network of plain Keras says, prepared and trained by the training rows."""
    x = tables.learned(tables.layout_of(TABLE), TABLE.taken(training))(TABLE)
    y, mean, scale = target.values, 0.0, 1.0
    if not target.classes:
        mean, scale = y[training].mean(), y[training].std()
    model = networks.dense(x.shape[1], max(1, len(target.classes)), target.task)(**WAY.parameters)
    keras.utils.set_random_seed(seed)
    clone = keras.models.clone_model(model)
    clone.compile(keras.optimizers.Adam(0.05), model.loss)
    own = ((y - mean) / scale).astype("float32") if not target.classes else y
    clone.fit(x[training], own[training], batch_size=8, epochs=4, verbose=0)
    outputs = clone.predict(x[held], verbose=0)
    if not target.classes:
        return outputs[:, 0] * scale + mean
    return outputs if outputs.shape[1] > 1 else np.concatenate([1 - outputs, outputs], axis=1)


@pytest.mark.many
def test_the_oracle_is_plain_keras(told):
    target, splits, ours = told
    for k, seed in ((0, 3), (2, 8)):
        training, held = splits[k]
        expected = by_keras(target, seed, training, held)
        np.testing.assert_allclose(ours.members[WAY.seeds.index(seed), held], expected, rtol=2e-4, atol=2e-4)


def test_no_held_out_row_has_a_hand_in_what_is_told_of_the_others():
    """One row becomes monstrous, in its numbers and its target: the networks of its fold say the same as before."""
    splits = held_out.splits_of(NUMBER, FOLDS)
    row, *others = splits[1][1]
    before = held_out.out_of_fold(TABLE, NUMBER, WAY, splits, verbose=0).members
    columns = {name: column.copy() for name, column in TABLE.columns.items()}
    columns["u"][row], columns["v"][row] = 1e4, -1e4
    values = NUMBER.values.copy()
    values[row] = 1e5
    after = held_out.out_of_fold(
        TABLE._replace(columns=columns), NUMBER._replace(values=values), WAY, splits, 0
    ).members

    np.testing.assert_array_equal(after[:, others], before[:, others])
    assert (after[:, splits[0][1]] != before[:, splits[0][1]]).any()  # in the other folds it trains


@pytest.mark.many
def test_scores_are_those_of_scikit_learn(told):
    target, splits, ours = told
    judged = held_out._judged(ours, target, splits, 9, 1.5)
    mean = ours.members.mean(axis=0)
    if target.classes:
        scores = [
            accuracy_score(target.values[held], each[held].argmax(axis=1))
            for each in ours.members
            for _, held in splits
        ]
        said, plain = mean.argmax(axis=1), np.empty(ROWS, int)
        for training, held in splits:
            plain[held] = np.bincount(target.values[training]).argmax()
        rate = success_rate(said == target.values)
        assert judged.measure == "accuracy"
        assert judged.ensemble == (rate.rate, rate.low, rate.high)
        assert judged.plain == accuracy_score(target.values, plain)
        assert judged.comparison == compared_successes(said == target.values, plain == target.values)
        agree = (ours.members.argmax(axis=2) == said).all(axis=0)
        assert judged.agreement == (agree.sum(), (agree & (said == target.values)).sum())
    else:
        scores = [
            root_mean_squared_error(target.values[held], each[held]) for each in ours.members for _, held in splits
        ]
        plain = np.empty(ROWS)
        for training, held in splits:
            plain[held] = target.values[training].mean()
        errors = [np.abs(each - target.values) for each in (mean, plain)]
        assert judged.ensemble.value == pytest.approx(root_mean_squared_error(target.values, mean))
        assert judged.ensemble.low < judged.ensemble.value < judged.ensemble.high
        assert judged.plain == pytest.approx(root_mean_squared_error(target.values, plain))
        assert judged.comparison == compared_values(*errors, "down", 0.95, "the error")
        assert judged.agreement is None
    assert judged.single[1:] == pytest.approx(np.quantile(scores, [0.025, 0.975]))
    if target.classes:
        whole = [accuracy_score(target.values, each.argmax(axis=1)) for each in ours.members]
    else:
        whole = [root_mean_squared_error(target.values, each) for each in ours.members]
    assert judged.single.value == pytest.approx(np.median(whole))
    assert (judged.diverged, judged.members) == (0, 6)


def test_one_network_of_one_seed_is_judged_as_its_ensemble_is(told):
    """Folds of few rows have scores whose median says nothing of all rows."""
    target, _, ours = told
    splits = held_out.splits_of(target, 9)
    judged = held_out._judged(Told(ours.members[:1]), target, splits, 9, 1.5)
    assert judged.single.value == pytest.approx(judged.ensemble.value)
    assert held_out._judged(Told(ours.members[:1] * np.nan), target, splits, 9, 1.5).diverged == 9


def test_who_diverged_is_counted_and_right_of_nothing(told):
    target, splits, ours = told
    members = ours.members.copy()
    members[0, splits[2][1]] = np.nan
    judged = held_out._judged(Told(members), target, splits, 9, 1.5)

    assert judged.diverged == 1
    held = splits[2][1]
    np.testing.assert_allclose(Told(members).ensemble[held], members[1, held])
    if target.classes:
        assert judged.single.low <= 0.1
    members[:, held] = np.nan
    assert held_out._judged(Told(members), target, splits, 9, 1.5).diverged == 2


def test_folds_that_cannot_be():
    rare = Target("y", np.array([0] * 9 + [1]), ["a", "b"])
    with refused(ValueError, r"`folds` must be at most the number of rows of the rarest class, 'b', which is 1\."):
        held_out.splits_of(rare, 2)
    with refused(ValueError, r"`folds` must be at most the number of rows of the table, which is 30"):
        held_out.splits_of(NUMBER, 31)
    with refused(ValueError, r"`folds` must be an integer of at least 2"):
        held_out.splits_of(NUMBER, 1)


# --- the commands -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a table, of which one row has no target, and networks that were trained on it."""
    folder = tmp_path_factory.mktemp("table")
    kinds = [TWO.classes[value] for value in TWO.values]
    with open(folder / "a.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow([*TABLE.columns, "kind"])
        for row in [*zip(*TABLE.columns.values(), kinds, strict=True), (1.0, 2.0, "red", "")]:
            rows.writerow("" if value is None or value != value else value for value in row)
    (folder / "one.csv").write_text("u,kind\n1,yes\n2,yes\n3,\n")
    return folder


WORDS = "--folds 3 --seeds 2 --epochs 4 --batch-size 8 --hidden 4 --learning-rate 0.05 --quiet".split()


def said(capsys, *words, code=0):
    capsys.readouterr()
    assert cli.main([*map(str, words)]) == code
    return capsys.readouterr()


def test_fit_tells_what_was_found_out_and_saves_networks_that_predict(folder, capsys, monkeypatch):
    """One training serves the text and the JSON, one loading both predictions: what is told is what was judged."""
    monkeypatch.chdir(folder)
    judged = []

    def judge(*arguments, real=held_out.judge):
        judged.append(judged[0] if judged else real(*arguments))
        return judged[0]

    monkeypatch.setattr(held_out, "judge", judge)
    out = said(capsys, "fit", "a.csv", "--target", "kind", *WORDS, "--save", "a.kohort").out.splitlines()
    assert out[0] == (
        "a.csv: 30 rows, 2 columns of numbers, 1 of words, 10 values missing; to predict 'kind': classes no 15, yes 15"
    )
    assert out[1].startswith(
        "6 members: 2 seeds x 3 folds, of 37 parameters (hidden [4], activation relu, optimizer adam"
    )
    assert out[2] == "accuracy on held-out rows"
    assert [line[:14] for line in out[3:6]] == ["  one network ", "  ensemble    ", "  plain guess "]
    assert out[6].startswith("ensemble against plain guess: success rate +0.")
    assert out[-2:] == [
        "1 rows without a target are left out",
        "networks trained on all rows are kept in a.kohort",
    ]
    about = json.loads(said(capsys, "fit", "a.csv", "--target", "kind", *WORDS, "--json").out)
    assert about["ensemble"] == judged[0].ensemble._asdict()
    compared = judged[0].comparison._asdict()
    assert about["comparison"] == {"rows": compared.pop("seeds"), **compared}
    assert about["agreement"] == dict(zip(("rows", "right"), judged[0].agreement, strict=True))
    assert (about["rows"], about["rows_without_target"], about["folds"], about["members"]) == (30, 1, 3, 6)

    predictor = held_out.load("a.kohort")
    monkeypatch.setattr(held_out, "load", lambda path: predictor)
    told = predictor(tables.read("a.csv"))
    predicted = list(csv.DictReader(said(capsys, "predict", "a.kohort", "a.csv").out.splitlines()))
    assert [row["kind"] for row in predicted] == told["kind"]
    assert [float(row["probability"]) for row in predicted] == told["probability"]
    assert [float(row["agreement"]) for row in predicted] == told["agreement"]
    assert len(predicted) == 31
    said(capsys, "predict", "a.kohort", "a.csv", "--to", "told.csv")
    assert list(csv.DictReader((folder / "told.csv").read_text().splitlines())) == predicted
    for words in (["predict", "a.kohort", "a.csv", "--to", "told.csv"], ["fit", "a.csv", "--save", "a.kohort"]):
        error = said(capsys, *words, *(["--target", "kind"] if words[0] == "fit" else []), code=2).err
        assert f"`{words[-2]}` must be a file that is not there" in error


def test_what_is_saved_predicts_what_the_networks_predict(tmp_path):
    """Trained on all rows by plain Keras, they say the same of rows that they have not seen."""
    held_out.save(tmp_path / "a.kohort", TABLE, NUMBER, WAY, verbose=0)
    other, _ = table_of(5)
    other.columns["w"][0] = "never seen"
    told = held_out.load(tmp_path / "a.kohort")(other)

    prepared = tables.learned(tables.layout_of(TABLE), TABLE)
    x, y = prepared(TABLE), NUMBER.values
    outputs = []
    for seed in WAY.seeds:
        model = networks.dense(x.shape[1], 1, "regression")(**WAY.parameters)
        keras.utils.set_random_seed(seed)
        clone = keras.models.clone_model(model)
        clone.compile(keras.optimizers.Adam(0.05), "mse")
        clone.fit(x, ((y - y.mean()) / y.std()).astype("float32"), batch_size=8, epochs=4, verbose=0)
        outputs.append(clone.predict(prepared(other), verbose=0)[:, 0] * y.std() + y.mean())
    np.testing.assert_allclose(told["y"], np.mean(outputs, axis=0), rtol=1e-4)
    np.testing.assert_allclose(told["standard deviation"], np.std(outputs, axis=0), rtol=1e-2, atol=0.1)


class Saying:
    """A cohort that says this of any rows."""

    def __init__(self, outputs):
        self.outputs = np.array(outputs, "float32")

    def predict(self, x):
        return self.outputs


def predictor_that_says(outputs):
    preparation = tables.learned(tables.layout_of(TABLE), TABLE)
    return held_out.Predictor(preparation, TWO._replace(values=np.zeros(0)), held_out._Unit(), Saying(outputs))


@pytest.mark.filterwarnings("error")
def test_who_diverged_has_no_vote():
    """Of four networks two say nothing; of the last row nobody says anything, and no class is told."""
    nan = np.nan
    outputs = [[[0.1], [0.9], [nan]], [[0.3], [0.3], [nan]], [[nan]] * 3, [[nan]] * 3]
    told = predictor_that_says(outputs)(TABLE.taken(np.arange(3)))

    assert told["y"] == ["no", "yes", ""]
    np.testing.assert_allclose(told["probability"], [0.8, 0.6, nan], rtol=1e-6)
    assert told["agreement"] == [0.5, 0.25, 0.0]


@pytest.mark.slow
def test_networks_that_diverge_are_kept_and_told_of(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    words = [
        "--optimizer",
        "sgd",
        "--learning-rate",
        "1e38",
        "--folds",
        "2",
        "--seeds",
        "2",
        "--epochs",
        "2",
        "--quiet",
    ]
    words = ["fit", "a.csv", "--target", "v", *words, "--save", "diverged.kohort", "--overwrite"]
    out = said(capsys, *words).out.splitlines()

    assert out[-1] == "2 of these 2 diverged, and say nothing: try a smaller --learning-rate"
    assert json.loads(said(capsys, *words, "--json").out)["saved_diverged"] == 2
    rows = list(csv.DictReader(said(capsys, "predict", "diverged.kohort", "a.csv").out.splitlines()))
    assert {row["v"] for row in rows} == {"nan"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fit", "none.csv", "--target", "kind"], "`file` must be a file"),
        (["fit", "a.csv", "--target", "knid"], "Write 'kind'."),
        (["fit", "a.csv", "--target", "kind", "--task", "regression"], "`target` must hold numbers for a regression"),
        (["fit", "one.csv", "--target", "kind"], "`target` must hold at least two different values"),
        (["fit", "a.csv", "--target", "kind", "--folds", "40"], "`folds` must be at most"),
        (["fit", "a.csv", "--target", "kind", "--seeds", "0"], "`seeds` must be a number of members"),
        (["fit", "a.csv", "--target", "kind", "--epochs", "0"], "`epochs` must be an integer of at least 1"),
        (["fit", "a.csv", "--target", "kind", "--optimizer", "adm"], "Write 'adam'."),
        (["fit", "a.csv", "--target", "kind", "--save", "none/a.kohort"], "`path` must be in a folder that exists"),
        (["predict", "none.kohort", "a.csv"], "`path` must be a file that can be read"),
        (["predict", "a.csv", "a.csv"], "`path` must be a whole file that kohort saved"),
    ],
)
def test_wrong_use(words, message, folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    out, error = said(capsys, *words, code=2)

    assert (out, error.count("\n")) == ("", 1)
    assert message in error


def test_a_predictor_that_holds_something_else(tmp_path):
    from kohort import files

    files.write(tmp_path / "a.kohort", "predictor", 1, files.Contents({"columns": {}}, {}))
    with refused(ValueError, r"`path` must be a file that `kohort fit --save` wrote"):
        held_out.load(tmp_path / "a.kohort")


def test_predictions_are_not_written_as_csv_into_a_file_of_another_kind(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    assert cli.main(["predict", "a.kohort", "a.csv", "--to", "p.parquet"]) == 2
    error = capsys.readouterr().err
    assert error == ("kohort: `--to` must name a file of CSV. Received: 'p.parquet'. Write for example `--to p.csv`.\n")
    assert not (folder / "p.parquet").exists()


def test_an_interrupted_fit_says_that_nothing_is_kept(folder, capsys, monkeypatch):
    def pressed(*arguments, **options):
        raise KeyboardInterrupt("Epoch 3 was the last; initial_epoch=3 goes on from there")

    monkeypatch.chdir(folder)
    monkeypatch.setattr(held_out, "judge", pressed)
    assert cli.main(["fit", "a.csv", "--target", "kind"]) == 130
    assert capsys.readouterr().err == "kohort: interrupted. Nothing is kept: the command begins anew\n"
