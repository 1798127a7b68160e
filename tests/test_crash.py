"""Killed at any moment, a study keeps every block that it had, and goes on.

What is killed is a process of its own: `killed_study.py`.
"""

import itertools
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from killed_study import BLOCK, GRID, SEEDS

import kohort
from kohort.store import Store

DRIVER = Path(__file__).with_name("killed_study.py")
# So often a driver is killed at a random moment; CONTRIBUTING.md has the command for more.
KILLS = int(os.environ.get("KOHORT_KILLS", "40"))
WHOLE = len(GRID["hidden"]) * SEEDS // BLOCK


def driver(kind, path):
    command = [sys.executable, "-W", "ignore", str(DRIVER), kind, str(path)]
    # What it says is to be seen at once also where Python would keep it.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


class Killed:
    """Runs studies in children that are killed, and counts what is found afterwards."""

    def __init__(self, folder):
        self.folder, self.process = folder, driver("again", folder)
        while self.process.stdout.readline().strip() not in ("ready", ""):
            pass
        self.committed, self.seen, self.ends = {}, 0, Counter()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()

    def once(self, name, seed):
        """Runs the study of this name, killed at the moment of this seed; returns how that ended."""
        self.process.stdin.write(f"{name} {seed}\n")
        self.process.stdin.flush()
        self.ends[end := int(self.process.stdout.readline())] += 1
        self.check(name)
        return end

    def check(self, name):
        """Holds what is there against what was there before, and against what was trained since."""
        before = self.committed.get(name, {})
        store = Store(self.folder / name)
        blocks = store.records().blocks if store.exists else []
        now = {(block.trial, block.seeds): block for block in blocks}
        assert len(now) == len(blocks), "a block is there twice"
        assert before.items() <= now.items(), "a committed block is lost"
        for block in blocks[len(before) :]:
            assert tuple(store.contents(block).arrays["seeds"].tolist()) == block.seeds
        begun = (self.folder / "log").read_text().splitlines()
        since, self.seen = begun[self.seen :], len(begun)
        assert len(since) - len(blocks[len(before) :]) in (0, 1), "more than the running block was trained in vain"
        self.committed[name] = now


def killed_often(folder, kills):
    """Runs studies, each until it is whole, killed at moments of their own, until there were so many kills."""
    seeds = itertools.count()
    with Killed(folder) as killed:
        killed.seen = len((folder / "log").read_text().splitlines())
        for name in (f"study{i}" for i in itertools.count()):
            while killed.once(name, next(seeds) if killed.ends[-14] < kills else "none"):
                pass
            check_whole(folder, name)
            if killed.ends[-14] >= kills:
                break
            assert killed.ends.total() < 5 * kills, "hardly anything is killed"
    return killed


def check_whole(folder, name):
    """Holds a study that was killed and went on against one that was not."""
    ours, theirs = kohort.open(folder / name), kohort.open(folder / "whole")
    assert [trial.seeds for trial in ours.trials] == [trial.seeds for trial in theirs.trials]
    for mine, other in zip(ours.trials, theirs.trials, strict=True):
        np.testing.assert_array_equal(mine.history["loss"], other.history["loss"])
    files = [path.name for path in (folder / name / "blocks").iterdir()]
    assert len(files) == WHOLE, "something was left behind"


def test_kills_lose_no_block(tmp_path, record_property):
    killed = killed_often(tmp_path, KILLS)

    record_property("kills", killed.ends[-14])
    print(f"{killed.ends[-14]} kills, {len(killed.committed)} studies, {WHOLE * len(killed.committed)} blocks kept")
    assert killed.ends[-14] == KILLS
    assert set(killed.ends) <= {-14, 0}


def of_block(line):
    """Says whether a line tells of a block that is kept: the first tells how many members there are to train."""
    return not line.startswith("0/")


def kill_after(folder, lines):
    """Kills a study that is really trained, after so many blocks."""
    process = driver("real", folder / "real")
    said = list(itertools.islice(filter(of_block, process.stdout), lines))
    process.kill()
    process.wait(60)
    process.stdin.close()
    process.stdout.close()
    return said


def begun_in(folder):
    """Returns how many tasks have been begun, and how many may be done at once."""
    path = folder / "real.begun"
    noted = [int(line) for line in path.read_text().splitlines()] if path.exists() else []
    return len(noted), max(noted, default=0)


def real_kills(folder, moments):
    there = begun_before = 0
    for lines in moments:
        kill_after(folder, lines)
        store = Store(folder / "real")
        blocks = store.records().blocks if store.exists else []
        assert len(blocks) >= min(there + lines, WHOLE)
        begun, workers = begun_in(folder)
        assert (begun - begun_before) - (len(blocks) - there) <= workers, "more than the running blocks are lost"
        begun_before = begun
        assert len({(block.trial, block.seeds) for block in blocks}) == len(blocks)
        there = len(blocks)
    done = subprocess.run(
        [sys.executable, str(DRIVER), "real", str(folder / "real")], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        text=True, check=True,
    )  # fmt: skip
    assert sum(map(of_block, done.stdout.splitlines())) == WHOLE - there  # so many are trained, and no more
    study = kohort.open(folder / "real")
    assert [len(trial) for trial in study.trials] == [SEEDS] * len(GRID["hidden"])


@pytest.mark.slow
def test_a_study_that_is_really_trained_goes_on_after_kills(tmp_path):
    real_kills(tmp_path, [2, 1])


@pytest.mark.slow
def test_a_study_that_is_really_trained_goes_on_after_many_kills(tmp_path):
    for round_number in range(2):
        (folder := tmp_path / str(round_number)).mkdir()
        real_kills(folder, np.random.default_rng(round_number).integers(0, 3, 4).tolist())
