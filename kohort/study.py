"""`kohort.Study`: a function that makes networks, its parameters and seeds in, what each combination learns out.

Every combination is a trial, every trial a cohort; what is trained is in the store, block by block, and what is in the
store is not trained again. The room exists because the questions that people ask of small networks (how many units?
which activation? another layer?) are questions of counts, and because hours of training must outlive the process.
"""

import gc
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np

from kohort import plans, variants
from kohort.checks import Recipe, check_backend, check_data, check_integer, check_recipe, received
from kohort.cohort_callbacks import check_cohort_callbacks
from kohort.executors import Executor
from kohort.fit import check_model
from kohort.folds import check_beside_folds
from kohort.keras_parts import fresh_names
from kohort.membership import check_cloneable, check_compilable, check_exact, check_seeds
from kohort.plans import Fit
from kohort.runs import Run, Wanted
from kohort.store import Records, TrialRow, canonical
from kohort.template import preserved_generators
from kohort.trials import StoredStudy, Trial, having
from kohort.variants import Group


class Study(StoredStudy):
    """Which network learns this, how often and how fast: every combination of parameters, from many seeds.

    What is trained is kept in a folder, block by block, and is not trained again: a study that was interrupted, or
    killed, goes on where it was; one that is extended trains what is new. Trials that differ in numbers alone (a
    learning rate, a rate of dropout) share one compiled program.

    Args:
        path: The folder of the study; it is made when training begins. Its own folder must exist.
        network: Any function that returns a compiled Keras model; its arguments are the parameters.
        grid: Parameter name to a list of values: every combination is a trial. Or a list of dicts, the parameters of
            each trial, as `kohort.search` draws them. Values are numbers, texts, True, False, None, or lists of them.
            `{}` is one trial, with the defaults of the function.
        seeds: As for `kohort.Cohort`: the seeds that every trial is trained from.
        exact: As for `kohort.Cohort`.
        custom_objects: As for `kohort.open`.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If the place holds something else, the grid is an empty list or has a parameter without values, or
            the function does not take a parameter.
        RuntimeError: If Keras runs on another backend than JAX.

    Example:
        >>> import kohort, keras
        >>> def network(hidden=2, learning_rate=1e-2):
        ...     model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(hidden, "relu"), keras.layers.Dense(1)])
        ...     model.compile(keras.optimizers.RMSprop(learning_rate), "mse")
        ...     return model
        >>> study = kohort.Study("xor.kohort", network, {"hidden": [2, 4]}, seeds=40)
        >>> study.run(*kohort.data.xor(), epochs=500, verbose=0)
        >>> table = study.table(loss=0.01)
        >>> table["hidden"].tolist(), table["seeds"].tolist()
        ([2, 4], [40, 40])
        >>> study.compare({"hidden": 4}, {"hidden": 2}, loss=0.01).effect > 0
        True
        >>> study.extend(hidden=[8], verbose=0)
        >>> study
        Study('xor.kohort', 3 trials, 120 members)

    Source:
        The words trial and study are those of Optuna and KerasTuner.
    """

    def __init__(
        self,
        path: Any,
        network: Callable[..., keras.Model],
        grid: Any,
        seeds: int | Iterable[int] = 100,
        *,
        exact: bool = False,
        custom_objects: Mapping[str, Any] | None = None,
    ) -> None:
        """Checks the arguments; nothing is built or made yet."""
        check_backend("kohort.Study")
        super().__init__(path, custom_objects)
        self._network = plans.check_network(network)
        self._asked = plans.check_grid(network, grid)
        self._grid = {name: list(values) for name, values in grid.items()} if isinstance(grid, Mapping) else None
        self._seeds = check_seeds(seeds)
        self._exact = check_exact(exact)
        self._known: dict[str, tuple[dict, dict]] = {}  # canonical parameters -> parameters, description
        self._models: dict[str, keras.Model] = {}  # of those that are the first of their group
        self._last: tuple[Fit, dict] | None = None  # of the last run, for `extend`

    def trial(self, **parameters: Any) -> Trial:
        """Returns the one trial with these values of parameters; of several, the one with the defaults for all others.

        Args:
            **parameters: Name to value; as many as tell the trial apart, or all that are not the function's defaults.

        Returns:
            The trial.

        Raises:
            ValueError: If none has these values, or more than one has, and not exactly one of them all other defaults.

        Example:
            See `kohort.trials.Trial`.
        """
        defaults = {name: each.default for name, each in inspect.signature(self._network).parameters.items()}
        usual = [
            trial
            for trial in having(self.trials, parameters)
            if having([trial], {name: defaults.get(name, ...) for name in trial.parameters} | parameters)
        ]
        return usual[0] if len(usual) == 1 else super().trial(**parameters)

    def _records(self) -> Records:
        if not self.store.exists:
            raise RuntimeError(
                f"`study` must be run before it is asked. Received: a study at {self.path!r} that is not begun. "
                "Call `study.run(x, y, epochs=...)` first."
            )
        return super()._records()

    # --- training -----------------------------------------------------------------------------------------------------

    def run(
        self,
        x: Any,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: str | int = "auto",
        callbacks: Any = None,
        *,
        validation_split: float = 0.0,
        validation_data: Any = None,
        shuffle: bool | str = True,
        class_weight: dict[int, float] | None = None,
        sample_weight: Any = None,
        steps_per_epoch: int | None = None,
        validation_steps: int | None = None,
        validation_batch_size: int | None = None,
        validation_freq: int | list[int] = 1,
        bootstrap: bool = False,
        trials: Iterable[Mapping[str, Any]] | None = None,
        block_size: int | None = None,
        executor: Executor | None = None,
    ) -> None:
        """Trains what of the study is not trained yet; called again, it goes on where it was.

        Ctrl-C ends it at the next epoch. Whatever happens to the process, blocks that are finished are kept; the
        running ones are trained again next time. With more epochs than before, the members go on from where they are.

        Args:
            x: As in `Cohort.fit`, like all that is not named here.
            y: Likewise.
            batch_size: Likewise.
            epochs: The epoch that every member is to reach; where any is to be trained, none may be beyond it.
            verbose: 0 silent, 1 or "auto" one progress bar over all members, 2 one line per block.
            callbacks: `EarlyStopping`, `ReduceLROnPlateau`, `LearningRateScheduler` and `TerminateOnNaN`.
            validation_split: Likewise.
            validation_data: Likewise.
            shuffle: Likewise.
            class_weight: Likewise.
            sample_weight: Weights (sample,).
            steps_per_epoch: Likewise.
            validation_steps: Likewise.
            validation_batch_size: Likewise.
            validation_freq: Likewise.
            bootstrap: Likewise.
            trials: The parameters of those trials that are to be trained, which may be others than those of the grid.
            block_size: The most members that are trained, and kept, at once. Default: as many as take some seconds.
            executor: Who trains the blocks; see `kohort.executors`. Default: threads of this process.

        Raises:
            TypeError: If an argument is of the wrong type, or the network function returns no model.
            ValueError: If an argument does not fit, the model is not compiled, or the arguments, the data or the models
                are not those with which the study was begun.
            BlockingIOError: If another process is training the study.
            OSError: If the place cannot be written, or the disk is full; what is there is whole.
        """
        recipe = Recipe(
            batch_size, epochs, validation_split, shuffle, class_weight, 0, steps_per_epoch, validation_steps,
            validation_batch_size, validation_freq,
        )  # fmt: skip
        fit = Fit(x, y, sample_weight, validation_data, callbacks, bootstrap, recipe)
        options = {"verbose": verbose, "block_size": block_size, "executor": executor}
        asked = self._asked if trials is None else plans.check_grid(self._network, list(trials))
        self._train([(parameters, self._seeds) for parameters in asked], fit, **options)
        self._last = fit, options

    def extend(self, seeds: int | Iterable[int] | None = None, verbose: Any = None, **values: Any) -> None:
        """Adds seeds, or values of parameters, and trains what is new, as the last run of this object was.

        Args:
            seeds: All seeds that the trials are to have, as in `kohort.Study`; those of before stay.
            verbose: As in `run`. Default: as in the last one.
            **values: Parameter name to more values of it: they are combined with all others.

        Raises:
            RuntimeError: If this object has not been run, so that there are no data.
            TypeError, ValueError: As `kohort.Study` and `run`.
        """
        if self._last is None:
            raise RuntimeError(
                "`study.extend` must come after `study.run`, whose data and arguments it takes. Received: a study that "
                "was not run in this process. Make it with the longer grid or more seeds, and call `run`."
            )
        if values and self._grid is None:
            raise ValueError(
                "`extend` must be given more seeds only where the trials are a list. "
                f"Received: {received('values', values)}. Make the study with a longer list, and call `run`."
            )
        own_seeds = self._seeds if seeds is None else tuple(dict.fromkeys([*self._seeds, *check_seeds(seeds)]))
        asked, grid = self._asked, dict(self._grid or {})
        for name, more in values.items():
            added = plans.check_grid(self._network, {**{n: v[:1] for n, v in grid.items()}, name: more})
            grid[name] = [*grid.get(name, []), *(trial[name] for trial in added)]
        if values:
            asked = plans.check_grid(self._network, grid)
        fit, options = self._last
        given = {} if verbose is None else {"verbose": verbose}
        self._train([(parameters, own_seeds) for parameters in asked], fit, **{**options, **given})
        self._asked, self._seeds, self._grid = asked, own_seeds, grid if self._grid is not None else None

    def halve(
        self,
        x: Any,
        y: Any = None,
        *,
        epochs: int,
        by: str = "loss",
        factor: int = 3,
        rungs: int = 3,
        verbose: str | int = "auto",
        **arguments: Any,
    ) -> None:
        """Trains all members for a few epochs, the best of them for more, and the best of those to the end.

        Members of all trials and seeds are ranked together; those that go on are packed into full blocks again. Who was
        left is kept with what it reached, and counts as stopped early; who diverged goes no further, so that there may
        be no further rung.

        Args:
            x: As in `run`.
            y: Likewise.
            epochs: The epoch that the last of them reach.
            by: The metric by whose last recorded value members are ranked.
            factor: One in so many goes on from each rung, with so many times the epochs.
            rungs: How many rungs there are, the last one among them.
            verbose: As in `run`.
            **arguments: All other arguments of `run`, but callbacks and trials.

        Raises:
            As `run`; also a ValueError if the metric is unknown, or Keras does not know whether more of it is better,
            and a TypeError if `run` has no such argument.

        Source:
            Jamieson and Talwalkar, Non-stochastic best arm identification (2016).
        """
        check_integer("epochs", epochs, 1)
        check_integer("factor", factor, 2)
        check_integer("rungs", rungs, 1)
        arguments = _halved(arguments)
        wanted: Wanted = [(parameters, self._seeds) for parameters in self._asked]
        for reached in plans.rung_epochs(epochs, factor, rungs):
            recipe, rest = _recipe_of({**arguments, "epochs": reached})
            data = x, y, rest.pop("sample_weight", None), rest.pop("validation_data", None)
            fit = Fit(*data, None, rest.pop("bootstrap", False), recipe, last=epochs)
            self._train(wanted, fit, verbose=verbose, **rest)
            wanted = self._best(wanted, by, reached, 1 / factor) if reached < epochs else []
            if not wanted:  # to the end, or until all have diverged
                break

    def _best(self, wanted: Wanted, by: str, epochs: int, share: float) -> Wanted:
        trials = {canonical(trial.parameters): trial for trial in self.trials}
        own = [(trials[canonical(parameters)], seeds) for parameters, seeds in wanted]
        histories, direction = [trial.history for trial, _ in own], own[0][0].direction(by)
        if not direction or any(by not in history for history in histories):
            known = [name for name in histories[0] if own[0][0].direction(name)]
            raise ValueError(
                "`by` must be a metric of the history of which Keras knows whether more is better: "
                f"{', '.join(known)}. Received: {received('by', by)}. Pass one of these."
            )
        best = plans.survivors(histories, [seeds for _, seeds in own], by, direction, epochs, share)
        return [(trial.parameters, seeds) for (trial, _), seeds in zip(own, best, strict=True) if seeds]

    def _train(
        self,
        wanted: Wanted,
        fit: Fit,
        verbose: str | int = "auto",
        block_size: int | None = None,
        executor: Executor | None = None,
    ) -> None:
        """Trains those of the wanted members that have not reached the epochs of the fit."""
        check_recipe(fit.recipe, verbose)
        plans.check_member_callbacks(fit.callbacks)
        if block_size is not None:
            check_integer("block_size", block_size, 1)
        groups = self._groups([parameters for parameters, _ in wanted], fit)
        about = {**fit.described(), "exact": self._exact}
        with self.store.writer() as writer:
            if writer.records.about:
                plans.check_same_fit(self.path, writer.records.about, about)
            self._check_networks(writer.records.trials.values())
            plans.check_reached(fit, wanted, writer.records)
            specifications = [(parameters, self._known[canonical(parameters)][1]) for parameters, _ in wanted]
            writer.declare(about, specifications)
            Run(writer, fit, self._exact, groups, self._keys, wanted).train(block_size, executor, verbose)

    def _check_networks(self, rows: Iterable[TrialRow]) -> None:
        for row in rows:
            known = self._known.get(canonical(row.parameters))
            if known is not None:
                before = {"loss_arguments": known[1]["loss_arguments"], **row.specification}  # earlier ones hold none
                found = next(variants.differences(before, known[1]), None)
                plans.check_same_network(self.path, row.parameters, found)

    @property
    def _keys(self) -> list[str]:
        """The parameters of all trials whose models are known, in the order of their numbers in groups."""
        return list(self._known)

    def _groups(self, asked: list[dict], fit: Fit) -> list[Group]:
        """Returns the groups of all known trials, once the models of those that are asked for are built and checked."""
        models = dict(self._models)
        with _garbage_of_before_left():
            for parameters in asked:
                key = canonical(parameters)
                if key not in self._known:
                    model = self._built(parameters, fit)
                    models[key], self._known[key] = model, (parameters, variants.description_of(model))
        places = range(len(self._known))
        descriptions = [description for _, description in self._known.values()]
        groups = variants.grouped(places, [models.get(key) for key in self._known], descriptions)
        keys = self._keys
        self._models = {keys[group.trials[0]]: group.model for group in groups}
        return groups

    def _built(self, parameters: dict, fit: Fit) -> keras.Model:
        """Builds the model of a trial, and checks it with the data."""
        named = ", ".join(f"{name}={value!r}" for name, value in parameters.items())
        with preserved_generators(), fresh_names():
            try:
                model = self._network(**parameters)
            except BaseException as error:
                error.add_note(f"`network` raised this for {named or 'no parameters'}.")
                raise
        if not isinstance(model, keras.Model):
            raise TypeError(
                f"`network` must return a compiled Keras model. Received: {received('network', model)} of type "
                f"{type(model).__name__}, for {named or 'no parameters'}. End it with `return model`."
            )
        if not model.compiled:
            raise ValueError(
                f"`network` must return a compiled Keras model. Received: model={model.name!r}, which is not compiled, "
                f"for {named or 'no parameters'}. Call `model.compile(optimizer=..., loss=...)` in it."
            )
        check_model(model)
        check_cloneable(model)
        check_compilable(model, fit.x, fit.y, fit.sample_weight, fit.validation_data)
        if fit.sample_weight is not None and np.ndim(fit.sample_weight) != 1:
            raise ValueError(
                "`sample_weight` must be of shape (sample,), the same for all members of a study. "
                f"Received: {received('sample_weight', fit.sample_weight)}. Use a `kohort.Cohort` for others."
            )
        check_data(model, fit.x, fit.y, fit.sample_weight, fit.validation_data, fit.recipe)
        check_beside_folds(None, None, fit.bootstrap, fit.validation_data, fit.recipe)
        check_cohort_callbacks(fit.callbacks, model)
        return model


