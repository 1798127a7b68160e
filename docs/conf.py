"""How the site is built: `./run docs`. Its gallery is made by running `examples/gallery.py`; the notebook is a page.

The table and the picture of the page on many machines come from `examples/scaling.py`.
"""

import ast
import base64
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("MPLBACKEND", "Agg")

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

project, author, copyright = "kohort", "the authors of kohort", "the authors of kohort"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme, html_title = "furo", "kohort"
exclude_patterns = ["_build"]
myst_heading_anchors = 3
napoleon_custom_sections = ["Source"]
napoleon_use_rtype = False  # what is returned is told in sentences, which may hold a colon
default_role = "code"  # docstrings write code between single backticks
autodoc_member_order = "bysource"
autodoc_typehints = "none"

GENERATED = Path(__file__).parent / "generated"


def drawings() -> dict[str, str]:
    """Returns the line of code that draws each picture of the gallery, by name."""
    tree = ast.parse((ROOT / "examples" / "gallery.py").read_text())
    function = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "pictures")
    told = next(node.value for node in function.body if isinstance(node, ast.Return))
    if not isinstance(told, ast.Dict):
        raise TypeError("`pictures` in examples/gallery.py must return a dict.")
    pairs = zip(told.keys, told.values, strict=True)
    return {
        ast.literal_eval(name): ast.unparse(draw.body) for name, draw in pairs if name and isinstance(draw, ast.Lambda)
    }


def example(name: str) -> Any:
    """Returns an example as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    if spec is None or spec.loader is None:
        raise FileNotFoundError(f"examples/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_gallery(app: Any) -> None:
    """Draws every picture of the gallery, and writes the page that shows them."""
    import matplotlib.pyplot as plt

    gallery = example("gallery")
    lines = ["# Gallery", "", "Made by running `examples/gallery.py`, where the models and cohorts are trained.", ""]
    for name, draw in gallery.pictures().items():
        display, path = draw(), GENERATED / f"{name}.png"
        if hasattr(display, "save"):
            path = path.with_suffix(".webp")
            display.save(path)
        else:
            display.figure_.savefig(path, dpi=100)
        plt.close("all")
        code = drawings().get(name, "plot.animate(cohort, x, y, epochs=3000).save('film.webp')")
        lines += [f"## {name}", "", "```python", code.removesuffix(".figure_"), "```", ""]
        lines += [f"![{name}]({path.name})", ""]
    (GENERATED / "gallery.md").write_text("\n".join(lines))


def make_scaling(app: Any) -> None:
    """Simulates studies on many machines, and leaves the picture and the table for their page."""
    scaling = example("scaling")
    rows = scaling.table()
    scaling.picture(rows).savefig(GENERATED / "scaling.png", dpi=100)
    shown = [row for row in rows if row.workers in (1, 4, 16, 64, 256, 1024)]
    (GENERATED / "scaling.txt").write_text(scaling.told(shown))


def make_discussion(app: Any) -> None:
    """Writes the page of the notebook: its cells, and the outputs that are stored in it."""
    notebook, parts = json.loads((ROOT / "examples" / "discussion.ipynb").read_text()), []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                path = GENERATED / f"discussion-{len(parts)}.png"
                path.write_bytes(base64.b64decode(output["data"]["image/png"]))
                parts.append(f"![What the cell above draws]({path.name})")
            else:
                parts.append("```text\n" + "".join(output.get("text", ())) + "```")
    parts.append("This page is `examples/discussion.ipynb`, a notebook that the tests run.")
    (GENERATED / "discussion.md").write_text("\n\n".join(parts) + "\n")


def kept_as_sentences() -> tuple[Any, Any]:
    """Returns what keeps napoleon off the docstrings of properties: it takes the words before a colon for a type."""
    kept: dict[str, list[str]] = {}

    def before(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
        if what == "property":
            kept[name] = list(lines)

    def after(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
        lines[:] = kept.pop(name, lines)

    return before, after


def setup(app: Any) -> None:
    """Makes the pages that are generated first."""
    before, after = kept_as_sentences()
    app.connect("autodoc-process-docstring", before, priority=400)
    app.connect("autodoc-process-docstring", after, priority=600)
    GENERATED.mkdir(exist_ok=True)
    app.connect("builder-inited", make_gallery)
    app.connect("builder-inited", make_scaling)
    app.connect("builder-inited", make_discussion)
