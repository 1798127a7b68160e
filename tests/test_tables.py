"""Tables: what a file holds, a target, and numbers that are learned from the rows that train, and from no others."""

import json

import numpy as np
import pytest
from refusals import refused
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from kohort import tables

pytestmark = pytest.mark.usefixtures("annotations_unchecked")

CSV = """\
size, colour ,note,kind
1.5,red,"a, b",x
,blue,NA,y
-2e1,red,c,x
4,,c,
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "a.csv").write_text(CSV)
    return tmp_path / "a.csv"


def written(folder, text, name="a.csv"):
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder / name


def test_a_csv_is_read_as_numbers_and_words(file):
    columns = tables.read(file).columns

    assert list(columns) == ["size", "colour", "note", "kind"]
    np.testing.assert_array_equal(columns["size"], [1.5, np.nan, -20, 4])
    assert columns["colour"].tolist() == ["red", "blue", "red", None]
    assert columns["note"].tolist() == ["a, b", None, "c", "c"]


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_other_delimiters_and_the_mark_of_spreadsheets(delimiter, tmp_path):
    text = b"\xef\xbb\xbfa,b\r\n1,x\r\n2,y\r\n".replace(b",", delimiter.encode())
    columns = tables.read(written(tmp_path, text)).columns

    assert columns["a"].tolist() == [1, 2]
    assert columns["b"].tolist() == ["x", "y"]


def test_parquet_is_read_alike(file, tmp_path, monkeypatch):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    pandas.read_csv(file, skipinitialspace=True).rename(columns=str.strip).to_parquet(tmp_path / "a.parquet")
    theirs, ours = tables.read(tmp_path / "a.parquet").columns, tables.read(file).columns
    for name, column in ours.items():
        np.testing.assert_array_equal(theirs[name], column)

    whole = (tmp_path / "a.parquet").read_bytes()
    for broken in ("none", whole[:4] + b"\xff" * (len(whole) - 12) + whole[-8:]):  # Arrow raises errors of two kinds
        written(tmp_path, broken, "b.parquet")
        with refused(ValueError, r"`file` must be a table .* with what is no Parquet"):
            tables.read(tmp_path / "b.parquet")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with refused(ImportError, r"must find the package pyarrow"):
        tables.read(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n3\n", r"with 1 values in line 3, where the head has 2\. Mend that line"),
        (",a\n0,2\n", r"with column 1 without a name\. Name it, or leave it out: pandas writes none with"),
        ("a,a\n1,2\n", r"with two columns named 'a'\. Rename"),
        ("a,b\n", r"with no rows\."),
        ("", r"with no rows\."),
        (b"a\n\xff\xfe\n", r"with what is no text of CSV \('utf-8' codec"),
        ('a\n"x\n', r"with what is no text of CSV \(unexpected end of data\)"),
        ("a\n1\ninf\n", r"with an infinite number in the column 'a'"),
    ],
)
def test_what_is_no_table(text, message, tmp_path):
    with refused(ValueError, rf"(?s)`file` must be a table with a name for each column\. .*{message}"):
        tables.read(written(tmp_path, text))


def test_what_is_no_file(tmp_path):
    with refused(FileNotFoundError, r"`file` must be a file\. Received: .*none\.csv', which does not exist"):
        tables.read(tmp_path / "none.csv")
    with refused(ValueError, r"`file` must end in one of \.csv, \.tsv, \.parquet\. Received: 'a\.xlsx'"):
        tables.read("a.xlsx")
    with refused(TypeError, r"`path` must be a path"):
        tables.read(3)


def table_of(**columns):
    return tables.Table(
        "a.csv", {n: np.array(c, object if isinstance(c[0], str) else float) for n, c in columns.items()}
    )


@pytest.mark.parametrize(
    ("values", "task", "expected", "classes"),
    [
        (["b", "a", "b"], None, [1, 0, 1], ["a", "b"]),
        ([3, 1, 3], None, [1, 0, 1], ["1", "3"]),
        ([3, 1, 2], None, [3, 1, 2], []),  # too few rows for so many classes
        ([3, 1, 2], "classification", [2, 0, 1], ["1", "2", "3"]),
        ([0.5, 1, 0.5], None, [0.5, 1, 0.5], []),
        ([0, 1, 1], "regression", [0, 1, 1], []),
        ([*range(5)] * 10, None, [*range(5)] * 10, list("01234")),
        ([*range(25)] * 20, None, [*range(25)] * 20, []),
    ],
)
def test_classes_or_a_number(values, task, expected, classes):
    rest, target = tables.with_target(table_of(x=[1.0] * len(values), y=values), "y", task)

    assert (target.values.tolist(), target.classes) == (expected, classes)
    assert list(rest.columns) == ["x"]


def test_rows_without_target_are_left_out():
    rest, target = tables.with_target(table_of(x=[1.0, 2, 3], y=[np.nan, 0.5, 0.25]), "y")

    assert rest.columns["x"].tolist() == [2, 3]
    assert target.values.tolist() == [0.5, 0.25]


@pytest.mark.parametrize(
    ("columns", "name", "task", "message"),
    [
        ({"size": [1.0], "kind": ["a"]}, "kinds", None, r"a column of 'a.csv': 'size', 'kind'\. .* Write 'kind'\."),
        ({"size": [1.0], "kind": ["a"]}, None, None, r"a column .*target=None\. Write one of these\."),
        ({"y": ["a", "b"]}, "y", None, r"have columns beside the target"),
        ({"x": [1.0, 2], "y": ["a", "a"]}, "y", None, r"at least two different values.*with a in all rows"),
        ({"x": [1.0, 2], "y": [7.0, 7]}, "y", None, r"at least two different values.*with 7\.0 in all rows"),
        ({"x": [1.0], "y": [np.nan]}, "y", None, r"with nothing in any row"),
        ({"x": [1.0, 2], "y": ["a", "b"]}, "y", "regression", r"hold numbers for a regression.*words such as 'a'"),
        ({"x": [1.0, 2], "y": ["a", "b"]}, "y", "classify", r"`task` must be 'classification' or 'regression'"),
    ],
)
def test_a_target_that_is_none(columns, name, task, message):
    with refused(ValueError, message):
        tables.with_target(table_of(**columns), name, task)


RNG = np.random.default_rng(5)


def some(rows):
    numbers = RNG.normal(3, 2, (rows, 2))
    numbers[::5, 0] = np.nan
    words = RNG.choice(["red", "green", "blue"], rows).astype(object)
    words[::7] = None
    return tables.Table("a.csv", {"u": numbers[:, 0], "w": words, "v": numbers[:, 1]})


def test_what_is_learned_is_what_scikit_learn_learns():
    """The oracle is its ColumnTransformer, fitted on the training rows and used on all of them."""
    table = some(40)
    training = table.taken(np.arange(25))
    filled = [["(missing)" if word is None else word for word in table.columns["w"]]]
    frame = np.array([*zip(table.columns["u"], table.columns["v"], *filled, strict=True)], object)
    numbers = make_pipeline(SimpleImputer(strategy="median"), StandardScaler())
    words = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    theirs = ColumnTransformer([("numbers", numbers, [0, 1]), ("words", words, [2])]).fit(frame[:25]).transform(frame)

    preparation = tables.learned(tables.layout_of(table), training)
    ours = preparation(table)
    assert preparation.names == ["u", "v", "u is missing", "w=(missing)", "w=blue", "w=green", "w=red"]
    np.testing.assert_allclose(ours[:, [0, 1, 3, 4, 5, 6]], theirs, atol=1e-6)
    np.testing.assert_array_equal(ours[:, 2], np.isnan(table.columns["u"]))
    kept = tables.from_values(json.loads(json.dumps(tables.as_values(preparation))))
    np.testing.assert_array_equal(kept(table), ours)


def test_what_the_training_rows_do_not_tell_is_nothing():
    """A category, a gap or a constant that held-out rows alone have is 0: no network has learned what it means."""
    whole = tables.Table(
        "a.csv", {"u": np.array([1.0, 2, np.nan]), "c": np.array([5.0, 5, 9]), "w": np.array(["a", "b", "new"], object)}
    )
    preparation = tables.learned(tables.layout_of(whole), whole.taken(np.arange(2)))

    assert preparation.names == ["u", "c", "u is missing", "w=a", "w=b", "w=new"]
    np.testing.assert_array_equal(preparation(whole)[2], [0, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(preparation(whole)[0], [-1, 0, 0, 1, 0, 0])


def test_words_that_are_unknown_and_columns_that_hold_nothing():
    """A category without a place is in none; where all words are missing, a file's column reads as one of numbers."""
    table = some(40)
    preparation = tables.learned(tables.layout_of(table), table)
    places = slice(preparation.names.index("w=(missing)"), None)
    other = table.taken(np.arange(2))
    other.columns["w"] = np.array(["violet", "red"], object)
    np.testing.assert_array_equal(preparation(other)[:, places], [[0, 0, 0, 0], [0, 0, 0, 1]])

    other.columns["w"] = np.array([np.nan, 7.0])
    np.testing.assert_array_equal(preparation(other)[:, places], [[1, 0, 0, 0], [0, 0, 0, 0]])


def test_a_column_of_many_words_has_places_for_the_most_frequent():
    words = np.array([f"w{n}" for n in range(100)] + ["often"] * 2, object)
    layout = tables.layout_of(tables.Table("a.csv", {"w": words}))

    assert len(layout.names) == tables.MOST_CATEGORIES
    assert "w=often" in layout.names


def test_another_table_must_have_the_columns():
    table = some(20)
    preparation = tables.learned(tables.layout_of(table), table)

    with refused(ValueError, r"`file` must have the columns .*among them 'w'\. Received: 'a.csv', with 'u', 'v'"):
        preparation(table.without("w"))
    with refused(ValueError, r"`file` must hold numbers in the column 'u'"):
        preparation(table._replace(columns={**table.columns, "u": table.columns["w"]}))
    with pytest.raises(ValueError, match="no description of columns"):
        tables.from_values({**preparation._asdict(), "scales": [0.0, 1.0]})
