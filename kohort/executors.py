"""Who trains the blocks of a study, and in which order they come back.

In come lanes of tasks and a trainer, which does one when it is called; out come the results as they are ready, to the
one who writes. The room exists so that a study does not know whether threads of this process train its blocks, or
workers on other machines.

An executor is called as `in_threads` is. The tasks of a lane share one compiled program: whoever does the first of them
compiles it, and nobody else begins another before. What is asked to stop ends without the results of what was running.
"""

import collections
import concurrent.futures
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from kohort.progress import Interrupt, heeding

Lanes = Sequence[Sequence[Any]]
# Called with lanes, `kohort.trainer.Trainer`, interrupt, and how many tasks threads should do side by side.
Executor = Callable[[Lanes, Any, Interrupt, int], Iterator[Any]]
WAKE_SECONDS = 0.1


def in_threads(lanes: Lanes, train: Callable[[Any], Any], interrupt: Interrupt, workers: int) -> Iterator[Any]:
    """Yields what `train` makes of each task, as it comes: while one thread compiles or prepares, another trains.

    Args:
        lanes: Tasks, lane by lane.
        train: Does one task; called in threads.
        interrupt: When it is pressed, what is running ends at its next epoch and nothing new is begun.
        workers: How many tasks are done side by side.

    Yields:
        The results, in the order in which they are ready.
    """
    left = {number: collections.deque(lane) for number, lane in enumerate(lanes)}
    running: dict[concurrent.futures.Future, int] = {}
    at: collections.Counter[int] = collections.Counter()  # how many threads are at each lane
    compiled: set[int] = set()

    def done(task: Any) -> Any:
        with heeding(interrupt):
            return train(task)

    def next_lane() -> int | None:
        """Returns where to go on: where nobody is, first of all where the program is there; then to help somebody."""
        free = [lane for lane, tasks in left.items() if tasks and (lane in compiled or not at[lane])]
        return min(free, key=lambda lane: (at[lane], lane not in compiled), default=None)

    with concurrent.futures.ThreadPoolExecutor(workers) as pool:

        def begin(most: int) -> None:
            while len(running) < most and not interrupt and (lane := next_lane()) is not None:
                running[pool.submit(done, left[lane].popleft())] = lane
                at[lane] += 1

        try:
            begin(workers)
            while running:
                # Python hears Ctrl-C in this thread, which not every system wakes for it.
                ready, _ = concurrent.futures.wait(running, WAKE_SECONDS, concurrent.futures.FIRST_COMPLETED)
                for future in ready:
                    lane = running.pop(future)
                    at[lane] -= 1
                    compiled.add(lane)
                    if interrupt and isinstance(future.exception(), KeyboardInterrupt):
                        continue
                    result = future.result()
                    begin(workers - 1)  # of which one is written: who is killed loses no more than there are workers
                    yield result
                    begin(workers)
        finally:
            if running:
                interrupt.press()  # the caller has given up: nobody waits for what is running
