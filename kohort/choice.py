"""Which mapping a fit uses, and how wide its blocks are.

In come the members, the data and what the user has set; out go the mapping's name and a width: by rule at first, by a
short measurement where a fit is long enough to pay for it, and from then on as it was measured. The room exists because
what is fastest depends on network and machine, and what has room on the machine alone.
"""

import contextlib
import hashlib
import math
import numbers
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from kohort import disk, keras_internals
from kohort.checks import received
from kohort.cores import cores, told_cores
from kohort.curves import SHARE_OF_LIMIT, most_bytes
from kohort.lanes import block_step
from kohort.lots import Ahead, Lot
from kohort.mapping import MAPPINGS, WIDEST, Form
from kohort.members import Members, Trained
from kohort.programs import shapes_of
from kohort.template import Template

# Another mapping has to be so much faster, or the one that the rule names stays.
CLEAR_GAIN = 1.2
# Of tiny networks, so many blocks are given to XLA for each core.
AHEAD = 2
# The share of the free memory that a cohort uses where nothing is said.
DEFAULT_SHARE = 0.5
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


class Choice:
    """The mapping and the width of the blocks of those members of a fit that are made from one template."""

    def __init__(self, members: Members, ahead: Ahead, template: Template) -> None:
        """Chooses by what was measured once for such a network and such data, or else by rule."""
        state = keras_internals.read_state(template.network)
        self.form: Form = template.programs.form(ahead.data, state)
        self._kept: dict[str, Any] = template.programs.once(("mapping", shapes_of(ahead.data)), dict)
        self._members, self._ahead = members, ahead
        self.candidates = self._candidates()
        self.mapping = self._known() or self.candidates[0]

    def _candidates(self) -> tuple[str | None, ...]:
        """Returns the mappings that may be used, the one that the rule names first."""
        if self._members.exact:
            return (None,)
        if (mapping := self._members.settings.mapping) != "auto":
            if mapping == "abreast" and self._ahead.shares.weights is not None:
                raise ValueError(
                    "`mapping` must be another one where each member has its own weights. Received: mapping='abreast'. "
                    "Leave it out to let kohort choose."
                )
            return (mapping,)
        has_several = len(jax.local_devices()) > 1
        if jax.default_backend() != "cpu":
            return ("sharded", "vectorized") if has_several else ("vectorized",)
        # Whether members are spread over threads or over host devices, it is over the same cores. Where there are such
        # devices it is measured: threads were 1.3 to 6 times as fast.
        is_small = self.form.is_small and self._ahead.shares.weights is None
        over_threads = ("abreast", "vectorized") if is_small else ("vectorized", "loop")
        return (*over_threads, "sharded") if has_several else over_threads

    def _known(self) -> str | None:
        if self.is_settled:
            return None
        if "measured" not in self._kept:
            found = disk.remembered(self._key)
            if found in self.candidates:
                self._kept["measured"] = str(found)
        return self._kept.get("measured")

    @property
    def is_settled(self) -> bool:
        """Whether there is nothing to measure."""
        return len(self.candidates) == 1 or "measured" in self._kept

    @property
    def compiling(self) -> float:
        """The seconds that it took to compile a program of these members, in this process or an earlier one."""
        return self._kept["compiling"]

    def _took(self, seconds: float) -> None:
        """Takes in how long it took to compile the program, or to find it where it was kept."""
        if "compiling" in self._kept:
            return
        self._kept["compiling"] = seconds
        if self.is_settled:  # then nobody asks
            return
        note = f"{self._key}-compiling"
        with contextlib.suppress(TypeError, ValueError):  # there is none, or it is no number
            self._kept["compiling"] = float(disk.remembered(note))  # type: ignore[arg-type]
            return
        disk.remember(note, str(seconds))

    @property
    def _key(self) -> str:
        """Names the network, the data's form and the machine."""
        step = re.sub("0x[0-9a-f]+", "", self.form.text)
        machine = jax.__version__, jax.devices()[0].device_kind, cores(), len(jax.local_devices())
        return hashlib.sha256(repr((step, self.width, machine)).encode()).hexdigest()

    def measure(self, seconds_of: Callable[[str], float], width: int) -> None:
        """Chooses by what a call for a block of this width takes with each mapping, and remembers it."""
        is_shared = width % len(jax.local_devices()) == 0
        seconds = {own: seconds_of(own) for own in self.candidates if own and (is_shared or own != "sharded")}
        best = min(seconds, key=seconds.__getitem__)
        if CLEAR_GAIN * seconds[best] > seconds[str(self.mapping)]:
            best = str(self.mapping)
        self.mapping = self._kept["measured"] = best
        disk.remember(self._key, best)

    @property
    def width(self) -> int:
        """The most members of a block."""
        devices = len(jax.local_devices()) if self.candidates[0] == "sharded" else 1
        return devices * (self.form.width if jax.default_backend() == "cpu" else WIDEST)

    @property
    def at_once(self) -> int:
        """How many blocks train at a time: of tiny networks, whose calls are short, the next waits for a core.

        Not where this process has been told its cores: with the next it would take those of others meanwhile.
        """
        return (AHEAD if self.mapping == "abreast" and not told_cores() else 1) * cores()

    def within_memory(self, lot: Lot, trained: Trained) -> int | None:
        """Returns a width that has room where the present one has none, else None; 0 if none has, in calls so long.

        Raises:
            ValueError: If there is no room for a single member in calls of an epoch.
        """
        block = self._members.blocks[lot.places[0]]
        state = trained.states[lot.places[0]]
        arguments = lot.blank_arguments(state, block.width)
        start = time.perf_counter()
        working = lot.program(self.mapping).memory(*arguments)
        self._took(time.perf_counter() - start)
        rows = 0 if arguments[3].rows is None else arguments[3].rows.nbytes  # a share of the memory at any width
        lot.take_back(arguments[3])
        own = sum(leaf.nbytes for states in trained.states for leaf in jax.tree.leaves(states))
        generators = 2 * 2500 * len(self._members.seeds) if self._ahead.is_order_seen else 0
        limit = memory_limit(self._members.settings.memory)
        at_once = min(self.at_once, len(self._members.blocks))
        held = 2 * own + generators + self._history(limit)
        room = (limit - held) / at_once
        if working <= room:
            return None
        fitting = max(0, int(block.width * (room - rows) / max(1, working - rows)))
        step, narrow = block_step(), (4, 2, 1) if self.mapping != "sharded" else (block_step(),)
        if min(fitting, block.width - 1) < step and lot.capacity > 1:  # narrower blocks would take longer
            return 0
        if block.width <= narrow[-1]:
            least = self._least(2 * own + generators + at_once * working)
            raise ValueError(
                "`memory` must have room for all members' states and the training of "
                f"{'one' if narrow[-1] == 1 else narrow[-1]} on each core. "
                f"Received: {received('memory', self._members.settings.memory)}, where {shown(limit)} may be used and "
                f"about {shown(least)} are needed. Give `kohort.Cohort` so much `memory`, or fewer seeds."
            )
        width = fitting // step * step or next((few for few in narrow if few <= fitting), narrow[-1])
        return min(width, block.width - 1)

    def _least(self, beside: int) -> float:
        """Returns the limit of memory that leaves so much beside the metrics, and then some for rounding it."""
        limit = beside / (1 - SHARE_OF_LIMIT)
        return 1.01 * min(limit, beside + self._history(int(limit)))

    def _history(self, limit: int) -> int:
        """Returns the bytes that the metrics of the fit take in memory."""
        recipe, metrics = self._ahead.recipe, len(self._members.templates[0].network.metrics)
        passes = 1 if self._ahead.data.validation is None and self._ahead.shares.validation is None else 2
        size = 4 * (recipe.epochs - recipe.initial_epoch) * len(self._members.seeds) * metrics * passes
        return min(size, most_bytes(limit))


