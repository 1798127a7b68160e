"""Stands in for the `conftest` of Keras's own checkout, which its wheel lacks and one of its test files imports."""

import keras
import pytest


def skip_if_backend(given_backend: str, reason: str) -> pytest.MarkDecorator:
    """Returns the mark of tests that one backend cannot run."""
    return pytest.mark.skipif(keras.backend.backend() == given_backend, reason=reason)
