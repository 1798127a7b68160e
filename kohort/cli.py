"""The command line, `kohort`: study, table, show, export, fit, predict, run, demo.

In come the words of a shell; out go results on standard output, progress and complaints on standard error, and an exit
code: 0 done, 1 failed, 2 wrong use, 130 interrupted. The room exists so that the questions that a study answers, and a
network for a table, need no Python. What needs Keras imports it in its command: help is there at once.
"""

import argparse
import csv
import gc
import importlib
import io
import json
import math
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, NoReturn

DONE, FAILED, WRONG, INTERRUPTED = 0, 1, 2, 130
NO_FILE = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)
WRONG_USE = (TypeError, ValueError, ImportError, *NO_FILE)
OBJECTS_A_COLLECTION = 20_000  # Python's own 700 (of 3.11) cost a study of seconds a twentieth of its time
EXITS = "exit codes: 0 done, 1 failed, 2 wrong use, 130 interrupted (Ctrl-C)"


def main(arguments: list[str] | None = None) -> int:
    """Does what the words of a command line say, and returns the exit code.

    Args:
        arguments: The words after `kohort`. Default: those with which Python was started.
    """
    if arguments is None:  # a process of its own: hardly anything that imports and compilers make is garbage
        gc.set_threshold(OBJECTS_A_COLLECTION)
    words = sys.argv[1:] if arguments is None else arguments
    if words[:1] == ["run"]:
        _run(words[1:])
    options = _parser().parse_args(words)  # which ends with a message and exit code 2 by itself
    try:
        options.command(options)
        sys.stdout.flush()
    except KeyboardInterrupt as interrupt:
        _complain(f"interrupted{'. ' if interrupt.args else ''}{interrupt}")
        return INTERRUPTED
    except BrokenPipeError:  # whoever read the output has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (TypeError, ValueError, ImportError, OSError, RuntimeError) as error:
        if not str(error).startswith("`"):
            raise  # no message of ours: how it came about is all that helps
        _complain(str(error))
        return WRONG if isinstance(error, WRONG_USE) else FAILED
    return DONE


def _complain(text: str) -> None:
    print(f"kohort: {_printable(text)}", file=sys.stderr)


def _say(text: str) -> None:
    print(_printable(text))


def _printable(text: str) -> str:
    """Returns the text without what would steer a terminal: names in a study from elsewhere may hold anything."""
    return "".join(each if each.isprintable() or each == "\n" else ascii(each)[1:-1] for each in text)


def _say_json(value: Any) -> None:
    print(json.dumps(_of_json(value), indent=2))


