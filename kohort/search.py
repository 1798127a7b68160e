"""Which trials a study is to have, where a grid would be too many: drawn, spread evenly, or asked of Optuna.

In comes a space, which gives each parameter a list of choices or a distribution of SciPy; out come lists of parameters
for `kohort.Study`. The room exists because a number has more values than a grid can hold, and because searches that
learn from results ask for many trials at once here.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from kohort.checks import check_integer, received
from kohort.history import optional
from kohort.membership import check_seeds
from kohort.store import Store, canonical
from kohort.study import Study
from kohort.trials import StoredStudy, Trial

__all__ = ["optuna", "random", "sobol"]
SPACE = '{"hidden": [2, 4, 8], "learning_rate": scipy.stats.loguniform(1e-4, 1e-1)}'


def __dir__() -> list[str]:
    """Names what is for users, and not what only kohort needs."""
    return __all__


def random(space: Mapping[str, Any], trials: int, seed: int = 0) -> list[dict[str, Any]]:
    """Draws trials at random.

    Args:
        space: Parameter name to a list of choices, or to a frozen distribution of `scipy.stats`.
        trials: How many trials.
        seed: For the draws.

    Returns:
        The parameters of each trial, for `kohort.Study`. Of lists alone none is drawn twice, so there may be fewer.

    Raises:
        TypeError: If the space is none, or `trials` or `seed` is no integer.
        ValueError: If `trials` or `seed` is out of range.

    Example:
        >>> import kohort
        >>> from scipy.stats import loguniform
        >>> trials = kohort.search.random({"hidden": [2, 4, 8], "learning_rate": loguniform(1e-4, 1e-1)}, 3)
        >>> len(trials), sorted(trials[0])
        (3, ['hidden', 'learning_rate'])

    Source:
        Bergstra and Bengio, Random search for hyper-parameter optimization (2012); `sklearn.model_selection`.
    """
    from sklearn.model_selection import ParameterSampler

    _check(space, trials, seed)
    sizes = [math.inf if hasattr(values, "ppf") else len(values) for values in space.values()]
    return [_plain(drawn) for drawn in ParameterSampler(space, min(trials, math.prod(sizes)), random_state=seed)]


def sobol(space: Mapping[str, Any], trials: int, seed: int = 0) -> list[dict[str, Any]]:
    """Spreads trials evenly over the space: fewer of them leave no gaps than of random ones.

    Args:
        space: As for `random`.
        trials: How many trials; powers of two are spread best.
        seed: For the scrambling.

    Returns:
        The parameters of each trial, for `kohort.Study`, which trains equal ones once.

    Raises:
        TypeError, ValueError: As `random`.

    Example:
        >>> import kohort
        >>> from scipy.stats import uniform
        >>> rates = [trial["rate"] for trial in kohort.search.sobol({"rate": uniform(0, 0.8)}, 4)]
        >>> sorted(int(rate // 0.2) for rate in rates)
        [0, 1, 2, 3]

    Source:
        Sobol' (1967), scrambled; `scipy.stats.qmc.Sobol`.
    """
    from scipy.stats import qmc

    _check(space, trials, seed)
    sampler = qmc.Sobol(len(space), rng=np.random.default_rng(seed))
    points = sampler.random_base2(math.ceil(math.log2(trials)))[:trials]
    return [_plain({n: _at(v, share) for (n, v), share in zip(space.items(), row, strict=True)}) for row in points]


def _at(values: Any, share: float) -> Any:
    """Returns the value at this share of a distribution, or of a list."""
    if not hasattr(values, "ppf"):
        return list(values)[int(share * len(values))]
    value = values.ppf(max(share, np.finfo(float).tiny))  # at 0 a distribution of integers is one below its lowest
    return int(value) if hasattr(values, "pmf") else value  # which SciPy returns as a float


def _plain(parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {n: value.item() if isinstance(value, np.generic | np.ndarray) else value for n, value in parameters.items()}


def _check(space: Any, trials: Any, seed: Any) -> None:
    check_integer("trials", trials, 1)
    check_integer("seed", seed, 0)
    values = list(space.values()) if isinstance(space, Mapping) else []
    if not values or not all(hasattr(each, "ppf") or (isinstance(each, list | tuple) and each) for each in values):
        raise TypeError(
            "`space` must map each parameter to a list of choices, or to a distribution of `scipy.stats`. "
            f"Received: {received('space', space)}. Pass for example {SPACE}."
        )


def optuna(
    search: Any,
    path: Any,
    network: Callable[..., keras.Model],
    distributions: Mapping[str, Any],
    x: Any,
    y: Any = None,
    *,
    trials: int = 256,
    batch: int = 64,
    seeds: int | Iterable[int] = 1,
    by: str = "loss",
    **arguments: Any,
) -> Study:
    """Lets Optuna choose the trials of a study: asked for a batch, which is trained at once, and told the results.

    What the study holds already is told first, so that a search goes on where it was, in an Optuna study in memory.
    With more epochs those of before are trained on first; what a search has been told of them already, it keeps.
    Interrupted, it tells what of the batch is trained, and that the rest has failed; called again, it goes on.

    Args:
        search: An `optuna.Study`, whose sampler chooses.
        path: As for `kohort.Study`.
        network: Likewise.
        distributions: Parameter name to a distribution of `optuna.distributions`.
        x: As for `Study.run`.
        y: Likewise.
        trials: How many trials there are to be, with those of before.
        batch: How many are asked for at once.
        seeds: As for `kohort.Study`; the value of a trial is the median over its members.
        by: The metric whose last recorded value is told.
        **arguments: All other arguments of `Study.run`.

    Returns:
        The study, of which every trial and member is kept.

    Raises:
        ImportError: If Optuna is not installed.
        TypeError: If the search is no `optuna.Study`.
        ValueError: If the metric is unknown, or the search goes the other way than the metric gets better.
        Others: As `kohort.Study` and `Study.run`.

    Example:
        >>> import kohort, keras, optuna
        >>> def network(learning_rate):
        ...     model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        ...     model.compile(keras.optimizers.SGD(learning_rate), "mse")
        ...     return model
        >>> optuna.logging.set_verbosity(optuna.logging.WARNING)
        >>> rate = {"learning_rate": optuna.distributions.FloatDistribution(1e-3, 1.0, log=True)}
        >>> own = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
        >>> study = kohort.search.optuna(
        ...     own, "rates.kohort", network, rate, *kohort.data.xor(), trials=8, batch=4, epochs=5, verbose=0
        ... )
        >>> len(study.trials), len(own.trials)
        (8, 8)

    Source:
        https://optuna.readthedocs.io: the ask-and-tell interface.
    """
    package = optional("optuna", "kohort.search.optuna")
    if not isinstance(search, package.Study):
        raise TypeError(
            f"`search` must be an `optuna.Study`. Received: {received('search', search)}. "
            "Make one with `optuna.create_study()`."
        )
    if len(search.directions) > 1:
        raise ValueError(
            "`search` must go in one direction, that of the metric `by`. "
            f"Received: a search of {len(search.directions)} directions. Make one with `optuna.create_study()`."
        )
    check_integer("trials", trials, 1)
    check_integer("batch", batch, 1)
    _check_by(search, by, arguments)
    _check_distributions(package, distributions)
    own_seeds = set(check_seeds(seeds))
    begun = _begun(path, distributions)
    epochs = arguments.get("epochs", 1)
    half = [
        trial.parameters
        for trial in begun.values()
        if not own_seeds <= set(trial.seeds) or len(trial.history.epoch) < epochs
    ]
    study = Study(path, network, half, seeds) if half else None
    if study is not None:
        # An interrupted batch leaves some with a part of their members, and a shorter one all with fewer epochs.
        study.run(x, y, trials=half, **arguments)
        begun = _begun(path, distributions)
    _tell(package, search, [own for own in search.trials if own.state == _states(package).RUNNING], begun, by)
    _add(package, search, begun, distributions, by)
    # A trial may be asked for again, where there are few values: it is trained once, and counts each time.
    complete = [own for own in search.trials if own.state == _states(package).COMPLETE]
    done = max(len(begun), sum(canonical(own.params) in begun for own in complete))
    while done < trials:
        asked: list[Any] = []
        try:
            for _ in range(min(batch, trials - done)):
                asked.append(search.ask(dict(distributions)))
            parameters = [own.params for own in asked]
            study = study or Study(path, network, parameters, seeds)
            study.run(x, y, trials=parameters, **arguments)
        finally:  # whoever interrupts a batch goes on with what of it is trained, and waits for nothing else
            _end(package, search, asked, path, own_seeds, by)
        done += len(asked)
    return study or Study(path, network, [trial.parameters for trial in StoredStudy(path).trials], seeds)


def _check_by(search: Any, by: Any, arguments: Mapping[str, Any]) -> None:
    """Raises for what is known to be wrong before any model is there."""
    if by in ("loss", "val_loss") and search.direction.name == "MAXIMIZE":
        raise ValueError(
            f"`by` must be a metric of which more is better, as the search goes. Received: {received('by', by)}. "
            'Name such a metric of your models, or make the search with `direction="minimize"`.'
        )
    is_validated = arguments.get("validation_split") or arguments.get("validation_data") is not None
    if isinstance(by, str) and by.startswith("val_") and not is_validated:
        raise ValueError(
            f"`by` must be a metric that is recorded. Received: {received('by', by)}, where nothing validates. "
            "Pass `validation_split` or `validation_data`, or a metric of the training."
        )


def _check_distributions(package: Any, distributions: Any) -> None:
    kind = package.distributions.BaseDistribution
    own = list(distributions.values()) if isinstance(distributions, Mapping) else []
    if not own or not all(isinstance(each, kind) for each in own):
        raise TypeError(
            "`distributions` must map each parameter to a distribution of `optuna.distributions`. "
            f"Received: {received('distributions', distributions)}. "
            'Pass for example {"hidden": optuna.distributions.IntDistribution(2, 8)}.'
        )


def _begun(path: Any, distributions: Mapping[str, Any]) -> dict[str, Trial]:
    """Returns the trials of the search that have members, by their parameters."""
    kept = StoredStudy(path).trials if Store(path).exists else []
    own = [trial for trial in kept if len(trial) and set(trial.parameters) == set(distributions)]
    return {canonical(trial.parameters): trial for trial in own}


def _end(package: Any, search: Any, asked: Sequence[Any], path: Any, seeds: set[int], by: str) -> None:
    """Ends a batch: what is trained is told, and all else has failed, so that nothing is left running."""
    try:
        kept = _begun(path, asked[0].params) if asked else {}
        _tell(package, search, asked, {key: trial for key, trial in kept.items() if seeds <= set(trial.seeds)}, by)
    finally:
        for own in asked:
            search.tell(own.number, state=_states(package).FAIL, skip_if_finished=True)


def _tell(package: Any, search: Any, asked: Sequence[Any], kept: Mapping[str, Trial], by: str) -> None:
    """Tells those that were asked for and are trained."""
    for own in asked:
        trial = kept.get(canonical(own.params))
        if trial is not None:
            value = _value(search, trial, by)
            search.tell(own.number, **({"values": value} if math.isfinite(value) else {"state": _states(package).FAIL}))


def _add(package: Any, search: Any, kept: Mapping[str, Trial], distributions: Mapping[str, Any], by: str) -> None:
    """Adds to the search those trials that it does not know: what failed by an interrupt, it does not know either."""
    finished = [own for own in search.trials if own.state.is_finished()]
    has_failed = _states(package).FAIL
    told = {canonical(own.params) for own in finished if own.state != has_failed}
    failed = {canonical(own.params) for own in finished if own.state == has_failed}
    for key, trial in kept.items():
        own = _finished(package, search, trial, distributions, by)
        if key not in told and not (key in failed and own.state == has_failed):
            search.add_trial(own)


def _value(search: Any, trial: Trial, by: str) -> float:
    """Returns the median over the members of a trial; one that diverged is worse than any other."""
    history, direction = trial.history, trial.direction(by)
    goes = "up" if search.direction.name == "MAXIMIZE" else "down"
    if by not in history or direction != goes:
        known = ", ".join(name for name in history if trial.direction(name) == goes)
        raise ValueError(
            f"`by` must be a metric of which {'more' if goes == 'up' else 'less'} is better, as the search goes: "
            f"{known or '(none)'}. Received: {received('by', by)}. "
            "Pass one of these, or make the search with the other `direction`."
        )
    last = history.last(by)
    return float(np.median(np.where(np.isfinite(last), last, -np.inf if goes == "up" else np.inf)))


def _finished(package: Any, search: Any, trial: Trial, distributions: Mapping[str, Any], by: str) -> Any:
    """Returns a trial that was trained before as Optuna keeps it."""
    value = _value(search, trial, by)
    states = _states(package)
    ended: dict[str, Any] = {"value": value} if math.isfinite(value) else {"state": states.FAIL}
    try:
        return package.trial.create_trial(params=trial.parameters, distributions=dict(distributions), **ended)
    except ValueError as error:
        told = ", ".join(f"{name}={value!r}" for name, value in trial.parameters.items())
        raise ValueError(
            "`distributions` must hold the values of all trials that the study has, which the search is told. "
            f"Received: {received('distributions', distributions)}, and a trial with {told}. "
            "Widen them, or search under another path."
        ) from error


def _states(package: Any) -> Any:
    return package.trial.TrialState
