"""How the site is built: `./run docs`. The gallery is made by running `examples/gallery.py`."""

import ast
import importlib.util
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
suppress_warnings = ["myst.xref_missing"]  # RESULTS.md and the README name files that are no pages
myst_heading_anchors = 3
napoleon_custom_sections = ["Source"]
napoleon_use_rtype = False  # what is returned is told in sentences, which may hold a colon
default_role = "code"  # docstrings write code between single backticks
autodoc_member_order = "bysource"
autodoc_typehints = "none"

GALLERY = Path(__file__).parent / "generated"


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


def make_gallery(app: Any) -> None:
    """Draws every picture of the gallery, and writes the page that shows them."""
    import matplotlib.pyplot as plt

    spec = importlib.util.spec_from_file_location("gallery", ROOT / "examples" / "gallery.py")
    if spec is None or spec.loader is None:
        raise FileNotFoundError("examples/gallery.py")
    gallery = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(gallery)
    GALLERY.mkdir(exist_ok=True)
    lines = ["# Gallery", "", "Made by running `examples/gallery.py`, where the models and cohorts are trained.", ""]
    for name, draw in gallery.pictures().items():
        display, path = draw(), GALLERY / f"{name}.png"
        if hasattr(display, "save"):
            path = path.with_suffix(".webp")
            display.save(path)
        else:
            display.figure_.savefig(path, dpi=100)
        plt.close("all")
        code = drawings().get(name, "plot.animate(cohort, x, y, epochs=3000).save('film.webp')")
        lines += [f"## {name}", "", "```python", code.removesuffix(".figure_"), "```", ""]
        lines += [f"![{name}]({path.name})", ""]
    (GALLERY / "gallery.md").write_text("\n".join(lines))


def setup(app: Any) -> None:
    """Makes the gallery first."""
    app.connect("builder-inited", make_gallery)