def _of_json(value: Any) -> Any:
    """Returns the value with null for numbers that are not finite, which JSON has not."""
    if isinstance(value, dict):
        return {str(key): _of_json(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_of_json(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# --- the parser -------------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """One whose complaints say what to do next; its commands' are likewise."""

    def error(self, message: str) -> NoReturn:
        # Complaints of our own, which end as sentences do, have said it.
        super().error(message if message.endswith(".") else f"{message}. See `{self.prog} --help`.")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="kohort",
        description="Trains many small Keras networks at once, and tells how often and how surely they learn.",
        epilog=f"{EXITS}. `kohort COMMAND --help` tells of a command.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="tell the version and end")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_studying(commands)
    _add_reading(commands)
    _add_fitting(commands)
    _add_running(commands)
    return parser


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        import importlib.metadata

        print(f"kohort {importlib.metadata.version('kohort')}")
        parser.exit()


def _add(commands: Any, name: str, function: Callable, about: str, more: str = "") -> argparse.ArgumentParser:
    """Adds a command, and returns its own parser."""
    own = commands.add_parser(
        name,
        help=about,
        description=f"{about[0].upper()}{about[1:]}.{more and ' '}{more}",
        epilog=EXITS,
        allow_abbrev=False,
    )
    own.set_defaults(command=function)
    return own


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="tell it as JSON; null stands for no number")


def _add_solved(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--solved",
        metavar="METRIC=BOUND",
        type=_bound,
        action="append",
        default=[],
        help="count a member as having solved the problem when its last value reaches this bound, such as loss=0.01: "
        "losses at most, accuracies at least; given several times, all must hold",
    )
    parser.add_argument("--confidence", type=float, default=0.95, help="level of the intervals (default: 0.95)")


def _bound(text: str) -> tuple[str, float]:
    metric, _, bound = text.partition("=")
    if metric.strip() == "confidence":  # the argument of `table` beside the bounds
        raise argparse.ArgumentTypeError(
            f"`--solved` must name a metric, and confidence is the level of the intervals. Received: {text!r}. "
            "Write --confidence 0.95, or call a metric of yours otherwise."
        )
    try:
        return metric.strip(), float(bound)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"`--solved` must be METRIC=NUMBER. Received: {text!r}. Write for example --solved loss=0.01."
        ) from None


# --- training studies -------------------------------------------------------------------------------------------------

STUDY_FILE = """\
the file, in TOML:
  path = "xor.kohort"          where the study is kept, from the file on; default: named as the file
  seeds = 500                  how many starts of each network, or a list of seeds; default: 100
  epochs = 3000                and batch_size, validation_split, shuffle, exact as in Python
  [data]
  problem = "xor"              a problem of kohort.data, with its arguments, such as n_samples = 200
  file = "cells.csv"           or a table, .csv or .parquet, with a column to predict; words become columns,
  target = "diagnosis"         gaps are filled, numbers scaled
  task = "regression"          or "classification"; default: by the target
  [network]                    parameters that all trials share, of a dense network: hidden, depth, activation,
  learning_rate = 0.01         optimizer, learning_rate, dropout
  function = "networks:small"  or those of a function in networks.py beside the file, which returns a compiled model
  [grid]                       parameters that differ: every combination is a trial
  hidden = [2, 4, 8]
  [solved]                     the last values that a member must reach to count as solved
  loss = 0.01

"""


def _add_studying(commands: Any) -> None:
    study = _add(
        commands,
        "study",
        _study,
        "train every network of a study file from many seeds, and print how often each solves it",
        "What is trained is kept, and not trained again: the same command goes on after Ctrl-C, a crash, or with more "
        "seeds, epochs or values.",
    )
    study.formatter_class = argparse.RawDescriptionHelpFormatter
    study.epilog = f"{STUDY_FILE}{EXITS}"
    study.add_argument("file", help="the study in TOML, such as study.toml")
    study.add_argument("--store", metavar="FOLDER", help="where the study is kept, instead of where the file says")
    study.add_argument("--quiet", action="store_true", help="show no progress")
    _add_json(study)


def _study(options: argparse.Namespace) -> None:
    with _loaded():
        from kohort import study_file
        from kohort.study import Study

        asked = study_file.read(options.file, options.store)
        study = Study(asked.store, asked.network, asked.grid, asked.seeds, exact=asked.exact)
        asked.check_solved()
        try:
            study.run(asked.x, asked.y, verbose=0 if options.quiet else "auto", **asked.fit)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"What is finished is kept in {asked.store}; the same command goes on from there"
            ) from None
        table = study.table(**asked.solved)
    if options.json:
        _say_json({"study": asked.store, "solved": asked.solved, "rows": table.rows})
    else:
        solved = [word for metric, bound in asked.solved.items() for word in ("--solved", f"{metric}={bound}")]
        again = shlex.join(["kohort", "table", str(asked.store), *solved])
        _say(f"{table}\nkept in {asked.store}: `{again}` shows it again")


# --- reading studies --------------------------------------------------------------------------------------------------


def _add_reading(commands: Any) -> None:
    table = _add(commands, "table", _table, "print one row for each trial of a study", "Also while it is trained.")
    table.add_argument("store", help="the folder of the study")
    _add_solved(table)
    _add_json(table)

    show = _add(commands, "show", _show, "tell what a study is and where it stands", "Also while it is trained.")
    show.add_argument("store", help="the folder of the study")
    _add_json(show)

    export = _add(commands, "export", _export, "write the results of a study to a file for other tools")
    export.add_argument("store", help="the folder of the study")
    export.add_argument(
        "--to",
        metavar="FILE",
        required=True,
        help="name.csv or name.parquet: a row for each member with its parameters, seed, outcome and last values; "
        "name.nc (NetCDF): the curves of all members by trial, member and epoch",
    )
    export.add_argument("--overwrite", action="store_true", help="replace a file that is there")


def _table(options: argparse.Namespace) -> None:
    with _loaded():
        from kohort.trials import open as opened

        table = opened(options.store).table(confidence=options.confidence, **dict(options.solved))
    if options.json:
        _say_json({"study": options.store, "rows": table.rows})
    else:
        _say(str(table))


