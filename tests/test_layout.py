"""The layout of the package: import order, budgets, public names, executed docstrings.

Each check is a function from source text to a list of complaints, so that `test_layout_checks.py` can show every one
of them failing.
"""

import ast
import doctest
import importlib
import io
import random
import tokenize
import types
from pathlib import Path

import beartype
import jaxtyping
import numpy as np
import pytest

import kohort
from kohort import blocks, comparison

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "kohort"

# A room imports only from the rooms before it; `__init__.py` and `__main__.py` may import from all of them.
ROOMS = [
    "backend",
    "notebook",
    "disk",
    "files",
    "structures",
    "traced",
    "history",
    "survival",
    "comparison",
    "rounding",
    "abreast",
    "pieces",
    "engine",
    "rules",
    "mapping",
    "wire",
    "generators",
    "python_code",
    "keras_internals",
    "keras_callbacks",
    "keras_parts",
    "checks",
    "data",
    "blueprint",
    "remote",
    "programs",
    "worker",
    "progress",
    "epochs",
    "stream",
    "training",
    "report",
    "fit",
    "verify",
    "shapes",
    "passes",
    "roster",
    "folds",
    "number",
    "vary",
    "template",
    "cohort_callbacks",
    "lanes",
    "cores",
    "members",
    "curves",
    "lots",
    "choice",
    "rounds",
    "membership",
    "saving",
    "ensemble",
    "results",
    "cohort",
    "store",
    "variants",
    "blocks",
    "exports",
    "trials",
    "standing",
    "executors",
    "plans",
    "trainer",
    "runs",
    "study",
    "search",
    "plot",
    "distribute",
    "accelerate",
    "lab",
    "demo",
    "tables",
    "networks",
    "study_file",
    "held_out",
    "cli",
    "__main__",
]
WITHOUT = {
    "rounding": {"keras"},
    "engine": {"keras"},
    "generators": {"keras", "jax"},
    "files": {"keras", "jax"},
    "history": {"keras", "jax"},
    "survival": {"keras", "jax"},
    "comparison": {"keras", "jax"},
    "notebook": {"keras", "jax", "matplotlib"},
    "structures": {"keras", "jax"},
    "wire": {"keras", "jax"},
    "blueprint": {"jax"},
    "remote": {"jax"},
}
# In a room of several files, a file imports only from those before it; its `__init__.py` from all of them.
INSIDE = {
    "plot": [
        "style",
        "plane",
        "surface",
        "raster",
        "player",
        "sources",
        "layers",
        "mosaic",
        "boundary",
        "activations",
        "hidden",
        "blueprint",
        "diagram",
        "landscape",
        "curves",
        "response",
        "solving",
        "rates",
        "gallery",
        "film",
        "agreement",
        "groups",
    ],
}
PICKLES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "shelve", "joblib"}
MODULE_LINES = 500
FUNCTION_CODE_LINES = 60

MODULES = sorted(PACKAGE.rglob("*.py"))


def named(path):
    return path.relative_to(ROOT).as_posix()


def each_module(function):
    return pytest.mark.parametrize("path", MODULES, ids=named)(function)


# What a module says, as data.


def imported(tree, path):
    """Yields (line, dotted name) of every import, wherever it stands, relative ones resolved.

    `from a import b` yields `a.b`, whether b is a module or a name in one.
    """
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def docstrings(tree):
    """Returns the docstring nodes of a module, its classes and its functions."""
    holders = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return {
        node.body[0].value
        for node in ast.walk(tree)
        if isinstance(node, holders) and ast.get_docstring(node, clean=False) is not None
    }


