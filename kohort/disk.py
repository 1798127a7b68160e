"""Compiled programs that outlive the process.

In comes where the user wants them, or nothing; JAX then keeps them in a folder that nobody else can write. The room
exists because a second start must not compile again, and because programs are code, which not anybody may hand us.
"""

import contextlib
import hashlib
import os
import stat
import threading
from pathlib import Path
from typing import Any

import jax


def keep_programs_on_disk() -> None:
    """Lets JAX keep compiled programs for the next process, in a folder that this user alone can read and write.

    The folder is `KOHORT_CACHE_DIR` (empty: keep nothing), by default `kohort` in the user's cache folder. A cache that
    is set up already, by `JAX_COMPILATION_CACHE_DIR` or in `jax.config`, stays as it is.
    """
    if os.environ.get("KOHORT_CACHE_DIR") == "" or getattr(jax.config, "jax_compilation_cache_dir", None):
        return
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        own = Path(os.environ.get("KOHORT_CACHE_DIR") or cache / "kohort") / f"programs-{_processor()}"
        own.mkdir(mode=0o700, parents=True, exist_ok=True)
        is_private = _is_private(own)
    except (OSError, RuntimeError):
        return  # no home, or one that is read-only: then every process compiles anew
    if not is_private:
        return  # programs that somebody else could have put there are not run
    jax.config.update("jax_compilation_cache_dir", str(own))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    with contextlib.suppress(ImportError, AttributeError):  # then entries are written as JAX does
        _write_whole(str(own))


def _write_whole(own: str) -> None:
    """Has JAX write its entries in our folder aside, and then put them in their place.

    JAX (0.10.2) writes them where they are read: a second process reads half of one, and one that is killed leaves half
    of it there for good, as an entry that is there is not written again; each later process says so in a warning. All
    that this touches of JAX's own is named here.
    """
    from jax._src import compilation_cache, lru_cache

    class Whole(lru_cache.LRUCache):
        def put(self, key: str, value: bytes) -> None:
            write_aside(Path(own) / f"{key}-cache", value)

    of_jax = compilation_cache.get_file_cache

    def get_file_cache(path: str) -> Any:
        is_ours = path == own and getattr(jax.config, "jax_compilation_cache_max_size", None) == -1
        return (Whole(path, max_size=-1), path) if is_ours else of_jax(path)

    compilation_cache.get_file_cache = get_file_cache


def write_aside(path: Path, data: bytes) -> None:
    """Writes a file so that whoever reads it meanwhile, or after a crash, reads all of it or what was there before."""
    aside = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        aside.write_bytes(data)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _is_private(folder: Path) -> bool:
    """Says whether nobody but this user can put a file into the folder, or another folder in its place."""
    own, parent = folder.lstat(), folder.parent.stat()
    if not hasattr(os, "getuid"):
        return True
    is_own = stat.S_ISDIR(own.st_mode) and own.st_uid == os.getuid() and not own.st_mode & 0o077
    return is_own and (not parent.st_mode & 0o022 or bool(parent.st_mode & stat.S_ISVTX))


def _processor() -> str:
    """Names this processor's instruction set: programs that were compiled for another must not be run."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return hashlib.sha256(flags.encode()).hexdigest()[:12]


def remembered(key: str) -> str | None:
    """Returns the short text that was kept under a key, a hash, by this process or an earlier one."""
    data = kept(key)
    return None if data is None else data.decode(errors="replace")


def remember(key: str, text: str) -> None:
    """Keeps a short text under a key for later processes, where there is a folder for it."""
    keep(key, text.encode())


def kept(key: str) -> bytes | None:
    """Returns the bytes that were kept under a key, a hash, by this process or an earlier one."""
    folder = _notes()
    try:
        return (folder / key).read_bytes() if folder else None
    except OSError:
        return None


def keep(key: str, data: bytes) -> None:
    """Keeps bytes under a key for later processes, where there is a folder for them."""
    folder = _notes()
    if folder:
        with contextlib.suppress(OSError):
            folder.mkdir(mode=0o700, exist_ok=True)
            write_aside(folder / key, data)


def _notes() -> Path | None:
    """Returns the folder of notes, beside the programs; None if there is none that only this user can write."""
    programs = getattr(jax.config, "jax_compilation_cache_dir", None)
    return Path(programs) / "notes" if programs and Path(programs).is_dir() and _is_private(Path(programs)) else None
