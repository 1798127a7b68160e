"""A study on Ray's workers: the same rows as in this process, whoever dies, and nothing left running."""

import contextlib
import importlib.util
import logging
import os
import random
import select
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import custom_parts
import keras
import pytest
from keras import layers

import kohort
from kohort import distribute, files
from kohort.distribute import ALONE, Plan, RayExecutor
from kohort.store import Store

X, Y = kohort.data.xor()
# So many tasks lose their worker; CONTRIBUTING.md has the command for more.
KILLS = int(os.environ.get("KOHORT_KILLS", "2"))

pytestmark = [
    pytest.mark.usefixtures("annotations_unchecked"),
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed"),
]


@pytest.fixture(scope="module")
def cluster():
    """A Ray of two workers on this machine, for all of this file."""
    before = signal.getsignal(signal.SIGTERM)
    with distribute._environment(ALONE):
        import ray

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)
            ray.init(
                "local", num_cpus=2, include_dashboard=False, object_store_memory=10**8, log_to_driver=False,
                logging_level=logging.ERROR,
            )  # fmt: skip
        yield ray
        ray.shutdown()
    signal.signal(signal.SIGTERM, before)


def network(hidden=2, rate=1e-2, part=None):
    first = custom_parts.Scaled() if part == "imported" else layers.Dense(hidden, "relu")
    model = keras.Sequential([keras.Input((2,)), first, layers.Dropout(0.1), layers.Dense(1)])
    model.compile(keras.optimizers.RMSprop(rate), "mse", metrics=["mae"])
    return model


def study_at(path, grid=None, seeds=16, **options):
    return kohort.Study(path, network, grid or {"hidden": [2, 3]}, seeds, **options)


def run(study, executor=None, epochs=3, **arguments):
    options = {"verbose": 0, "block_size": 8, "batch_size": 3, "executor": executor, **arguments}
    study.run(X, Y, epochs=epochs, **options)


def kept(path):
    """All that a study holds, but for when and how long."""
    store = Store(path)
    records = store.records()
    held = []
    for block in records.blocks:
        contents = store.contents(block)
        about = {name: value for name, value in block.about.items() if name not in ("wall_seconds", "finished")}
        arrays = {name: (array.dtype, array.shape, array.tobytes()) for name, array in contents.arrays.items()}
        held.append((block[:5], about, contents.about, arrays))
    return records.about, records.trials, sorted(held, key=lambda each: each[0])


def noting(log, do=lambda begun: None):
    """Returns a callback that notes, in a file, the process of each task that a worker begins, and then does something.

    It is sent as it stands, and knows by its first epoch that a task begins.
    """
    driver, log = os.getpid(), str(log)

    def schedule(epoch, rate):
        if epoch == 0 and os.getpid() != driver:
            with open(log, "a+") as file:
                print(os.getpid(), file=file, flush=True)
                file.seek(0)
                begun = len(file.readlines())
            do(begun)
        return rate

    return keras.callbacks.LearningRateScheduler(schedule)


