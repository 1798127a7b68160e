"""How the members of one task of a study are trained, wherever that is.

In come what all tasks of a run share, a task, and how its members were left before; out come the blocks that are to be
kept. The room exists so that threads of this process and workers on other machines do the same: it knows no store.
"""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from kohort import files, saving
from kohort.cohort import Cohort
from kohort.files import Contents
from kohort.keras_parts import fresh_names
from kohort.members import Settings, members_of
from kohort.plans import Fit, Task
from kohort.store import BlockRow

# Where each member of a task was left: the contents of a block, and its row there. Empty where all begin anew.
Sources = Sequence[tuple[Contents, int]]
# The blocks of a task; for the row of its trial each has the trial's number, as its group knows it.
Finished = list[tuple[BlockRow, Contents]]


class Trainer(NamedTuple):
    """What all tasks of a run share. Called with one, it trains its members in this process."""

    fit: Fit
    exact: bool
    left: Callable[[Task], Sources]  # reads how the members of a task were left
    named: Callable[[Task], str]  # says to people which members a task has

    def __call__(self, task: Task) -> Finished:
        """Trains the members of a task, and returns the block of each trial."""
        return trained(self.fit, self.exact, task, self.left(task))


def trained(fit: Fit, exact: bool, task: Task, sources: Sources) -> Finished:
    """Trains the members of a task, and returns the block of each trial."""
    start, group = time.perf_counter(), task.group
    seeds = tuple(seed for _, seed in task.members)
    varied = {path: np.array([own[place] for place, _ in task.members]) for path, own in group.values.items()}
    with fresh_names():
        members = members_of(group.model, seeds, varied, Settings(exact))
        if task.first_epoch:
            saving.begin_from(members, sources)
        recipe = fit.recipe._replace(initial_epoch=task.first_epoch)._asdict()
        cohort = Cohort.of_members(members)
        cohort.fit(
            fit.x, fit.y, verbose=0, callbacks=fit.callbacks, validation_data=fit.validation_data,
            sample_weight=fit.sample_weight, bootstrap=fit.bootstrap, **recipe,
        )  # fmt: skip
    left = members.need_training("fit")
    about = {
        "versions": files.versions(),
        "device": f"{jax.default_backend()}: {jax.devices()[0].device_kind}",
        "directions": {name: cohort.direction(name) for name in left.history},
    }
    finished = []
    seconds = (time.perf_counter() - start) / len(seeds)
    for place in dict.fromkeys(place for place, _ in task.members):
        which = [number for number, (own, _) in enumerate(task.members) if own == place]
        own_seeds = tuple(seeds[number] for number in which)
        own_about = {**about, "wall_seconds": round(seconds * len(which), 6), "finished": round(time.time(), 3)}
        block = BlockRow(group.trials[place], task.first_epoch, fit.recipe.epochs, own_seeds, "", own_about)
        finished.append((block, saving.contents_of(members, left, which, group.changes[place])))
    return finished
