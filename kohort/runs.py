"""One run of a study: what is missing is trained, block by block, and committed.

In come a writer, groups of trials and the arguments of the fit; out go blocks into the store, as executors give them
back. The room exists so that `Study` can speak to people while this one knows which members go where.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from kohort import executors, plans
from kohort.blocks import last_blocks
from kohort.checks import check_arrays
from kohort.cores import cores
from kohort.data import BatchOrder
from kohort.executors import Executor
from kohort.files import Contents
from kohort.plans import Fit, Task
from kohort.progress import LINE_SECONDS, held_interrupt, shows_bars
from kohort.store import BlockRow, TrialRow, Writer, canonical
from kohort.trainer import Sources, Trainer
from kohort.variants import Group

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
        progress, trainer = Shown(missing, verbose), Trainer(self.fit, self.exact, self._left, self._named)
        workers = max(2, min(cores(), 4)) if self._is_plain else 1
        with held_interrupt() as interrupt:
            for finished in (executor or executors.in_threads)(lanes, trainer, interrupt, workers):
                rows = [self._row(block.trial) for block, _ in finished]
                blocks = [
                    (b._replace(trial=row.id), contents) for row, (b, contents) in zip(rows, finished, strict=True)
                ]
                for row, block in zip(rows, self.writer.commit(*blocks), strict=True):
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

    def _named(self, task: Task) -> str:
        """Says to people which members a task has."""
        of_trial: dict[int, list[int]] = {}
        for place, seed in task.members:
            of_trial.setdefault(task.group.trials[place], []).append(seed)
        return "; ".join(
            f"{named(self._row(number).parameters)} with seeds {', '.join(map(str, seeds))}"
            for number, seeds in of_trial.items()
        )

    def _row(self, number: int) -> TrialRow:
        row = self.rows[number]
        if row is None:
            raise KeyError(f"The trial {self.keys[number]} is not declared.")
        return row

    def _left(self, task: Task) -> Sources:
        """Returns where each member of a task was left: the contents of a block, and its row there."""
        if not task.first_epoch:
            return []
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


def named(parameters: Mapping[str, Any]) -> str:
    """Says to people which trial it is."""
    return ", ".join(f"{name}={value!r}" for name, value in parameters.items()) or "no parameters"


class Shown:
    """What a person sees of a run: a bar over all members, or plain lines where no bar is seen, or one per block."""

    def __init__(self, members: int, verbose: str | int) -> None:
        """Says at once how many members are to be trained: the first block may take long, and compiles."""
        self.members, self.done = members, 0
        self.verbose = 1 if verbose == "auto" else int(verbose)
        self.bar = keras.utils.Progbar(members, unit_name="member") if self.verbose == 1 and shows_bars() else None
        self._start = self._told = time.perf_counter()
        if self.bar is not None:
            self.bar.update(0, finalize=False)
        elif self.verbose:
            print(f"0/{members} members - 0s", flush=True)

    def update(self, row: TrialRow, block: BlockRow) -> None:
        """Takes in a block that is committed."""
        self.done += len(block.seeds)
        now, is_over = time.perf_counter(), self.done >= self.members
        if self.bar is not None:
            self.bar.update(self.done, finalize=is_over)
        elif self.verbose == 2:
            seconds, own = block.about["wall_seconds"], named(row.parameters)
            more = f"{own}: {len(block.seeds)} more, {seconds:.2f} s"
            print(f"{self.done}/{self.members} members - {more}", flush=True)  # into a file or a pipe, too, at once
        elif self.verbose == 1 and (is_over or now - self._told >= LINE_SECONDS):
            print(f"{self.done}/{self.members} members - {now - self._start:.0f}s", flush=True)
            self._told = now

    def finish(self) -> None:
        """Ends the line of a bar that did not come to its end."""
        if self.bar is not None and self.done < self.members:
            print()
