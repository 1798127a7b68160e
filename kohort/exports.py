"""A study in the forms of other tools: tables of pandas, labelled arrays of xarray, and files of theirs.

In come trials; out come a row for each member, or curves with named axes. The room exists because these tools are not
needed to train or to read a study.
"""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from kohort.blocks import check_room
from kohort.files import checked_room, replacing
from kohort.history import optional

COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zip": "zip", ".xz": "xz", ".zst": "zstd"}


def members_table(trials: Sequence[Any]) -> Any:
    """Returns a `pandas.DataFrame` with one row for each member of the trials."""
    pandas = optional("pandas", "to_pandas")
    own = [trial for trial in trials if len(trial)]
    names = column_names(own, {"trial", "seed", "epochs", "outcome", *(metric for t in own for metric in t.history)})
    tables = [pandas.DataFrame(_columns(number, trial, names)) for number, trial in enumerate(trials) if len(trial)]
    return pandas.concat(tables, ignore_index=True) if tables else pandas.DataFrame()


def column_names(trials: Sequence[Any], taken: Collection[str]) -> dict[str, str]:
    """Returns how the column of each parameter is called: as itself, or "network.loss" where "loss" is taken."""
    names = dict.fromkeys(name for trial in trials for name in trial.parameters)
    return {name: f"network.{name}" if name in taken else name for name in names}


def _columns(number: int, trial: Any, names: dict[str, str]) -> dict[str, Any]:
    history, parameters = trial.history, {names[name]: value for name, value in trial.parameters.items()}
    members = len(history.seeds)
    columns: dict[str, Any] = {"trial": np.full(members, number)}
    columns |= {name: [tuple(v) if isinstance(v, list) else v] * members for name, v in parameters.items()}
    epochs = np.where(history.stopped_epoch < 0, len(history.epoch), history.stopped_epoch + 1)
    columns |= {"seed": np.array(history.seeds, np.int64), "epochs": epochs}
    columns["outcome"] = [outcome.name for outcome in history.outcome]
    return columns | {name: history.last(name) for name in history if history[name].ndim == 2}


def dataset(trials: Sequence[Any]) -> Any:
    """Returns an `xarray.Dataset` of the curves of all trials, with the axes trial, member and epoch."""
    xarray = optional("xarray", "to_xarray")
    own = [(trial, trial.history) for trial in trials if len(trial)]
    seeds = sorted({seed for _, history in own for seed in history.seeds})
    epochs = max((len(history.epoch) for _, history in own), default=0)
    place = {seed: row for row, seed in enumerate(seeds)}
    metrics: dict[str, np.ndarray] = {}
    curves = {name: values for _, history in own for name, values in history.items() if values.ndim == 2}
    bytes_each = sum(values.itemsize for values in curves.values())
    check_room((len(own), len(seeds), epochs), bytes_each, lambda: sum(h[name].nbytes for _, h in own for name in h))
    outcome = np.full((len(own), len(seeds)), "", "U13")
    for number, (_, history) in enumerate(own):
        rows = [place[seed] for seed in history.seeds]
        outcome[number, rows] = [each.name for each in history.outcome]
        for name, values in history.items():
            if values.ndim == 2:
                room = metrics.setdefault(name, np.full((len(own), len(seeds), epochs), np.nan, values.dtype))
                room[number, rows, : values.shape[1]] = values
    variables: dict[str, Any] = {name: (("trial", "member", "epoch"), values) for name, values in metrics.items()}
    variables["outcome"] = (("trial", "member"), outcome)
    names = column_names([trial for trial, _ in own], {"trial", "member", "epoch", *variables})
    labels = {
        label: ("trial", _label([trial.parameters.get(name) for trial, _ in own])) for name, label in names.items()
    }
    return xarray.Dataset(variables, {"member": seeds, "epoch": range(epochs), **labels})


def _label(values: list) -> np.ndarray:
    """Returns the values of a parameter as an array that files can hold: of numbers, else of texts."""
    are_numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    return np.array(values if are_numbers else list(map(str, values)))


def write_netcdf(trials: Sequence[Any], path: Any) -> None:
    """Writes the curves of all trials to a NetCDF file."""
    target = checked_room(path)
    optional("h5netcdf", "to_netcdf")
    curves = dataset(trials)
    with replacing(target) as aside:
        curves.to_netcdf(aside, engine="h5netcdf")


def write_parquet(trials: Sequence[Any], path: Any) -> None:
    """Writes a row for each member to a Parquet file."""
    target = checked_room(path)
    optional("pyarrow", "to_parquet")
    table = members_table(trials)
    for name in table.columns:
        if table[name].dtype == object and len(_kinds(table[name])) > 1:
            table[name] = table[name].map(lambda value: value if value is None else str(value))
    with replacing(target) as aside:
        table.to_parquet(aside, engine="pyarrow")


def _kinds(values: Any) -> set[Any]:
    """Returns the kinds of values in a column, of which a Parquet file has one: "number", types, or those in tuples."""
    kinds = set()
    for value in values:
        parts = value if isinstance(value, tuple) else [value]
        own = {"number" if type(part) in (int, float) else type(part) for part in parts if part is not None}
        kinds |= {(isinstance(value, tuple), kind) for kind in own}
    return kinds


def write_csv(trials: Sequence[Any], path: Any) -> None:
    """Writes a row for each member to a CSV file."""
    target = checked_room(path)
    table = members_table(trials)
    with replacing(target) as aside:  # whose name does not say how it is compressed
        table.to_csv(aside, index=False, compression=COMPRESSIONS.get(target.suffix.lower()))