def check_mapping(mapping: Any, exact: bool) -> str:
    """Returns the mapping, or raises."""
    if mapping not in ("auto", *MAPPINGS) or (exact and mapping != "auto"):
        accepted = ", ".join(map(repr, ("auto", *MAPPINGS)))
        beside = " beside exact=True, which trains each member by itself" if exact else ""
        raise ValueError(
            f"`mapping` must be one of {accepted}, and 'auto' with exact=True. "
            f"Received: {received('mapping', mapping)}{beside}. Leave it out to let kohort choose."
        )
    return str(mapping)


def check_memory(memory: Any) -> int | None:
    """Returns a limit of memory in bytes, or None; raises for what is none."""
    if memory is None:
        return None
    is_number = isinstance(memory, numbers.Real) and not isinstance(memory, bool) and math.isfinite(float(memory))
    parts = (
        re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([KMGT]?I?)B?\s*", memory.upper()) if isinstance(memory, str) else None
    )
    size = int(float(memory)) if is_number else int(float(parts[1]) * UNITS.get(parts[2], 0)) if parts else 0
    if size <= 0:
        raise ValueError(
            "`memory` must be a number of bytes above 0, a text such as '2GB' or '500MiB', or None. "
            f"Received: {received('memory', memory)}. Leave it out to use half of what is free."
        )
    return size


def memory_limit(memory: int | None) -> int:
    """Returns how many bytes a cohort may take beyond what the process has: what was said, or a share of the free."""
    return memory if memory is not None else int(DEFAULT_SHARE * free_memory())


def free_memory() -> int:
    """Returns the bytes of memory that this process could still get."""
    free = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")] if hasattr(os, "sysconf") else [2**33]
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free.append(1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")))
    with contextlib.suppress(OSError, ValueError):  # a container's own limit; "max" is no number
        group = Path("/sys/fs/cgroup")
        free.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    if told := jax.local_devices()[0].memory_stats():  # a GPU has its own; of a CPU nothing is told
        free.append(told["bytes_limit"] - told["bytes_in_use"])
    return max(min(free), 2**20)


def shown(size: Any) -> str:
    """Returns a number of bytes as people read it."""
    unit, name = next((each for each in ((10**9, "GB"), (10**6, "MB")) if size >= each[0]), (10**3, "kB"))
    return f"{size / unit:.3g} {name}"
