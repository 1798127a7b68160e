"""`kohort.Cohort`: one compiled Keras model and many seeds in, as many trained networks out.

The member with seed `s` is what Keras gives after `keras.utils.set_random_seed(s)`, `keras.models.clone_model(model)`,
the same `compile` and the same `fit`. The room exists because one run of a small network says nothing, and a thousand
of them fit into one program.
"""

import numbers
from collections.abc import Iterable, Mapping
from typing import Any

import keras
import numpy as np

from kohort import keras_internals, notebook, saving
from kohort.checks import Recipe, check_backend, check_data, check_features, check_recipe, check_targets, received
from kohort.cohort_callbacks import Listeners, check_cohort_callbacks
from kohort.data import inputs, pass_cut, samples
from kohort.ensemble import Aggregate, aggregated, check_aggregate
from kohort.fit import check_model
from kohort.history import CohortHistory
from kohort.members import Members, Rounds
from kohort.membership import check_cloneable, check_compilable, check_exact, check_seeds, shown, warn_of_fixed_seeds
from kohort.results import Results
from kohort.template import Template, template_of


class Cohort(Results):
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
        `keras.models.clone_model` and `keras.utils.set_random_seed` define a member; `jax.vmap`, or for the smallest
        networks `kohort.abreast`, maps the training over them.
    """

    def __init__(self, model: keras.Model, seeds: int | Iterable[int], *, exact: bool = False) -> None:
        """Clones the model; nothing is trained yet."""
        check_backend("kohort.Cohort")
        check_model(model)
        check_cloneable(model)
        self.seeds = check_seeds(seeds)
        self.exact = check_exact(exact)
        warn_of_fixed_seeds(model)
        self.stop_training = False
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
    ) -> CohortHistory:
        """Trains every member as `model.fit` would; called again, it goes on from where they are.

        Interrupted by Ctrl-C, it leaves every member at the end of the same finished epoch, or where it had stopped.

        Keras's `EarlyStopping`, `ReduceLROnPlateau`, `LearningRateScheduler` and `TerminateOnNaN` act on each member by
        itself, inside the program, as they would in its own `model.fit`; they print nothing. Other callbacks see all
        members between epochs: their logs are arrays (member,), NaN where a member has stopped, and their `model` is
        the cohort, whose `stop_training = True` stops all. They cost a return to Python after each epoch.

        Args:
            x: Samples, an array (sample, ...) or a structure of them; shared by all members.
            y: Targets, likewise.
            batch_size: Samples per step; 32 if not given.
            epochs: The epoch to stop after.
            verbose: 0 silent, 1 or "auto" one progress bar with the median of each metric, 2 one line per epoch.
            callbacks: Keras callbacks that act at epochs: one, or a list of them.
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
        listed = check_cohort_callbacks(callbacks, network)
        data = inputs(network, x, y, sample_weight, validation_data, recipe)
        params = {
            "epochs": epochs,
            "steps": steps_per_epoch or data.cut.full + bool(data.cut.partial),
            "verbose": verbose,
        }
        return Rounds(self._members, data, recipe, verbose, Listeners(listed, self, params), listed).train()

    @property
    def _template(self) -> Template:
        return self._members.template

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
        trained = self._members.need_training("predict")
        check_aggregate(aggregate)
        checked = samples(x)
        check_features(self._template.network, x)
        cut = _prediction_cut(checked.rows, batch_size)
        program = self._template.programs.predict(cut, members=not self.exact)
        outputs = self._members.join([program(state, checked.batch) for state in trained.states])
        return outputs if aggregate is None else aggregated(outputs, aggregate, self._template.network)

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
        trained = self._members.need_training("evaluate")
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
        trained = self._members.need_training("member")
        if not isinstance(seed, numbers.Integral) or isinstance(seed, bool) or int(seed) not in self.seeds:
            raise ValueError(
                f"`seed` must be one of the cohort's seeds ({shown(self.seeds)}). Received: {received('seed', seed)}. "
                "See `cohort.seeds`."
            )
        network = self._template.member()
        keras_internals.write_state(network, self._members.state(trained, self.seeds.index(int(seed))))
        return network

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
        kept = saving.load(path, custom_objects)
        cohort = cls(kept.model, kept.seeds, exact=kept.exact)
        kept.put_into(cohort._members)
        return cohort


def _prediction_cut(rows: int, batch_size: int | None) -> Any:
    check_recipe(Recipe(batch_size=batch_size))
    return pass_cut(rows, batch_size)
