"""What may go in: the arguments of a fit, and the check of each.

In come arguments as a person wrote them; out comes nothing, or an error that names the argument, what is accepted,
what came and one next step. The room exists so that whatever is wrong is refused before anything is touched, and that
every room after it can trust what it gets.
"""

import math
import numbers
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import tree

from kohort import keras_internals

INT32_MAX = 2**31 - 1
FLOAT32_MAX = float(np.finfo("float32").max)
NUMBERS = re.compile(r"bool|u?int\d+|b?float\d+\w*")


class NotFiniteError(ValueError):
    """Says that an array holds numbers that are not finite; in all that was looked at before, it fits."""


def received(name: str, value: Any) -> str:
    """Returns how a message shows an argument: the type and shape of an array, one short line of anything else."""
    if hasattr(value, "shape") and hasattr(value, "__array__"):
        dtype = ", ".join(sorted(_dtypes(value)))
        return f"{name}=<{type(value).__name__}>, shape={tuple(value.shape)}, dtype={dtype}"
    text = " ".join(repr(value).split())
    return f"{name}={text[:119] + '…' if len(text) > 120 else text}"


def check_backend(name: str) -> None:
    """Raises unless Keras runs on JAX in this process, for what cannot do its work in another."""
    if not keras_internals.on_jax():
        raise RuntimeError(
            f"`{name}` must find Keras on JAX: only `kohort.fit` trains models of another backend. "
            f"Received: Keras on {keras.backend.backend()!r}. "
            'Import kohort before keras, or set the environment variable KERAS_BACKEND to "jax" before Python starts.'
        )


# --- the recipe of a fit ----------------------------------------------------------------------------------------------


class Recipe(NamedTuple):
    """The arguments of a fit that say how to go through the data, by Keras's names."""

    batch_size: int | None = None
    epochs: int = 1
    validation_split: float = 0.0
    shuffle: Any = True
    class_weight: dict | None = None
    initial_epoch: int = 0
    steps_per_epoch: int | None = None
    validation_steps: int | None = None
    validation_batch_size: int | None = None
    validation_freq: Any = 1


def check_recipe(recipe: Recipe, verbose: Any = "auto") -> None:
    """Raises for any argument that by itself is not what it must be.

    Raises:
        TypeError: If it is not of the right kind.
        ValueError: If it is out of range.
    """
    check_integer("epochs", recipe.epochs, 1)
    check_integer("initial_epoch", recipe.initial_epoch, 0)
    for name in ("batch_size", "steps_per_epoch", "validation_steps", "validation_batch_size"):
        value = getattr(recipe, name)
        if value is not None:
            check_integer(name, value, 1)
    _check_fraction(recipe.validation_split)
    _check_choice("shuffle", recipe.shuffle, (True, False, "batch"))
    _check_choice("verbose", verbose, ("auto", 0, 1, 2))
    frequency = recipe.validation_freq
    for number in frequency if isinstance(frequency, list) else [frequency]:
        check_integer("validation_freq", number, 1)
    _check_class_weights(recipe.class_weight)


