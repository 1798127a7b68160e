"""One run of a study: what is missing is trained, block by block, and committed.

In come a writer, groups of trials and the arguments of the fit; out go blocks into the store, as executors give them
back. The room exists so that `Study` can speak to people while this one knows which members go where.
"""

import time
from collections.abc import Sequence
from typing import Any

import jax
import keras
import numpy as np

from kohort import executors, files, plans, saving
from kohort.blocks import last_blocks
from kohort.checks import check_arrays
from kohort.cohort import Cohort
from kohort.data import BatchOrder
from kohort.executors import Executor
from kohort.files import Contents
from kohort.keras_parts import fresh_names
from kohort.members import Settings, cores, members_of
from kohort.plans import Fit, Task
from kohort.progress import LINE_SECONDS, held_interrupt, shows_bars
from kohort.store import BlockRow, TrialRow, Writer, canonical
from kohort.variants import Group

Finished = list[tuple[TrialRow, BlockRow, Contents]]
Wanted = list[tuple[dict[str, Any], Sequence[int]]]  # the parameters of each trial, and its seeds


class Run:
    """One run of a study: what is missing is trained and committed."""

    def __init__(
        self, writer: Writer, fit: Fit, exact: bool, groups: list[Group], keys: list[str], wanted: Wanted
    ) -> None:
        """Trains nothing yet.

        Args:
            writer: Where to.
            fit: What all members are trained with.
            exact: As for a cohort.
            groups: The trials that are known, in groups, by their numbers.
            keys: The parameters of the trial of each number.
            wanted: Which trials and seeds are to reach the epochs of the fit.
        """
        self.writer, self.fit, self.exact, self.groups = writer, fit, exact, groups
        self.wanted = {canonical(parameters): seeds for parameters, seeds in wanted}
        rows = {canonical(row.parameters): row for row in writer.records.trials.values()}
        self.rows = [rows.get(key) for key in keys]  # of what is known and not asked for, perhaps none
        self.keys = keys

    def train(self, block_size: int | None, executor: Executor | None, verbose: str | int) -> None:
        """Trains all tasks; each that is finished is committed at once."""
        lanes, missing = self._lanes(block_size)
        if not missing:
            return
        progress = Shown(missing, verbose)
        workers = max(2, min(cores(), 4)) if self._is_plain else 1
        with held_interrupt() as interrupt:
            for finished in (executor or executors.in_threads)(lanes, self.trained, interrupt, workers):
                for row, block, contents in finished:
                    self.writer.commit(block, contents)
                    progress.update(row, block)
            progress.finish()

    @property
    def _is_plain(self) -> bool:
        """Whether tasks can be done side by side: else Keras's iterator draws from the one global generator."""
        rows = check_arrays(self.fit.x)
        return all(BatchOrder(rows, self.fit.recipe, g.model.steps_per_execution).is_plain for g in self.groups)

    def _lanes(self, block_size: int | None) -> tuple[list[list[Task]], int]:
        """Returns the tasks of each group, and how many members they have."""
        epochs, rows = self.fit.recipe.epochs, check_arrays(self.fit.x)
        reached: dict[int, dict[int, int]] = {}
        for block in self.writer.records.blocks:
            own = reached.setdefault(block.trial, {})
            own.update((seed, max(own.get(seed, 0), block.epochs)) for seed in block.seeds)
        lanes = []
        for group in self.groups:
            missing: dict[int, dict[int, list[int]]] = {}  # first epoch -> place of the trial -> seeds
            for place, number in enumerate(group.trials):
                known = reached.get(self._row(number).id, {}) if self.keys[number] in self.wanted else {}
                for seed in self.wanted.get(self.keys[number], ()):
                    if known.get(seed, 0) < epochs:
                        missing.setdefault(known.get(seed, 0), {}).setdefault(place, []).append(seed)
            if any(missing) and self.fit.callbacks:
                raise ValueError(
                    f"`epochs` must be {max(missing)}, which the members have reached, because callbacks would begin "
                    f"anew there. Received: epochs={epochs}. Begin another study for it, under another path."
                )
            most = block_size or plans.block_members(group.model, rows, epochs, cores())
            lanes.append(
                [task for first, own in sorted(missing.items()) for task in plans.tasks_of(group, own, first, most)]
            )
        return lanes, sum(len(task.members) for lane in lanes for task in lane)

    def trained(self, task: Task) -> Finished:
        """Trains the members of a task, and returns the block of each trial."""
        start, group, fit = time.perf_counter(), task.group, self.fit
        seeds = tuple(seed for _, seed in task.members)
        varied = {path: np.array([own[place] for place, _ in task.members]) for path, own in group.values.items()}
        with fresh_names():
            members = members_of(group.model, seeds, varied, Settings(self.exact))
            if task.first_epoch:
                saving.begin_from(members, self._sources(task))
            recipe = fit.recipe._replace(initial_epoch=task.first_epoch)._asdict()
            cohort = Cohort.of_members(members)
            cohort.fit(
                fit.x, fit.y, verbose=0, callbacks=fit.callbacks, validation_data=fit.validation_data,
                sample_weight=fit.sample_weight, bootstrap=fit.bootstrap, **recipe,
            )  # fmt: skip
        trained = members.need_training("fit")
        about = {
            "versions": files.versions(),
            "device": f"{jax.default_backend()}: {jax.devices()[0].device_kind}",
            "directions": {name: cohort.direction(name) for name in trained.history},
        }
        finished = []
        seconds = (time.perf_counter() - start) / len(seeds)
        for place in dict.fromkeys(place for place, _ in task.members):
            which = [number for number, (own, _) in enumerate(task.members) if own == place]
            own_seeds = tuple(seeds[number] for number in which)
            row = self._row(group.trials[place])
            own_about = {**about, "wall_seconds": round(seconds * len(which), 6), "finished": round(time.time(), 3)}
            block = BlockRow(row.id, task.first_epoch, fit.recipe.epochs, own_seeds, "", own_about)
            contents = saving.contents_of(members, trained, which, group.changes[place])
            finished.append((row, block, contents))
        return finished

    def _row(self, number: int) -> TrialRow:
        row = self.rows[number]
        if row is None:
            raise KeyError(f"The trial {self.keys[number]} is not declared.")
        return row

    def _sources(self, task: Task) -> list[tuple[Contents, int]]:
        """Returns where each member of a task was left: the contents of a block, and its row there."""
        read: dict[str, Contents] = {}
        sources = []
        for place, seed in task.members:
            trial = self._row(task.group.trials[place]).id
            blocks = [block for block in self.writer.records.blocks if block.trial == trial]
            block = blocks[last_blocks(blocks)[seed]]
            if block.file not in read:
                read[block.file] = self.writer.store.contents(block)
            sources.append((read[block.file], block.seeds.index(seed)))
        return sources


