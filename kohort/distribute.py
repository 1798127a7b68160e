"""The blocks of a study, trained by workers on this and on other machines: the only room that knows Ray.

In come lanes of tasks and a trainer, as every executor gets them; out come the blocks, as they are ready, to this
process, the one that writes. Models cross as configurations, members that go on as arrays. A worker is an actor of Ray
that lives as long as the run, so that what it has compiled serves many tasks. What a worker was doing when it died is
done again by another: nothing is written but by this process, so nothing is there twice. The room exists because a
study of hours is one of minutes on many machines.
"""

import collections
import contextlib
import importlib.util
import logging
import math
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import keras

from kohort import files, keras_parts
from kohort.blueprint import blueprint, made
from kohort.checks import check_integer, received
from kohort.executors import WAKE_SECONDS, Executor, Lanes
from kohort.history import optional
from kohort.plans import Task
from kohort.progress import Interrupt
from kohort.remote import WorkerError
from kohort.trainer import Finished, Sources, Trainer, trained
from kohort.variants import Group

__all__ = ["ray"]
# So often a task is tried, and a worker started, before its deaths are an error.
MOST_TRIES = 3
# A worker keeps so many models with their programs.
MOST_MODELS = 8
# What of JAX's configuration changes numbers: workers take it over.
NUMBERS = (
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_enable_x64",
    "jax_numpy_dtype_promotion",
    "jax_threefry_partitionable",
)
# A Ray of one machine tells nobody how it is used, listens to this machine alone (if it has not been imported before),
# and lets workers compute as this process would.
ALONE = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_worker_niceness": "0"}
LOOK_SECONDS = 1.0


def __dir__() -> list[str]:
    """Names what is for users, and not what only kohort needs."""
    return __all__


def ray(
    workers: int | None = None,
    *,
    num_cpus: int | float = 1,
    num_gpus: int | float | None = None,
    address: str | None = None,
) -> Executor:
    """Lets Ray's workers train the blocks of a study, on this machine or on all of a cluster.

    The rows are those that this process would make: to the bit with `exact=True`, or where the mapping of the members
    is the same, on machines that are. A worker that dies costs its running block, which another one trains again.
    Ctrl-C ends the workers; what is finished is kept. The data and the model are sent; the folder of the study need not
    be seen by the workers, but kohort and the modules of your own layers must be installed there.

    Where Ray has been initialized in this process, its cluster is used and left as it is. Else it is initialized for
    the run and shut down after it: at the address, or, if there is none, on this machine alone.

    Args:
        workers: How many. Default: as many as the cluster has room for.
        num_cpus: How many cores each has for itself.
        num_gpus: How many GPUs each has for itself, or which part of one. Default: one, where the cluster has any.
        address: Of a cluster of Ray to be joined, or "auto" for the one that runs on this machine; also `RAY_ADDRESS`.

    Returns:
        An executor, for `Study.run(executor=...)`.

    Raises:
        ImportError: If Ray is not installed.
        TypeError, ValueError: If an argument is no such number.
        Study.run beside others: `kohort.WorkerError` if workers die again and again, with the trial and the seeds that
        they were training, and ValueError if the cluster has no room for a worker, or a model cannot be sent.

    Example:
        >>> import kohort
        >>> kohort.distribute.ray(workers=4, num_cpus=2)
        ray(workers=4, num_cpus=2)

    Source:
        https://docs.ray.io: actors, and their fault tolerance.
    """
    if importlib.util.find_spec("ray") is None:
        optional("ray", "kohort.distribute.ray")  # which says so; a Ray that is there is imported by the run
    if workers is not None:
        check_integer("workers", workers, 1)
    for name, value in (("num_cpus", num_cpus), ("num_gpus", num_gpus)):
        if value is not None and not _is_amount(value):
            raise ValueError(
                f"`{name}` must be a number from 0 on. Received: {received(name, value)}. "
                "Give each worker 1, or leave it out."
            )
    if address is not None and not isinstance(address, str):
        raise TypeError(
            f"`address` must be a text. Received: {received('address', address)}. "
            'Pass "auto", or the address that `ray start --head` told.'
        )
    return RayExecutor(workers, num_cpus, num_gpus, address)


