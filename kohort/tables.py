"""Tables of data: what a CSV or Parquet file holds, as the numbers that a network takes.

In comes a file; out come its columns, a target, and a `Preparation`, which makes numbers of the other columns: missing
ones filled and told of, numbers scaled, categories each in a column of their own. The room exists because real data
have gaps and words, and because what scales and fills must be learned from the rows that train, and from no others.
"""

import csv
import difflib
import errno
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from kohort.files import checked_path
from kohort.history import optional

MISSING = {"", "na", "n/a", "nan", "null", "none"}
MISSING_CATEGORY = "(missing)"
# Of a column of words so many categories have columns of their own: the most frequent ones.
MOST_CATEGORIES = 32
# Whole numbers are taken as classes where there are at most so many, and ten rows for each.
MOST_CLASSES, ROWS_PER_CLASS = 20, 10
DELIMITERS = ",;\t|"
Task = Literal["classification", "regression"]
TASKS: tuple[Task, ...] = ("classification", "regression")


def suggestion(word: Any, known: Iterable[str]) -> str:
    """Returns the next step of a message about a word that is not known: the nearest one that is."""
    near = difflib.get_close_matches(str(word), list(known), 1, 0.5)
    return f"Write {near[0]!r}." if near else "Write one of these."


class Table(NamedTuple):
    """The columns of a file: arrays of float with NaN where a number is missing, or of object: words, and None."""

    path: str
    columns: dict[str, np.ndarray]

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(next(iter(self.columns.values())))

    def taken(self, rows: np.ndarray) -> "Table":
        """Returns some of the rows."""
        return self._replace(columns={name: column[rows] for name, column in self.columns.items()})

    def without(self, column: str) -> "Table":
        """Returns all columns but one."""
        return self._replace(columns={name: values for name, values in self.columns.items() if name != column})


# --- reading ----------------------------------------------------------------------------------------------------------


def read(path: Any) -> Table:
    """Reads a CSV file with a head, or a Parquet file.

    Raises:
        OSError: If there is no such file.
        ImportError: If pyarrow, which reads Parquet, is not installed.
        ValueError: If it is no table: of another kind, empty, broken, or with columns of one name.
    """
    shown, file = os.fspath(checked_path(path)), Path(path)
    kinds = {".csv": _csv_columns, ".tsv": _csv_columns, ".parquet": _parquet_columns}
    if file.suffix.lower() not in kinds:
        raise ValueError(
            f"`file` must end in one of {', '.join(kinds)}. Received: {shown!r}. Write the table as one of these."
        )
    if not os.path.isfile(file):
        raise FileNotFoundError(
            f"`file` must be a file. Received: {shown!r}, "
            f"which {'is none' if os.path.exists(file) else 'does not exist'}. "
            f"Look for it from {os.getcwd()!r}."
        )
    try:
        names, columns = kinds[file.suffix.lower()](file, shown)
    except OSError as error:
        raise _unreadable(shown, error) from error
    if not all(names):
        came = f"column {1 + next(i for i, name in enumerate(names) if not name)} without a name"
        raise _no_table(shown, came, "Name it, or leave it out: pandas writes none with `to_csv(path, index=False)`")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise _no_table(shown, f"two columns named {twice[0]!r}", "Rename one of them")
    if not columns or not len(columns[0]):
        raise _no_table(shown, "no rows", "Check how it was written")
    return Table(shown, {name: _typed(shown, name, values) for name, values in zip(names, columns, strict=True)})


def _unreadable(shown: str, error: OSError) -> OSError:
    raised = type(error)(
        f"`file` must be a file that can be read. Received: {shown!r} ({os.strerror(error.errno or errno.EIO)}). "
        "Look at who may read it, or take another copy."
    )
    raised.errno = error.errno
    return raised


def _no_table(shown: str, came: str, step: str) -> ValueError:
    return ValueError(f"`file` must be a table with a name for each column. Received: {shown!r}, with {came}. {step}.")


def _csv_columns(file: Path, shown: str) -> tuple[list[str], list[list[Any]]]:
    try:
        with open(file, encoding="utf-8-sig", newline="") as opened:
            head = opened.readline()
            opened.seek(0)
            reader = csv.reader(opened, delimiter=max(DELIMITERS, key=head.count), strict=True)
            names = [name.strip() for name in next(reader, [])]
            rows = []
            for row in reader:
                if len(row) != len(names) and row:
                    came = f"{len(row)} values in line {reader.line_num}, where the head has {len(names)}"
                    raise _no_table(shown, came, "Mend that line, or put a value that holds commas between quotes")
                rows += [row] if row else []
    except (UnicodeDecodeError, csv.Error) as error:
        raise _no_table(shown, f"what is no text of CSV ({error})", "Write it anew, as CSV in UTF-8") from error
    return names, [[_known(value) for value in column] for column in zip(*rows, strict=True)]


def _known(text: str) -> str | None:
    stripped = text.strip()
    return None if stripped.lower() in MISSING else stripped


