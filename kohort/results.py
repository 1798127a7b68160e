"""What comes out of a trained cohort, for people: counts, curves, comparisons, one model of many, a file.

In come the members of a cohort; out come records, a Keras model, lines of text. The room exists so that `Cohort` itself
reads as what it is and how it is trained.
"""

import numbers
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import keras
import numpy as np

from kohort import keras_internals, keras_parts, saving
from kohort.checks import received
from kohort.comparison import Comparison, compared
from kohort.ensemble import averaged
from kohort.folds import HeldOut
from kohort.history import CohortHistory, Criterion, SuccessRate, solved, success_rate
from kohort.members import Members
from kohort.survival import SurvivalCurve, survival_curve


class Results:
    """What a trained cohort tells; `kohort.Cohort` is one."""

    exact: bool
    _members: Members
    _held_out: HeldOut  # by the last fit

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seed of each member, in the order of all arrays; a grid or folds repeat it."""
        return self._members.seeds

    def best(self, metric: str = "loss") -> keras.Model:
        """Returns the member whose last recorded value of a metric is the best one.

        Args:
            metric: A metric of the history, such as "val_loss". Losses are best when low; metrics as Keras says.

        Returns:
            As `member`. Of equal members, the first in their order.

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
        trained = self._members.need_training("best")
        return self._members.network(trained, self._ranked("metric", metric, trained.history)[0])

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
        history = self._members.need_training("success_rate").history
        return success_rate(solved(history, criterion, bounds, self._directions(bounds)), confidence)

    def survival(self, *, confidence: float = 0.95, **bounds: float) -> SurvivalCurve:
        """Computes the share of members that have not solved the problem yet, by epoch, with its band.

        It tells "slow" from "stuck", which a success rate does not. A member solves it in the first epoch in which all
        bounds hold. One that stopped early without is censored there; one that diverged never solves it.

        Args:
            confidence: Confidence level of the band.
            **bounds: Metric name to the bound that its value must reach: losses at most, accuracies at least.

        Returns:
            `SurvivalCurve(epochs, share, low, high, first, stopped, diverged, confidence, censored)`, of the last fit;
            `first` is the first epoch (counted from 1) in which each member solved it. `kohort.plot.survival` draws it.

        Raises:
            RuntimeError: If the cohort is not trained.
            ValueError: If a metric is unknown or has no direction, or nothing is asked.

        Example:
            >>> import kohort, keras
            >>> x, y = kohort.data.xor()
            >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
            >>> model.compile(loss="mse")
            >>> cohort = kohort.Cohort(model, seeds=8)
            >>> history = cohort.fit(x, y, epochs=3, verbose=0)
            >>> print(cohort.survival(loss=0.01))
            0 of 8 solved by epoch 3, fewer than half of them (0 stopped early, 0 diverged)

        Source:
            Kaplan and Meier (1958), by `scipy.stats.ecdf` of `scipy.stats.CensoredData`.
        """
        history = self._members.need_training("survival").history
        return survival_curve(history, bounds, self._directions(bounds), confidence)

    def compare(
        self,
        other: "Results",
        criterion: Criterion | None = None,
        /,
        *,
        by: str | None = None,
        confidence: float = 0.95,
        **bounds: float,
    ) -> Comparison:
        """Compares two cohorts on the seeds that they share, pair by pair.

        Members of the same seed begin alike, if their networks are alike, and see the same batches: their difference is
        that of the recipes.

        Args:
            other: Another trained cohort, of any model.
            criterion: As in `success_rate`: callable that takes a history and returns one truth value per member.
            by: Instead of criterion and bounds, a metric whose last recorded values are compared.
            confidence: Confidence level of the interval.
            **bounds: As in `success_rate`.

        Returns:
            `Comparison(seeds, better, worse, effect, low, high, p_value, confidence, what)`. The effect is this cohort
            minus the other: of success rates, or the median of the differences of the metric.

        Raises:
            RuntimeError: If one of them is not trained.
            TypeError: If the other is no cohort.
            ValueError: If they share no seed, or members of one share seeds, a metric is unknown or without direction,
                or nothing is asked.

        Example:
            >>> import kohort, keras
            >>> x, y = kohort.data.xor()
            >>> cohorts = []
            >>> for units in (2, 8):
            ...     layers = [keras.Input((2,)), keras.layers.Dense(units, "relu"), keras.layers.Dense(1)]
            ...     model = keras.Sequential(layers)
            ...     model.compile(keras.optimizers.RMSprop(1e-2), loss="mse")
            ...     cohorts.append(kohort.Cohort(model, seeds=40))
            ...     history = cohorts[-1].fit(x, y, epochs=500, verbose=0)
            >>> comparison = cohorts[1].compare(cohorts[0], loss=0.01)
            >>> comparison.effect > 0, comparison.p_value < 0.05
            (True, True)

        Source:
            McNemar (1947), exact, with Newcombe's interval (1998, method 10); of a metric, the sign test.
        """
        ours = self._members.need_training("compare").history
        if not isinstance(other, Results):
            raise TypeError(
                f"`other` must be a `kohort.Cohort`. Received: {received('other', other)}. "
                "Train the other network as a cohort, too."
            )
        theirs = other._members.need_training("compare").history
        for cohort, seeds in ((self, ours.seeds), (other, theirs.seeds)):
            if len(set(seeds)) < len(seeds):
                raise ValueError(
                    "`compare` must be called with two cohorts in which a seed names a member. Received: "
                    f"{received('cohort', cohort)}, of {len(set(seeds))} seeds. "
                    "Make a cohort of each recipe instead of a grid or folds."
                )
        directions = self._directions({*ours, *bounds}), other._directions({*theirs, *bounds})
        return compared(ours, theirs, directions, criterion, by, bounds, confidence)

    def best_seed(self, metric: str = "loss") -> int:
        """Returns the seed of the member whose last recorded value of a metric is the best one.

        Args:
            metric: As for `best`.

        Returns:
            The seed, for `member`.

        Raises:
            RuntimeError, ValueError: As `best`; also if members share seeds.

        Example:
            >>> import kohort, keras
            >>> x, y = kohort.data.xor()
            >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
            >>> model.compile(loss="mse")
            >>> cohort = kohort.Cohort(model, seeds=[3, 17])
            >>> history = cohort.fit(x, y, verbose=0)
            >>> cohort.best_seed() in cohort.seeds
            True
        """
        trained = self._members.need_training("best_seed")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(
                "`best_seed` must be asked of a cohort in which a seed names a member. Received: a cohort of "
                f"{len(self.seeds)} members with {len(set(self.seeds))} seeds. Call `cohort.best({metric!r})`, or look "
                f"for it in `cohort.parameters` beside `cohort.history.last({metric!r})`."
            )
        return self.seeds[self._ranked("metric", metric, trained.history)[0]]

    def ensemble(self, top: int | None = None, by: str | None = None) -> keras.Model:
        """Makes one Keras model of the best members: it answers the average of what they answer.

        Where the loss takes logits (`from_logits=True`), the probabilities are averaged, and the model answers the
        logits of that average: what one does with a member's answers holds for the ensemble's, too. In the model is
        nothing of kohort's: it saves, loads and exports as any other.

        Args:
            top: How many members, the best ones; at most as many as ended with a finite value of the metric. Default:
                10, or all of these where there are fewer.
            by: Metric whose last recorded value tells which are the best. Default: "val_loss" where the fit validated,
                else "loss".

        Returns:
            A compiled `keras.Model` with one layer per member, named after its seed, or its number where members share
            seeds.

        Raises:
            RuntimeError: If the cohort is not trained.
            TypeError: If `top` is no integer.
            ValueError: If there are not so many members that ended well, or the metric is unknown or has no direction.

        Example:
            >>> import kohort, keras
            >>> x, y = kohort.data.moons()
            >>> layers = [keras.Input((2,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(1, "sigmoid")]
            >>> model = keras.Sequential(layers)
            >>> model.compile("adam", "binary_crossentropy", metrics=["accuracy"])
            >>> cohort = kohort.Cohort(model, seeds=8)
            >>> history = cohort.fit(x, y, validation_split=0.25, epochs=5, verbose=0)
            >>> cohort.ensemble(top=3).predict(x, verbose=0).shape
            (400, 1)

        Source:
            Hansen and Salamon, Neural network ensembles (1990); of seeds: Lakshminarayanan and others, Deep ensembles
            (2017).
        """
        trained = self._members.need_training("ensemble")
        history = trained.history
        metric = ("val_loss" if "val_loss" in history else "loss") if by is None else by
        ranked = self._ranked("by", metric, history)
        top = max(1, min(10, len(ranked))) if top is None else top
        if not isinstance(top, numbers.Integral) or isinstance(top, bool) or not 1 <= top <= len(ranked):
            error = ValueError if isinstance(top, numbers.Integral) and not isinstance(top, bool) else TypeError
            left_out = len(self.seeds) - len(ranked)
            what = f"a {metric} or weights that are not finite"
            diverged = f" ({left_out} of {len(self.seeds)} ended with {what})" if left_out else ""
            raise error(
                f"`top` must be an integer from 1 to {len(ranked)}, the members there are{diverged}. "
                f"Received: {received('top', top)}. Pass for example top={min(10, len(ranked))}."
            )
        best, is_seed_name = ranked[: int(top)], len(set(self.seeds)) == len(self.seeds)
        names = [f"seed_{self.seeds[i]}" if is_seed_name else f"member_{i}" for i in best]
        networks = [self._members.network(trained, i) for i in best]
        return averaged(networks, names, f"{self._members.templates[0].network.name}_ensemble")

    def summary(
        self,
        line_length: int | None = None,
        positions: list[float] | None = None,
        print_fn: Callable | None = None,
        expand_nested: bool = False,
        show_trainable: bool = False,
        layer_range: list[str] | None = None,
    ) -> None:
        """Prints what Keras prints of the model, and below it what the cohort is and how it ended.

        Args:
            line_length: As in `model.summary`, like all others.
            positions: Likewise.
            print_fn: Takes what is printed. Default: `print`.
            expand_nested: Likewise.
            show_trainable: Likewise.
            layer_range: Likewise.

        Example:
            >>> import kohort, keras
            >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)], name="line")
            >>> model.compile(loss="mse")
            >>> kohort.Cohort(model, seeds=8).summary()
            Model: "line"
            ...
             Members: 8 (seeds 0, 1, ..., 7)
             Trained: not yet

        Source:
            `keras.Model.summary`.
        """
        self._members.templates[0].network.summary(
            line_length=line_length,
            positions=positions,
            print_fn=print_fn,
            expand_nested=expand_nested,
            show_trainable=show_trainable,
            layer_range=layer_range,
        )
        lines = "\n".join(f" {line}" for line in self._lines())
        (print_fn or print)(lines)

    def _lines(self) -> list[str]:
        """Returns the cohort's own lines of a summary."""
        few = (
            ", ".join(map(str, self.seeds))
            if len(self.seeds) < 6
            else f"{self.seeds[0]}, {self.seeds[1]}, ..., {self.seeds[-1]}"
        )
        exact = ", exact" if self.exact else ""
        lines = [f"Members: {len(self.seeds):,} (seed{'s' * (len(self.seeds) > 1)} {few}){exact}"]
        trained = self._members.trained
        if trained is None:
            return [*lines, "Trained: not yet"]
        history = trained.history
        ends = Counter(outcome.name for outcome in history.outcome) if "loss" in history else {}
        ended = ", ".join(f"{name} {count:,}" for name, count in sorted(ends.items()))
        lines.append(f"Last fit: {len(history.epoch):,} epochs" + (f", outcomes: {ended}" if ended else ""))
        for name in history:
            last = history.last(name)
            finite = last[np.isfinite(last)] if last.ndim == 1 else last[:0]
            if finite.size:
                low, middle, high = np.quantile(finite, (0.1, 0.5, 0.9))
                lines.append(f"Last {name}: median {middle:.4g}, 10 to 90 % {low:.4g} to {high:.4g}")
        return lines

    def save(self, path: Any) -> None:
        """Saves the trained cohort in one file, from which `Cohort.load` makes it again, to go on where it stopped.

        The file holds every member's weights, optimizer and generators, its values and folds, the history and the
        model's configuration, with a checksum, and no code. It is written aside and put in its place in one step:
        whatever happens meanwhile, there is the old file or the new one. Of the data nothing is kept.

        Args:
            path: Where to; its folder must exist. A file that stands there is replaced.

        Raises:
            RuntimeError: If the cohort is not trained.
            TypeError: If `path` is no path.
            OSError: If the place cannot be written; what stood there is as it was.
            ValueError: If a part of the model has no configuration, or the path ends as those of Keras's own files.

        Example:
            >>> import kohort, keras
            >>> x, y = kohort.data.xor()
            >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
            >>> model.compile(loss="mse")
            >>> cohort = kohort.Cohort(model, seeds=8)
            >>> history = cohort.fit(x, y, epochs=3, verbose=0)
            >>> cohort.save("xor.kohort")
            >>> kohort.Cohort.load("xor.kohort")
            Cohort('sequential...', 8 members, 3 epochs in the last fit)

        Source:
            The container is that of safetensors: https://huggingface.co/docs/safetensors.
        """
        saving.save(path, self._members, self._members.need_training("save"), self._held_out)

    def __getitem__(self, key: Any) -> NoReturn:
        """Raises: a number could be a seed or a place."""
        self._refuse_container(f"cohort[{key!r}]")

    def __iter__(self) -> NoReturn:
        """Raises: it would make a model of each member."""
        self._refuse_container("iter(cohort)")

    def __contains__(self, item: Any) -> NoReturn:
        """Raises: of seeds and of models it would not mean the same."""
        self._refuse_container(f"{item!r} in cohort")

    def _refuse_container(self, asked: str) -> NoReturn:
        raise TypeError(
            "`cohort` must be asked for a member by its seed. "
            f"Received: {asked}. Write `cohort.member(seed)` with a seed of `cohort.seeds`."
        )

    # What `Cohort` adds, as far as the methods above need it.

    def member(self, seed: int) -> keras.Model:
        """Returns the trained network of one seed."""
        raise NotImplementedError

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
        return keras_internals.metric_direction(self._members.templates[0].network, metric)

    @property
    def answers_logit(self) -> bool:
        """Whether members answer a logit, as their loss takes one (`from_logits=True`): above 0 it means class 1."""
        return keras_parts.answers_logit(self._members.templates[0].network)

    def _directions(self, metrics: Iterable[str]) -> dict[str, str | None]:
        return {name: self.direction(name) for name in metrics}

    def _need_direction(self, argument: str, metric: Any, history: CohortHistory) -> str:
        """Returns the direction of a metric of the history, or raises."""
        directions = self._directions(history)
        ranked = [name for name, direction in directions.items() if direction and history[name].ndim == 2]
        if not isinstance(metric, str) or metric not in ranked:
            raise ValueError(
                f"`{argument}` must be a metric of the history of which Keras knows whether more is better: "
                f"{', '.join(ranked)}. Received: {received(argument, metric)}. "
                "For any other rule use `cohort.history` and `cohort.member(seed)`."
            )
        return str(directions[metric])

    def _ranked(self, argument: str, metric: Any, history: CohortHistory) -> list[int]:
        """Returns the positions of the members that have not diverged, best first.

        They have a last value of the metric and weights that are finite.
        """
        direction = self._need_direction(argument, metric, history)
        last = history.last(metric)
        finite = np.flatnonzero(np.isfinite(last) & self._members.are_finite(self._members.need_training("best")))
        if not finite.size:
            raise ValueError(
                f"`{argument}` must be finite for at least one member. Received: {argument}={metric!r}, all of them "
                "diverged. Train with a smaller learning rate."
            )
        order = np.argsort(last[finite] if direction == "down" else -last[finite], kind="stable")
        return finite[order].tolist()
