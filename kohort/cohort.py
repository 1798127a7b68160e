"""`kohort.Cohort`: one compiled Keras model and many seeds in, as many trained networks out.

The member with seed `s` is what Keras gives after `keras.utils.set_random_seed(s)`, `keras.models.clone_model(model)`,
the same `compile` and the same `fit`. The room exists because one run of a small network says nothing, and a thousand
of them fit into one program.
"""

import numbers
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from kohort import keras_internals, notebook
from kohort.checks import Recipe, check_backend, check_data, check_features, check_recipe, check_targets, received
from kohort.data import inputs, pass_cut, samples
from kohort.fit import check_model
from kohort.history import CohortHistory, Criterion, SuccessRate, solved, success_rate
from kohort.members import Members, Rounds, Trained
from kohort.membership import check_cloneable, check_compilable, check_exact, check_seeds, shown, warn_of_fixed_seeds
from kohort.template import Template, template_of


class Cohort:
    """Many networks of one architecture and one recipe, each begun from its own seed, trained together.

    Args:
        model: A built, compiled sequential or functional Keras model. It is cloned, never changed.
        seeds: An integer n for the seeds 0 to n-1, or the seeds themselves, each from 0 to 2**32 - 1.
        exact: False trains the members of a block in one vectorised program: initial state, dropout state and batches
            are Keras's bit for bit, trained weights to rounding. An optimizer can amplify rounding: over hundreds
            of epochs a tenth of the members or more may come to differ visibly. True trains each by itself: then all
            is bit for bit Keras's.

    Raises:
        TypeError: If the model is not Keras's or the seeds are not integers.
        ValueError: If the model is not compiled, not built or not cloneable, or seeds are out of range or repeated.
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

    Source:
        `keras.models.clone_model` and `keras.utils.set_random_seed` define a member; `jax.vmap` maps the training over
        them.
    """

    def __init__(self, model: keras.Model, seeds: int | Iterable[int], *, exact: bool = False) -> None:
        """Clones the model; nothing is trained yet."""
        check_backend("kohort.Cohort")
        check_model(model)
        check_cloneable(model)
        self.seeds = check_seeds(seeds)
        self.exact = check_exact(exact)
        warn_of_fixed_seeds(model)
        self._members = Members(template_of(model), self.seeds, exact)

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
        return self._need_training("history").history

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: str | int = "auto",
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
    ) -> CohortHistory:
        """Trains every member as `model.fit` would; called again, it goes on from where they are.

        Interrupted by Ctrl-C, it leaves every member at the end of the same finished epoch.

        Args:
            x: Samples, an array (sample, ...) or a structure of them; shared by all members.
            y: Targets, likewise.
            batch_size: Samples per step; 32 if not given.
            epochs: The epoch to stop after.
            verbose: 0 silent, 1 or "auto" one progress bar with the median of each metric, 2 one line per epoch.
            validation_split: Share of the last rows that validate, in [0, 1).
            validation_data: Tuple (x, y) or (x, y, sample_weight).
            shuffle: As in `kohort.fit`; each member has its own order.
            class_weight: Class number to weight.
            sample_weight: Weights (sample,).
            initial_epoch: Number of the first epoch.
            steps_per_epoch: Steps of one epoch.
            validation_steps: Steps of one validation.
            validation_batch_size: Samples per validation step.
            validation_freq: Validate every so many epochs, or after the epochs of a list (counted from 1).

        Returns:
            The history: a mapping from metric name to array (member, epoch). Also kept as `cohort.history`.

        Raises:
            TypeError: If an argument or array is of the wrong type, or the data is a stream.
            ValueError: If an argument or array does not fit. The members are left as they were.

        Example:
            >>> import kohort, keras
            >>> x, y = kohort.data.xor()
            >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(4, "relu"), keras.layers.Dense(1)])
            >>> model.compile(optimizer="rmsprop", loss="mse")
            >>> kohort.Cohort(model, seeds=[3, 7, 9]).fit(x, y, epochs=10, verbose=0)
            CohortHistory(3 members, 10 epochs: loss)

        Source:
            `keras.Model.fit`, whose arguments and meaning are kept.
        """
        recipe = Recipe(
            batch_size, epochs, validation_split, shuffle, class_weight, initial_epoch, steps_per_epoch,
            validation_steps, validation_batch_size, validation_freq,
        )  # fmt: skip
        check_recipe(recipe, verbose)
        network = self._template.network
        check_compilable(network, x, y, sample_weight, validation_data)
        check_data(network, x, y, sample_weight, validation_data, recipe)
        data = inputs(network, x, y, sample_weight, validation_data, recipe)
        return Rounds(self._members, data, recipe, verbose).train()

    @property
    def _template(self) -> Template:
        return self._members.template

    def predict(self, x: Any, batch_size: int | None = None, verbose: str | int = 0) -> Any:
        """Returns the outputs of every member.

        Args:
            x: Samples, an array (sample, ...) or a structure of them.
            batch_size: Samples per step; 32 if not given.
            verbose: Taken for likeness with Keras; nothing is shown.

        Returns:
            Array (member, sample, ...), or the model's structure of them.

        Raises:
            RuntimeError: If the cohort is not trained.
            TypeError: If `x` is not an array.
            ValueError: If `x` does not fit the model.

        Example:
            >>> import kohort, keras
            >>> x, y = kohort.data.xor()
            >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
            >>> model.compile(loss="mse")
            >>> cohort = kohort.Cohort(model, seeds=8)
            >>> history = cohort.fit(x, y, verbose=0)
            >>> cohort.predict(x).shape
            (8, 4, 1)

        Source:
            `keras.Model.predict`.
        """
        trained = self._need_training("predict")
        checked = samples(x)
        check_features(self._template.network, x)
        cut = _prediction_cut(checked.rows, batch_size)
        program = self._template.programs.predict(cut, members=not self.exact)
        return self._members.join([program(state, checked.batch) for state in trained.states])

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
        trained = self._need_training("evaluate")
        checked = samples(x, y, sample_weight)
        check_features(self._template.network, x)
        check_targets(self._template.network, y)
        program = self._template.programs.evaluate(_prediction_cut(checked.rows, batch_size), members=not self.exact)
        logs = self._members.join([program(state, checked.batch) for state in trained.states])
        return dict(sorted(logs.items()))

    def member(self, seed: int) -> keras.Model:
        """Returns the trained network of one seed: a plain, compiled Keras model of its own, ready to save.

        Args:
            seed: One of `cohort.seeds`.

        Returns:
            A `keras.Model` with the member's weights, optimizer state and metrics.

        Raises:
            RuntimeError: If the cohort is not trained.
            ValueError: If no member has that seed.

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
        trained = self._need_training("member")
        if not isinstance(seed, numbers.Integral) or isinstance(seed, bool) or int(seed) not in self.seeds:
            raise ValueError(
                f"`seed` must be one of the cohort's seeds ({shown(self.seeds)}). Received: {received('seed', seed)}. "
                "See `cohort.seeds`."
            )
        network = self._template.member()
        keras_internals.write_state(network, self._members.state(trained, self.seeds.index(int(seed))))
        return network

    def best(self, metric: str = "loss") -> keras.Model:
        """Returns the member whose last recorded value of a metric is the best one.

        Args:
            metric: A metric of the history, such as "val_loss". Losses are best when low; metrics as Keras says.

        Returns:
            As `member`. Of equal members, the first in the order of the seeds.

        Raises:
            RuntimeError: If the cohort is not trained.
            ValueError: If there is no such metric, it has no direction, or no member has a finite value.

        Example:
            >>> import kohort, keras
            >>> x, y = kohort.data.xor()
            >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
            >>> model.compile(loss="mse")
            >>> cohort = kohort.Cohort(model, seeds=8)
            >>> history = cohort.fit(x, y, verbose=0)
            >>> best = cohort.best("loss")

        Source:
            The choice that `keras.callbacks.ModelCheckpoint(save_best_only=True)` makes over epochs, made over members.
        """
        history = self._need_training("best").history
        directions = self._directions(history)
        ranked = [name for name, direction in directions.items() if direction and history[name].ndim == 2]
        if not isinstance(metric, str) or metric not in ranked:
            raise ValueError(
                "`metric` must be a metric of the history of which Keras knows whether more is better: "
                f"{', '.join(ranked)}. Received: {received('metric', metric)}. "
                "For any other rule use `cohort.history` and `cohort.member(seed)`."
            )
        last = history.last(metric)
        if not np.isfinite(last).any():
            raise ValueError(
                f"`metric` must be finite for at least one member. Received: metric={metric!r}, all of them diverged. "
                "Train with a smaller learning rate."
            )
        worst_if_not_finite = np.where(np.isfinite(last), last if directions[metric] == "down" else -last, np.inf)
        return self.member(self.seeds[int(np.argmin(worst_if_not_finite))])

    def success_rate(
        self, criterion: Criterion | None = None, /, *, confidence: float = 0.95, **bounds: float
    ) -> SuccessRate:
        """Counts the members that solved the problem and gives the Wilson interval of the rate.

        Args:
            criterion: Callable that takes the history and returns one truth value per member.
            confidence: Confidence level of the interval.
            **bounds: Metric name to the bound its last recorded value must reach: losses at most, accuracies at least.

        Returns:
            `SuccessRate(k, n, rate, low, high, confidence)`.

        Raises:
            RuntimeError: If the cohort is not trained.
            TypeError: If the criterion is not callable.
            ValueError: If a metric is unknown, nothing is asked, or the criterion returns another shape.

        Example:
            >>> import kohort, keras
            >>> x, y = kohort.data.xor()
            >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
            >>> model.compile(loss="mse")
            >>> cohort = kohort.Cohort(model, seeds=8)
            >>> history = cohort.fit(x, y, verbose=0)
            >>> print(cohort.success_rate(loss=0.01))
            0 of 8 (0.0 %, 95 % interval 0.0 to 32.4 %)

        Source:
            Wilson (1927), by `scipy.stats.binomtest`.
        """
        history = self._need_training("success_rate").history
        return success_rate(solved(history, criterion, bounds, self._directions(bounds)), confidence)

    def direction(self, metric: str) -> str | None:
        """Says in which direction a metric gets better, as Keras knows it.

        Args:
            metric: A metric of the history, such as "val_loss".

        Returns:
            "down" for losses, "up" or "down" for metrics that tell, None for those that do not.

        Example:
            >>> import kohort, keras
            >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
            >>> model.compile(loss="mse")
            >>> kohort.Cohort(model, seeds=8).direction("val_loss")
            'down'

        Source:
            What `keras.callbacks.EarlyStopping(mode="auto")` goes by.
        """
        return keras_internals.metric_direction(self._template.network, metric)

    def _directions(self, metrics: Iterable[str]) -> dict[str, str | None]:
        return {name: self.direction(name) for name in metrics}

    def _need_training(self, asked: str) -> Trained:
        if self._members.trained is None:
            raise RuntimeError(
                f"`cohort.{asked}` must come after `cohort.fit`. Received: a cohort that is not trained. "
                "Call `cohort.fit(x, y, epochs=...)` first."
            )
        return self._members.trained


def _prediction_cut(rows: int, batch_size: int | None) -> Any:
    check_recipe(Recipe(batch_size=batch_size))
    return pass_cut(rows, batch_size)