def _parquet_columns(file: Path, shown: str) -> tuple[list[str], list[list[Any]]]:
    optional("pyarrow", file.suffix)
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(file)
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno:  # of the system; Arrow has its own
            raise
        came = f"what is no Parquet ({' '.join(str(error).split())[:80]})"
        raise _no_table(shown, came, "Write it anew") from error
    return table.column_names, [column.to_pylist() for column in table.columns]


def _typed(shown: str, name: str, values: Sequence[Any]) -> np.ndarray:
    """Returns a column as numbers where all that is there is one, else as words."""
    if not any(isinstance(value, bool) for value in values):
        try:
            column = np.array([np.nan if value is None else float(value) for value in values])
        except (TypeError, ValueError):
            pass
        else:
            if np.isinf(column).any():
                raise _no_table(shown, f"an infinite number in the column {name!r}", "Remove or mend that row")
            return column
    words = np.empty(len(values), object)
    words[:] = [None if value is None else str(value) for value in values]
    return words


# --- the target -------------------------------------------------------------------------------------------------------


class Target(NamedTuple):
    """What is to be predicted."""

    name: str
    values: np.ndarray  # (row,): numbers of classes, or float
    classes: list[str]  # empty: a number is to be predicted

    @property
    def task(self) -> Task:
        """Whether classes or a number are to be predicted."""
        return "classification" if self.classes else "regression"


def with_target(table: Table, name: Any, task: Task | None = None) -> tuple[Table, Target]:
    """Returns the other columns, and the target, of those rows in which it is not missing.

    Args:
        table: As `read` gives it.
        name: The column to be predicted.
        task: Default: classes where they are words, or few whole numbers.

    Raises:
        ValueError: If there is no such column, or nothing else, or it does not fit the task.
    """
    if name not in table.columns:
        raise ValueError(
            f"`target` must be a column of {table.path!r}: {', '.join(map(repr, table.columns))}. "
            f"Received: target={name!r}. {suggestion(name, table.columns)}"
        )
    if task not in (None, *TASKS):
        raise ValueError(f"`task` must be {TASKS[0]!r} or {TASKS[1]!r}. Received: task={task!r}. Pass one of the two.")
    column = table.columns[name]
    are_words = column.dtype == object
    is_there = np.array([value is not None for value in column]) if are_words else ~np.isnan(column)
    rest, column = table.taken(is_there).without(name), column[is_there]
    if not rest.columns:
        raise ValueError(
            f"`file` must have columns beside the target. Received: {table.path!r}, with {name!r} alone. Add some."
        )
    if are_words and task == "regression":
        raise ValueError(
            f"`target` must hold numbers for a regression. Received: target={name!r}, which holds words such as "
            f"{next(iter(column), '')!r}. Take task 'classification', or another column."
        )
    different = np.unique(column) if not are_words else np.array(sorted(set(column)), object)
    if len(different) < 2:
        came = f"{different[0]!s} in all rows" if len(different) else "nothing in any row"
        raise ValueError(
            f"`target` must hold at least two different values, or there is nothing to learn. "
            f"Received: target={name!r}, with {came}. Name another column, or add rows."
        )
    if (task or _task_of(column, different)) == "regression":
        return rest, Target(name, column.astype("float64"), [])
    place = {value: number for number, value in enumerate(different.tolist())}
    names = [f"{value:g}" if isinstance(value, float) else str(value) for value in different.tolist()]
    return rest, Target(name, np.array([place[value] for value in column.tolist()]), names)


