"""Who the members of a cohort are: seeds, varied values and folds, one row each.

In come seeds and the values to vary; out go the members as rows of a table, and the number of the one that somebody
asks for. The room exists because a seed alone names a member no longer once values or folds differ beside it.
"""

import itertools
import numbers
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from kohort.checks import received


class Roster(NamedTuple):
    """The members, in the order of all arrays that have an axis member."""

    seeds: tuple[int, ...]
    varied: dict[str, np.ndarray]  # path of a number -> its value in each member, float64
    kinds: tuple[int, ...]  # which members are made from one template
    folds: np.ndarray | None = None  # the fold of each member

    @property
    def parameters(self) -> dict[str, np.ndarray]:
        """The table of the members: name of a column -> array (member,)."""
        folds = {} if self.folds is None else {"fold": self.folds}
        return {"seed": np.array(self.seeds, np.int64), **self.varied, **folds}

    @property
    def differences(self) -> dict[str, np.ndarray]:
        """The columns of that table beside the seeds."""
        return {name: column for name, column in self.parameters.items() if name != "seed"}

    def crossed_with_folds(self, folds: int) -> "Roster":
        """Returns a roster in which each member stands once for each fold, the folds of one next to each other."""
        return Roster(
            tuple(np.repeat(self.seeds, folds).tolist()),
            {path: np.repeat(values, folds) for path, values in self.varied.items()},
            tuple(np.repeat(self.kinds, folds).tolist()),
            np.tile(np.arange(folds), len(self.seeds)),
        )

    def find(self, seed: Any = None, index: Any = None, **wanted: Any) -> int:
        """Returns the number of the one member that is meant, or raises."""
        if index is not None:
            return self._checked_index(index, seed, wanted)
        table = self.parameters
        unknown = [name for name in wanted if name not in table or name == "seed"]
        if unknown:
            known = [name for name in table if name != "seed"]
            accepted = "one of " + ", ".join(map(repr, known)) if known else "left out: this cohort varies nothing"
            raise ValueError(
                f"`{unknown[0]}` must be {accepted}. Received: {received(unknown[0], wanted[unknown[0]])}. "
                "See `cohort.parameters`."
            )
        if seed is not None or not wanted:
            self._check_seed(seed)
            wanted = {"seed": seed, **wanted}
        fits = np.ones(len(self.seeds), bool)
        for name, value in wanted.items():
            fits &= self._is_at(name, value)
        return self._only(np.flatnonzero(fits), wanted)

    def _checked_index(self, index: Any, seed: Any, wanted: Mapping) -> int:
        is_number = isinstance(index, numbers.Integral) and not isinstance(index, bool)
        if seed is not None or wanted or not is_number or int(index) not in range(len(self.seeds)):
            alone = (
                " It names a member alone, without a seed or values beside it." if seed is not None or wanted else ""
            )
            raise ValueError(
                f"`index` must be an integer from 0 to {len(self.seeds) - 1}, the number of a member. "
                f"Received: {received('index', index)}.{alone} See `cohort.parameters`."
            )
        return int(index)

    def _check_seed(self, seed: Any) -> None:
        if not isinstance(seed, numbers.Integral) or isinstance(seed, bool) or int(seed) not in self.seeds:
            raise ValueError(
                f"`seed` must be one of the cohort's seeds ({shown(tuple(dict.fromkeys(self.seeds)))}). "
                f"Received: {received('seed', seed)}. See `cohort.seeds`."
            )

    def _is_at(self, name: str, value: Any) -> np.ndarray:
        """Says which members have the value; those of a logarithmic row of values need not be typed to all digits."""
        column = self.parameters[name]
        is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        fits = np.isclose(column, float(value), rtol=1e-6, atol=0) if is_number else np.zeros(len(column), bool)
        if not fits.any():
            values = tuple(np.unique(column).tolist())
            raise ValueError(
                f"`{name}` must be a value that a member has: {shown(values)}. Received: {received(name, value)}. "
                "See `cohort.parameters`."
            )
        return fits

    def _only(self, found: np.ndarray, wanted: Mapping) -> int:
        if len(found) == 1:
            return int(found[0])
        others = {name: column[found[0]].item() for name, column in self.parameters.items() if name not in wanted}
        given = ", ".join(f"{name}={value!r}" for name, value in wanted.items())
        if not len(found):
            raise ValueError(
                f"`cohort.member` must be asked for values that one member has together. Received: {given}, which none "
                "has. See `cohort.parameters`."
            )
        seed = wanted.get("seed", others.pop("seed", None))
        raise ValueError(
            f"`cohort.member` must be told which of {len(found)} members is meant. Received: {given}. Name also "
            f"{', '.join(others)}: for example `cohort.member({seed}, **{others})`, or "
            f"`cohort.member(index={found[0]})`."
        )


def crossed(seeds: tuple[int, ...], values: dict[str, np.ndarray]) -> tuple[tuple[int, ...], dict[str, np.ndarray]]:
    """Returns every combination of values with every seed, as rows: seeds change fastest, the first path slowest."""
    rows = list(itertools.product(*values.values(), seeds))
    columns = list(zip(*rows, strict=True))
    varied = {path: np.array(column, np.float64) for path, column in zip(values, columns, strict=False)}
    return tuple(columns[-1]), varied


def shown(values: tuple) -> str:
    """Returns seeds or values for a message, the middle of many left out."""
    return ", ".join(map(str, values)) if len(values) <= 6 else f"{values[0]}, {values[1]}, ..., {values[-1]}"
