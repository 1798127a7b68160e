"""The demo runs to its end and leaves its pictures."""

import pytest

from kohort import cli


@pytest.mark.slow
def test_the_demo_does_what_it_says(tmp_path, capsys):
    assert cli.main(["demo", str(tmp_path / "pictures")]) == 0

    printed = capsys.readouterr().out
    assert "How often XOR is solved" in printed
    assert "times faster" in printed
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == [
        f"{problem}-{picture}.png" for problem in ("moons", "xor") for picture in ("best", "loss", "wall")
    ]
