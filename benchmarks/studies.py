"""How long a study takes from the command line, with nothing compiled yet and with all of it kept on disk.

In comes `examples/xor.toml`; out go rows of the first table. The figures that it must reach are those of issue 5.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

FILE = Path(__file__).parents[1] / "examples" / "xor.toml"
CASE = "xor, 5 widths x 3 activations x 500 seeds, 3,000 epochs"
QUICK = {"seeds = 500": "seeds = 4", "epochs = 3000": "epochs = 20", "[2, 3, 4, 6, 8]": "[2]"}
MOST_COLD, MOST_WARM = 20, 8


def command(pipe: Any, is_quick: bool) -> None:
    """Sends the seconds of the whole command in processes of its own on two cores: the first one, and the second."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    text = FILE.read_text()
    for before, after in QUICK.items() if is_quick else ():
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


def rows(measured: Callable[..., Any], turns: int, is_quick: bool) -> Iterator[tuple]:
    """Gives what the columns of the first table hold: case, measured, against, numbers, unit, least or most."""
    cold, warm = zip(*(measured(command, is_quick) for _ in range(turns)), strict=True)
    yield CASE, "kohort study, the whole command", "– (nothing compiled yet)", list(cold), "s", -MOST_COLD
    yield CASE, "kohort study, the whole command", "– (programs kept, another store)", list(warm), "s", -MOST_WARM
