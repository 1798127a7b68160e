"""P7: a model that cannot be trained is refused at once, and left as it was."""

import keras
import numpy as np
import pytest
from keras import layers
from refusals import X, Y, compiled, functional, refused, untouched

import kohort

pytestmark = pytest.mark.usefixtures("annotations_unchecked")


class WithoutCall(keras.Model):
    pass


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.inner = layers.Dense(1)

    def build(self, shape):
        self.inner.build(shape)

    def call(self, x):
        return self.inner(x)


def estimator():
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression()


NO_MODELS = {
    "scikit-learn's": (
        estimator,
        r"`model` must be a keras\.Model\. .*LogisticRegression\(\) of type LogisticRegression",
    ),
    "a string": (lambda: "model.keras", r"`model` must be a keras\.Model\. .*model='model\.keras' of type str"),
    "None": (lambda: None, r"`model` must be a keras\.Model\. Received: model=None of type NoneType"),
    "a layer": (lambda: layers.Dense(1), r"`model` must be a keras\.Model\. .*<Dense name=.* of type Dense"),
    "a class": (lambda: keras.Sequential, r"`model` must be a keras\.Model\. .*Sequential.* of type type"),
    "an array": (lambda: X, r"`model` must be a keras\.Model\. .*model=<ndarray>, shape=\(12, 2\)"),
}


@pytest.mark.parametrize("name", NO_MODELS)
def test_a_model_that_is_not_keras(name):
    make, match = NO_MODELS[name]
    model = make()
    with refused(TypeError, match):
        kohort.fit(model, X, Y)
    with refused(TypeError, match):
        kohort.Cohort(model, 3)


def with_learning_rate(value):
    model = compiled(functional())
    model.optimizer.learning_rate = value
    return model


MODELS = {
    "not compiled": (functional, r"`model` must be compiled\. Received: model='functional.*`model\.compile\("),
    "without layers": (
        lambda: compiled(keras.Sequential([])),
        r"`model` must have at least one layer\. .*='sequential",
    ),
    "without call": (
        lambda: compiled(WithoutCall()),
        r"`model` must say how outputs .*WithoutCall, which has no `call`",
    ),
    "a negative learning rate": (lambda: with_learning_rate(-1.0), r"`model` must have a learning rate .*rate=-1\.0"),
    "a learning rate of NaN": (lambda: with_learning_rate(np.nan), r"`model` must have a learning rate .*rate=nan"),
    "an infinite learning rate": (lambda: with_learning_rate(np.inf), r"`model` must have a learning rate .*rate=inf"),
    "a learning rate below a loss scale": (
        lambda: compiled(
            functional(), optimizer=keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(learning_rate=-2.0))
        ),
        r"`model` must have a learning rate .*learning_rate=-2\.0",
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_cannot_be_trained(name):
    make, match = MODELS[name]
    model = make()
    with refused(ValueError, match, model):
        kohort.fit(model, X, Y)
    with refused(ValueError, match, model):
        kohort.Cohort(model, 3)


def test_a_model_that_keras_cannot_build_draws_nothing():
    class NeedsMore(keras.Model):
        def call(self, x, other):
            return x + other

    model = compiled(NeedsMore())
    with untouched(model), pytest.raises(RuntimeError, match="Unable to automatically build the model"):
        kohort.fit(model, X, Y, verbose=0)


NOT_FOR_COHORTS = {
    "subclassed": (lambda: compiled(Subclassed()), r"`model` must be a sequential or functional .*class Subclassed"),
    "unbuilt": (
        lambda: compiled(keras.Sequential([layers.Dense(1)])),
        r"`model` must be built, .*`keras\.Input\(shape",
    ),
}


@pytest.mark.parametrize("name", NOT_FOR_COHORTS)
def test_a_model_that_a_cohort_does_not_take(name):
    make, match = NOT_FOR_COHORTS[name]
    model = make()
    with refused(ValueError, match, model):
        kohort.Cohort(model, 3)
