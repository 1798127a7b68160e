"""Run by `test_backends.py` in a process of its own, under another backend: trains there and writes down what is left.

The models and arguments are those that the test trains on JAX by Keras itself.
"""

import json
import sys
from pathlib import Path

import keras
import numpy as np
from keras import layers, optimizers

sys.path.insert(0, str(Path(__file__).parent))

X = np.random.default_rng(6).normal(size=(50, 3)).astype("float32")
Y = (X[:, 0] * X[:, 1] > 0).astype("float32")


def dropout():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(8, "tanh"), layers.BatchNormalization()])
    model.add(layers.Dropout(0.3))
    model.add(layers.Dense(1, "sigmoid"))
    model.compile("adam", "binary_crossentropy", metrics=["accuracy", "auc"])
    return model


def plain():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(8, "tanh"), layers.Dense(1)])
    model.compile(optimizers.RMSprop(1e-2), "mse", metrics=["mae"])
    return model


def custom():
    import custom_parts

    inputs = keras.Input((3,), name="features")
    hidden = custom_parts.Doubled()(custom_parts.Scaled(0.5)(layers.Dense(4, activation=custom_parts.soft)(inputs)))
    model = keras.Model(inputs, [layers.Dense(1, name="a")(hidden), layers.Dense(1, name="b")(hidden)])
    rate = optimizers.schedules.ExponentialDecay(0.1, 5, 0.9)
    model.compile(optimizers.SGD(rate, momentum=0.9), [custom_parts.cubed, "mse"], loss_weights=[1.0, 0.5])
    return model


def unbuilt():
    model = keras.Sequential([layers.Dense(4, "relu"), layers.Dense(1)])
    model.compile("adam", "mse")
    return model


OPTIMIZERS = [
    name
    for name, kind in vars(optimizers).items()
    if isinstance(kind, type) and issubclass(kind, optimizers.Optimizer) and kind is not optimizers.Optimizer
]


def optimizer(name):
    """Makes an optimizer of Keras; those that stand for others get some."""
    if name == "LossScaleOptimizer":
        return optimizers.LossScaleOptimizer(optimizers.RMSprop(0.02))
    if name == "MultiOptimizer":
        kinds = optimizers.OptimizerMap(optimizers.SGD(0.02), {".*bias": optimizers.Adam(0.02)})
        return optimizers.MultiOptimizer(kinds)
    return getattr(optimizers, name)(learning_rate=0.02)


def with_optimizer(name):
    """Makes a model with the same weights everywhere."""
    keras.utils.clear_session()
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2), layers.Dense(1)])
    model.set_weights([np.full(weights.shape, 0.3, "float32") for weights in model.weights])
    model.compile(optimizer(name), "mse")
    return model, {"x": X, "y": Y, "epochs": 2, "shuffle": False, "verbose": 0}


def called(callbacks):
    return {"callbacks": [make() for make in callbacks]} if callbacks else {}


CASES = {
    "dropout": (dropout, {"x": X, "y": Y, "epochs": 5, "validation_split": 0.2, "class_weight": {0: 1.0, 1: 3.0}}, ()),
    "plain": (plain, {"x": X, "y": Y, "epochs": 60, "batch_size": 16, "shuffle": False}, ()),
    "custom": (custom, {"x": X, "y": [Y, -Y], "epochs": 4, "batch_size": 16}, ()),
    "callbacks": (
        dropout,
        {"x": X, "y": Y, "epochs": 12, "validation_data": (-X, Y)},
        (
            lambda: keras.callbacks.EarlyStopping(patience=4, restore_best_weights=True),
            lambda: keras.callbacks.ReduceLROnPlateau(patience=1, factor=0.5),
        ),
    ),
    "unbuilt": (unbuilt, {"x": X, "y": Y, "epochs": 3}, ()),
}


def values(variables):
    return [np.array(keras.ops.convert_to_numpy(v.value)) for v in variables]


def left(model, history):
    """Returns all that a fit leaves, as arrays by name."""
    lists = {
        "trainable": model.trainable_variables,
        "non_trainable": model.non_trainable_variables,
        "optimizer": model.optimizer.variables,
        "metrics": model.metrics_variables,
    }
    arrays = {f"{name}.{i}": value for name, part in lists.items() for i, value in enumerate(values(part))}
    arrays["history"] = np.array(json.dumps([history.epoch, history.history]))
    arrays["generator"] = np.append(*np.random.get_state()[1:3])
    return arrays


def main(case, folder):
    import kohort

    if case == "optimizers":
        for name in OPTIMIZERS:
            model, arguments = with_optimizer(name)
            np.savez(folder / f"{name}.npz", **left(model, kohort.fit(model, **arguments)))
        return
    make, arguments, callbacks = CASES[case]
    keras.utils.set_random_seed(11)
    model = make()
    if case == "unbuilt":  # its weights are those that this backend draws as it builds the model
        untrained = keras.models.clone_model(model)
        untrained.build((None, 3))
        model.build((None, 3))
        model.set_weights(untrained.get_weights())
    before = values(model.variables)
    np.savez(folder / "before.npz", *before)
    np.random.seed(12)
    history = kohort.fit(model, verbose=0, **arguments, **called(callbacks))
    if history is not model.history or type(model(X[:2])) is not type(keras.ops.convert_to_tensor(X[:2])):
        if case != "custom":
            sys.exit("the model is not the caller's own")
    np.savez(folder / "after.npz", **left(model, history))
    if case == "plain" and keras.backend.backend() != "numpy":
        again = make()
        for variable, value in zip(again.variables, before, strict=True):
            variable.assign(value)
        np.savez(folder / "own.npz", **left(again, again.fit(verbose=0, **arguments)))
        model.fit(verbose=0, **arguments)  # it goes on in Keras
        model.save(folder / "model.keras")
    print("done", keras.backend.backend())


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
