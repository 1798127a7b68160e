"""The shapes of data that a model was fitted on, and whether it pays to compile for one more.

In comes what is asked of each fit; out goes a reason to leave one to Keras. The room exists because a switch that is
left on must not make anything slower.
"""

import weakref

import keras

from kohort import keras_internals
from kohort.fit import Request

# Compiling takes Keras about as long as this many steps of a small network.
STEPS_OF_A_COMPILATION = 5000
# So many shapes of data are compiled for each model without asking whether that pays.
UNPAID_SHAPES = 3


class Shapes:
    """The shapes of data that a model was fitted on, each of which needs a program of its own.

    Keras compiles for the shape of a batch, kohort for that of all data. A loop that fits a model for a moment on ever
    more data, as reinforcement learning does, must not compile in each round. So a shape beyond the first few is left
    to Keras until the steps that were asked on it are as many as a compilation is worth.
    """

    def __init__(self, model: keras.Model) -> None:
        """Starts without any; valid until the model is compiled anew."""
        self._marker = keras_internals.compile_marker(model)
        self._steps: dict[tuple, int] = {}
        self._compiled: set[tuple] = set()
        self.rehearsed: dict[tuple, str] = {}  # what the worker says of each

    def is_of(self, model: keras.Model) -> bool:
        """Says whether the model has not been compiled anew since."""
        return self._marker is keras_internals.compile_marker(model)

    def why_not_compile(self, request: Request) -> str | None:
        """Returns why Keras shall run the fit, whose steps are counted, or None."""
        shape, recipe = shape_of(request), request.recipe
        if shape is None:
            return None
        steps = recipe.steps_per_epoch or -(-shape[0][0] // (recipe.batch_size or 32))
        self._steps[shape] = self._steps.get(shape, 0) + max(0, recipe.epochs - recipe.initial_epoch) * steps
        unpaid = [known for known in self._compiled if self._steps[known] < STEPS_OF_A_COMPILATION]
        pays = self._steps[shape] >= STEPS_OF_A_COMPILATION or len(unpaid) < UNPAID_SHAPES
        if shape in self._compiled or pays:
            return None
        return "its data have another shape than those before, and to compile for a few steps would take longer"

    def compile(self, request: Request) -> None:
        """Notes that the fit is compiled."""
        shape = shape_of(request)
        if shape is not None:
            self._compiled.add(shape)

    def pays(self, shape: tuple, steps: int) -> bool:
        """Says whether so many steps were asked on a shape, with these, that to compile for it will have paid."""
        self._steps[shape] = self._steps.get(shape, 0) + steps
        return self._steps[shape] >= STEPS_OF_A_COMPILATION


def shape_of(request: Request) -> tuple | None:
    """Returns all that a program of its own is needed for; None for streams, compiled for a batch as by Keras."""
    recipe = request.recipe
    leaves = [leaf for leaf in keras.tree.flatten(request[:4]) if leaf is not None]
    if keras_internals.are_not_dense(request.x, request.validation_data) or not are_samples(leaves):
        return None
    cuts = (recipe.batch_size, recipe.validation_batch_size, recipe.steps_per_epoch, recipe.validation_steps)
    return (*(tuple(leaf.shape) for leaf in leaves), *cuts, recipe.validation_split)


def are_samples(leaves: list) -> bool:
    """Says whether there are arrays, each with an axis of samples; of what is none the checks of data tell."""
    shapes = [getattr(leaf, "shape", None) for leaf in leaves]
    return bool(shapes) and all(shape is not None and len(shape) and shape[0] is not None for shape in shapes)


_shapes: "weakref.WeakKeyDictionary[keras.Model, Shapes]" = weakref.WeakKeyDictionary()


def shapes_of(model: keras.Model) -> Shapes:
    """Returns the shapes that the model was fitted on, none after each `model.compile`."""
    known = _shapes.get(model)
    if known is None or not known.is_of(model):
        known = _shapes[model] = Shapes(model)
    return known