def _is_amount(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and value >= 0


class RayExecutor(NamedTuple):
    """What `ray` returns: called as every executor is."""

    workers: int | None
    num_cpus: int | float
    num_gpus: int | float | None
    address: str | None

    def __call__(self, lanes: Lanes, trainer: Trainer, interrupt: Interrupt, workers: int) -> Iterator[Finished]:
        """Yields the blocks of each task, as it comes."""
        with _initialized(self.address) as package:
            nodes = [node["Resources"] for node in package.nodes() if node["Alive"]]
            options = self.options(nodes)
            places = self.workers or room(nodes, options)
            if not places:
                raise ValueError(_no_room(nodes, options))
            crew = Crew(package, options, lanes, trainer)
            try:
                yield from crew.finished(places, interrupt)
            finally:
                crew.end()

    def options(self, nodes: list[dict[str, float]]) -> dict[str, Any]:
        """Returns what Ray is asked for each worker, given the resources of the nodes."""
        num_gpus = self.num_gpus
        if num_gpus is None:
            num_gpus = 1 if any(node.get("GPU") for node in nodes) else 0
        environment = {"KERAS_BACKEND": "jax", "NPROC": str(max(1, int(self.num_cpus)))}
        if num_gpus % 1:
            environment["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # or the first worker took most of the GPU
        return {"num_cpus": self.num_cpus, "num_gpus": num_gpus, "runtime_env": {"env_vars": environment}}

    def __repr__(self) -> str:
        """Reads as the call that made it."""
        told = {name: value for name, value in self._asdict().items() if value != RayExecutor._field_defaults.get(name)}
        return f"ray({', '.join(f'{name}={value!r}' for name, value in told.items() if value is not None)})"


def room(nodes: list[dict[str, float]], options: dict[str, Any]) -> int:
    """Returns how many workers a cluster has room for, none of which is on two nodes."""
    asked = {name: options[option] for name, option in (("CPU", "num_cpus"), ("GPU", "num_gpus")) if options[option]}
    if not asked:
        return len(nodes)
    return sum(min(int(node.get(name, 0) / amount) for name, amount in asked.items()) for node in nodes)


def _no_room(nodes: list[dict[str, float]], options: dict[str, Any]) -> str:
    found = "; ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes)
    return (
        "`num_cpus` and `num_gpus` must be such that a worker has room on a node of the cluster. "
        f"Received: num_cpus={options['num_cpus']}, num_gpus={options['num_gpus']}, "
        f"with nodes of {found or 'nothing'}. Ask for less, or join another cluster with `address`."
    )


@contextlib.contextmanager
def _initialized(address: str | None) -> Iterator[Any]:
    """Gives Ray, initialized inside the block; what others have initialized stays as it is."""
    address = address or os.environ.get("RAY_ADDRESS")
    with _environment({} if address else ALONE):
        package = optional("ray", "kohort.distribute.ray")
        if package.is_initialized():
            yield package
            return
        alone = {} if address else {"include_dashboard": False}
        terminated = signal.getsignal(signal.SIGTERM)  # for which Ray has a handler of its own
        with warnings.catch_warnings():
            # JAX warns of forks, which could wait for its threads; Ray's run another program at once.
            warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
            package.init(address or "local", log_to_driver=False, logging_level=logging.ERROR, **alone)
    try:
        yield package
    finally:
        package.shutdown()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, terminated)


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Sets what is not set of these variables of the environment, inside the block."""
    own = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(own)
    try:
        yield
    finally:
        for name in own:
            os.environ.pop(name, None)


# --- this process -----------------------------------------------------------------------------------------------------


class Plan:
    """Which task is to be done next."""

    def __init__(self, lanes: Lanes) -> None:
        """Begins with all tasks."""
        self.waiting = {lane: collections.deque(tasks) for lane, tasks in enumerate(lanes) if tasks}
        self._at: collections.Counter[int] = collections.Counter()  # how many workers are at each lane

    def __len__(self) -> int:
        """Returns how many tasks wait."""
        return sum(map(len, self.waiting.values()))

    def next(self, lane: int | None) -> tuple[int, Task] | None:
        """Returns a task for a worker that was at this lane, and its lane; None if none is left.

        It stays at its lane, whose program it has, as long as it can; then it goes where nobody is, or most waits.
        """
        if lane is not None:
            self._at[lane] -= 1
        left = [own for own, tasks in self.waiting.items() if tasks]
        if not left:
            return None
        if lane not in left:
            lane = min(left, key=lambda own: (self._at[own] > 0, -len(self.waiting[own]) / (1 + self._at[own])))
        self._at[lane] += 1
        return lane, self.waiting[lane].popleft()

    def again(self, lane: int, task: Task) -> None:
        """Takes back a task of a worker that is no more."""
        self.waiting[lane].appendleft(task)
        self._at[lane] -= 1


class Crew:
    """The workers of one run, as this process sees them."""

    def __init__(self, package: Any, options: dict[str, Any], lanes: Lanes, trainer: Trainer) -> None:
        """Checks that all models can be sent, and sends what all workers need."""
        self.package, self.trainer, self.plan = package, trainer, Plan(lanes)
        groups = {lane: tasks[0].group for lane, tasks in enumerate(lanes) if tasks}
        sent = {lane: Sent.of(group) for lane, group in groups.items()}
        self.groups = {lane: package.put(own) for lane, own in sent.items()}
        numbers = {name: getattr(jax.config, name) for name in NUMBERS if hasattr(jax.config, name)}
        shared = package.put((trainer.fit, trainer.exact))
        self._new = lambda: package.remote(Worker).options(**options).remote(sys.path, numbers, [shared])
        self._tries: collections.Counter[Any] = collections.Counter()
        self.running: dict[Any, tuple[Any, int | None, Task | None]] = {}  # answer -> worker, its lane and task
        self._alive: set[Any] = set()

    def finished(self, places: int, interrupt: Interrupt) -> Iterator[Finished]:
        """Yields the blocks of each task, as it comes; ends without those that run when it is interrupted."""
        for _ in range(min(places, len(self.plan))):
            self._hire()
        while self.running and not interrupt:
            ready, _ = self.package.wait(list(self.running), timeout=WAKE_SECONDS)
            for answer in ready:
                worker, lane, task = self.running.pop(answer)
                came = self._came(answer, worker, lane, task)
                if came is not None:
                    self._give(worker, lane)  # before the caller writes
                    if task is not None:
                        yield came

    def _hire(self) -> None:
        worker = self._new()
        self._alive.add(worker)
        self.running[worker.versions.remote()] = worker, None, None

    def _give(self, worker: Any, lane: int | None) -> None:
        """Gives a worker its next task, or lets it go."""
        found = self.plan.next(lane)
        if found is None:
            self._end(worker)
            return
        lane, task = found
        plain = task.members, task.first_epoch, self.trainer.left(task)
        self.running[worker.train.remote([self.groups[lane]], *plain)] = worker, lane, task

    def _came(self, answer: Any, worker: Any, lane: int | None, task: Task | None) -> Any:
        """Returns what a worker has answered; if it has died, sees to it that its task is done again."""
        errors = self.package.exceptions
        try:
            came = self.package.get(answer)
        except errors.RayTaskError as error:
            raise _own(error) from None
        except errors.RayError as error:
            self._end(worker)  # it may be alive, and only out of reach
            self._again(lane, task, error)
            return None
        if task is None:
            _check_versions(came)
        self._tries.pop(task and id(task), None)
        return came

    def _again(self, lane: int | None, task: Task | None, error: Exception) -> None:
        self._tries[task and id(task)] += 1
        if self._tries[task and id(task)] >= MOST_TRIES:
            what = f"training {self.trainer.named(task)}" if task else "starting"
            why = next(
                (line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__
            )
            raise WorkerError(
                f"{MOST_TRIES} of Ray's workers died one after the other while {what}: {why} "
                "All blocks that were finished are kept. Give each worker more memory, or train without `executor` to "
                "see more; then run the study again."
            )
        if task is not None and lane is not None:
            self.plan.again(lane, task)
        self._hire()

    def end(self) -> None:
        """Ends all workers, whatever they do."""
        for worker in list(self._alive):
            self._end(worker)

    def _end(self, worker: Any) -> None:
        self._alive.discard(worker)
        self.package.kill(worker)


def _own(error: Any) -> BaseException:
    """Returns the error that a worker met, as it would have been met here."""
    own = error.cause if isinstance(getattr(error, "cause", None), BaseException) else error
    own.add_note(f"It was raised in a worker of Ray.\n{error}")
    return own


def _check_versions(there: dict[str, str]) -> None:
    here = files.versions()
    if there != here:
        apart = {
            name: (here.get(name), there.get(name)) for name in {*here, *there} if here.get(name) != there.get(name)
        }
        told = ", ".join(f"{name} {other} and here {own}" for name, (own, other) in sorted(apart.items()))
        raise ValueError(
            "`executor` must have workers with the versions of this process, or their numbers would be others. "
            f"Received: a worker with {told}. Install the same versions there."
        )


# --- what crosses -----------------------------------------------------------------------------------------------------


class Sent(NamedTuple):
    """A group of trials as it is sent: its model as a configuration."""

    blueprint: dict
    decay_exclusions: Any
    group: Group  # without its model

    @classmethod
    def of(cls, group: Group) -> "Sent":
        """Takes down a group. Raises a ValueError if its model cannot be sent."""
        exclusions = keras_parts.decay_exclusions(group.model)
        return cls(blueprint(group.model, _unsent), exclusions, group._replace(model=None))  # type: ignore[arg-type]

    def made(self) -> Group:
        """Returns the group with its model, made anew."""
        model = made(self.blueprint)
        keras_parts.set_decay_exclusions(model, self.decay_exclusions)
        return self.group._replace(model=model)


def _unsent(model: keras.Model, received: str, step: str) -> ValueError:
    return ValueError(
        "`network` must return a model of parts that another process can import, because Ray's workers make it anew. "
        f"Received: model={model.name!r} with {received}. {step}, or train without `executor`."
    )


# --- a worker ---------------------------------------------------------------------------------------------------------


class Worker:
    """One of Ray's workers, in its own process."""

    def __init__(self, path: list[str], numbers: dict[str, Any], shared: list) -> None:
        """Takes over what all tasks share, by Ray's reference, in a list: it may need modules of the user's own."""
        sys.path.extend(place for place in path if place not in sys.path)
        for name, value in numbers.items():
            jax.config.update(name, value)
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
        self._get = optional("ray", "kohort.distribute.ray").get
        self.fit, self.exact = self._get(*shared)
        self.groups: collections.OrderedDict[Any, Group] = collections.OrderedDict()

    def versions(self) -> dict[str, str]:
        """Says that it is ready, and with what."""
        return files.versions()

    def train(self, group: list, members: tuple, first_epoch: int, sources: Sources) -> Finished:
        """Trains the members of a task of a group, which comes as Ray's reference to it, in a list."""
        return trained(self.fit, self.exact, Task(self._group(*group), members, first_epoch), sources)

    def _group(self, reference: Any) -> Group:
        if reference not in self.groups:
            self.groups[reference] = self._get(reference).made()
            if len(self.groups) > MOST_MODELS:
                self.groups.popitem(last=False)
        self.groups.move_to_end(reference)
        return self.groups[reference]


def _end_with(parent: int) -> None:
    """Ends this process soon after its parent, Ray's process for this machine: nobody waits for what it computes."""
    while os.getppid() == parent:
        time.sleep(LOOK_SECONDS)
    os._exit(1)