def check_integer(name: str, value: Any, least: int) -> None:
    """Raises unless `value` is an integer of at least `least`."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < least:
        error = ValueError if isinstance(value, numbers.Real) and not isinstance(value, bool) else TypeError
        raise error(
            f"`{name}` must be an integer of at least {least}. Received: {received(name, value)}. "
            f"Pass a whole number such as {max(least, 10)}."
        )


def _check_fraction(fraction: Any) -> None:
    is_number = isinstance(fraction, numbers.Real) and not isinstance(fraction, bool)
    if not is_number or not 0 <= float(fraction) < 1:
        error = ValueError if is_number else TypeError
        raise error(
            "`validation_split` must be a number from 0 up to, but not including, 1. "
            f"Received: {received('validation_split', fraction)}. "
            "Pass the share of the last rows that validate, such as 0.2."
        )


def _check_choice(name: str, value: Any, choices: tuple) -> None:
    if not isinstance(value, str | numbers.Integral | np.bool) or value not in choices:
        listed = ", ".join(map(repr, choices[:-1]))
        raise ValueError(
            f"`{name}` must be {listed} or {choices[-1]!r}. Received: {received(name, value)}. Pass one of these."
        )


def _check_class_weights(class_weight: Any) -> None:
    if class_weight is None:
        return
    if not isinstance(class_weight, Mapping):
        raise TypeError(
            "`class_weight` must be a dict from class number to weight. "
            f"Received: {received('class_weight', class_weight)}. "
            "Pass for example {0: 1.0, 1: 2.5}, or `dict(enumerate(weights))`."
        )
    for number, weight in class_weight.items():
        is_class = isinstance(number, numbers.Real) and math.isfinite(number) and number == math.floor(number)
        if not is_class or not isinstance(weight, numbers.Real) or not 0 <= float(weight) < math.inf:
            raise ValueError(
                "`class_weight` must map class numbers (integers) to finite weights of at least 0. "
                f"Received: class_weight[{number!r}]={weight!r}. Pass for example {{0: 1.0, 1: 2.5}}."
            )


# --- all data of a fit ------------------------------------------------------------------------------------------------


def check_data(model: keras.Model, x: Any, y: Any, sample_weight: Any, validation_data: Any, recipe: Recipe) -> None:
    """Raises unless arrays and recipe fit each other and the model; batches of streams are checked as they come.

    Raises:
        TypeError: If something is not an array of numbers.
        ValueError: If a shape or a value does not fit.
    """
    kind = keras_internals.stream_kind(x)
    if kind:
        _check_beside_stream(kind, y, sample_weight, validation_data, recipe)
    elif not _has_sparse(x, y, sample_weight):
        rows = check_arrays(x, y, sample_weight)
        check_step_features(model, x, "x")
        check_targets(model, y)
        _check_weighting(recipe.class_weight, y, sample_weight)
        if recipe.validation_split and validation_data is None:
            _check_split(recipe.validation_split, rows)
    if validation_data is None or keras_internals.stream_kind(validation_data):
        return
    if not _has_sparse(validation_data):
        _check_validation_data(model, validation_data)


def _has_sparse(*structures: Any) -> bool:
    return any(map(keras_internals.is_sparse, tree.flatten(structures)))


# --- streams ----------------------------------------------------------------------------------------------------------


def _check_beside_stream(kind: str, y: Any, sample_weight: Any, validation_data: Any, recipe: Recipe) -> None:
    for name, value in (("y", y), ("sample_weight", sample_weight)):
        if value is not None:
            raise ValueError(
                f"`{name}` must be left out where `x` is {kind}. Received: {received(name, value)}. "
                "Let each batch be a tuple (x, y) or (x, y, sample_weight)."
            )
    if recipe.validation_split and validation_data is None:
        raise ValueError(
            f"`validation_split` must be left out where `x` is {kind}. "
            f"Received: {received('validation_split', recipe.validation_split)}. Pass `validation_data`."
        )
    if recipe.class_weight is not None and kind not in ("a PyDataset", "a tf.data.Dataset"):
        raise ValueError(
            f"`class_weight` must be left out where `x` is {kind}. "
            f"Received: {received('class_weight', recipe.class_weight)}. "
            "Let each batch be a tuple (x, y, sample_weight)."
        )


# --- arrays -----------------------------------------------------------------------------------------------------------


def check_arrays(x: Any, y: Any = None, sample_weight: Any = None, argument: str = "") -> int:
    """Raises unless these are finite arrays of numbers of one length, which it returns.

    Args:
        x: Array or nested structure of arrays, each (sample, ...).
        y: Targets likewise, or None.
        sample_weight: Weights of the samples, or None.
        argument: The argument that holds all three as a tuple, such as "validation_data".
    """
    names = [f"{argument}[{i}]" for i in range(3)] if argument else ["x", "y", "sample_weight"]
    parts = [_named(name, part) for name, part in zip(names, (x, y, sample_weight), strict=True)]
    if not parts[0]:
        raise TypeError(
            f"`{names[0]}` must be an array of samples. Received: {received(names[0], x)}. "
            "Pass an array of shape (sample, ...)."
        )
    for whole, part in zip(names, parts, strict=True):
        for name, leaf in part:
            _check_numbers(name, leaf, whole)
    leaves = [leaf for part in parts for leaf in part]
    _check_lengths(leaves)
    for name, leaf in leaves:
        _check_values(name, _array(leaf))
    return int(leaves[0][1].shape[0])


def _named(name: str, structure: Any) -> list[tuple[str, Any]]:
    """Returns the arrays of a structure, each with the expression that reaches it, such as `x['a']`."""
    if not tree.is_nested(structure):
        return [] if structure is None else [(name, structure)]
    paths = tree.flatten_with_path(structure)
    return [(name + "".join(f"[{key!r}]" for key in path), leaf) for path, leaf in paths if leaf is not None]


def _array(leaf: Any) -> np.ndarray:
    if not hasattr(leaf, "iloc"):
        return np.asarray(keras.ops.convert_to_numpy(leaf) if keras.ops.is_tensor(leaf) else leaf)
    values, floatx = leaf.to_numpy(), keras.config.floatx()
    if values.dtype == object and any("float" in dtype and dtype != floatx for dtype in _dtypes(leaf)):
        return leaf.astype(floatx).to_numpy()  # as Keras converts a table of mixed types, then and only then
    return values


def _dtypes(leaf: Any) -> set[str]:
    if not hasattr(leaf, "iloc"):
        dtype = getattr(leaf, "dtype", None) or _array(leaf).dtype
        # TensorFlow names its types as NumPy does but shows them otherwise; PyTorch puts its own name before.
        return {str(dtype if isinstance(dtype, np.dtype) else getattr(dtype, "name", dtype)).removeprefix("torch.")}
    return set(map(str, np.atleast_1d(np.asarray(leaf.dtypes, dtype=object))))  # a pandas table has one type per column


def _is_plain(leaf: Any) -> bool:
    """Says whether it is an array of NumPy's that holds booleans, integers or real numbers, as most are."""
    return type(leaf) is np.ndarray and leaf.dtype.kind in "biuf"


