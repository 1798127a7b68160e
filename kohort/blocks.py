"""What the blocks of one trial say together.

In come blocks as the store holds them; out come the members of a trial as one history, and as one cohort's contents.
The room exists because members of a trial are trained in several blocks, side by side and one after the other.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from kohort.files import Contents
from kohort.history import CohortHistory
from kohort.store import BlockRow

Pairs = Sequence[tuple[BlockRow, Contents]]
# Of a block's arrays, those that say how it went; the others are the members as they are.
HISTORY = "history/"
# Curves have room for all members in all epochs, also where one was trained much longer than the others. A study from
# elsewhere may claim a few members of very many epochs beside very many of a few: more room than this is made only for
# as many times what its blocks hold.
MOST_ROOM_BYTES, MOST_ROOM_TIMES = 2**31, 64


def seeds_of(blocks: Sequence[BlockRow]) -> list[int]:
    """Returns the seeds of a trial, in their order."""
    return sorted({seed for block in blocks for seed in block.seeds})


def last_blocks(blocks: Sequence[BlockRow]) -> dict[int, int]:
    """Returns for each seed the number of the block in which it was trained last."""
    reached: dict[int, int] = {}
    for number, block in enumerate(blocks):
        for seed in block.seeds:
            if seed not in reached or block.epochs > blocks[reached[seed]].epochs:
                reached[seed] = number
    return reached


def history_of(blocks: Sequence[BlockRow], read: Callable[[BlockRow], Contents], asked: int = 0) -> CohortHistory:
    """Returns the history of a trial's members: NaN where one has not been trained, and after its stop.

    Args:
        blocks: All blocks of the trial.
        read: Reads one of them; they are read one after the other.
        asked: The epoch that members were to reach; who did not counts as stopped.
    """
    seeds, epochs, seen = seeds_of(blocks), max((block.epochs for block in blocks), default=0), 0
    row_of, last = {seed: row for row, seed in enumerate(seeds)}, last_blocks(blocks)
    metrics: dict[str, np.ndarray] = {}
    cells: dict[str, int] = {}  # bytes of a metric for each member and epoch

    @functools.cache
    def held() -> int:
        return sum(array.nbytes for block in blocks for array in read(block).arrays.values())

    stopped, reached = np.full(len(seeds), -1), np.array([blocks[last[seed]].epochs for seed in seeds])
    for block in blocks:
        arrays = read(block).arrays
        _check_follows(block, arrays, seen)
        rows, numbers = np.array([row_of[seed] for seed in block.seeds]), arrays["epoch"]
        seen = max(seen, int(numbers[-1]) + 1)
        curves = {name: values for name, values in arrays.items() if name.startswith(HISTORY)}
        cells |= {name: _kind(values).itemsize * math.prod(values.shape[2:]) for name, values in curves.items()}
        check_room((len(seeds), seen), sum(cells.values()), held)
        for name, values in curves.items():
            full = _room(metrics.get(name), values, len(seeds), seen)
            full[rows[:, None], numbers] = values
            metrics[name] = full
        stopped[rows] = np.maximum(stopped[rows], arrays["stopped_epoch"])
    stopped = np.where(
        (stopped < 0) & (reached < max(asked, epochs)), reached - 1, stopped
    )  # nobody went on with these
    # A block may be too short to validate: its metrics have no room for it.
    whole = {name: _room(of, of, len(seeds), seen) for name, of in sorted(metrics.items())}
    kept = {name.removeprefix(HISTORY): of for name, of in whole.items()}
    return CohortHistory(kept, seeds, list(range(seen)), stopped)


def _check_follows(block: BlockRow, arrays: Mapping[str, np.ndarray], seen: int) -> None:
    """Raises unless a block goes on where another ended: one from elsewhere may claim any number of epochs."""
    numbers, stopped = (arrays.get(name, np.empty(())) for name in ("epoch", "stopped_epoch"))
    shape = len(block.seeds), numbers.size
    is_right = "seeds" in arrays and (*np.shape(stopped), *numbers.shape) == shape
    is_right = is_right and block.first_epoch <= seen and 0 < shape[1] <= block.epochs - block.first_epoch
    is_right = is_right and np.array_equal(numbers, block.first_epoch + np.arange(len(numbers)))
    is_right = is_right and arrays["seeds"].tolist() == list(block.seeds)
    if not is_right or any(of.shape[:2] != shape for name, of in arrays.items() if name.startswith(HISTORY)):
        raise ValueError(
            "`path` must be a study whose blocks go on where others end. Received: a block of epochs "
            f"{block.first_epoch} to {block.epochs} where {seen} are known, or with arrays of other epochs or seeds. "
            "Take another copy of the study."
        )


def check_room(axes: tuple[int, ...], bytes_each: int, held: Callable[[], int]) -> None:
    """Raises where room for curves would be out of all proportion to what is kept of them.

    Args:
        axes: How many members and epochs (perhaps of how many trials) there is to be room for.
        bytes_each: Bytes for each of them.
        held: Counts the bytes of what is kept; called only where there are many.
    """
    asked = math.prod(axes) * bytes_each
    if asked > MOST_ROOM_BYTES and asked > MOST_ROOM_TIMES * (there := held()):
        raise ValueError(
            f"`path` must be a study whose curves take at most {MOST_ROOM_TIMES} times the bytes of its blocks. "
            f"Received: {' x '.join(f'{number:,}' for number in axes)} {'trials, ' * (len(axes) - 2)}members and "
            f"epochs of {asked:,} bytes, of which {there:,} are kept. Take another copy of it, or train what is to run "
            "so much longer in a study of its own."
        )


def _kind(values: np.ndarray) -> np.dtype:
    """Returns the type of numbers in which curves have room for NaN."""
    return np.result_type(values.dtype, np.float16)


def _room(full: np.ndarray | None, values: np.ndarray, members: int, epochs: int) -> np.ndarray:
    """Returns room for so many epochs, with what is known of them: no more than have been recorded."""
    if full is not None and full.shape[1] >= epochs:
        return full
    room = np.full((members, epochs, *values.shape[2:]), np.nan, _kind(values))
    if full is not None:
        room[:, : full.shape[1]] = full
    return room


def joined(pairs: Pairs, history: CohortHistory) -> Contents:
    """Returns the contents of a cohort of all members of a trial, each as it was left last."""
    blocks, contents = [block for block, _ in pairs], [each for _, each in pairs]
    last = last_blocks(blocks)
    rows = [{seed: row for row, seed in enumerate(each.arrays["seeds"].tolist())} for each in contents]
    places = [(last[seed], rows[last[seed]][seed]) for seed in history.seeds]
    newest = contents[max(range(len(blocks)), key=lambda number: blocks[number].epochs)]

    def of_all(name: str) -> np.ndarray:
        used = {number: contents[number].arrays[name] for number in dict.fromkeys(number for number, _ in places)}
        return np.stack([used[number][row] for number, row in places])

    arrays = {name: array for name, array in newest.arrays.items() if name.startswith("batch/")}
    per_member = [name for name in newest.arrays if name.startswith("state/") or name in ("seeds", "generators")]
    arrays |= {name: of_all(name) for name in per_member}
    arrays |= {"epoch": np.asarray(history.epoch, np.int64), "stopped_epoch": history.stopped_epoch}
    arrays |= {f"{HISTORY}{name}": values for name, values in history.items()}
    owed = []
    for place, (drawn, _) in enumerate(newest.about["owed"]):
        owed.append([drawn, [_owed_of(contents[number], place, row) for number, row in places]])
    return Contents({**newest.about, "metrics": list(history), "owed": owed}, arrays)


def _owed_of(contents: Contents, place: int, row: int) -> Any:
    times = contents.about["owed"][place][1]
    return times[row] if isinstance(times, list) else times
