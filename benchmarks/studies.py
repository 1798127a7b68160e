"""What studies cost: from the command line, beside training alone, resumed, by Ray's workers, and asked by Optuna.

In come `examples/xor.toml` and the benchmark's problems; out go rows of the first table. The figures that each must
reach are those of issue 5.
"""

import importlib.util
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import contenders
from contenders import MOONS, XOR, Problem

FILE = Path(__file__).parents[1] / "examples" / "xor.toml"
CASE = "xor, 5 widths x 3 activations x 500 seeds, 3,000 epochs"
SHORTER = {"seeds = 500": "seeds = 4", "epochs = 3000": "epochs = 20", "[2, 3, 4, 6, 8]": "[2]"}
MOST_COLD, MOST_WARM = 20, 8
MOST_OVERHEAD_PERCENT, MOST_STORE_TIMES, MOST_RESUME_SECONDS = 5, 1.2, 2
LEAST_WORKERS, LEAST_SEARCH = 1.6, 50
RATES, WIDTHS = (1e-4, 1e-1), (2, 3, 4, 6, 8)
# A permutation of NumPy's is drawn from a generator of so many words, which a member that shuffles has to itself.
GENERATOR_BYTES = 625 * 4
LONG_MOONS = MOONS._replace(hidden=(8, 8), metrics=())
SMALL_MOONS = LONG_MOONS._replace(epochs=20)


class Sizes(NamedTuple):
    """What to measure, and how thoroughly."""

    problems: tuple[Problem, ...] = (XOR, SMALL_MOONS, LONG_MOONS)  # of a study of many members
    trials: int = 100
    seeds: int = 1000
    worked: Problem = SMALL_MOONS  # by Ray's workers: blocks of XOR are done before they have travelled
    worked_trials: int = 20
    searched: Problem = XOR
    asked: int = 256
    batch: int = 64
    sampled: int = 3  # so many of the trials are trained one after the other


QUICK = Sizes((XOR._replace(epochs=2),), 2, 8, SMALL_MOONS._replace(epochs=1), 4, XOR._replace(epochs=2), 2, 2, 1)


# --- in processes of their own ----------------------------------------------------------------------------------------


