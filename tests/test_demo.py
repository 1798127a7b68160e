"""The demo runs to its end and leaves its pictures."""

import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[1] / "examples" / "demo.py"


@pytest.mark.slow
def test_the_demo_does_what_it_says(tmp_path):
    done = subprocess.run([sys.executable, DEMO, tmp_path / "pictures"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "How often XOR is solved" in done.stdout
    assert "times faster" in done.stdout
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == [
        f"{problem}-{picture}.png" for problem in ("moons", "xor") for picture in ("best", "loss", "wall")
    ]