def code_lines(source):
    """Counts the code lines of each function: signature and body, nested functions included,
    without decorators, docstrings, comments and blank lines. Returns name -> count.
    """
    tree = ast.parse(source)
    skipped = {line for node in docstrings(tree) for line in range(node.lineno, node.end_lineno + 1)}
    blank = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    code = {
        line
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type not in blank
        for line in range(token.start[0], token.end[0] + 1)
    } - skipped
    return {
        f"{node.name} (line {node.lineno})": len(code.intersection(range(node.lineno, node.end_lineno + 1)))
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


# The checks.


def order_complaints(source, path):
    """What a module imports from its own package, and must not."""
    inside = path.relative_to(PACKAGE).with_suffix("").parts
    room = inside[0]
    if room in ("__init__", "__main__"):
        return []
    if room not in ROOMS:
        return [f"{named(path)} is no room: put it in ROOMS, in its place"]
    before = siblings_before(room, inside[1]) if len(inside) > 1 else []
    if before is None:
        return [f"{named(path)} has no place in its room: put it in INSIDE[{room!r}]"]
    complaints = []
    for line, name in imported(ast.parse(source), path):
        library, target, sibling = (*name.split("."), "", "")[:3]
        if library != "kohort" or target in ROOMS[: ROOMS.index(room)] or (target == room and sibling in before):
            continue
        complaints.append(f"line {line}: {'.'.join(inside)} imports {name}")
    return complaints


def siblings_before(room, name):
    """Returns the files of a room that the one of this name may import from, or None if it has no place there."""
    files = INSIDE.get(room, [])
    if name == "__init__":
        return files
    return files[: files.index(name)] if name in files else None


def foreign_complaints(source, path):
    """Imports of a library that this room does without, and pickles anywhere."""
    room = path.relative_to(PACKAGE).with_suffix("").parts[0]
    refused = PICKLES | WITHOUT.get(room, set())
    return [
        f"line {line}: {room} imports {name}"
        for line, name in imported(ast.parse(source), path)
        if name.split(".")[0] in refused
    ]


def internals_complaints(source, path):
    """What only three rooms may do: reach into `keras.src`, or into others' `_attributes`."""
    if path.name in ("keras_internals.py", "keras_callbacks.py", "keras_parts.py"):
        return []
    tree = ast.parse(source)
    ours, prose = private_names(tree), docstrings(tree)
    complaints = [
        f"line {line}: imports {name}"
        for line, name in imported(tree, path)
        if name == "keras.src" or name.startswith("keras.src.")
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node not in prose:
            if isinstance(node.value, str) and "keras.src" in node.value:
                complaints.append(f"line {node.lineno}: {node.value!r}")
        elif isinstance(node, ast.Attribute):
            text = ast.unparse(node)
            if text == "keras.src" or (is_private(node.attr) and node.attr not in ours):
                complaints.append(f"line {node.lineno}: {text}")
    return complaints


def is_private(name):
    """Says whether a name begins with one underscore (the methods of named tuples do, too)."""
    public = {"_exit", "_replace", "_asdict", "_fields", "_field_defaults", "_make"}
    return name.startswith("_") and not name.startswith("__") and name not in public


def private_names(tree):
    """Returns the `_names` that a module itself makes, as definitions, variables or attributes."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if isinstance(node.value, ast.Name) and node.value.id == "self":
                names.add(node.attr)
    return {name for name in names if is_private(name)}


def budget_complaints(source):
    """Too long a module, too long a function."""
    lines = len(source.splitlines())
    complaints = [f"{lines} lines, {MODULE_LINES} allowed"] if lines > MODULE_LINES else []
    return complaints + [
        f"{name}: {count} code lines, {FUNCTION_CODE_LINES} allowed"
        for name, count in code_lines(source).items()
        if count > FUNCTION_CODE_LINES
    ]


def statement_complaints(source):
    """Statements that hide a mistake: `assert` vanishes, `except Exception` swallows."""
    complaints = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assert):
            complaints.append(f"line {node.lineno}: assert")
        elif isinstance(node, ast.ExceptHandler):
            caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            if {each and ast.unparse(each) for each in caught} & {None, "Exception"}:
                complaints.append(f"line {node.lineno}: except Exception")
    return complaints


def public_names(source):
    """Returns the public names that a module's own level makes, also under `if` and `try`.

    `import os` makes none: it is for the module itself. `from kohort.fit import fit` makes one.
    """
    names, nodes = set(), [ast.parse(source)]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)  # what stands inside is not the module's
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        else:
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
            nodes += ast.iter_child_nodes(node)
    return {name for name in names if not name.startswith("_")}


def documented():
    """Yields (dotted name, object) of the classes and functions that users have: those of
    `kohort.__all__`, and of the modules in it what is public (their `__all__`, where they have one).
    """
    for name in kohort.__all__:
        thing = getattr(kohort, name)
        if isinstance(thing, types.ModuleType):
            yield from (
                (f"{thing.__name__}.{inner}", value)
                for inner in getattr(thing, "__all__", vars(thing))
                if f"{getattr(value := getattr(thing, inner), '__module__', '')}.".startswith(f"{thing.__name__}.")
                and not inner.startswith("_")
            )
        elif callable(thing):
            yield f"kohort.{name}", thing


def docstring_complaints(name, thing):
    """A public name without docstring, or without an example in it."""
    text = thing.__doc__ or ""
    if not text:
        return [f"{name} has no docstring"]
    return [] if ">>>" in text else [f"{name} has no Example (>>>) in its docstring"]


# The package passes them.


@each_module
def test_imports_keep_the_order_of_the_rooms(path):
    assert order_complaints(path.read_text(), path) == []


@each_module
def test_imports_stay_out_of_what_the_room_does_without(path):
    assert foreign_complaints(path.read_text(), path) == []


@each_module
def test_private_parts_of_keras_stay_in_their_room(path):
    assert internals_complaints(path.read_text(), path) == []


@each_module
def test_budgets(path):
    assert budget_complaints(path.read_text()) == []


def test_no_file_beside_the_package_is_too_long():
    folders = ("benchmarks", "conformance", "examples", "mutants", "tests")
    files = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]

    assert {named(path): n for path in files if (n := len(path.read_text().splitlines())) > MODULE_LINES} == {}


@each_module
def test_no_statement_hides_a_mistake(path):
    assert statement_complaints(path.read_text()) == []


def test_all_is_sorted_and_is_what_is_public():
    public = {name for name in kohort.__all__ if not name.startswith("_")}

    assert list(kohort.__all__) == sorted(kohort.__all__)
    hooks = {"load_ipython_extension", "unload_ipython_extension"}  # IPython calls them, nobody else
    assert public == public_names((PACKAGE / "__init__.py").read_text()) - hooks
    for room in INSIDE:
        source = (PACKAGE / room / "__init__.py").read_text()
        room_names = getattr(kohort, room).__all__
        assert list(room_names) == sorted(room_names)
        assert set(room_names) == public_names(source)


def test_every_public_name_has_an_example():
    things = dict(documented())

    assert {"kohort.fit", "kohort.Cohort", "kohort.data.xor", "kohort.plot.wall", "kohort.plot.Wall"} <= things.keys()
    assert [each for thing in things.items() for each in docstring_complaints(*thing)] == []


@each_module
def test_docstrings_do_what_they_say(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    module = importlib.import_module(name)
    printed = []
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    for test in doctest.DocTestFinder(exclude_empty=True).find(module, name):
        runner.run(test, out=printed.append)

    if printed:
        pytest.fail("".join(printed))


# The tests' own ground.


def test_annotations_are_checked_and_draw_nothing():
    @beartype.beartype
    def first(items: list[int]) -> int:
        return items[0]

    before = random.getstate()

    assert first(list(range(100))) == 0
    assert random.getstate() == before
    with pytest.raises(beartype.roar.BeartypeCallHintParamViolation):
        first(["0"])


def test_annotations_of_kohort_are_checked_with_their_shapes():
    with pytest.raises(jaxtyping.TypeCheckError):
        blocks.seeds_of(3)
    with pytest.raises(jaxtyping.TypeCheckError):
        comparison.compared_values(np.zeros(3), np.zeros(4), "min", 0.95, "loss")


def test_annotations_are_not_checked_where_kohort_must_complain_itself(annotations_unchecked):
    with pytest.raises(TypeError, match="not iterable"):
        blocks.seeds_of(3)


def test_what_is_offered_for_completion_is_for_users():
    assert sorted(dir(kohort)) == sorted(kohort.__all__)
    assert all(hasattr(kohort, name) for name in kohort.__all__)
