"""What a study has found out: its trials, as rows of a table and one by one.

In comes a store, which somebody may be writing to at the same time; out come counts with intervals, histories and
cohorts. The room exists because a study is read more often than it is trained, and by people who have neither its data
nor the code of its networks.
"""

import contextlib
import html
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from kohort import exports, saving
from kohort.blocks import history_of, joined, seeds_of
from kohort.checks import check_backend
from kohort.cohort import Cohort
from kohort.comparison import Comparison, compared
from kohort.history import CohortHistory, Criterion, SuccessRate, check_confidence, optional, solved, success_rate
from kohort.store import BlockRow, Records, Store, TrialRow, canonical
from kohort.survival import SurvivalCurve, survival_curve


class Trial:
    """One setting of a study, and the members that were trained in it; `study.trial(...)` finds it.

    Args:
        store: Where the study is kept.
        about: What all trials of the study share.
        row: The trial.
        blocks: The blocks of its members.
        epochs: The epoch that the members of the study were to reach.
        custom_objects: Name to class or function, of those of the user's own that its model needs.

    Example:
        >>> import kohort, keras
        >>> def network(hidden):
        ...     model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(hidden, "relu"), keras.layers.Dense(1)])
        ...     model.compile(keras.optimizers.RMSprop(1e-2), "mse")
        ...     return model
        >>> study = kohort.Study("units.kohort", network, {"hidden": [2, 4]}, seeds=8)
        >>> study.run(*kohort.data.xor(), epochs=20, verbose=0)
        >>> study.trial(hidden=4)
        Trial(hidden=4: 8 members)
        >>> study.trial(hidden=4).cohort().predict(kohort.data.xor()[0]).shape
        (8, 4, 1)
    """

    def __init__(
        self,
        store: Store,
        about: dict,
        row: TrialRow,
        blocks: list[BlockRow],
        epochs: int = 0,
        custom_objects: Mapping[str, Any] | None = None,
    ) -> None:
        """Reads nothing yet."""
        self._store, self._about, self._row, self._blocks = store, about, row, blocks
        self._epochs, self._custom_objects = epochs, custom_objects

    @property
    def parameters(self) -> dict[str, Any]:
        """What the network function was called with."""
        return dict(self._row.parameters)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of the members that are trained, in the order of all arrays."""
        return tuple(seeds_of(self._blocks))

    @property
    def seconds(self) -> float:
        """The wall seconds that training took, compiling included; side by side, those of each block."""
        return sum(float(block.about.get("wall_seconds", 0)) for block in self._blocks)

    @property
    def specification(self) -> dict[str, Any]:
        """All that the members are made from: parameters, model, how it is compiled, arguments of the fit, data."""
        versions = {canonical(block.about): block.about for block in self._blocks}
        used = [{key: each[key] for key in ("versions", "device") if key in each} for each in versions.values()]
        trained = list({canonical(each): each for each in used}.values())
        return {"parameters": self.parameters, **self._row.specification, **self._about, "trained_with": trained}

    @property
    def history(self) -> CohortHistory:
        """The metrics of the members by epoch, read from the store."""
        return history_of(self._blocks, self._store.contents, self._epochs)

    def direction(self, metric: str) -> str | None:
        """Says in which direction a metric gets better: "down", "up", or None if Keras does not say."""
        return next((b.about.get("directions", {}).get(metric) for b in reversed(self._blocks)), None)

    def cohort(self) -> Cohort:
        """Makes the cohort of the trial's members, each as it was left.

        Returns:
            A trained `kohort.Cohort`; its networks are there, and a further `fit` goes on where they stopped.

        Raises:
            RuntimeError: If no member is trained yet, or Keras runs on another backend than JAX.
            ValueError: If something is damaged, or the model needs a class that nobody named.
        """
        check_backend("kohort.Study")
        self._need_members("cohort")
        read = [(block, self._store.contents(block)) for block in self._blocks]
        known = {block.file: contents for block, contents in read}
        history = history_of(self._blocks, lambda block: known[block.file], self._epochs)
        return Cohort.of_kept(saving.checked(self._store.shown, joined(read, history), self._custom_objects))

    def success_rate(
        self, criterion: Criterion | None = None, /, *, confidence: float = 0.95, **bounds: float
    ) -> SuccessRate:
        """Counts the members that solved the problem, as `Cohort.success_rate` does."""
        self._need_members("success_rate")
        return success_rate(solved(self.history, criterion, bounds, self._directions(bounds)), confidence)

    def survival(self, *, confidence: float = 0.95, **bounds: float) -> SurvivalCurve:
        """Computes the share of members that have not solved it yet, by epoch, as `Cohort.survival` does."""
        self._need_members("survival")
        return survival_curve(self.history, bounds, self._directions(bounds), confidence)

    def _directions(self, metrics: Mapping[str, Any]) -> dict[str, str | None]:
        return {name: self.direction(name) for name in metrics}

    def _need_members(self, asked: str) -> None:
        if not self._blocks:
            raise RuntimeError(
                f"`trial.{asked}` must come after members are trained. Received: {self!r}. Call `study.run` first."
            )

    def __len__(self) -> int:
        """Returns the number of members that are trained."""
        return len(self.seeds)

    def __repr__(self) -> str:
        """Says which trial it is and how many members it has."""
        return f"Trial({_named(self.parameters)}: {len(self)} members)"


def _named(parameters: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in parameters.items()) or "no parameters"


class StudyTable(Mapping):
    """One row for each trial: a mapping from column to an array (trial,).

    Args:
        columns: Name to array.
        parameters: The names of those columns that are parameters of the network function.

    Example:
        >>> import numpy as np
        >>> from kohort.trials import StudyTable
        >>> table = StudyTable({"hidden": np.array([2, 4]), "solved": np.array([3, 9])}, ["hidden"])
        >>> print(table)
        hidden  solved
             2       3
             4       9
        >>> table.rows[1]
        {'hidden': 4, 'solved': 9}
    """

    def __init__(self, columns: Mapping[str, np.ndarray], parameters: list[str]) -> None:
        """Keeps the arrays as they are."""
        self.columns, self.parameters = dict(columns), list(parameters)

    def __getitem__(self, column: str) -> np.ndarray:
        """Returns the array (trial,) of a column."""
        if column not in self.columns:
            listed = ", ".join(map(repr, self.columns))
            raise KeyError(f"`column` must be one of {listed}. Received: column={column!r}. Look at `list(table)`.")
        return self.columns[column]

    def __iter__(self) -> Iterator[str]:
        """Iterates over the names of the columns."""
        return iter(self.columns)

    def __len__(self) -> int:
        """Returns the number of columns."""
        return len(self.columns)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The table row by row, in plain Python values."""
        lists = [column.tolist() for column in self.columns.values()]
        return [dict(zip(self.columns, row, strict=True)) for row in zip(*lists, strict=True)]

    def to_pandas(self) -> Any:
        """Returns the table as a `pandas.DataFrame`. Raises an ImportError if pandas is not installed."""
        return optional("pandas", "to_pandas").DataFrame(self.columns)

    def _texts(self) -> list[list[str]]:
        """Returns the head and the rows as text."""
        columns = [[_shown(value) for value in column.tolist()] for column in self.columns.values()]
        heads = ["median loss" if name == "loss" else name for name in self.columns]  # a parameter is "network.loss"
        return [heads, *map(list, zip(*columns, strict=True))]

    def __str__(self) -> str:
        """Shows the table in columns."""
        texts = self._texts()
        widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
        lines = ("  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) for row in texts)
        return "\n".join(line.rstrip() for line in lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """Shows the table in a notebook."""
        head, *rows = self._texts()
        return (
            f"<table><thead>{_row('th', head)}</thead><tbody>{''.join(_row('td', row) for row in rows)}</tbody></table>"
        )


def _shown(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _row(tag: str, texts: list[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{html.escape(text)}</{tag}>' for text in texts)}</tr>"


TRAINING = ("run", "extend", "halve")  # what `kohort.Study` has beside


class StoredStudy:
    """A study as it is kept: to be read, also while it is trained; `kohort.open` gives it.

    Args:
        path: The folder of the study.
        custom_objects: Name to class or function, for those of your own that models need, and which are not registered
            with Keras.

    Example:
        See `kohort.open`.
    """

    def __init__(self, path: Any, custom_objects: Mapping[str, Any] | None = None) -> None:
        """Looks at the place; what is in it is read when it is asked for."""
        self.store = Store(path)
        self._custom_objects = dict(custom_objects or {})

    if not TYPE_CHECKING:  # for which a misspelt attribute would be none

        def __getattr__(self, name: str) -> Any:
            """Says what trains a study where that is asked of one that can be read alone."""
            if name in TRAINING:
                raise AttributeError(
                    "`study` must be made with the function of its networks to be trained. Received: "
                    f"`study.{name}` of one that was opened to be read. Make it: "
                    f"`kohort.Study({self.path!r}, network, grid, seeds)`."
                )
            return self.__getattribute__(name)  # which raises, also what a property raised

    @property
    def path(self) -> str:
        """The folder of the study."""
        return self.store.shown

    @property
    def trials(self) -> list[Trial]:
        """All trials, in the order in which they were asked for first."""
        return self._trials(self._records())

    def _records(self) -> Records:
        return self.store.records()

    def _trials(self, records: Records) -> list[Trial]:
        blocks: dict[int, list[BlockRow]] = {number: [] for number in records.trials}
        for block in records.blocks:
            blocks[block.trial].append(block)
        epochs = max((block.epochs for block in records.blocks), default=0)
        return [
            Trial(self.store, records.about, row, blocks[number], epochs, self._custom_objects)
            for number, row in records.trials.items()
        ]

    def trial(self, **parameters: Any) -> Trial:
        """Returns the one trial with these values of parameters; as many as tell it apart.

        Args:
            **parameters: Name to value.

        Returns:
            The trial.

        Raises:
            ValueError: If none has these values, or more than one.
        """
        trials = self.trials
        found = having(trials, parameters)
        if len(found) != 1:
            shown = [_named(trial.parameters) for trial in (found or trials)[:6]]
            more = ", ..." if len(found or trials) > 6 else ""
            raise ValueError(
                f"`parameters` must be those of one trial of {len(trials)}. Received: {_named(parameters)}, "
                f"which {len(found) or 'none'} {'has' if not found else 'have'}. "
                f"Trials {'there are' if not found else 'like this'}: {'; '.join(shown) or 'none'}{more}."
            )
        return found[0]

    def table(self, criterion: Criterion | None = None, /, *, confidence: float = 0.95, **bounds: float) -> StudyTable:
        """Returns one row for each trial that has members: its parameters, how many members solved it, how fast.

        Args:
            criterion: Callable that takes a history and returns one truth value per member.
            confidence: Confidence level of the intervals.
            **bounds: Metric name to the bound its last recorded value must reach: losses at most, accuracies at least.

        Returns:
            A `StudyTable` with a column for each parameter ("network.loss" where "loss" is the table's own), and
            "seeds" (members that are trained), "solved", "rate", "low" and "high" (the Wilson interval of the rate),
            "median_epoch" (of those that reached all bounds in any epoch, the median of the first such epoch, counted
            from 1; NaN: none) and "seconds". Without a criterion: parameters, "seeds", "epochs", "loss" (the median of
            the last ones) and "seconds".

        Raises:
            OSError: If something cannot be read.
            TypeError: If the criterion is not callable.
            ValueError: If something is damaged, or a metric is unknown or has no direction.

        Source:
            Wilson (1927), by `scipy.stats.binomtest`.
        """
        check_confidence(confidence)
        trials = [trial for trial in self.trials if len(trial)]
        names = exports.column_names(trials, (*JUDGED, *PLAIN))
        is_asked = criterion is not None or bool(bounds)
        columns = [*names.values(), *(JUDGED if is_asked else PLAIN)]
        rows = []
        for trial in trials:
            history = trial.history
            told = _judged(trial, history, criterion, bounds, confidence) if is_asked else _plain(history)
            parameters = {names[name]: value for name, value in trial.parameters.items()}
            own = {**parameters, "seeds": len(trial), **told, "seconds": trial.seconds}
            rows.append([own.get(name) for name in columns])
        return StudyTable(
            {name: _column([row[i] for row in rows]) for i, name in enumerate(columns)}, [*names.values()]
        )

    def compare(
        self,
        trial: Trial | Mapping[str, Any],
        other: Trial | Mapping[str, Any],
        criterion: Criterion | None = None,
        /,
        *,
        by: str | None = None,
        confidence: float = 0.95,
        **bounds: float,
    ) -> Comparison:
        """Compares two trials on the seeds that they share, pair by pair, as `Cohort.compare` does.

        Args:
            trial: A trial of the study, or the parameters that tell it apart.
            other: Likewise.
            criterion: Callable that takes a history and returns one truth value per member.
            by: Instead of criterion and bounds, a metric whose last recorded values are compared. Default: "loss" where
                there is neither, as in `table`.
            confidence: Confidence level of the interval.
            **bounds: As in `table`.

        Returns:
            `Comparison(seeds, better, worse, effect, low, high, p_value, confidence, what)`.

        Raises:
            ValueError: If they share no seed, a metric is unknown or without direction, or too much is asked.
        """
        by = "loss" if by is None and criterion is None and not bounds else by
        first, second = (each if isinstance(each, Trial) else self.trial(**each) for each in (trial, other))
        ours, theirs = first.history, second.history
        own = {name: first.direction(name) for name in (*ours, *bounds)}
        other_own = {name: second.direction(name) for name in (*theirs, *bounds)}
        return compared(ours, theirs, (own, other_own), criterion, by, bounds, confidence)

    def to_pandas(self) -> Any:
        """Returns a `pandas.DataFrame` with one row for each member: parameters, seed, epochs, outcome, last values.

        Raises an ImportError if pandas is not installed. Curves: `trial.history.to_pandas()`, or `to_xarray`.
        """
        return exports.members_table(self.trials)

    def to_xarray(self) -> Any:
        """Returns an `xarray.Dataset` of all curves, with the axes `trial`, `member` (its seed) and `epoch`.

        Parameters are labels along `trial`; there is NaN where a trial has no such member or epoch. Raises an
        ImportError if xarray is not installed.
        """
        return exports.dataset(self.trials)

    def to_csv(self, path: Any) -> None:
        """Writes `to_pandas()` to a CSV file. Raises an ImportError if pandas is not installed."""
        exports.write_csv(self.trials, path)

    def to_netcdf(self, path: Any) -> None:
        """Writes `to_xarray()` to a NetCDF file. Raises an ImportError if xarray or h5netcdf is not installed."""
        exports.write_netcdf(self.trials, path)

    def to_parquet(self, path: Any) -> None:
        """Writes `to_pandas()` to a Parquet file. Raises an ImportError if pandas or pyarrow is not installed."""
        exports.write_parquet(self.trials, path)

    def __repr__(self) -> str:
        """Says where the study is and how much of it is trained."""
        name = type(self).__name__.removeprefix("Stored")
        if not self.store.exists:
            return f"{name}({self.path!r}, not begun)"
        trials = self.trials
        return f"{name}({self.path!r}, {len(trials)} trials, {sum(map(len, trials))} members)"

    def _repr_html_(self) -> str:
        """Shows in a notebook what the study is, and a row for each trial."""
        table = self.table()._repr_html_() if self.store.exists else ""
        return f"<div><strong>{html.escape(repr(self))}</strong>{table}</div>"


JUDGED = ("seeds", "solved", "rate", "low", "high", "median_epoch", "seconds")
PLAIN = ("seeds", "epochs", "loss", "seconds")


def _judged(
    trial: Trial, history: CohortHistory, criterion: Criterion | None, bounds: Mapping[str, float], confidence: float
) -> dict[str, Any]:
    directions = {name: trial.direction(name) for name in bounds}
    rate = success_rate(solved(history, criterion, bounds, directions), confidence)
    first = survival_curve(history, bounds, directions, confidence).first if bounds else np.array([np.nan])
    median = float(np.median(first[np.isfinite(first)])) if np.isfinite(first).any() else float("nan")
    return {"solved": rate.k, "rate": rate.rate, "low": rate.low, "high": rate.high, "median_epoch": median}


def _plain(history: CohortHistory) -> dict[str, Any]:
    last = history.last("loss") if "loss" in history else np.array([np.nan])
    finite = last[np.isfinite(last)]
    return {"epochs": len(history.epoch), "loss": float(np.median(finite)) if finite.size else float("nan")}


def having(trials: list[Trial], parameters: Mapping[str, Any]) -> list[Trial]:
    """Returns those trials that have these values of parameters."""
    return [trial for trial in trials if all(_is_at(trial, name, value) for name, value in parameters.items())]


def _is_at(trial: Trial, name: str, value: Any) -> bool:
    own = trial.parameters.get(name, ...)
    with contextlib.suppress(TypeError, ValueError):
        asked = value.item() if hasattr(value, "item") else value
        if isinstance(own, float) and isinstance(asked, int) and not isinstance(asked, bool):
            return own == asked
        return own is not ... and canonical(own) == canonical(asked)
    return False


def _column(values: list) -> np.ndarray:
    """Returns values as an array: of numbers where all are, of objects where they are mixed."""
    kinds = {type(value) for value in values}
    if kinds <= {int, float} or (len(kinds) == 1 and kinds <= {bool, str}):
        return np.array(values)
    column = np.empty(len(values), object)
    for place, value in enumerate(values):
        column[place] = tuple(value) if isinstance(value, list) else value
    return column


def open(path: Any, custom_objects: Mapping[str, Any] | None = None) -> StoredStudy:
    """Opens a study to read it, also while another process trains it.

    Tables and curves need no code of its networks. A model is built only when a cohort is asked for, of Keras's own
    parts and of those that you name: in a study from elsewhere nothing is executed.

    Args:
        path: The folder of the study.
        custom_objects: Name to class or function, for those of your own that are not registered with Keras.

    Returns:
        The study as it is kept: `trials`, `trial`, `table`, `compare`.

    Raises:
        OSError: If there is no study, or it cannot be read.
        TypeError: If `path` is no path.
        ValueError: If it is damaged, not a study of kohort's, or of a newer version.

    Example:
        >>> import kohort, keras
        >>> def network(hidden):
        ...     model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(hidden, "relu"), keras.layers.Dense(1)])
        ...     model.compile("sgd", "mse")
        ...     return model
        >>> study = kohort.Study("small.kohort", network, {"hidden": [2, 4]}, seeds=8)
        >>> study.run(*kohort.data.xor(), epochs=5, verbose=0)
        >>> kohort.open("small.kohort")
        Study('small.kohort', 2 trials, 16 members)
        >>> kohort.open("small.kohort").table(loss=0.01)["solved"].tolist()
        [0, 0]
    """
    study = StoredStudy(path, custom_objects)
    study._records()
    return study