def _check_numbers(name: str, leaf: Any, whole: str) -> None:
    if not keras_internals.is_array_like(leaf):
        step = "Encode text as numbers" if isinstance(leaf, str) else f"Convert it with `np.asarray({whole})`"
        raise TypeError(
            f"`{name}` must be an array of numbers (NumPy, JAX or pandas), or a structure of them. "
            f"Received: {received(name, leaf)} of type {type(leaf).__name__}. {step} first."
        )
    odd = [] if _is_plain(leaf) else sorted(dtype for dtype in _dtypes(leaf) if not NUMBERS.fullmatch(dtype))
    if odd:
        encoder = "LabelEncoder" if whole in ("y", "validation_data[1]") else "OrdinalEncoder"
        raise TypeError(
            f"`{name}` must hold numbers, of NumPy's types. Received: {received(name, leaf)}. "
            f'Convert numbers with `{name}.astype("float32")`; encode text and categories as numbers, '
            f"for example with `sklearn.preprocessing.{encoder}`."
        )
    if len(leaf.shape) == 0:
        raise ValueError(
            f"`{name}` must have an axis of samples. Received: {received(name, leaf)}. Pass shape (sample, ...)."
        )


def _check_lengths(leaves: list[tuple[str, Any]]) -> None:
    first_name, first = leaves[0]
    rows = int(first.shape[0])
    if rows == 0:
        raise ValueError(
            f"`{first_name}` must have at least one sample. Received: {received(first_name, first)}. "
            "Check how the data was selected."
        )
    for name, leaf in leaves:
        if leaf.shape[0] != rows:
            raise ValueError(
                f"`{name}` must have one row per sample of `{first_name}` ({rows}). "
                f"Received: {received(name, leaf)}. Pass arrays of the same length."
            )


def _check_values(name: str, values: np.ndarray) -> None:
    kind, is_wide = values.dtype.kind, values.dtype.itemsize > 4
    if kind in "biu":
        largest = max(int(values.max()), -int(values.min())) if is_wide and values.size else 0
        if largest > INT32_MAX:
            raise ValueError(
                f"`{name}` must hold integers of at most {INT32_MAX} in size (JAX computes in 32 bits). "
                f"Received: {received(name, values)}, of which one is {largest} in size. "
                f'Scale it, or convert it with `{name}.astype("float32")`.'
            )
        return
    if kind == "O":
        raise TypeError(
            f"`{name}` must hold numbers of one type. Received: {received(name, values)} once pandas joins columns. "
            f'Convert it with `{name}.astype("float32")`.'
        )
    fits = np.abs(values) <= FLOAT32_MAX if is_wide else np.isfinite(values)
    if not fits.all():
        raise NotFiniteError(
            f"`{name}` must hold finite numbers of at most {FLOAT32_MAX:.2g} in size (float32). "
            f"Received: {_first(name, values, ~fits)}. "
            "Remove or impute such rows, for example with `sklearn.impute.SimpleImputer`."
        )