def wait_for_end(*processes):
    """Waits until these processes are gone."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            descriptor = os.pidfd_open(process)
            gone, _, _ = select.select([descriptor], [], [], 60)
            os.close(descriptor)
            assert gone, f"process {process} is still running"


def pids(log):
    return [int(line) for line in log.read_text().splitlines()]


# --- the same rows ----------------------------------------------------------------------------------------------------


@pytest.mark.many
@pytest.mark.parametrize("exact", [False, True])
def test_the_rows_are_those_of_this_process(exact, tmp_path, cluster):
    """Arrays to the bit, and all that is told of them; also of members that go on from where they were left."""
    grid = [{"hidden": 2, "rate": 1e-2}, {"hidden": 2, "rate": 2e-2}, {"part": "imported"}]
    log, executor = tmp_path / "log", kohort.distribute.ray(workers=2)
    for epochs in (2, 5)[: 1 if exact else 2]:
        callbacks = [noting(log)] if epochs == 2 and exact else None
        run(study_at(tmp_path / "a", grid, exact=exact), executor, epochs, callbacks=callbacks)
        run(study_at(tmp_path / "b", grid, exact=exact), None, epochs, callbacks=callbacks)

    assert kept(tmp_path / "a") == kept(tmp_path / "b")
    if exact:
        assert len(pids(log)) == 6
        assert len(set(pids(log))) == 2
        wait_for_end(*pids(log))


# --- who dies ---------------------------------------------------------------------------------------------------------


def test_a_killed_worker_costs_its_block_alone(tmp_path, cluster):
    def dying(begun):
        if begun == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    log = tmp_path / "log"
    run(study_at(tmp_path / "a"), kohort.distribute.ray(workers=2), callbacks=[noting(log, dying)])
    run(study_at(tmp_path / "b"), callbacks=[noting(log, dying)])

    assert len(pids(log)) == 4 + 1
    assert kept(tmp_path / "a") == kept(tmp_path / "b")
    wait_for_end(*pids(log))


@pytest.mark.slow
def test_a_task_whose_workers_always_die_is_named(tmp_path, cluster):
    def dying(begun):
        if begun > 1:
            os.kill(os.getpid(), signal.SIGKILL)

    log = tmp_path / "log"
    named = (
        r"3 of Ray's workers died one after the other while training hidden=2 with seeds 8, 9, 10, 11, 12, 13, 14, 15: "
    )
    with pytest.raises(kohort.WorkerError, match=f"{named}.* Give each worker more memory"):
        run(study_at(tmp_path / "a", {"hidden": [2]}), kohort.distribute.ray(1), callbacks=[noting(log, dying)])

    assert len(pids(log)) == 1 + 3
    assert [trial.seeds for trial in kohort.open(tmp_path / "a").trials] == [tuple(range(8))]
    wait_for_end(*pids(log))


def test_killed_at_random_moments_workers_lose_no_block(tmp_path, cluster, record_property):
    """Each task that begins may be killed some time later, by a timer of the system: in it, after it or in the next."""

    def armed(begun):
        draw = random.Random(begun)
        if draw.random() < 0.9:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)  # which ends the process at once, as SIGKILL does
            signal.setitimer(signal.ITIMER_REAL, 10 ** draw.uniform(-3, -0.5))  # a task may end within milliseconds

    log, executor, committed, studies = tmp_path / "log", kohort.distribute.ray(workers=2), 0, 0
    log.touch()
    while (again := len(pids(log)) - committed) < KILLS:
        studies += 1
        run(study_at(tmp_path / "b"), callbacks=[noting(log, armed)]) if studies == 1 else None
        path = tmp_path / f"a{studies}"
        while sum(map(len, kohort.open(path).trials if path.exists() else [])) < 32:
            with contextlib.suppress(kohort.WorkerError):  # one task had bad luck three times
                run(study_at(path), executor, callbacks=[noting(log, armed)])
        assert kept(path) == kept(tmp_path / "b")
        committed += 4
        assert len(pids(log)) - committed <= len(set(pids(log))), "more than the running block was trained in vain"
    assert again >= KILLS
    record_property("kills", again)
    print(f"{again} tasks lost their worker, {studies} studies, {committed} blocks kept")
    wait_for_end(*set(pids(log)))


def test_an_error_of_a_task_is_raised_here_and_what_is_finished_is_kept(tmp_path, cluster):
    def failing(begun):
        if begun == 2:
            raise ValueError("no such rate")

    log = tmp_path / "log"
    with pytest.raises(ValueError, match=r"^no such rate\n") as raised:
        run(study_at(tmp_path / "a", {"hidden": [2]}), kohort.distribute.ray(1), callbacks=[noting(log, failing)])

    assert raised.value.__notes__[-1].startswith("It was raised in a worker of Ray.")
    assert "in failing" in raised.value.__notes__[-1]
    assert [len(trial) for trial in kohort.open(tmp_path / "a").trials] == [8]
    wait_for_end(*pids(log))


def test_ctrl_c_ends_the_workers_and_keeps_what_is_finished(tmp_path, cluster):
    log, waiting = tmp_path / "log", tmp_path / "never"
    os.mkfifo(waiting)

    def hanging(begun):
        if begun > 1:
            open(waiting).close()  # nobody writes to it

    def pressed(*arguments):
        results = kohort.distribute.ray(workers=1)(*arguments)
        yield next(results)
        os.kill(os.getpid(), signal.SIGINT)
        yield from results

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run(study_at(tmp_path / "a"), pressed, callbacks=[noting(log, hanging)])
    finally:
        signal.signal(signal.SIGINT, before)
    assert sum(map(len, kohort.open(tmp_path / "a").trials)) == 8
    wait_for_end(*pids(log))


SCRIPT = """
import sys
import kohort
from test_distribute import noting, run, study_at

