"""Programs as they were traced, for the next process: it need neither trace them again nor write them out for XLA.

In come a function of arrays, its arguments, and a text that says all that its trace depends on; out comes the program,
from the disk where it is there. The room exists because a study of many small networks mostly waits for Python, which
traces one network at a time: a tenth of a second each, ten times what its training takes.
"""

import functools
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import keras
from jax import export
from jaxlib.version import __version__ as VERSION

from kohort import disk
from kohort.structures import filled, skeleton

DIGEST_BYTES = 32


def are_kept() -> bool:
    """Says whether programs are kept here: those of several devices, or of a GPU, are traced in each process."""
    return jax.default_backend() == "cpu" and len(jax.local_devices()) == 1


def bound(arrays: Any) -> Any:
    """Returns copies of arrays that belong to this device, where programs are kept: what such a program returns does.

    To JAX, an array that belongs to a device is another thing than one that is merely there, and a program that gets
    now the one and now the other is compiled twice. So the states of members all belong to it, from the first call on.
    """
    return (_copied_to(jax.local_devices()[0]) if are_kept() else copied)(arrays)


@jax.jit
def copied(arrays: Any) -> Any:
    """Returns copies of arrays."""
    return jax.tree.map(jnp.copy, arrays)


@functools.cache
def _copied_to(device: Any) -> Callable:
    return jax.jit(copied, out_shardings=jax.sharding.SingleDeviceSharding(device))


class Traced:
    """A program of flat arrays, as JAX reads it back, called with structures as the function that was traced."""

    def __init__(self, form: Any, exported: export.Exported, donated: int, options: dict[str, Any] | None) -> None:
        """Compiles nothing yet.

        Args:
            form: The skeleton of the results, with the place of each array among those of the program.
            exported: The program.
            donated: So many of the first arrays may be used up.
            options: Those of XLA that differ from its own.
        """
        self._form = form

        def run(*leaves: Any) -> Any:
            return exported.call(*leaves)

        self._program = jax.jit(run, donate_argnums=tuple(range(donated)), compiler_options=options)

    def __call__(self, *args: Any) -> Any:
        """Runs it."""
        results = self._program(*jax.tree.leaves(args))
        return filled(self._form, lambda place: results[place])

    def lower(self, *args: Any) -> Any:
        """Returns it as it is given to XLA."""
        return self._program.lower(*jax.tree.leaves(args))


def program(
    identity: str, function: Callable, args: tuple, donated: int = 0, options: dict[str, Any] | None = None
) -> Traced | None:
    """Returns a program, traced now or by an earlier process, or None where it cannot be written down, or named.

    Both are run alike, so that numbers do not depend on which of them it was.

    Args:
        identity: All that the trace depends on but the arguments and `surroundings`. One that tells
            where a thing lies in memory does not say what it is.
        function: Returns dicts, lists and tuples of arrays.
        args: Arguments, of which shapes and types count.
        donated: The leaves of so many of the first arguments may be used up.
        options: Those of XLA that differ from its own.
    """
    if " at 0x" in identity:
        return None
    leaves, structure = jax.tree.flatten(args)
    types = [jax.typeof(leaf) for leaf in leaves]
    key = hashlib.sha256(repr((identity, str(structure), types, options, surroundings())).encode()).hexdigest()
    known = _opened(disk.kept(key)) or _traced(key, function, structure, types)
    return known and Traced(*known, len(jax.tree.leaves(args[:donated])), options)


def _traced(key: str, function: Callable, structure: Any, types: list) -> tuple[Any, export.Exported] | None:
    forms = []

    def flat(*leaves: Any) -> list:
        results, form = jax.tree.flatten(function(*jax.tree.unflatten(structure, leaves)))
        forms.append(skeleton(jax.tree.unflatten(form, range(len(results))), int))
        return results

    specifications = [jax.ShapeDtypeStruct(each.shape, each.dtype, weak_type=each.weak_type) for each in types]
    try:
        exported = export.export(jax.jit(flat))(*specifications)
        body = json.dumps(forms[0]).encode() + b"\n" + bytes(exported.serialize())
    except (NotImplementedError, ValueError):  # it holds what another version of JAX might do otherwise
        return None
    disk.keep(key, hashlib.sha256(body).digest() + body)
    return forms[0], exported


def _opened(data: bytes | None) -> tuple[Any, export.Exported] | None:
    """Returns what was kept, once it is found to be whole."""
    if data is None or hashlib.sha256(data[DIGEST_BYTES:]).digest() != data[:DIGEST_BYTES]:
        return None
    form, _, body = data[DIGEST_BYTES:].partition(b"\n")
    return json.loads(form), export.deserialize(bytearray(body))


def surroundings() -> tuple:
    """Returns what else a trace depends on: the code, and what JAX and Keras take from everywhere."""
    of_jax = [(name, repr(getattr(jax.config, name, None))) for name in sorted(jax.config.values)]
    of_keras = keras.config.floatx(), keras.config.epsilon(), keras.config.image_data_format()
    return _sources(), jax.__version__, VERSION, keras.__version__, *of_keras, *of_jax


@functools.cache
def _sources() -> str:
    """Returns the digest of kohort's own code, and of when Keras's and JAX's was written.

    Of code that is being changed, the version says nothing.
    """
    digest = hashlib.sha256()
    for path in sorted(filter(Path.is_file, Path(__file__).parent.glob("*.py"))):  # and no editor's lock
        digest.update(path.read_bytes())
    for package in (keras, jax):
        for folder, within, files in os.walk(os.path.dirname(str(package.__file__))):
            within.sort()
            for name in sorted(name for name in files if name.endswith(".py")):
                written = os.lstat(os.path.join(folder, name))  # of an editor's lock, which leads nowhere, too
                digest.update(f"{name} {written.st_size} {written.st_mtime_ns}".encode())
    return digest.hexdigest()
