"""Custom parts of models, in a module that another process can import."""

import sys

import keras


class Doubled(keras.layers.Layer):
    """Not registered: found by its module."""

    def call(self, inputs):
        return 2 * inputs


@keras.saving.register_keras_serializable("parts")
class Scaled(keras.layers.Layer):
    def __init__(self, scale=1.0, **kwargs):
        super().__init__(**kwargs)
        self.scale = scale

    def build(self, shape):
        self.offset = self.add_weight(shape=shape[-1:], initializer="zeros", name="offset")

    def call(self, inputs):
        return self.scale * inputs + self.offset

    def get_config(self):
        return {**super().get_config(), "scale": self.scale}


class Stubborn(keras.layers.Layer):
    """Takes nothing that Keras would give it back."""

    def __init__(self):
        super().__init__()

    def call(self, inputs):
        return inputs


class Secretive(keras.layers.Layer):
    def __init__(self, thing):
        super().__init__()
        self.thing = thing

    def call(self, inputs):
        return inputs


class Failing(keras.layers.Layer):
    """Fails in the worker only, which is the process that imports from safe paths alone."""

    def call(self, inputs):
        if sys.flags.safe_path:
            raise ZeroDivisionError("not here")
        return inputs


@keras.saving.register_keras_serializable("parts")
def cubed(y_true, y_pred):
    return keras.ops.mean(keras.ops.abs(y_true - y_pred) ** 3, axis=-1)


def soft(x):
    return x / (1 + keras.ops.abs(x))


class Net(keras.Model):
    def __init__(self, units=4, **kwargs):
        super().__init__(**kwargs)
        self.hidden = keras.layers.Dense(units, "tanh")
        self.out = keras.layers.Dense(1)

    def call(self, inputs):
        return self.out(self.hidden(inputs))

    def get_config(self):
        return {**super().get_config(), "units": self.hidden.units}


class Namespace:
    class Inner(keras.layers.Layer):
        def call(self, inputs):
            return inputs


class Forgetful(keras.layers.Layer):
    """Does not tell what its `from_config` asks for."""

    def call(self, inputs):
        return inputs

    @classmethod
    def from_config(cls, config):
        return cls(name=config["forgotten"])


class Failed(keras.layers.Layer):
    """Cannot tell its configuration now."""

    def call(self, inputs):
        return inputs

    def get_config(self):
        raise RuntimeError("not now")