def _check_weighting(class_weight: Any, y: Any, sample_weight: Any) -> None:
    if class_weight is None:
        return
    if sample_weight is not None:
        raise ValueError(
            "`class_weight` must be left out where `sample_weight` is given. "
            f"Received: {received('class_weight', class_weight)} and a sample_weight. "
            "Multiply the weight of each sample by that of its class."
        )
    if y is None or tree.is_nested(y):
        came = "y=None" if y is None else f"{len(tree.flatten(y))} arrays as y"
        raise ValueError(
            "`class_weight` must be left out unless `y` is one array. "
            f"Received: {received('class_weight', class_weight)} and {came}. Pass `sample_weight` instead."
        )


def _check_split(fraction: float, rows: int) -> None:
    if math.floor(rows * (1.0 - fraction)) in (0, rows):
        raise ValueError(
            f"`validation_split` must leave at least one of the {rows} sample(s) on each side. "
            f"Received: {received('validation_split', fraction)}. Pass more data or another share."
        )


def _check_validation_data(model: keras.Model, validation_data: Any) -> None:
    if not isinstance(validation_data, tuple | list) or len(validation_data) not in (2, 3):
        raise TypeError(
            "`validation_data` must be a tuple (x, y) or (x, y, sample_weight). "
            f"Received: {received('validation_data', validation_data)}. Pass such a tuple of arrays."
        )
    x, y, sample_weight = (*validation_data, None)[:3]
    check_arrays(x, y, sample_weight, "validation_data")
    check_step_features(model, x, "validation_data[0]", "test_step")
    check_targets(model, y, "validation_data[1]")


# --- arrays and the model ---------------------------------------------------------------------------------------------


def check_step_features(model: keras.Model, x: Any, name: str, step: str = "train_step") -> None:
    """Checks the features that a step is given, unless the step is the model's own: it may take any."""
    if not keras_internals.overrides(model, step):
        check_features(model, x, name)


def check_features(model: keras.Model, x: Any, name: str = "x") -> None:
    """Raises a ValueError when the features of `x` are not those that the built model takes."""
    specs = getattr(model, "inputs", None)
    if not specs:
        return
    if isinstance(x, dict):
        _check_named_features(_by_name(model), x, name)
        return
    arrays = tree.flatten(x)
    if len(specs) != len(arrays):
        raise ValueError(
            f"`{name}` must have {len(specs)} array(s), one per input of the model. "
            f"Received: {name} of {len(arrays)} array(s). Pass them in the order of `model.inputs`."
        )
    is_single = not tree.is_nested(x)
    for i, (spec, array) in enumerate(zip(specs, arrays, strict=True)):
        _check_shape(name if is_single else f"{name}[{i}]", array, spec)


def _by_name(model: keras.Model) -> dict[str, Any]:
    """Returns the inputs by the names under which a dict passes them."""
    structure = getattr(model, "input", None)
    return structure if isinstance(structure, dict) else {spec.name: spec for spec in model.inputs}


def _check_named_features(specs: dict[str, Any], x: dict, name: str) -> None:
    missing = [key for key in specs if key not in x]
    if missing:
        raise ValueError(
            f"`{name}` must have the keys {', '.join(map(repr, specs))}, one per input of the model. "
            f"Received: {name} with the keys {', '.join(map(repr, x)) or '(none)'}. Add {missing[0]!r}."
        )
    for key, spec in specs.items():
        _check_shape(f"{name}[{key!r}]", x[key], spec)


def _check_shape(name: str, array: Any, spec: Any) -> None:
    if array is None or tree.is_nested(array) or tree.is_nested(spec):
        return
    wanted, given = tuple(spec.shape[1:]), tuple(array.shape[1:])
    if len(wanted) == len(given):
        pairs = zip(wanted, given, strict=True)
    else:  # Keras adds or drops an axis of length 1
        squeezed = [tuple(d for d in shape if d != 1) for shape in (wanted, given)]
        pairs = zip(*squeezed, strict=True) if len(squeezed[0]) == len(squeezed[1]) else [(0, 1)]
    if not all(w in (None, g) for w, g in pairs):
        raise ValueError(
            f"`{name}` must have samples of shape {wanted}, as the model's input `{spec.name}` has. "
            f"Received: {received(name, array)}. Select the features or change `keras.Input(shape=...)`."
        )