def _show(options: argparse.Namespace) -> None:
    with _loaded():
        from kohort.standing import lines, standing
        from kohort.trials import open as opened

        stands = standing(opened(options.store))
    if options.json:
        _say_json(stands)
    else:
        _say("\n".join(lines(stands)))


def _export(options: argparse.Namespace) -> None:
    kind = Path(options.to).suffix.lower()
    ways = {".csv": "to_csv", ".parquet": "to_parquet", ".nc": "to_netcdf"}
    if kind not in ways:
        raise ValueError(
            f"`--to` must end in one of {', '.join(ways)}. Received: {options.to!r}. "
            f"Write for example `--to {Path(options.to).stem or 'study'}.csv`."
        )
    _need_room("--to", options.to, options.overwrite)
    with _loaded():
        from kohort import files
        from kohort.trials import open as opened

        files.checked_room(options.to)  # before anything is read
        getattr(opened(options.store), ways[kind])(options.to)
    _say(f"{options.store} is written to {options.to}")


def _need_room(argument: str, path: str, overwrite: bool) -> None:
    """Raises if a file would be replaced that nobody said to replace."""
    if os.path.exists(path) and not overwrite:
        raise FileExistsError(
            f"`{argument}` must be a file that is not there. Received: {path!r}, which is. "
            "Name another, or add --overwrite."
        )


# --- predicting tables ------------------------------------------------------------------------------------------------


def _add_fitting(commands: Any) -> None:
    fit = _add(
        commands,
        "fit",
        _fit,
        "train networks on a table, and tell how well and how surely they predict a column of it",
        "Every network is scored on rows that it has not seen: each fold is held out once, also from what fills gaps "
        "and scales numbers. Which columns and categories there are is read off the whole table.",
    )
    fit.add_argument("file", help="the table: .csv or .tsv with a head, or .parquet")
    fit.add_argument("--target", metavar="COLUMN", required=True, help="the column to predict")
    fit.add_argument(
        "--task", choices=("classification", "regression"), help="what to predict (default: by the target)"
    )
    fit.add_argument(
        "--folds", type=int, default=5, help="parts of the rows, each held out once (default: %(default)s)"
    )
    fit.add_argument("--seeds", type=int, default=10, help="starts of the network on each fold (default: %(default)s)")
    fit.add_argument("--epochs", type=int, default=100, help="how often all rows are seen (default: %(default)s)")
    fit.add_argument("--batch-size", type=int, default=32, help="rows of each step (default: %(default)s)")
    fit.add_argument("--hidden", type=int, nargs="+", default=[32, 32], help="units, layer by layer (default: 32 32)")
    fit.add_argument(
        "--activation", default="relu", help="of the hidden layers, as Keras names it (default: %(default)s)"
    )
    fit.add_argument("--optimizer", default="adam", help="as Keras names it (default: %(default)s)")
    fit.add_argument("--learning-rate", type=float, default=1e-3, help="of the optimizer (default: %(default)s)")
    fit.add_argument("--dropout", type=float, default=0.0, help="after each hidden layer (default: %(default)s)")
    fit.add_argument(
        "--save", metavar="FILE", help="train on all rows, too, and keep the networks for `kohort predict`"
    )
    fit.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    fit.add_argument("--quiet", action="store_true", help="show no progress")
    _add_json(fit)

    predict = _add(commands, "predict", _predict, "predict the rows of a table by networks that `kohort fit` saved")
    predict.add_argument("networks", help="the file of `kohort fit --save`")
    predict.add_argument("file", help="the table, with the columns of the first; .csv, .tsv or .parquet")
    predict.add_argument("--to", metavar="FILE", help="write CSV here (default: to standard output)")
    predict.formatter_class = argparse.RawDescriptionHelpFormatter
    predict.epilog = f"{PREDICTED}{EXITS}"
    predict.add_argument("--overwrite", action="store_true", help="replace a file that is there")


PREDICTED = """
Beside each prediction stands what the networks say of it. Of a class: the
probability that they give it on average, and the share of them that would name
it. Of a number: the standard deviation from network to network, which says how
far they agree. How far they are from the truth, `kohort fit` tells, of rows
that they have not seen.

"""