def two_cores() -> None:
    """Leaves this process two cores."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])


def command(pipe: Any, is_quick: bool) -> None:
    """Sends the seconds of the whole command in processes of its own on two cores: the first one, and the second."""
    two_cores()
    text = FILE.read_text()
    for before, after in SHORTER.items() if is_quick else ():
        text = text.replace(before, after)
    folder = Path(tempfile.mkdtemp())
    (folder / "xor.toml").write_text(text)
    words = [Path(sys.executable).with_name("kohort"), "study", folder / "xor.toml", "--quiet", "--store"]
    environment, seconds = os.environ | {"KOHORT_CACHE_DIR": str(folder / "programs")}, []
    for store in ("first", "second"):
        start = time.perf_counter()
        subprocess.run([*words, folder / store], env=environment, stdout=subprocess.DEVNULL, check=True)
        seconds.append(time.perf_counter() - start)
    pipe.send(seconds)


def network_of(problem: Problem) -> Callable[..., Any]:
    """Returns a network function for the problem."""

    def network(learning_rate: float = 1e-3, hidden: int | None = None) -> Any:
        model = contenders.compiled(problem if hidden is None else problem._replace(hidden=(hidden,)))
        model.optimizer.learning_rate = learning_rate
        return model

    return network


def study_of(path: Any, problem: Problem, trials: int, seeds: int) -> Any:
    """Returns a study of so many learning rates, which share a program, so that none is timed but training."""
    import numpy as np

    import kohort

    rates = np.geomspace(*RATES, trials).tolist()
    return kohort.Study(path, network_of(problem), {"learning_rate": rates}, seeds)


def arguments_of(problem: Problem) -> dict[str, Any]:
    """Returns data and recipe, as all fits take them."""
    recipe = {"batch_size": problem.batch_size, "epochs": problem.epochs, "verbose": 0}
    return {**dict(zip("xy", contenders.data(problem), strict=True)), **recipe}


def trained_alone(problem: Problem, blocks: list[tuple[float, tuple[int, ...]]]) -> int:
    """Trains the blocks of a study, pairs of learning rate and seeds, as cohorts that nobody keeps.

    Returns:
        The bytes of all that Keras's fits would leave of these members: variables of model and optimizer, the curves,
        and the state of NumPy's generator, where batches are drawn from it.
    """
    import numpy as np

    import kohort

    model, total = network_of(problem)(), 0
    for rate, seeds in blocks:
        cohort = kohort.Cohort(model, seeds, vary={"optimizer.learning_rate": [rate] * len(seeds)})
        history = cohort.fit(**arguments_of(problem))
        total += sum(np.asarray(curves).nbytes for curves in history.values())
    one = cohort.member(index=0)
    own = sum(np.asarray(variable).nbytes for variable in [*one.variables, *one.optimizer.variables])
    draws = GENERATOR_BYTES if problem.batch_size < problem.rows else 0
    return total + sum(len(seeds) for _, seeds in blocks) * (own + draws)


def many(pipe: Any, folder: Path, problem: Problem, sizes: Sizes, turns: int) -> None:
    """Sends what a study takes beside the same cohorts alone: percents of their time; and bytes of both.

    Each study stands between two trainings alone and is compared with their mean: a machine that slows down, or speeds
    up, does so for both. Both build what they train, are traced anew and find their program in the cache. Members are
    cut into cohorts as the study cuts them. The last study stays in `folder`.
    """
    two_cores()

    def studied() -> tuple[float, list[tuple[float, tuple[int, ...]]]]:
        shutil.rmtree(folder, ignore_errors=True)
        start = time.perf_counter()
        study = study_of(folder, problem, sizes.trials, sizes.seeds)
        study.run(**arguments_of(problem))
        seconds, records = time.perf_counter() - start, study.store.records()
        rates = {row.id: row.parameters["learning_rate"] for row in records.trials.values()}
        return seconds, [(rates[block.trial], block.seeds) for block in records.blocks]

    def alone() -> float:
        start = time.perf_counter()
        raw.append(trained_alone(problem, blocks))
        return time.perf_counter() - start

    raw: list[int] = []
    _, blocks = studied()  # compiles
    alones, percents = [alone()], []
    for _ in range(turns):
        seconds, blocks = studied()
        alones.append(alone())
        percents.append(100 * (seconds / statistics.mean(alones[-2:]) - 1))
    stored = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    pipe.send((percents, alones, stored, raw[-1]))


def resume(pipe: Any, folder: Path, problem: Problem, sizes: Sizes) -> None:
    """Sends the seconds of running a finished study again, from importing kohort on; it must train nothing."""
    two_cores()
    import jax
    import keras

    def blocks() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}

    _, before, start = (jax, keras), blocks(), time.perf_counter()
    study_of(folder, problem, sizes.trials, sizes.seeds).run(**arguments_of(problem))
    seconds = time.perf_counter() - start
    if not before or before != blocks():
        raise RuntimeError(f"{len(before)} blocks were finished, and the study trained more")
    pipe.send(seconds)


def by_workers(pipe: Any, folder: Path, sizes: Sizes) -> None:
    """Sends the members per second of one and of two of Ray's workers, each on a core: those they settle at, and all.

    The clock of the first begins when as many blocks have come as there are workers: they have started by then.
    """
    two_cores()
    import ray

    import kohort

    problem = sizes.worked

    def turn(workers: int) -> tuple[float, float]:
        came, executor = [], kohort.distribute.ray(workers)

        def clocked(*arguments: Any) -> Iterator[Any]:
            for finished in executor(*arguments):
                came.append((time.perf_counter(), sum(len(block.seeds) for block, _ in finished)))
                yield finished

        study = study_of(folder / str(workers), problem, sizes.worked_trials, sizes.seeds)
        start = time.perf_counter()
        study.run(**arguments_of(problem), block_size=max(1, sizes.seeds // 2), executor=clocked)
        total = time.perf_counter() - start
        settled = came[-1][0] - came[workers - 1][0]
        return sum(count for _, count in came[workers:]) / settled, sum(count for _, count in came) / total

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    rates = turn(1), turn(2)
    ray.shutdown()
    pipe.send(rates)


def by_optuna(pipe: Any, folder: Path, sizes: Sizes) -> None:
    """Sends the seconds of some trials one after the other, by `model.fit`, and of two searches in batches.

    kohort is imported after the first; its first search finds nothing compiled, its second one finds the programs kept
    on disk. What both train must have the same loss in the first epoch: later ones differ where a rate is so high that
    rounding grows.
    """
    two_cores()
    import keras
    import numpy as np
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    network, arguments = network_of(sizes.searched), arguments_of(sizes.searched)
    losses, seconds_alone = [], []

    def objective(trial: Any) -> float:
        start = time.perf_counter()
        keras.utils.set_random_seed(0)
        rate = trial.suggest_float("learning_rate", *RATES, log=True)
        model = network(rate, trial.suggest_categorical("hidden", WIDTHS))
        history = model.fit(**arguments).history["loss"]
        losses.append(history[0])
        seconds_alone.append(time.perf_counter() - start)
        return history[-1]

    def search() -> Any:
        return optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))

    alone = search()
    alone.optimize(objective, n_trials=1 + sizes.sampled)  # the first is for what is done once
    import kohort

    space = {
        "learning_rate": optuna.distributions.FloatDistribution(*RATES, log=True),
        "hidden": optuna.distributions.CategoricalDistribution(WIDTHS),
    }

    def together(path: Path) -> float:
        batches = search()
        for trial in alone.trials:
            batches.enqueue_trial(trial.params)
        options = {"trials": sizes.asked, "batch": sizes.batch}
        start = time.perf_counter()
        study = kohort.search.optuna(batches, path, network, space, **options, **arguments)
        seconds = time.perf_counter() - start
        for trial, loss in zip(alone.trials, losses, strict=True):
            found = study.trial(**trial.params).history["loss"][0, 0]
            if not np.isclose(found, loss, rtol=1e-4):
                raise RuntimeError(f"{trial.params} begins with a loss of {found} in the study, {loss} in model.fit")
        return seconds

    cold = together(folder / "cold")
    pipe.send((seconds_alone[1:], cold, together(folder / "warm")))


# --- rows -------------------------------------------------------------------------------------------------------------


def rows(measured: Callable[..., Any], turns: int, is_quick: bool) -> Iterator[tuple]:
    """Gives what the columns of the first table hold: case, measured, against, numbers, unit, least or most.

    Where a package is missing, the numbers are a text that says so.
    """
    cold, warm = zip(*(measured(command, is_quick) for _ in range(turns)), strict=True)
    yield CASE, "kohort study, the whole command", "– (nothing compiled yet)", list(cold), "s", -MOST_COLD
    yield CASE, "kohort study, the whole command", "– (programs kept, another store)", list(warm), "s", -MOST_WARM
    sizes = QUICK if is_quick else Sizes()
    for problem in sizes.problems:
        yield from rows_of_many(measured, problem, sizes, turns)
    yield from rows_of_workers(measured, sizes)
    yield from rows_of_searches(measured, sizes)


def rows_of_many(measured: Callable[..., Any], problem: Problem, sizes: Sizes, turns: int) -> Iterator[tuple]:
    """Gives what a study of many members costs beside training them, and to run it again."""
    folder = Path(tempfile.mkdtemp())
    percents, alone, stored, raw = measured(many, folder, problem, sizes, turns)
    case = case_of(problem, sizes.trials, sizes.seeds)
    against = f"the same cohorts, not kept: {statistics.median(alone):.3g} s"
    yield case, "Study.run, what it takes more", against, percents, "%", -MOST_OVERHEAD_PERCENT
    against = f"its members as arrays, with all that goes on from them: {raw / 1e6:,.1f} MB"
    yield case, "Study.run, its folder", against, [stored / raw], "times", -MOST_STORE_TIMES
    seconds = [measured(resume, folder, problem, sizes) for _ in range(turns)]
    against = "– (a new process, beyond importing jax and keras)"
    yield case, "Study.run, nothing left to train", against, seconds, "s", -MOST_RESUME_SECONDS
    shutil.rmtree(folder)


def rows_of_workers(measured: Callable[..., Any], sizes: Sizes) -> Iterator[tuple]:
    """Gives what a second one of Ray's workers adds."""
    case = case_of(sizes.worked, sizes.worked_trials, sizes.seeds)
    is_there = importlib.util.find_spec("ray") is not None
    settled, whole = "not installed", "not installed"
    if is_there:
        one, two = measured(by_workers, Path(tempfile.mkdtemp()), sizes)
        settled, whole = ([both / single] for single, both in zip(one, two, strict=True))
    name = "kohort.distribute.ray, two workers on two cores"
    yield case, name, "one worker, from when they have started", settled, "times", LEAST_WORKERS
    yield case, name, "one worker, their start included", whole, "times", None


def rows_of_searches(measured: Callable[..., Any], sizes: Sizes) -> Iterator[tuple]:
    """Gives how many times more trials Optuna is told of where it asks for a batch of them."""
    ratios: Any = ["not installed"] * 2
    if importlib.util.find_spec("optuna") is not None:
        alone, *together = measured(by_optuna, Path(tempfile.mkdtemp()), sizes)
        ratios = [[each * sizes.asked / seconds for each in alone] for seconds in together]
    case = f"{sizes.searched.name}, {sizes.asked} learning rates and widths, {sizes.searched.epochs:,} epochs, seed 0"
    name = f"kohort.search.optuna in batches of {sizes.batch}"
    against = f"model.fit on JAX, one trial after the other ({sizes.sampled} of them timed)"
    for kept, own in zip(("nothing compiled yet", "programs kept"), ratios, strict=True):
        yield case, f"{name}, {kept}", against, own, "times", LEAST_SEARCH


def case_of(problem: Problem, trials: int, seeds: int) -> str:
    """Names a study of many members."""
    return f"{problem.name} {problem.network}, {trials} learning rates x {seeds:,} seeds, {problem.epochs:,} epochs"
