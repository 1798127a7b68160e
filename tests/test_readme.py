"""README: what it says to type works, and prints what it says.

Every `python` block runs, in order and in one namespace, in a process and a folder of its own, as
a reader would run it. Where the very next block is `text`, it is the output; `...` stands for
what differs from machine to machine.
"""

import doctest
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

README = Path(__file__).parents[1] / "README.md"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
MARK = "\x1e"

# Reads the blocks from standard input; each keeps its place in README, so tracebacks point there.
DRIVER = f"""
import json, sys
path, blocks = json.load(sys.stdin)
namespace = {{"__name__": "__main__"}}
for line, code in blocks:
    print("{MARK}", end="", flush=True)
    exec(compile("\\n" * line + code, path, "exec"), namespace)
"""


class Block(NamedTuple):
    """A `python` block, and what it is said to print."""

    line: int
    code: str
    output: str | None


def read_blocks(text):
    """Finds the `python` blocks of a Markdown text."""
    fences = list(FENCE.finditer(text))
    blocks = []
    for fence, following in itertools.pairwise([*fences, None]):
        language, code = fence.groups()
        if language == "python":
            says = following is not None and following[1] == "text"
            line = text.count("\n", 0, fence.start(2))
            blocks.append(Block(line, code, following[2] if says else None))
    return blocks


def run_blocks(blocks, folder):
    """Runs the blocks as a reader would; returns what each printed."""
    environment = os.environ | {"KERAS_HOME": str(folder / "keras")}
    del environment["KERAS_BACKEND"]  # kohort picks the backend itself
    reader = folder / "reader"
    reader.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", DRIVER],
        input=json.dumps([str(README), [block[:2] for block in blocks]]),
        cwd=reader,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.split(MARK)[1:]


def differences(blocks, printed):
    """Tells the first lines of the blocks whose output is not what is said, with both."""
    checker, options = doctest.OutputChecker(), doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    return [
        f"README.md, line {block.line + 1}: said\n{block.output}\nprinted\n{got}"
        for block, got in zip(blocks, printed, strict=True)
        if block.output is not None and not checker.check_output(block.output, got, options)
    ]


def test_readme_blocks_do_what_they_say(tmp_path):
    blocks = read_blocks(README.read_text())
    printed = run_blocks(blocks, tmp_path)

    assert len(blocks) >= 1
    assert any(block.output for block in blocks)
    assert differences(blocks, printed) == []


def test_a_wrong_readme_is_noticed(tmp_path):
    text = "# x\n```python\na = 2\nprint(a)\n```\nso:\n```text\n2\n```\n```python\nprint(a + 1)\n```\n"
    right = read_blocks(text)
    wrong = read_blocks(text.replace("\n2\n", "\n7\n"))

    assert right == [Block(2, "a = 2\nprint(a)\n", "2\n"), Block(10, "print(a + 1)\n", None)]
    printed = run_blocks(right, tmp_path)
    assert printed == ["2\n", "3\n"]
    assert differences(right, printed) == []
    assert differences(wrong, printed) == ["README.md, line 3: said\n7\n\nprinted\n2\n"]
