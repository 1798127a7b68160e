"""Where pictures of many come from: the members of a cohort, and the metrics of a history.

In comes what a user passes; out come positions of members, their answers and their logs. The room exists so that every
picture of many chooses members, and refuses what is no cohort, in the same way.
"""

import difflib
import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from kohort import keras_parts
from kohort.history import solved
from kohort.plot.style import require
from kohort.plot.surface import answers

ROWS_AT_ONCE = 500  # grid points that each member answers in one step: small pieces stay in the processor's cache


def way_from(source: Any, otherwise: str) -> str:
    """Returns the step that leads from a study, a trial or a path to a cohort; from something else another one."""
    if is_study(source):
        return "Take the cohort of one of its trials: `study.trial(...).cohort()`."
    if isinstance(source, str | os.PathLike):
        return (
            "Read it first: `kohort.open(path).trial(...).cohort()` of a study, `kohort.Cohort.load(path)` of a cohort."
        )
    return "Take its cohort: `trial.cohort()`." if callable(getattr(source, "cohort", None)) else otherwise


def is_study(source: Any) -> bool:
    """Says whether this is a `kohort.Study`, or what `kohort.open` gives."""
    return hasattr(source, "trials") and hasattr(source, "trial")


def check_names(
    function: Callable, given: Mapping[str, Any], is_known: Callable, kind: str, others: Iterable[str] = ()
) -> None:
    """Raises where a further argument of a picture is not known, but much like one that is: it was misspelt.

    Args:
        function: The function that draws the picture.
        given: The further arguments by name.
        is_known: Says whether a name among them means something.
        kind: What they are.
        others: Names that are known beside those of the function.
    """
    names = [*inspect.signature(function).parameters, *others]
    for name, value in given.items():
        near = [] if is_known(name) else difflib.get_close_matches(name, names, 1)
        accepted = f"an argument of `kohort.plot.{function.__name__}`, or {kind}"
        require(not near, name, accepted, value, f"Did you mean `{''.join(near)}`?", TypeError)


def check_cohort(cohort: Any) -> None:
    """Raises unless this is a cohort; none is empty."""
    is_cohort = hasattr(cohort, "seeds") and hasattr(cohort, "predict")
    step = way_from(cohort, "Draw one model with `decision_boundary`.")
    require(is_cohort, "cohort", "a `kohort.Cohort`", cohort, step, TypeError)


def check_single(model: Any) -> None:
    """Raises where a picture of one network is asked for and a cohort is given."""
    is_cohort = hasattr(model, "seeds") and hasattr(model, "predict")
    step = "Draw all members with `kohort.plot.wall`, or one of them: `cohort.best()` or `cohort.member(seed)`."
    require(not is_cohort, "model", "one network, and not a cohort", model, step, TypeError)


def chosen(cohort: Any, members: int | Iterable[int]) -> np.ndarray:
    """Returns the positions in the cohort of the members to show: the first ones, or all those of the seeds."""
    check_cohort(cohort)
    seeds = list(cohort.seeds)
    is_choice = isinstance(members, int | np.integer | Iterable) and not isinstance(members, bool)
    require(is_choice, "members", "a number of at least 1, or seeds", members, "Pass for example 64.", TypeError)
    is_number = isinstance(members, int | np.integer)
    wanted = list(dict.fromkeys(seeds[: max(members, 0)] if is_number else members))
    shown = ", ".join(map(str, seeds[:6])) + (", ..." if len(seeds) > 6 else "")
    accepted = f"a number of at least 1, or seeds among {shown}"
    require(wanted and set(wanted) <= set(seeds), "members", accepted, members, "Pass for example 64.")
    if is_number:
        return np.arange(len(seeds))[:members]
    # With folds, or where more varies, several members have one seed.
    return np.concatenate([np.flatnonzero(np.equal(seeds, seed)) for seed in wanted])


def answers_of_members(cohort: Any, plane: dict) -> np.ndarray:
    """Returns raw outputs (member, grid, grid) or (member, grid, grid, class) of all members."""
    return answers(cohort.predict, plane, 1, batch_size=min(ROWS_AT_ONCE, len(plane["points"])))


def diverged(cohort: Any, among: np.ndarray, responses: np.ndarray) -> np.ndarray:
    """Says which of some members diverged, (member,): their last loss is not finite, or one of their answers."""
    is_finite = np.isfinite(responses.reshape(len(responses), -1)).all(axis=1)
    logs: Any = cohort.history or {}
    return np.logical_not(is_finite & np.isfinite(logs.last("loss")[among]) if "loss" in logs else is_finite)


def threshold_of(source: Any, threshold: Any) -> Any:
    """Returns the threshold that is asked for; else 0 where a loss takes answers as logits, or None: the labels say."""
    is_logit = source.answers_logit if hasattr(source, "answers_logit") else keras_parts.answers_logit(source)
    return 0.0 if threshold is None and is_logit else threshold


def logs_of(source: Any, name: str, metric: str) -> Any:
    """Returns the history of a source, which must have the metric that the argument `name` asks for."""
    logs = source if isinstance(source, Mapping) else getattr(source, "history", source)
    step = "Take one of its trials: `study.trial(...)`." if is_study(source) else way_from(source, "Fit first.")
    require(isinstance(logs, Mapping), "source", "what a `fit` returned, or a cohort", source, step, TypeError)
    names = [each for each in logs if np.ndim(logs[each]) < 3]
    accepted = f"one of {', '.join(map(repr, names))}" if names else "a number that a `fit` recorded"
    require(metric in names, name, accepted, metric, "Metrics are named in `model.compile(metrics=...)`.")
    return logs


def reaches(cohort: Any, bounds: Mapping[str, float | int]) -> np.ndarray:
    """Says which members reach all the bounds in their last epoch, (member,)."""
    return solved(cohort.history, None, bounds, {name: cohort.direction(name) for name in bounds})


def names_of_outcomes(logs: Any) -> np.ndarray | None:
    """Returns the names of the members' outcomes, or None where a source does not know them."""
    knows = "loss" in logs and hasattr(logs, "outcome")
    return np.array([outcome.name for outcome in logs.outcome]) if knows else None


def criterion(bounds: Mapping[str, float | int], directions: Mapping[str, str | None]) -> str:
    """Writes bounds as a reader reads them: loss ≤ 0.01."""
    return ", ".join(f"{name} {'≥' if directions[name] == 'up' else '≤'} {bound:g}" for name, bound in bounds.items())