run(study_at(sys.argv[1]), kohort.distribute.ray(workers=1), verbose=2, callbacks=[noting(sys.argv[2])])
"""


def children(process):
    """Returns the processes that this one has started."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    return [child for child, parent in parents.items() if parent == process]


def listening(processes):
    """Returns the addresses, as Linux writes them, at which these processes wait for connections."""
    own = set()
    for path in (path for process in processes for path in Path(f"/proc/{process}/fd").glob("*")):
        with contextlib.suppress(OSError):
            own.add(os.readlink(path))
    fields = [line.split() for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()[1:]]
    return {each[1].partition(":")[0] for each in fields if each[3] == "0A" and f"socket:[{each[9]}]" in own}


def test_a_killed_driver_leaves_nothing_running_and_the_study_goes_on(tmp_path):
    """Without a cluster, one is made for the run; it is of this machine alone, and ends with the process."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(tmp_path / "a"), str(tmp_path / "log")]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, env=environment)
    assert driver.stdout.readline().startswith("0/")
    assert "8 more" in driver.stdout.readline()
    below = children(driver.pid)
    heard = listening(below)
    driver.kill()
    driver.wait(60)
    driver.stdout.close()
    wait_for_end(*below, *pids(tmp_path / "log"))

    assert heard <= {"0100007F", "0000000000000000FFFF00000100007F"}, "others than this machine are listened to"
    assert heard
    there = sum(map(len, kohort.open(tmp_path / "a").trials))
    assert there >= 8
    run(study_at(tmp_path / "a"), callbacks=[noting(tmp_path / "log")])
    assert [len(trial) for trial in kohort.open(tmp_path / "a").trials] == [16, 16]


# --- what is asked of Ray ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "nodes", "gpus", "workers"),
    [
        ({}, [{"CPU": 8.0}], 0, 8),
        ({"num_cpus": 3}, [{"CPU": 8.0}, {"CPU": 4.0}], 0, 3),
        ({}, [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 4.0}], 1, 2),
        ({"num_gpus": 0.25}, [{"CPU": 8.0, "GPU": 1.0}], 0.25, 4),
        ({"num_gpus": 0}, [{"CPU": 8.0, "GPU": 1.0}], 0, 8),
        ({"num_cpus": 0}, [{"CPU": 8.0}, {}], 0, 2),
        ({"num_cpus": 16}, [{"CPU": 8.0}, {"CPU": 8.0}], 0, 0),
    ],
)
def test_workers_are_asked_for_with_their_cores_and_gpus(asked, nodes, gpus, workers):
    executor = kohort.distribute.ray(**asked)
    options = executor.options(nodes)

    environment = {"KERAS_BACKEND": "jax", "NPROC": str(max(1, asked.get("num_cpus", 1)))}
    if gpus == 0.25:
        environment["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    assert options == {
        "num_cpus": asked.get("num_cpus", 1), "num_gpus": gpus, "runtime_env": {"env_vars": environment},
    }  # fmt: skip
    assert distribute.room(nodes, options) == workers


def test_a_worker_takes_as_many_cores_as_it_was_given(monkeypatch):
    from kohort.cores import cores

    monkeypatch.setenv("NPROC", "1")
    assert cores() == 1
    monkeypatch.setenv("NPROC", "all")
    assert cores() == len(os.sched_getaffinity(0))


def test_a_worker_stays_at_its_lane_and_then_goes_where_most_waits():
    def task(lane, number):
        return SimpleNamespace(name=f"{lane}{number}")

    plan = Plan([[task("a", i) for i in range(4)], [], [task("b", i) for i in range(2)]])

    def next_of(lane):
        found = plan.next(lane)
        return found and (found[0], found[1].name)

    assert len(plan) == 6
    assert [next_of(None), next_of(None)] == [(0, "a0"), (2, "b0")]
    assert [next_of(0), next_of(2), next_of(2)] == [(0, "a1"), (2, "b1"), (0, "a2")]
    plan.again(0, task("a", 1))
    assert [next_of(None), next_of(0), next_of(0)] == [(0, "a1"), (0, "a3"), None]


# --- what is wrong ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"workers": 0}, ValueError, "`workers` must be"),
        ({"workers": "all"}, TypeError, "`workers` must be an integer"),
        ({"num_cpus": -1}, ValueError, r"`num_cpus` must be a number from 0 on\. Received: num_cpus=-1\. Give each"),
        ({"num_gpus": float("nan")}, ValueError, r"`num_gpus` must be a number from 0 on\. Received: num_gpus=nan"),
        ({"num_gpus": "all"}, ValueError, r"`num_gpus` must be a number from 0 on\. Received: num_gpus='all'"),
        ({"address": 6379}, TypeError, r"`address` must be a text\. Received: address=6379\. Pass \"auto\""),
    ],
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        kohort.distribute.ray(**arguments)


def test_without_ray_it_says_what_to_install(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: (name != "ray" and find_spec(name, *rest)) or None
    )
    message = r"`kohort.distribute.ray` must find the package ray\. .*: `python -m pip install 'kohort\[ray\]'"
    with pytest.raises(ImportError, match=message):
        kohort.distribute.ray()


def test_what_has_no_room_in_the_cluster_is_refused(tmp_path, cluster):
    message = (
        r"`num_cpus` and `num_gpus` must be .*Received: num_cpus=64, num_gpus=0, with nodes of 2 CPUs and 0 GPUs\. Ask"
    )
    with pytest.raises(ValueError, match=message):
        run(study_at(tmp_path / "a"), kohort.distribute.ray(num_cpus=64))


def test_a_part_that_workers_cannot_import_is_refused(tmp_path, cluster):
    @keras.saving.register_keras_serializable("test_distribute")
    class Local(layers.Layer):
        def call(self, x):
            return x

    def local():
        model = keras.Sequential([keras.Input((2,)), Local(), layers.Dense(1)])
        model.compile("sgd", "mse")
        return model

    message = (
        r"`network` must return a model of parts that another process can import.*Local'.*train without `executor`"
    )
    with pytest.raises(ValueError, match=message):
        run(kohort.Study(tmp_path / "a", local, {}, 4), kohort.distribute.ray())


def test_workers_of_other_versions_are_refused():
    distribute._check_versions(files.versions())
    message = (
        r"`executor` must have workers with the versions .*Received: a worker with keras 9\.9 and here .*\. Install"
    )
    with pytest.raises(ValueError, match=message):
        distribute._check_versions(files.versions() | {"keras": "9.9"})


def test_how_an_executor_shows_itself():
    assert repr(kohort.distribute.ray(2, num_gpus=0.5)) == "ray(workers=2, num_cpus=1, num_gpus=0.5)"
    assert isinstance(kohort.distribute.ray(), RayExecutor)
    assert dir(distribute) == ["ray"]
