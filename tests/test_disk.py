"""What is kept for the next process: written whole or not at all, mended where it is damaged."""

from pathlib import Path

import pytest
from test_promises import fresh_process

from kohort import disk

FIT = """
    import warnings
    warnings.simplefilter("always")
    import kohort, keras
    x, y = kohort.data.xor()
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, "tanh"), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    print(kohort.fit(model, x, y, epochs=20, verbose=0).history["loss"][-1])
"""


def entries(folder):
    return sorted(folder.glob("programs-*/*-cache"))


def fit_of_another_process(folder):
    """Returns what it printed, and what it warned of."""
    done = fresh_process(FIT, KOHORT_CACHE_DIR=str(folder), JAX_COMPILATION_CACHE_DIR="")
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def test_a_program_that_is_cut_short_is_compiled_anew_and_kept_whole(tmp_path):
    """As one whose process was killed by JAX 0.10.2, which then leaves it as it is for good."""
    printed, _ = fit_of_another_process(tmp_path)
    whole = {path: path.stat().st_size for path in entries(tmp_path)}
    assert whole
    for path in whole:
        path.write_bytes(path.read_bytes()[:-100])

    again, warned = fit_of_another_process(tmp_path)
    assert again == printed
    assert "Error reading persistent compilation cache entry" in warned
    assert all(path.stat().st_size > size - 100 for path, size in whole.items())

    third, warned = fit_of_another_process(tmp_path)
    assert third == printed
    assert "cache entry" not in warned
    assert all(path.name.endswith("-cache") for path in tmp_path.glob("programs-*/*") if path.is_file())


def test_nobody_reads_half_of_a_file(tmp_path, monkeypatch):
    target = tmp_path / "entry"
    target.write_bytes(b"old")
    write = Path.write_bytes

    def half(path, data):
        write(path, data[: len(data) // 2])
        raise OSError("the disk is full")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(OSError, match="full"):
        disk.write_aside(target, b"a new one")

    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["entry"]


def test_a_cache_that_is_set_up_otherwise_is_jaxs_own(tmp_path):
    """Ours is put in by a function of JAX 0.10.2 that is not public: where it goes, this says so."""
    code = f"""
        import kohort, jax
        from jax._src import compilation_cache

        def kind(path):
            return type(compilation_cache.get_file_cache(path)[0]).__name__

        own = jax.config.jax_compilation_cache_dir
        print(kind(own), kind({str(tmp_path / "other")!r}))
        jax.config.update("jax_compilation_cache_max_size", 10**6)
        print(kind(own))
    """
    done = fresh_process(code, KOHORT_CACHE_DIR=str(tmp_path / "ours"), JAX_COMPILATION_CACHE_DIR="")
    assert done.stdout.split() == ["Whole", "LRUCache", "LRUCache"], done.stderr
