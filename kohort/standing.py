"""Where a study stands: what was asked of it, what is trained, how it went, and with what.

In comes a study as it is kept; out comes its record in plain values, and the same as lines of text. The room exists so
that whoever finds a study, or waits for one, learns what it is without its code and its data.
"""

import contextlib
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

from kohort.blocks import history_of, last_blocks
from kohort.history import Outcome
from kohort.store import BlockRow, Records
from kohort.trials import StoredStudy


def standing(study: StoredStudy) -> dict[str, Any]:
    """Returns what a study is and where it stands, as values of JSON.

    Args:
        study: As `kohort.open` gives it.

    Returns:
        "path", "parameters" (name to its values), "trials", "members", "epochs" (the furthest that members were to
        reach), "missing" (members of other trials' seeds that a trial has not trained), "behind" (members that were to
        go on and have not), "outcomes" (name to count), "seconds", "first" and "last" (when blocks were finished,
        seconds since 1970), "bytes", "trained_with" (versions and devices), "fit" (the arguments) and "data" (the
        hashes of the arrays).

    Raises:
        OSError, ValueError: As `kohort.open`.
    """
    records = study.store.records()  # once: whoever trains meanwhile adds to them
    of_trial: dict[int, list[BlockRow]] = {number: [] for number in records.trials}
    for block in records.blocks:
        of_trial[block.trial].append(block)
    reached = {number: _reached(blocks) for number, blocks in of_trial.items()}
    epochs = max((block.epochs for block in records.blocks), default=0)
    seeds = {seed for own in reached.values() for seed in own}
    histories = [history_of(blocks, study.store.contents, epochs) for blocks in of_trial.values() if blocks]
    outcomes = Counter(outcome.name for history in histories for outcome in history.outcome)
    finished = [block.about["finished"] for block in records.blocks if "finished" in block.about]
    return {
        "path": study.path,
        "parameters": _values(records),
        "trials": len(records.trials),
        "members": sum(map(len, reached.values())),
        "epochs": epochs,
        "missing": sum(len(seeds) - len(own) for own in reached.values()),
        "behind": sum(own_epochs < epochs for own in reached.values() for own_epochs in own.values()),
        "outcomes": {outcome.name: outcomes[outcome.name] for outcome in Outcome},
        "seconds": round(sum(float(block.about.get("wall_seconds", 0)) for block in records.blocks), 3),
        "first": min(finished, default=None),
        "last": max(finished, default=None),
        "bytes": _bytes_in(study.store.folder),
        "trained_with": _trained_with(records),
        "fit": records.about.get("fit", {}),
        "data": records.about.get("data", {}),
    }


def _bytes_in(folder: Path) -> int:
    """Returns the bytes of all files in a folder, in which whoever trains makes and removes some meanwhile."""
    sizes = 0
    for above, _, names in os.walk(folder):  # which passes over folders that are gone
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                sizes += Path(above, name).lstat().st_size
    return sizes


def _reached(blocks: list[BlockRow]) -> dict[int, int]:
    """Returns the epoch that each seed of a trial has reached."""
    return {seed: blocks[number].epochs for seed, number in last_blocks(blocks).items()}


def _values(records: Records) -> dict[str, list]:
    values: dict[str, list] = {}
    for row in records.trials.values():
        for name, value in row.parameters.items():
            own = values.setdefault(name, [])
            own += [] if value in own else [value]
    return values


def _trained_with(records: Records) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for block in records.blocks:
        used = {**block.about.get("versions", {}), "device": block.about.get("device")}
        found += [] if used in found else [used]
    return found


def lines(stands: dict[str, Any]) -> list[str]:
    """Returns the record as text, for people."""
    counts = ", ".join(f"{count:,} {name.lower().replace('_', ' ')}" for name, count in stands["outcomes"].items())
    told = {name: _listed(values) for name, values in stands["parameters"].items()}
    told["outcomes"] = f"{counts} of {stands['epochs']:,} epochs"
    if stands["missing"] or stands["behind"]:
        told["unfinished"] = (
            f"{stands['missing']:,} members of seeds that other trials have are not trained, "
            f"{stands['behind']:,} have not reached epoch {stands['epochs']:,}"
        )
    if stands["last"] is not None:
        first, last = (time.strftime("%Y-%m-%d %H:%M", time.localtime(stands[name])) for name in ("first", "last"))
        told["trained"] = f"{stands['seconds']:,.1f} s, blocks finished from {first} to {last}"
    used = [", ".join(f"{name} {version}" for name, version in each.items()) for each in stands["trained_with"]]
    told["with"] = "; ".join(used)
    told["fit"] = ", ".join(f"{name}={value!r}" for name, value in stands["fit"].items() if value)
    told["data"] = ", ".join(f"{name} {str(value)[:12]}" for name, value in stands["data"].items() if value)
    width = max(map(len, told))
    size = f"{stands['bytes'] / 1e6:,.1f} MB"
    head = f"{stands['path']}: {stands['trials']} trials, {stands['members']:,} members, {size}"
    return [head, *(f"  {name:<{width}}  {text}" for name, text in told.items() if text)]


def _listed(values: list) -> str:
    return ", ".join(map(str, values[:12])) + (", ..." if len(values) > 12 else "")
