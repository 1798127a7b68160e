"""Trains a study to be killed meanwhile: run as a program, by `test_crash.py`.

`real PATH` trains it as anybody would; `waiting PATH` does, too, but a task for each line that it reads. `again PATH`
trains each task once, elsewhere; then, for each line that it reads, a child of its own runs the study, with those
results for what it asks to be trained, and the system kills it at a random moment. So a kill costs some milliseconds,
and hits what is after all the training: driver, store, disk.
"""

import os
import random
import signal
import sys
import time

import keras

import kohort
from kohort import executors

X, Y = kohort.data.xor()
GRID, SEEDS, BLOCK, EPOCHS = {"hidden": [2, 3, 4]}, 24, 8, 3


def network(hidden):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(hidden, "relu"), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return model


def study_at(path):
    return kohort.Study(path, network, GRID, SEEDS)


def run(study, executor=None):
    study.run(X, Y, epochs=EPOCHS, block_size=BLOCK, verbose=2, executor=executor)


def trained_once(path):
    """Returns a study and what training makes of each of its tasks."""
    study, made = study_at(path), {}

    def keeping(lanes, train, interrupt, workers):
        for task in (task for lane in lanes for task in lane):
            made[task.group.trials[0], task.members] = finished = train(task)
            yield finished

    run(study, keeping)
    return study, made


def run_to_be_killed(study, made, path, log, delay):
    """Runs the study in a child until the system ends it, if it is not faster; returns how it ended."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    sys.stdout = open(os.devnull, "w")
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # which ends the process at once, wherever it is, as SIGKILL does
    if delay is not None:
        signal.setitimer(signal.ITIMER_REAL, delay)

    def telling(lanes, train, interrupt, workers):
        for task in (task for lane in lanes for task in lane):
            os.write(log, f"{task.group.trials[0]} {task.members[0][1]}\n".encode())
            yield made[task.group.trials[0], task.members]

    again = study_at(path)
    again._known, again._models = study._known, study._models  # no child computes anything
    run(again, telling)
    os._exit(0)


def noting(begun):
    """Returns an executor that notes in a file how many tasks may be done at once, for each that begins."""

    def noted(lanes, train, interrupt, workers):
        def one(task):
            os.write(begun, f"{workers}\n".encode())
            return train(task)

        return executors.in_threads(lanes, one, interrupt, workers)

    return noted


def when_told(lanes, train, interrupt, workers):
    """Trains a task for each line that is read."""
    for task in (task for lane in lanes for task in lane):
        sys.stdin.readline()
        yield train(task)


def main(kind, path):
    if kind == "waiting":
        run(study_at(path), when_told)
        return
    if kind == "real":
        run(study_at(path), noting(os.open(f"{path}.begun", os.O_WRONLY | os.O_CREAT | os.O_APPEND)))
        return
    study, made = trained_once(os.path.join(path, "whole"))
    log = os.open(os.path.join(path, "log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    start = time.perf_counter()
    run_to_be_killed(study, made, os.path.join(path, "first"), log, None)
    seconds = time.perf_counter() - start
    print("ready", flush=True)
    for line in sys.stdin:
        name, seed = line.split()
        delay = None if seed == "none" else random.Random(int(seed)).uniform(0.002, 0.7 * seconds)
        print(run_to_be_killed(study, made, os.path.join(path, name), log, delay), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
