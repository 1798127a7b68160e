"""Compiles kohort/shuffle.c where there is a C compiler; without one, NumPy does the same, more slowly."""

import shlex
import subprocess
import sysconfig
from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE, LIBRARY = "kohort/shuffle.c", "kohort/shuffle.compiled"


class CustomBuildHook(BuildHookInterface):
    """Puts the compiled library into the wheel, or into the checkout for an editable installation."""

    def initialize(self, version: str, build_data: dict) -> None:
        """Compiles; a wheel with a library is one for this platform only, but for every Python."""
        root = Path(self.root)
        if not compiled(root / SOURCE, root / LIBRARY):
            self.app.display_warning("kohort: no C compiler; NumPy draws permutations instead, at a fifth of the speed")
            return
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["artifacts"].append(LIBRARY)
        build_data |= {"pure_python": False, "tag": f"py3-none-{platform}"}


def compiled(source: Path, library: Path) -> bool:
    """Makes the library anew; says whether that went well."""
    made = library.with_suffix(".new")
    compiler = shlex.split(sysconfig.get_config_var("CC") or "cc")[0]
    command = [compiler, "-O3", "-shared", "-fPIC", source, "-o", made]
    try:
        subprocess.run(command, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return False
    made.replace(library)
    return True
