"""`kohort.Cohort`: one compiled Keras model and many seeds in, as many trained networks out.

The member with seed `s` is what Keras gives after `keras.utils.set_random_seed(s)`, `keras.models.clone_model(model)`,
the same `compile` and the same `fit`. The room exists because one run of a small network says nothing, and a thousand
of them fit into one program.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import keras
import numpy as np

from kohort import notebook, saving
from kohort.checks import Recipe, check_backend, check_data, check_features, check_recipe, check_targets
from kohort.choice import check_mapping, check_memory
from kohort.cohort_callbacks import Listeners, check_cohort_callbacks
from kohort.data import inputs, inputs_of_share, pass_cut, samples
from kohort.ensemble import Aggregate, aggregated, check_aggregate
from kohort.fit import check_model
from kohort.folds import HeldOut, Split, check_beside_folds, own_weights, shares_of, sizes_of, splits_of
from kohort.history import CohortHistory
from kohort.members import Members, Settings, members_of
from kohort.membership import (
    check_cloneable,
    check_compilable,
    check_exact,
    check_members,
    check_seeds,
    warn_of_fixed_seeds,
)
from kohort.progress import told
from kohort.results import Results
from kohort.roster import crossed
from kohort.rounds import Rounds
from kohort.template import Template
from kohort.vary import check_vary


class Cohort(Results):
    """Many networks of one architecture and one recipe, each begun from its own seed, trained together.

    Args:
        model: A built, compiled sequential or functional Keras model. It is cloned, never changed.
        seeds: An integer n for the seeds 0 to n-1, or the seeds themselves, each from 0 to 2**32 - 1.
        vary: What differs beside the seed: the dotted path of a number that a layer, regularizer, constraint, loss or
            the optimizer holds, to its values, one per seed. A path begins with "optimizer", "loss" or a layer's name:
            "optimizer.learning_rate", "dropout.rate", "dense.kernel_regularizer.l2", "loss.delta". Numbers that shape
            the network, such as units, make another cohort.
        grid: True makes a member of every combination of values with every seed; the seeds change fastest.
        exact: False trains the members of a block in one vectorised program: initial state, dropout state and batches
            are Keras's bit for bit (on a CPU), trained weights to rounding. An optimizer can amplify rounding: over
            hundreds of epochs a tenth of the members or more may come to differ visibly. True trains each by itself:
            then all is bit for bit Keras's, on a CPU.
        mapping: How the program of one member becomes that of many: "abreast" (side by side in each operation, for
            small networks), "vectorized" (`jax.vmap`), "loop" (one after the other) or "sharded" (`jax.vmap`, spread
            over all devices). "auto" chooses by rule, and in a long fit by a short measurement, which is remembered.
            They differ in rounding.
        memory: The most bytes that training may take, or a text such as "2GB"; by default half of what is free. Blocks
            of members are made so narrow that they keep to it.

    Raises:
        TypeError: If the model is not Keras's or the seeds are not integers.
        ValueError: If the model is not compiled, not built or not cloneable, seeds are out of range or repeated, or
            what shall vary is no number of the model, or has too few or wrong values.
        RuntimeError: If Keras runs on another backend than JAX.

    Example:
        >>> import kohort, keras
        >>> x, y = kohort.data.xor()
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(4, "relu"), keras.layers.Dense(1)])
        >>> model.compile(optimizer=keras.optimizers.RMSprop(1e-2), loss="mse")
        >>> cohort = kohort.Cohort(model, seeds=16)
        >>> history = cohort.fit(x, y, epochs=500, verbose=0)
        >>> history["loss"].shape, cohort.predict(x).shape
        ((16, 500), (16, 4, 1))
        >>> sweep = kohort.Cohort(model, 8, vary={"optimizer.learning_rate": [1e-3, 1e-2]}, grid=True)
        >>> len(sweep), {name: column[7:10].tolist() for name, column in sweep.parameters.items()}
        (16, {'seed': [7, 0, 1], 'optimizer.learning_rate': [0.001, 0.01, 0.01]})

    Source:
        `keras.models.clone_model` and `keras.utils.set_random_seed` define a member; `jax.vmap`, or for the smallest
        networks `kohort.abreast`, maps the training over them.
    """

    def __init__(
        self,
        model: keras.Model,
        seeds: int | Iterable[int],
        *,
        vary: Mapping[str, Any] | None = None,
        grid: bool = False,
        exact: bool = False,
        mapping: Any = "auto",
        memory: Any = None,
    ) -> None:
        """Clones the model; nothing is trained yet."""
        check_backend("kohort.Cohort")
        check_model(model)
        check_cloneable(model)
        own_seeds = check_seeds(seeds)
        varied = check_vary(model, vary, len(own_seeds), grid)
        self.exact = check_exact(exact)
        settings = Settings(self.exact, check_mapping(mapping, self.exact), check_memory(memory))
        warn_of_fixed_seeds(model)
        self.stop_training = False
        if grid:
            check_members(len(own_seeds), varied)
            own_seeds, varied = crossed(own_seeds, varied)
        self._members = self._without_folds = members_of(model, own_seeds, varied, settings)
        self._held_out = HeldOut()  # by the last fit

    @classmethod
    def of_members(cls, members: Members) -> "Cohort":
        """Makes a cohort of members that somebody else has put together, for kohort's own use."""
        cohort = cls.__new__(cls)
        cohort.exact, cohort.stop_training = members.exact, False
        cohort._members, cohort._without_folds = members, members.single or members
        cohort._held_out = HeldOut()
        return cohort

    @property
    def parameters(self) -> dict[str, np.ndarray]:
        """The table of the members: "seed" and what else names them, each an array (member,).

        `pandas.DataFrame(cohort.parameters)` shows it as a table.
        """
        return self._members.roster.parameters

    @property
    def input_shape(self) -> Any:
        """The shape of what the members take, None for samples, as `keras.Model.input_shape`: (None, 2) for points."""
        return self._template.network.input_shape

    @property
    def output_shape(self) -> Any:
        """The shape of what the members answer, likewise: (None, 1) for one number a sample."""
        return self._template.network.output_shape

    def __len__(self) -> int:
        """Returns the number of members."""
        return len(self.seeds)

    def __repr__(self) -> str:
        """Says what the cohort is and how far it is trained."""
        epochs = f"{len(self.history.epoch)} epochs in the last fit" if self._members.trained else "not trained"
        return f"Cohort({self._template.network.name!r}, {len(self)} members, {epochs})"

    def _repr_html_(self) -> str:
        """Shows in a notebook what the cohort is, and the curves of its last fit."""
        trained = self._members.trained
        return notebook.section(repr(self), trained.history if trained else {})

    @property
    def history(self) -> CohortHistory:
        """The metrics of the last fit: a mapping from metric name to array (member, epoch)."""
        return self._members.need_training("history").history

    def fit(
        self,
        x: Any = None,
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
        initial_epoch: int = 0,
        steps_per_epoch: int | None = None,
        validation_steps: int | None = None,
        validation_batch_size: int | None = None,
        validation_freq: int | list[int] = 1,
        folds: Any = None,
        groups: Any = None,
        bootstrap: bool = False,
    ) -> CohortHistory:
        """Trains every member as `model.fit` would; called again, it goes on from where they are.

        Interrupted by Ctrl-C, it leaves every member at the end of the same finished epoch, or where it had stopped.

        Keras's `EarlyStopping`, `ReduceLROnPlateau`, `LearningRateScheduler` and `TerminateOnNaN` act on each member by
        itself, inside the program, as they would in its own `model.fit`; they print nothing. Other callbacks see all
        members between epochs: their logs are arrays (member,), NaN where a member has stopped, and their `model` is
        the cohort, whose `stop_training = True` stops all. They cost a return to Python after each epoch.

        With folds, each member is trained once for each: the first fit makes of every member as many as there are
        folds, next to each other, of the same seed (`cohort.parameters["fold"]`). Each trains and validates on the rows
        of its fold, as a `model.fit` on those rows does; all share one copy of the data.

        Args:
            x: Samples, an array (sample, ...) or a structure of them; shared by all members.
            y: Targets, likewise.
            batch_size: Samples per step; 32 if not given.
            epochs: The epoch to stop after.
            verbose: 0 silent, 1 or "auto" one progress bar with the median of each metric (in a file, a line now and
                then), 2 one line per epoch.
            callbacks: Keras callbacks that act at epochs: one, or a list of them.
            validation_split: Share of the last rows that validate, in [0, 1).
            validation_data: Tuple (x, y) or (x, y, sample_weight).
            shuffle: As in `kohort.fit`; each member has its own order.
            class_weight: Class number to weight.
            sample_weight: Weights (sample,), or each member's own: (member, sample).
            initial_epoch: Number of the first epoch.
            steps_per_epoch: Steps of one epoch.
            validation_steps: Steps of one validation.
            validation_batch_size: Samples per validation step.
            validation_freq: Validate every so many epochs, or after the epochs of a list (counted from 1).
            folds: As scikit-learn's `cv`: a number of folds (`KFold`; `StratifiedKFold` where the loss is a
                crossentropy of classes), a splitter, or a list of pairs (rows to train on, rows to validate on).
            groups: The group of each sample, for splitters that take it.
            bootstrap: Whether each member trains on as many rows as there are, drawn with replacement by
                `sklearn.utils.resample(rows, random_state=seed)`.

        Returns:
            The history: a mapping from metric name to array (member, epoch), NaN after a member's stop; `outcome` and
            `stopped_epoch` say why and when. Also kept as `cohort.history`.

        Raises:
            TypeError: If an argument or array is of the wrong type, the data is a stream, or a callback is none.
            ValueError: If an argument or array does not fit. The members are left as they were.

        Example:
            >>> import kohort, keras
            >>> x, y = kohort.data.xor()
            >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(4, "relu"), keras.layers.Dense(1)])
            >>> model.compile(optimizer="rmsprop", loss="mse")
            >>> kohort.Cohort(model, seeds=[3, 7, 9]).fit(x, y, epochs=10, verbose=0)
            CohortHistory(3 members, 10 epochs: loss)
            >>> kohort.Cohort(model, seeds=[3, 7, 9]).fit(x, y, epochs=10, folds=2, verbose=0)
            CohortHistory(6 members, 10 epochs: loss, val_loss)

        Source:
            `keras.Model.fit`, whose arguments and meaning are kept; folds are those of scikit-learn.
        """
        recipe = Recipe(
            batch_size, epochs, validation_split, shuffle, class_weight, initial_epoch, steps_per_epoch,
            validation_steps, validation_batch_size, validation_freq,
        )  # fmt: skip
        check_recipe(recipe, verbose)
        network = self._template.network
        check_compilable(network, x, y, sample_weight, validation_data)
        check_beside_folds(folds, groups, bootstrap, validation_data, recipe)
        weights = own_weights(sample_weight, x, len(self), recipe, validation_data)
        check_data(network, x, y, sample_weight if weights is None else weights.T, validation_data, recipe)
        splits = None if folds is None else splits_of(network, folds, x, y, groups)
        members = self._members
        if members.trained is None:  # as long as none is trained, each is made as many as there are folds
            members = self._without_folds.crossed_with(sizes_of(splits)) if splits else self._without_folds
        members.check_folds(splits, folds)
        listed = check_cohort_callbacks(callbacks, network)
        data = inputs(network, x, y, sample_weight if weights is None else weights[0], validation_data, recipe)
        shares = shares_of(members.seeds, data.training.rows, splits, bootstrap, weights)
        own_rows = shares.sizes(0)[0]
        cut = data.cut if own_rows is None else inputs_of_share(data, own_rows, None, recipe, 1).cut
        steps = steps_per_epoch or cut.full + bool(cut.partial)
        listeners = Listeners(listed, self, {"epochs": epochs, "steps": steps, "verbose": verbose})
        rounds = Rounds(members, data, recipe, verbose, listeners, listed, shares)
        return self._train(rounds, splits)

    def _train(self, rounds: Rounds, splits: list[Split] | None) -> CohortHistory:
        """Runs the rounds; where no epoch came to its end, all is left as it was."""
        members, recipe = rounds.members, rounds.recipe
        kept, before = (self._members, self._held_out), members.trained

        def last_epoch() -> int | None:
            after = members.trained
            finished = [] if after is None or after is before else after.history.epoch
            return finished[-1] + 1 if len(finished) else None

        is_over = False
        rounds.progress.begin(recipe.initial_epoch)
        try:
            rounds.prepare()
            before = members.trained  # in blocks for which there is room
            self._members, self._held_out = members, HeldOut(splits, rounds.ahead.shares).after(before and kept[1])
            history = rounds.train()
            is_over = True
            return history
        except KeyboardInterrupt as error:
            raise told(error, "each member", last_epoch(), recipe.epochs) from None
        finally:
            rounds.progress.finish()
            if not is_over and last_epoch() is None:
                members.trained = before
                self._members, self._held_out = kept

    @property
    def _template(self) -> Template:
        return self._members.templates[0]

    def _of_members(self, program: Literal["predict", "evaluate"], cut: Any, batch: Any) -> Any:
        """Runs a program of all members' networks, and returns what it gives: leading axis member."""
        members, trained = self._members, self._members.need_training(program)
        results = [
            getattr(members.template(block).programs, program)(cut, members=not self.exact)(state, batch)
            for block, state in zip(members.blocks, trained.states, strict=True)
        ]
        return members.join(results)

    def predict(
        self, x: Any, batch_size: int | None = None, verbose: str | int = 0, *, aggregate: Aggregate | None = None
    ) -> Any:
        """Returns the outputs of every member, or what they say on average and how far they differ.

        Args:
            x: Samples, an array (sample, ...) or a structure of them.
            batch_size: Samples per step; 32 if not given.
            verbose: Taken for likeness with Keras; nothing is shown.
            aggregate: "mean" or "std" of the members, at each sample: of the probabilities, where the loss takes logits
                (`from_logits=True`). Members whose outputs are not all finite do not count.

        Returns:
            Array (member, sample, ...), or the model's structure of them; without the first axis if aggregated.

        Raises:
            RuntimeError: If the cohort is not trained.
            TypeError: If `x` is not an array.
            ValueError: If `x` does not fit the model, or no member counts.

        Example:
            >>> import kohort, keras
            >>> x, y = kohort.data.xor()
            >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
            >>> model.compile(loss="mse")
            >>> cohort = kohort.Cohort(model, seeds=8)
            >>> history = cohort.fit(x, y, verbose=0)
            >>> cohort.predict(x).shape, cohort.predict(x, aggregate="std").shape
            ((8, 4, 1), (4, 1))

        Source:
            `keras.Model.predict`.
        """
        self._members.need_training("predict")
        check_aggregate(aggregate)
        checked = samples(x)
        check_features(self._template.network, x)
        outputs = self._of_members("predict", _prediction_cut(checked.rows, batch_size), checked.batch)
        return outputs if aggregate is None else aggregated(outputs, aggregate, self._template.network)

    def predict_out_of_fold(self, x: Any, batch_size: int | None = None) -> Any:
        """Returns what the members say of samples that they have not trained on.

        Args:
            x: The samples of the last fit, in the same order.
            batch_size: Samples per step; 32 if not given.

        Returns:
            After a fit with folds an array (member, sample, ...), in which the members of all folds have become one:
            each sample's output is that of the member in whose fold it was held out. After one with `bootstrap=True` an
            array (member, sample, ...) with NaN where the member has trained on the sample. Or the model's structure of
            them.

        Raises:
            RuntimeError: If the last fit had neither, one before left out other rows, or a sample is held out not once.
            TypeError: If `x` is not an array.
            ValueError: If `x` does not fit the model or the last fit.

        Example:
            >>> import kohort, keras
            >>> x, y = kohort.data.moons(100)
            >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, "sigmoid")])
            >>> model.compile(loss="binary_crossentropy")
            >>> cohort = kohort.Cohort(model, seeds=3)
            >>> history = cohort.fit(x, y, folds=5, verbose=0)
            >>> len(cohort), cohort.predict_out_of_fold(x).shape
            (15, (3, 100, 1))

        Source:
            `sklearn.model_selection.cross_val_predict`; out-of-bag samples: Breiman (1996).
        """
        self._members.need_training("predict_out_of_fold")
        picker = self._held_out.picker(x)
        return keras.tree.map_structure(picker, self.predict(x, batch_size))

    def evaluate(
        self, x: Any, y: Any = None, batch_size: int | None = None, verbose: str | int = 0, sample_weight: Any = None
    ) -> dict[str, np.ndarray]:
        """Returns loss and metrics of every member on the samples.

        Args:
            x: Samples, an array (sample, ...) or a structure of them.
            y: Targets, likewise.
            batch_size: Samples per step; 32 if not given.
            verbose: Taken for likeness with Keras; nothing is shown.
            sample_weight: Weights (sample,).

        Returns:
            Metric name to array (member,).

        Raises:
            RuntimeError: If the cohort is not trained.
            TypeError: If something is not an array.
            ValueError: If the arrays do not fit each other or the model.

        Example:
            >>> import kohort, keras
            >>> x, y = kohort.data.xor()
            >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
            >>> model.compile(loss="mse")
            >>> cohort = kohort.Cohort(model, seeds=8)
            >>> history = cohort.fit(x, y, verbose=0)
            >>> {metric: values.shape for metric, values in cohort.evaluate(x, y).items()}
            {'loss': (8,)}

        Source:
            `keras.Model.evaluate` with `return_dict=True`.
        """
        self._members.need_training("evaluate")
        checked = samples(x, y, sample_weight)
        check_features(self._template.network, x)
        check_targets(self._template.network, y)
        logs = self._of_members("evaluate", _prediction_cut(checked.rows, batch_size), checked.batch)
        return dict(sorted(logs.items()))

    def member(self, seed: int | None = None, *, index: int | None = None, **parameters: Any) -> keras.Model:
        """Returns one trained network: a plain, compiled Keras model of its own, ready to save.

        Args:
            seed: One of `cohort.seeds`.
            index: The number of a member, from 0 on, instead of all else.
            **parameters: What else names the member where a seed alone does not: the value of a varied number by its
                path, as in `cohort.member(3, **{"optimizer.learning_rate": 1e-3})`. See `cohort.parameters`.

        Returns:
            A `keras.Model` with the member's values, weights, optimizer state and metrics.

        Raises:
            RuntimeError: If the cohort is not trained.
            ValueError: If no member is named so, or more than one.

        Example:
            >>> import kohort, keras
            >>> x, y = kohort.data.xor()
            >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
            >>> model.compile(loss="mse")
            >>> cohort = kohort.Cohort(model, seeds=[3, 17])
            >>> history = cohort.fit(x, y, verbose=0)
            >>> cohort.member(17).predict(x, verbose=0).shape
            (4, 1)

        Source:
            `keras.models.clone_model`.
        """
        trained = self._members.need_training("member")
        return self._members.network(trained, self._members.roster.find(seed, index, **parameters))

    @classmethod
    def load(cls, path: Any, custom_objects: Mapping[str, Any] | None = None) -> "Cohort":
        """Makes the cohort again that `save` put in a file; a further `fit` goes on where it stopped.

        A file is data: nothing in it is executed. It is read only if it is whole, and its model is built only of
        Keras's own parts and of those that you name.

        Args:
            path: The file.
            custom_objects: Name to class or function, for those of your own that are not registered with Keras.

        Returns:
            The cohort, trained as far as it was.

        Raises:
            OSError: If the file cannot be read.
            RuntimeError: If Keras runs on another backend than JAX.
            TypeError: If `path` is no path.
            ValueError: If the file is damaged, not of kohort, of a newer version, or needs a class that nobody named.

        Example:
            >>> import kohort, keras
            >>> x, y = kohort.data.xor()
            >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
            >>> model.compile(loss="mse")
            >>> cohort = kohort.Cohort(model, seeds=[3, 17], exact=True)
            >>> history = cohort.fit(x, y, epochs=5, verbose=0)
            >>> cohort.save("xor.kohort")
            >>> further = kohort.Cohort.load("xor.kohort").fit(x, y, epochs=5, verbose=0)
            >>> bool((further["loss"] == cohort.fit(x, y, epochs=5, verbose=0)["loss"]).all())
            True

        Source:
            `keras.saving.deserialize_keras_object`, always in safe mode.
        """
        check_backend("kohort.Cohort")
        return cls.of_kept(saving.load(path, custom_objects))

    @classmethod
    def of_kept(cls, kept: saving.Kept) -> "Cohort":
        """Makes a cohort of what a file or a study held, for kohort's own use."""
        cohort = cls.of_members(kept.members)
        cohort._held_out = kept.held_out
        return cohort


def _prediction_cut(rows: int, batch_size: int | None) -> Any:
    check_recipe(Recipe(batch_size=batch_size))
    return pass_cut(rows, batch_size)