def _fit(options: argparse.Namespace) -> None:
    if options.save:
        _need_room("--save", options.save, options.overwrite)
    with _loaded():
        from kohort import files, held_out, tables

        if options.save:
            files.checked_room(options.save)  # before anything is trained
        whole = tables.read(options.file)
        table, target = tables.with_target(whole, options.target, options.task)
        named = ("hidden", "activation", "optimizer", "learning_rate", "dropout")
        parameters = {name: getattr(options, name) for name in named}
        way = held_out.Way(parameters, options.seeds, options.epochs, options.batch_size)
        verbose = 0 if options.quiet else "auto"
        try:
            judged = held_out.judge(table, target, way, options.folds, verbose)
            lost = held_out.save(options.save, table, target, way, verbose) if options.save else 0
        except KeyboardInterrupt:
            raise KeyboardInterrupt("Nothing is kept: the command begins anew") from None
    dropped = whole.rows - table.rows
    if options.json:
        about = {"file": options.file, "target": target.name, "task": target.task, "classes": target.classes}
        scores = {name: getattr(value, "_asdict", lambda v=value: v)() for name, value in judged._asdict().items()}
        scores["comparison"] = {"rows" if name == "seeds" else name: of for name, of in scores["comparison"].items()}
        if judged.agreement is not None:
            scores["agreement"] = dict(zip(("rows", "right"), judged.agreement, strict=True))
        kept = {"saved": options.save, "saved_diverged": lost} if options.save else {}
        rows = {"rows": table.rows, "rows_without_target": dropped, "folds": options.folds}
        _say_json({**about, **rows, **scores, **kept})
        return
    _say("\n".join(held_out.lines(judged, table, target, way, options.folds)))
    if dropped:
        _say(f"{dropped} rows without a target are left out")
    if options.save:
        _say(f"networks trained on all rows are kept in {options.save}")
    if lost:
        _say(f"{lost} of these {options.seeds} diverged, and say nothing: try a smaller --learning-rate")


def _predict(options: argparse.Namespace) -> None:
    if options.to:
        if Path(options.to).suffix.lower() in (".parquet", ".tsv", ".nc", ".kohort"):
            raise ValueError(
                f"`--to` must name a file of CSV. Received: {options.to!r}. "
                f"Write for example `--to {Path(options.to).stem}.csv`."
            )
        _need_room("--to", options.to, options.overwrite)
    with _loaded():
        from kohort import files, held_out, tables

        if options.to:
            files.checked_room(options.to)
        columns = held_out.load(options.networks)(tables.read(options.file))
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(columns)
    rows.writerows(zip(*columns.values(), strict=True))
    if options.to:
        files.put(files.checked_target(options.to), [text.getvalue().encode()])
    else:
        _say(text.getvalue().removesuffix("\n"))


# --- running ----------------------------------------------------------------------------------------------------------


def _add_running(commands: Any) -> None:
    _add(commands, "run", _run, "run a script unchanged, its model.fit compiled: as `python -m kohort`, which see")
    demo = _add(
        commands,
        "demo",
        _demo,
        "train XOR with 2, 3, 4 and 8 hidden units, and the moons, and draw them",
        "It trains some 4,000 networks and takes less than a minute.",
    )
    demo.add_argument(
        "folder",
        nargs="?",
        type=Path,
        default=Path("demo-pictures"),
        help="where the pictures go (default: %(default)s)",
    )


def _run(words: list[str]) -> None:
    """Becomes the Python that runs the script, to which options and arguments are left: it sees what it always sees."""
    os.execv(sys.executable, [sys.executable, "-m", "kohort", *words])


def _demo(options: argparse.Namespace) -> None:
    with _loaded(progress=False):
        from kohort import demo

        demo.show(options.folder)


# --- the rest of kohort -----------------------------------------------------------------------------------------------


@contextmanager
def _loaded(progress: bool = True) -> Iterator[None]:
    """Lets the block have the whole of kohort, with Keras on JAX; what trains in it tells of it on standard error."""
    if "keras" not in sys.modules:
        os.environ["KERAS_BACKEND"] = "jax"  # nobody else is in this process
    package = sys.modules["kohort"]
    if not hasattr(package, "Study"):  # as little of it was imported as help needs
        importlib.reload(package)
    if progress:
        with redirect_stdout(sys.stderr):
            yield
    else:
        yield
