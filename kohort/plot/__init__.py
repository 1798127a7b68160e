"""Pictures: compute a record, keep it, then draw it.

In come a trained model, a cohort or a history; out comes a record that holds as arrays all that the picture shows, and
draws it from them alone, as often as asked. A figure made here has a legend beside the data; on axes of yours the
artists carry labels, for `ax.legend()`. The room exists because people look before they read, and at many at once.
"""

from kohort.plot.activations import Units, units
from kohort.plot.agreement import Spread, spread
from kohort.plot.blueprint import LayerDiagram
from kohort.plot.boundary import DecisionBoundary, decision_boundary
from kohort.plot.curves import HistoryCurves, history
from kohort.plot.diagram import NetworkDiagram, network
from kohort.plot.film import Film, animate
from kohort.plot.gallery import Wall, wall
from kohort.plot.groups import Minima, minima
from kohort.plot.hidden import FeatureSpace, feature_space
from kohort.plot.landscape import LossLandscape, loss_landscape
from kohort.plot.rates import Success, success
from kohort.plot.response import ResponseCurve, response_curve
from kohort.plot.solving import Survival, survival

__all__ = [
    "DecisionBoundary",
    "FeatureSpace",
    "Film",
    "HistoryCurves",
    "LayerDiagram",
    "LossLandscape",
    "Minima",
    "NetworkDiagram",
    "ResponseCurve",
    "Spread",
    "Success",
    "Survival",
    "Units",
    "Wall",
    "animate",
    "decision_boundary",
    "feature_space",
    "history",
    "loss_landscape",
    "minima",
    "network",
    "response_curve",
    "spread",
    "success",
    "survival",
    "units",
    "wall",
]


def __dir__() -> list[str]:
    """Names what is for users, and not the rooms that it comes from."""
    return __all__