class Shown:
    """What a person sees of a run: a bar over all members, or plain lines where no bar is seen, or one per block."""

    def __init__(self, members: int, verbose: str | int) -> None:
        """Shows nothing before the first block."""
        self.members, self.done = members, 0
        self.verbose = 1 if verbose == "auto" else int(verbose)
        self.bar = keras.utils.Progbar(members, unit_name="member") if self.verbose == 1 and shows_bars() else None
        self._start = self._told = time.perf_counter()

    def update(self, row: TrialRow, block: BlockRow) -> None:
        """Takes in a block that is committed."""
        self.done += len(block.seeds)
        now, is_over = time.perf_counter(), self.done >= self.members
        if self.bar is not None:
            self.bar.update(self.done, finalize=is_over)
        elif self.verbose == 2:
            named = ", ".join(f"{name}={value!r}" for name, value in row.parameters.items())
            seconds = block.about["wall_seconds"]
            print(f"{self.done}/{self.members} members - {named}: {len(block.seeds)} more, {seconds:.2f} s")
        elif self.verbose == 1 and (is_over or now - self._told >= LINE_SECONDS):
            print(f"{self.done}/{self.members} members - {now - self._start:.0f}s")
            self._told = now

    def finish(self) -> None:
        """Ends the line of a bar that did not come to its end."""
        if self.bar is not None and 0 < self.done < self.members:
            print()