def check_targets(model: keras.Model, y: Any, name: str = "y") -> None:
    """Raises a ValueError when the loss that the model was compiled with has no meaning for such targets.

    Keras trains on labels out of range without a word. Steps and losses that are the user's own are not judged.
    """
    if any(keras_internals.overrides(model, name) for name in ("train_step", "compute_loss")) or model.loss is None:
        return
    if y is None:
        raise ValueError(
            f"`{name}` must be given, because the model was compiled with a loss. Received: {name}=None. "
            "Pass the targets, or compile without `loss`."
        )
    for target_name, target, loss, output in _targets(name, y, model.loss, _output(model)):
        kind = loss_kind(loss)
        shape = getattr(output, "shape", None)
        if kind == "sparsecategoricalcrossentropy":
            _check_classes(target_name, _array(target), shape, getattr(loss, "ignore_class", None))
        elif kind == "binarycrossentropy":
            _check_probabilities(target_name, _array(target))


def _output(model: keras.Model) -> Any:
    """Returns the symbolic output, or structure of them, of a built sequential or functional model, else None."""
    outputs = getattr(model, "outputs", None)
    if outputs and len(outputs) == 1:
        return outputs[0]
    if isinstance(model, keras.Sequential):  # not built yet: of the shape, only the units of the last layer are known
        units = getattr(model.layers[-1], "units", None)
        return keras.KerasTensor((None, None, units)) if units else None
    return getattr(model, "output", None)


def _targets(name: str, y: Any, loss: Any, output: Any) -> Iterator[tuple[str, Any, Any, Any]]:
    """Yields each array of targets with its name, its loss and its output, None where they are not known."""
    if not tree.is_nested(y):
        if y is not None:
            single = tree.flatten(loss)
            yield name, y, single[0] if len(single) == 1 else None, None if tree.is_nested(output) else output
        return
    for key, part in y.items() if isinstance(y, dict) else enumerate(y):
        yield from _targets(f"{name}[{key!r}]", part, _part(loss, key, loss), _part(output, key, None))


def _part(structure: Any, key: Any, otherwise: Any) -> Any:
    if isinstance(structure, dict):
        return structure.get(key)
    if isinstance(structure, list | tuple):
        return structure[key] if isinstance(key, int) and key < len(structure) else None
    return otherwise


def loss_kind(loss: Any) -> str:
    """Returns the name of a loss of Keras, in lower case and without underscores; of any other loss, nothing."""
    if not isinstance(loss, str):
        maker = loss if hasattr(loss, "__name__") else type(loss)
        loss = maker.__name__ if maker.__module__.startswith("keras.") else ""
    return {"bce": "binarycrossentropy"}.get(loss.lower(), loss.lower().replace("_", ""))


def _check_classes(name: str, labels: np.ndarray, shape: tuple | None, ignored: int | None) -> None:
    classes = shape[-1] if shape is not None and len(shape) > 1 else None
    if shape is not None and classes != 1 and labels.shape[1:] == tuple(shape[1:]):
        raise ValueError(
            f"`{name}` must hold one class number per sample, as the loss sparse_categorical_crossentropy takes. "
            f"Received: {received(name, labels)}. Pass `{name}.argmax(axis=-1)`, or compile with "
            '`loss="categorical_crossentropy"`.'
        )
    fits = (labels >= 0) & (labels == np.floor(labels)) & (classes is None or labels < classes)
    if ignored is not None:
        fits |= labels == ignored
    if not fits.all():
        accepted = "class numbers from 0 on" if classes is None else f"class numbers from 0 to {classes - 1}"
        raise ValueError(
            f"`{name}` must hold {accepted}, as the model's last layer and its loss take. "
            f"Received: {_first(name, labels, ~fits)}. "
            "Renumber the classes with `sklearn.preprocessing.LabelEncoder`, or give the last layer one unit per class."
        )


def _check_probabilities(name: str, targets: np.ndarray) -> None:
    outside = (targets < 0) | (targets > 1)
    if outside.any():
        raise ValueError(
            f"`{name}` must hold numbers from 0 to 1, as the loss binary_crossentropy takes. "
            f"Received: {_first(name, targets, outside)}. "
            f"Map two classes to 0 and 1, for example with `({name} > 0).astype('float32')`."
        )


def _first(name: str, values: np.ndarray, wrong: np.ndarray) -> str:
    place = tuple(map(int, np.argwhere(wrong)[0]))
    return f"{name}[{', '.join(map(str, place))}]={values[place]}, shape={values.shape}, dtype={values.dtype}"
