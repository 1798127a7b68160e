"""Which models can be trained by one compiled program: those that differ in numbers alone.

In come the models of a study, one for each trial; out come groups of them, with the numbers in which each differs. The
room exists because compiling costs as much as training where networks are small, and a learning rate or a rate of
dropout changes no program.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from kohort import blueprint
from kohort.vary import can_vary


class Difference(NamedTuple):
    """A place in which two descriptions differ."""

    path: tuple  # keys and indices
    before: Any
    after: Any

    def __str__(self) -> str:
        """Reads as a part of a sentence."""
        place = ".".join(str(key) for key in self.path if key != "config")
        return f"{place} ({self.after!r}, and before {self.before!r})"


class Group(NamedTuple):
    """Trials that share a program."""

    model: keras.Model  # of the first of them
    trials: list[int]
    values: dict[str, list[float]]  # path of a number, as `Cohort(vary=...)` takes it, to its value in each trial
    changes: list[dict[tuple, Any]]  # of each trial: what stands in its description where those of others differ


MISSING = "(nothing)"


def description_of(model: keras.Model) -> dict:
    """Returns what a model is and how it is compiled, as values of JSON."""
    return json.loads(json.dumps(blueprint.described(model, _undescribed)))


def _undescribed(model: keras.Model, received: str, step: str) -> ValueError:
    return ValueError(
        "`network` must return a model that Keras can write down as a configuration, because a study keeps it. "
        f"Received: model={model.name!r} with {received}. {step}."
    )


def differences(before: Any, after: Any, path: tuple = ()) -> Iterator[Difference]:
    """Yields the places in which two values of JSON differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in dict.fromkeys([*before, *after]):
            yield from differences(before.get(key, MISSING), after.get(key, MISSING), (*path, key))
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for place, pair in enumerate(zip(before, after, strict=True)):
            yield from differences(*pair, (*path, place))
    elif type(before) is not type(after) or (before != after and not (before != before and after != after)):
        yield Difference(path, before, after)


def grouped(trials: Sequence[int], models: Sequence[keras.Model | None], descriptions: Sequence[dict]) -> list[Group]:
    """Returns the trials in groups that share a program; of each group the first must have its model."""
    alike: dict[str, list[list[int]]] = {}
    for number, description in enumerate(descriptions):
        of_form = alike.setdefault(json.dumps(_without_floats(description)), [])
        fitting = (places for places in of_form if _shares(models[places[0]], descriptions[places[0]], description))
        place = next(fitting, None)
        if place is None:
            of_form.append(place := [])
        place.append(number)
    numbers = sorted((places for of_form in alike.values() for places in of_form), key=lambda places: places[0])
    return [_group(places, trials, models, descriptions) for places in numbers]


def _without_floats(description: Any) -> Any:
    if isinstance(description, dict):
        return {key: _without_floats(part) for key, part in description.items()}
    if isinstance(description, list):
        return [_without_floats(part) for part in description]
    return 0.5 if isinstance(description, float) else description


def _shares(model: keras.Model | None, before: dict, after: dict) -> bool:
    """Says whether a model differs from another in nothing but numbers that can differ from member to member."""
    values = {}
    for difference in differences(before, after):
        path = number_path(before, difference.path)
        if path is None:
            return False
        values[path] = np.array([difference.before, difference.after])
    return model is not None and can_vary(model, values)


def number_path(description: dict, path: tuple) -> str | None:
    """Returns the path by which `vary` names the number at a place of a description, or None if it has no name."""
    match path:
        case ("compiled", ("optimizer" | "loss") as first, "config", *rest):
            pass
        case ("loss_arguments", 0, *rest) if len(description["loss_arguments"]) == 1:
            first = "loss"
        case ("model", "config", "layers", place, "config", *rest):
            first = description["model"]["config"]["layers"][place]["config"]["name"]
        case _:
            return None
    names = [name for name in rest if name != "config"]
    return None if any(isinstance(name, int) or name == "layers" for name in names) else ".".join([first, *names])


def _group(
    places: list[int], trials: Sequence[int], models: Sequence[keras.Model | None], descriptions: Sequence[dict]
) -> Group:
    first = descriptions[places[0]]
    found = [list(differences(first, descriptions[place])) for place in places]
    of_first = {difference.path: difference.before for own in found for difference in own}
    changes = [of_first | {difference.path: difference.after for difference in own} for own in found]
    values = {str(number_path(first, path)): [float(own[path]) for own in changes] for path in of_first}
    model = models[places[0]]
    if model is None:
        raise KeyError(f"The model of trial {trials[places[0]]} is not known any more.")
    return Group(model, [trials[place] for place in places], values, changes)