def _task_of(column: np.ndarray, different: np.ndarray) -> Task:
    if column.dtype == object:
        return "classification"
    are_few = len(different) <= min(MOST_CLASSES, max(2, len(column) // ROWS_PER_CLASS))
    return "classification" if are_few and (different == np.round(different)).all() else "regression"


# --- numbers for a network --------------------------------------------------------------------------------------------


class Preparation(NamedTuple):
    """What makes numbers of columns; learned from some rows, it can be used on any.

    `layout` is read off a whole table: which columns there are, which categories have a place, where numbers are
    missing. The rest is learned from the rows that train.

    Transformers of scikit-learn learn and encode. None of them is kept: they are saved as pickles alone, which run what
    a stranger put in. What they have learned is, as plain numbers and words.
    """

    numeric: list[str]
    gaps: list[str]  # numeric columns of which a further column says where a number is missing
    categories: dict[str, list[str]]
    medians: list[float]
    means: list[float]
    scales: list[float]
    told: list[bool]  # of each column that comes out: whether it differed among the rows that it was learned from

    @property
    def names(self) -> list[str]:
        """The name of each column that comes out."""
        words = [f"{name}={category}" for name, own in self.categories.items() for category in own]
        return [*self.numeric, *(f"{name} is missing" for name in self.gaps), *words]

    def __call__(self, table: Table) -> np.ndarray:
        """Returns the numbers (row, column), float32; columns that told nothing in training are 0."""
        self._check(table)
        numbers = _stacked(table, self.numeric)
        filled = np.where(np.isnan(numbers), self.medians, numbers)
        scaled = (filled - self.means) / self.scales
        missing = np.isnan(_stacked(table, self.gaps))
        whole = np.concatenate([scaled, missing, self._found(table)], axis=1)
        return np.where(self.told, whole, 0).astype("float32") if self.told else whole.astype("float32")

    def _found(self, table: Table) -> np.ndarray:
        """Returns which of the known categories stands in each row, (row, category)."""
        if not self.categories:
            return np.zeros((table.rows, 0))
        from sklearn.preprocessing import OneHotEncoder

        words = [[_category(word) for word in table.columns[name]] for name in self.categories]
        known: Any = [np.array(own, object) for own in self.categories.values()]
        encoder = OneHotEncoder(categories=known, handle_unknown="ignore", sparse_output=False)
        return encoder.fit_transform(np.array(words, object).T)

    def _check(self, table: Table) -> None:
        for name in (*self.numeric, *self.categories):
            if name not in table.columns:
                raise ValueError(
                    f"`file` must have the columns that the networks were trained with, among them {name!r}. "
                    f"Received: {table.path!r}, with {', '.join(map(repr, table.columns))}. Add it, or rename one."
                )
        for name in self.numeric:
            if table.columns[name].dtype == object and any(value is not None for value in table.columns[name]):
                raise ValueError(
                    f"`file` must hold numbers in the column {name!r}, as the table did that the networks were trained "
                    f"with. Received: {table.path!r}, with words there. Mend them, or leave them empty."
                )


def _stacked(table: Table, names: Sequence[str]) -> np.ndarray:
    columns = [table.columns[name].astype("float64") for name in names]
    return np.stack(columns, axis=1) if columns else np.zeros((table.rows, 0))


def _category(word: Any) -> str:
    if isinstance(word, str):
        return word
    return MISSING_CATEGORY if word is None or np.isnan(word) else f"{word:g}"  # a column may hold nothing but gaps


def layout_of(table: Table) -> Preparation:
    """Returns which columns will come out, of a whole table; nothing is learned yet."""
    numeric = [name for name, column in table.columns.items() if column.dtype != object]
    gaps = [name for name in numeric if np.isnan(table.columns[name]).any()]
    categories = {}
    for name, column in table.columns.items():
        if column.dtype == object:
            counts = Counter(_category(word) for word in column)
            categories[name] = sorted(category for category, _ in counts.most_common(MOST_CATEGORIES))
    none = [0.0] * len(numeric)
    return Preparation(numeric, gaps, categories, none, none, [1.0] * len(numeric), [])


def learned(layout: Preparation, table: Table) -> Preparation:
    """Returns the preparation with what it learns from these rows: medians, means, scales, and which columns tell.

    A column that is the same in all of them tells nothing, and is 0 wherever else it differs: no network has learned
    what that means.

    Source:
        `sklearn.impute.SimpleImputer(strategy="median")` and `sklearn.preprocessing.StandardScaler`, which compute what
        is kept here; its `OneHotEncoder(handle_unknown="ignore")` makes columns of categories.
    """
    own = layout
    if layout.numeric:
        from sklearn.impute import SimpleImputer
        from sklearn.preprocessing import StandardScaler

        numbers = _stacked(table, layout.numeric)
        imputer = SimpleImputer(strategy="median", keep_empty_features=True).fit(numbers)
        scaler = StandardScaler().fit(imputer.transform(numbers))
        medians, means, scales = (
            np.asarray(values).tolist() for values in (imputer.statistics_, scaler.mean_, scaler.scale_)
        )
        own = layout._replace(medians=medians, means=means, scales=scales)
    numbers = own(table)
    return own._replace(told=(numbers.max(axis=0) > numbers.min(axis=0)).tolist())


def described(table: Table) -> str:
    """Returns what a table holds, as part of a sentence."""
    words = sum(column.dtype == object for column in table.columns.values())
    missing = sum(int(_is_missing(column).sum()) for column in table.columns.values())
    kinds = [f"{len(table.columns) - words} columns of numbers"] if len(table.columns) > words else []
    kinds += [f"{words} of words"] if words else []
    return f"{table.rows:,} rows, {', '.join(kinds)}, {missing:,} values missing"


def _is_missing(column: np.ndarray) -> np.ndarray:
    return np.array([value is None for value in column]) if column.dtype == object else np.isnan(column)


def as_values(preparation: Preparation) -> dict[str, Any]:
    """Returns a preparation as values of JSON."""
    return preparation._asdict()


def from_values(values: Mapping[str, Any]) -> Preparation:
    """Returns the preparation that was kept as values of JSON.

    Raises:
        ValueError: If these are no such values.
    """
    try:
        own = Preparation(**values)
        sizes = {len(own.numeric), len(own.medians), len(own.means), len(own.scales)}
        if len(sizes) != 1 or len(own.told) != len(own.names) or not all(float(scale) > 0 for scale in own.scales):
            raise ValueError("lengths differ")
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"no description of columns ({error})") from error
    return own
