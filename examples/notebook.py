"""Runs the code cells of a notebook in one process and puts what they show into it: texts, and pictures as small PNGs.

Run by `./run python examples/notebook.py examples/discussion.ipynb [--check]`; with `--check` the file stays as it is.
Jupyter runs the same notebook; this needs neither it nor a kernel, and stores nothing that changes from run to run but
what the cells themselves compute.
"""

import argparse
import ast
import base64
import contextlib
import io
import json
from pathlib import Path

import matplotlib.pyplot as plt
from PIL import Image

DPI, COLOURS = 80, 128  # of the stored pictures


def run(cell: str, names: dict) -> list[dict]:
    """Runs a cell as a notebook does, and returns its outputs."""
    printed, tree = io.StringIO(), ast.parse(cell)
    is_shown = bool(tree.body) and isinstance(tree.body[-1], ast.Expr) and not cell.rstrip().endswith(";")
    last = ast.Expression(tree.body.pop().value) if is_shown else None
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, "<cell>", "exec"), names)
        value = eval(compile(last, "<cell>", "eval"), names) if last else None
    outputs = [{"output_type": "stream", "name": "stdout", "text": lines(printed.getvalue())}]
    if value is not None:
        data = {"text/plain": lines(repr(value))}
        outputs.append({"output_type": "execute_result", "execution_count": None, "metadata": {}, "data": data})
    pictures = [{"image/png": picture(plt.figure(number))} for number in plt.get_fignums()]
    outputs += [{"output_type": "display_data", "metadata": {}, "data": data} for data in pictures]
    plt.close("all")
    return outputs if printed.getvalue() else outputs[1:]


def picture(figure: plt.Figure) -> str:
    """Returns a figure as a PNG of few colours, in Base64."""
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, dpi=DPI)
    Image.open(drawn).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    return base64.b64encode(small.getvalue()).decode() + "\n"


def lines(text: str) -> list[str]:
    """Returns a text as notebooks hold it."""
    return text.splitlines(keepends=True)


def main() -> None:
    """Runs a notebook."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path)
    parser.add_argument("--check", action="store_true", help="run it, and leave the file as it is")
    chosen = parser.parse_args()
    notebook, names = json.loads(chosen.path.read_text()), {"__name__": "__main__"}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"] = run("".join(cell["source"]), names)
            for output in cell["outputs"]:
                print("".join(output.get("text", ())), end="", flush=True)
    if not chosen.check:
        chosen.path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    plt.switch_backend("Agg")
    main()