@contextmanager
def _garbage_of_before_left() -> Iterator[None]:
    """Exempts from garbage collection what there is already, all of JAX and Keras: to look at that takes 0.3 s a time.

    To build a hundred models takes a second, and makes enough objects for one or two such looks.
    """
    if gc.get_freeze_count():  # somebody does so already, and would lose it
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


# What `halve` does not take of the arguments of `run`: why, and what to do.
NOT_HALVED = {
    "callbacks": ("a fit that is cut into rungs begins them anew in each", "Leave them out, or use `run`"),
    "trials": ("members of all trials are ranked together", "Make a study of these trials, or use `run`"),
}


def _halved(arguments: dict[str, Any]) -> dict[str, Any]:
    """Returns those arguments that a halving trains with, or raises where one is not its own."""
    own = [name for name in inspect.signature(Study.run).parameters if name not in ("self", "x", "y", *NOT_HALVED)]
    for name, value in arguments.items():
        if name in NOT_HALVED and value is not None:
            why, step = NOT_HALVED[name]
            raise ValueError(f"`{name}` must be left out, because {why}. Received: {received(name, value)}. {step}.")
        if name not in own and name not in NOT_HALVED:
            raise TypeError(
                f"`arguments` must be some of those of `run`: {', '.join(own)}. Received: {received(name, value)}. "
                "Leave it out, or look at its name."
            )
    return {name: value for name, value in arguments.items() if name in own}


def _recipe_of(arguments: dict[str, Any]) -> tuple[Recipe, dict[str, Any]]:
    """Returns the recipe that is among these arguments, and the others."""
    own = {name: arguments[name] for name in Recipe._fields if name in arguments}
    return Recipe(**own), {name: value for name, value in arguments.items() if name not in own}
