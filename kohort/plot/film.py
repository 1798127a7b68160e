"""A film: the answers of one network, or of many, through the epochs of their training.

In come a model or cohort, its data and how long to train; out comes a record of what each shown member answered at
chosen epochs. The room exists because a boundary that settles, one that is stuck and one that never comes to rest look
alike when the training is over.

The compiled program returns at each chosen epoch, and what it holds then is asked for its answers. For 40 frames of 64
networks 2-2-1 the returns take 0.05 s and the answers 0.05 s, of 2-32-32-1 half a second each, of five for the film.
Snapshots handed out by the program itself would save the returns alone, and need another program, which takes a second
to compile, and room for the states of all members in all frames.
"""

import base64
import html
import inspect
import io
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import keras
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from kohort import files
from kohort.checks import check_integer
from kohort.cohort_callbacks import Snapshots
from kohort.fit import check_model, fit
from kohort.keras_callbacks import listed
from kohort.plot.gallery import FAILED
from kohort.plot.mosaic import LEFT, Mosaic, check_columns, mosaic
from kohort.plot.plane import cut, features_of
from kohort.plot.player import page
from kohort.plot.raster import pixels
from kohort.plot.sources import answers_of_members, check_names, chosen, threshold_of, way_from
from kohort.plot.style import check_axes, counted, require
from kohort.plot.surface import Surface, answers, meaning, scores_of, undecided

ENDINGS = (".webp", ".gif", ".html")
SHEET = 2**20  # pixels, about, of which a GIF's palette is made: its 256 colours must do for all frames
ACROSS = 8.5  # inches of all cells of a row, at most


@dataclass(kw_only=True, eq=False, repr=False)
class Film(Surface):
    """What networks answer over one plane at chosen epochs; `animate` computes it.

    `save` writes it as WebP, GIF or as a page with play, pause and a slider; in a notebook that page is shown.

    Example:
        >>> import numpy as np, kohort
        >>> xx0, xx1 = np.meshgrid([0.0, 1.0], [0.0, 1.0])
        >>> frames = {"responses": np.stack([xx0[None], xx1[None]]), "epochs": np.array([0, 9])}
        >>> film = kohort.plot.Film(xx0=xx0, xx1=xx1, **frames).plot(frame=0)
        >>> film.save("two.webp")
        >>> film.ax_.texts[-1].get_text()
        'epoch 0 of 9'
    """

    responses: np.ndarray  # raw outputs, (frame, member, grid, grid) or (frame, member, grid, grid, class)
    epochs: np.ndarray  # how many epochs each frame has been trained, (frame,)
    seeds: tuple = ()  # of the members, in the order of `responses`; none for one model
    metric: str | None = None  # what stands in the titles
    values: np.ndarray | None = None  # its values, NaN before the first epoch, (frame, member)
    members: int = 1  # how many the cohort has
    begun: int = 0  # epochs before the training, of which nothing is logged
    columns: int | None = None  # cells in a row, None: as many as suit the place
    axes_: list = field(default_factory=list, init=False)  # once drawn, one for each member
    ax_: Any = field(default=None, init=False)  # once drawn, the axes that holds them all

    def plot(self, ax: Any = None, frame: int = -1) -> "Film":
        """Draws one frame, the last one if not told, in place of `ax` or in a figure made here; returns the record."""
        count = len(self.epochs)
        is_one = isinstance(frame, int | np.integer) and -count <= frame < count
        require(is_one, "frame", f"a number of a frame, from 0 to {count - 1}", frame, "The last one is -1.")
        placed = self._lay_out(ax)
        self.ax_, self.figure_, self.axes_ = placed.host, placed.host.figure, placed.axes
        for cell, response in zip(self.axes_, self.responses[frame], strict=True):
            # As in the files, whose frames are drawn without an artist for each cell.
            self.paint(cell, response, 4 * math.sqrt(placed.cell), is_named=False)
        said = self._said()
        for text, each in zip(self._texts(placed, said), said[frame], strict=True):
            text.set_text(each)
        return self

    def save(self, path: Any, *, seconds: float | int = 6, dpi: int = 100) -> None:
        """Writes all frames to a file, in one step: whatever stood there stays until the new one is whole.

        Args:
            path: Where to; its folder must exist. The ending tells the form: ".webp", ".gif", or ".html" for a page of
                its own, which needs nothing else, with play, pause and a slider.
            seconds: How long it takes to play once.
            dpi: Pixels of an inch.

        Raises:
            TypeError, ValueError: An argument is not what it must be.
            OSError: The place cannot be written; what stood there is as it was.
        """
        ending = next((each for each in ENDINGS if str(path).lower().endswith(each)), "")
        require(ending, "path", f"a path that ends in {', '.join(ENDINGS)}", path, 'Pass for example "film.webp".')
        is_time = isinstance(seconds, int | float) and 0 < seconds < math.inf
        require(is_time, "seconds", "a finite number above 0", seconds, "Pass for example 6.")
        check_integer("dpi", dpi, 10)
        target = files.checked_target(path)  # before anything is drawn
        files.put(target, [self._written(ending, self.images(dpi), seconds)])

    def images(self, dpi: int = 100) -> list[Image.Image]:
        """Returns the frames as pictures of Pillow, each of `dpi` pixels an inch."""
        check_integer("dpi", dpi, 10)
        with plt.ioff():
            placed = self._lay_out(None)
        figure: Any = placed.host.figure
        figure.set_dpi(dpi)
        try:
            return self._drawn(placed, FigureCanvasAgg(figure), dpi)
        finally:
            plt.close(figure)

    def _repr_html_(self) -> str:
        """Shows the page of the film in a notebook."""
        images = self.images()
        width, height = images[0].size
        style = f"width:100%;max-width:{width + 20}px;aspect-ratio:{width + 20}/{height + 80};border:0"
        source = html.escape(self._written(".html", images, 6).decode())
        return f'<iframe title="film" style="{style}" srcdoc="{source}"></iframe>'

    # What stays, and what changes from frame to frame.

    def _lay_out(self, ax: Any) -> Mosaic:
        """Makes the cells, still without answers, and the texts that stay."""
        if self.levels is None:
            every = self.responses.reshape(-1, *self.responses.shape[2:])
            self.undecided_ = bool(undecided(scores_of(every, self.threshold)).any())
        shown, metric = self.responses.shape[1], f" · {self.metric}" * bool(self.metric)
        head = f"{shown} of {counted(self.members, 'member')}: seed{metric}" if self.seeds else ""
        head, top = " · ".join(filter(None, [head, self.note])), 0.32
        placed = mosaic(ax, shown, self.columns, top=0.85 if head else 0.62, across=ACROSS, names=self.entries)
        for cell in placed.axes:
            self.dress(cell, 4 * math.sqrt(placed.cell))
        placed.label(self.names, self.limits)
        if head:
            placed.write(LEFT, top, head, fontsize=9)
            top += 0.23
        placed.explain(self, top, has_legend=ax is None)
        return placed

    def _texts(self, placed: Mosaic, said: list[list[str]]) -> list:
        """Makes the texts that change, still empty: the titles of the cells and the epoch."""
        style = placed.title(title for each in said for title in each[:-1])
        titles = [cell.set_title("", **style) for cell in placed.axes]
        placed.write(LEFT, 0.1, "")
        return [*titles, placed.host.texts[-1]]

    def _said(self) -> list[list[str]]:
        """Returns what these texts say in each frame."""
        failed, values = self.failed, self.values
        values = np.full(self.responses.shape[:2], np.nan) if values is None else values
        return [self._titles(*of) for of in zip(self.epochs, failed, values, strict=True)]

    def _titles(self, epoch: Any, failed: np.ndarray, values: np.ndarray) -> list[str]:
        head = f"epoch {epoch:,} of {self.epochs[-1]:,}"
        numbers = [f" · {value:.3g}" if np.isfinite(value) else "" for value in values]
        if not self.seeds:
            return ["", head + numbers[0].replace("· ", f"· {self.metric} ")]
        titles = zip(failed, self.seeds, numbers, strict=True)
        return [*(f"{FAILED} " * bool(is_failed) + f"{seed}{number}" for is_failed, seed, number in titles), head]

    @property
    def failed(self) -> np.ndarray:
        """Which members have diverged, (frame, member): their answers or losses are not finite."""
        failed = np.asarray(~np.isfinite(self.responses).all(axis=tuple(range(2, self.responses.ndim))))
        return (
            failed
            if self.values is None
            else failed | (~np.isfinite(self.values) & (self.epochs > self.begun)[:, None])
        )

    def _drawn(self, placed: Mosaic, canvas: FigureCanvasAgg, dpi: int) -> list[Image.Image]:
        """Draws what stays once, and for each frame over a copy of it the answers, and the texts that change."""
        boxes, glass = self._glass(placed, canvas)
        canvas.draw()
        drawn = np.asarray(canvas.buffer_rgba())  # the canvas itself: what is written into it is drawn
        ground, every, images = drawn.copy(), self._said(), []
        texts = self._texts(placed, every)
        line = 4 * math.sqrt(placed.cell) * dpi / 72 / (6 if self.levels is None else 15)
        for responses, frame in zip(self.responses, every, strict=True):
            for text, said in zip(texts, frame, strict=True):
                if text.get_text() != said:
                    (left, bottom), (right, top) = text.get_window_extent().get_points().astype(int)
                    box = slice(len(drawn) - top - 2, len(drawn) - bottom + 1), slice(left - 1, right + 2)
                    drawn[box] = ground[box]
                    text.set_text(said)
                    canvas.figure.draw_artist(text)
            image = drawn[..., :3].copy()
            cells = pixels(self, responses, boxes[0][1].stop - boxes[0][1].start, max(1.0, line))
            for box, cell, pane in zip(boxes, cells, glass, strict=True):
                share = pane[..., 3:].astype(np.uint16)
                image[box] = (cell * (255 - share) + pane[..., :3] * share + 127) // 255
            images.append(Image.fromarray(image))
        return images

    def _glass(self, placed: Mosaic, canvas: FigureCanvasAgg) -> tuple[list, list]:
        """Returns where the cells are, in pixels, and what is drawn over their answers: samples and frames."""
        patches = [canvas.figure.patch, placed.host.patch, *(cell.patch for cell in placed.axes)]
        for patch in patches:
            patch.set_visible(False)
        canvas.draw()
        drawn = np.asarray(canvas.buffer_rgba()).copy()
        canvas.figure.patch.set_visible(True)
        corners = [cell.get_window_extent() for cell in placed.axes]
        size = round(corners[0].width)
        tops = [len(drawn) - round(box.y1) for box in corners]
        boxes = [
            (slice(top, top + size), slice(round(b.x0), round(b.x0) + size))
            for top, b in zip(tops, corners, strict=True)
        ]
        return boxes, [drawn[box] for box in boxes]

    def _written(self, ending: str, images: list[Image.Image], seconds: float | int) -> bytes:
        """Returns the bytes of the file."""
        pause = max(20, round(1000 * seconds / len(images)))
        if ending == ".html":
            data = [base64.b64encode(_as_webp([image])).decode() for image in images]
            return page(data, self._said_in_words(), pause, self.epochs.tolist()).encode()
        if ending == ".webp":
            return _as_webp(images, duration=pause, loop=0)
        palette = _sheet(images).quantize(256)
        first, *rest = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
        written = io.BytesIO()
        first.save(written, "GIF", save_all=True, append_images=rest, duration=pause, loop=0)
        return written.getvalue()

    def _said_in_words(self) -> str:
        shown = counted(len(self.seeds), "network") if self.seeds else "a network"
        return (
            f"What {shown} answer{'s' * (len(self.seeds) < 2)}, from epoch {self.epochs[0]} to epoch {self.epochs[-1]}"
        )


def _sheet(images: list[Image.Image]) -> Image.Image:
    """Returns all frames above each other, thinned out where they are many, for the colours that they have together."""
    width, height = images[0].size
    step = math.ceil(math.sqrt(len(images) * width * height / SHEET))
    return Image.fromarray(np.concatenate([np.asarray(image)[::step, ::step] for image in images]))


def _as_webp(images: list[Image.Image], **options: Any) -> bytes:
    written = io.BytesIO()
    first, *rest = images
    # Regions of one colour and letters: without loss they are the smaller, and with the least effort small.
    options |= {"save_all": True, "append_images": rest} if rest else {}
    first.save(written, "WEBP", lossless=True, quality=0, method=2, **options)
    return written.getvalue()


def animate(
    source: Any,
    x: Any,
    y: Any,
    *,
    epochs: int,
    frames: int | Iterable[int] = 40,
    xlim: Any = None,
    ylim: Any = None,
    features: Any = None,
    fixed: Any = None,
    projection: Any = None,
    members: int | Iterable[int] = 64,
    grid_resolution: int = 50,
    threshold: float | int | None = None,
    regression: bool | None = None,
    columns: int | None = None,
    ax: Any = None,
    **fit_options: Any,
) -> Film:
    """Trains a model or a cohort, and computes what it answers at chosen epochs on the way; draws the last frame.

    The training is one `kohort.fit`, or `cohort.fit`, of so many epochs, and leaves what that leaves; a cohort's
    compiled program runs from one chosen epoch to the next. `film.save("film.webp")` writes all frames; as the last
    line of a notebook's cell the film plays.

    Args:
        source: A compiled `keras.Model` or a `kohort.Cohort`. It is trained; one that was trained before goes on.
        x: Samples to train on, as for `fit`, of at least two features; they are drawn, too.
        y: Their classes or numbers.
        epochs: The epoch to stop after, as for `fit`.
        frames: How many, at epochs spread evenly from the first to the last; or these epochs, 0 for before the first.
        xlim: Limits of the first axis, as for `decision_boundary`.
        ylim: Limits of the second axis, likewise.
        features: Of more than two features the two to draw, likewise.
        fixed: Where the others are held, likewise.
        projection: Instead of these, a projection onto two components, likewise.
        members: How many members of a cohort to show at most, the first ones; or their seeds. All are trained.
        grid_resolution: Grid points along each axis, at least 2.
        threshold: As for `decision_boundary`.
        regression: Likewise.
        columns: Cells in a row. Default: about as many as rows; with `ax` those that make the cells largest.
        ax: Matplotlib axes in whose place the last frame is drawn; None makes a figure.
        **fit_options: Further arguments of `fit`, such as `batch_size`, `callbacks`, `validation_data` or `verbose`.

    Returns:
        The record, its last frame drawn: `responses`, `epochs`, `seeds`, `values` and so on. Members that stop early
        stay as they are; where all have, the film ends.

    Raises:
        TypeError, ValueError: An argument is not what it must be; then nothing is trained.

    Example:
        >>> import kohort, keras
        >>> x, y = kohort.data.xor()
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, "tanh"), keras.layers.Dense(1)])
        >>> model.compile("adam", "mse")
        >>> film = kohort.plot.animate(kohort.Cohort(model, seeds=4), x, y, epochs=20, frames=3, verbose=0)
        >>> film.epochs.tolist(), film.responses.shape
        ([0, 10, 20], (3, 4, 50, 50))
        >>> film.save("xor.webp")

    Source:
        The moving boundary of TensorFlow Playground (Smilkov and Carter, 2016), for many networks at once.
    """
    check_axes(ax)
    is_one, begun = isinstance(source, keras.Model), fit_options.get("initial_epoch", 0)
    is_source = is_one or (hasattr(source, "seeds") and hasattr(source, "fit"))
    step = way_from(source, "Pass a compiled `keras.Model` or a `kohort.Cohort`.")
    require(is_source, "source", "a `keras.Model` or a `kohort.Cohort`", source, step, TypeError)
    of_fit = inspect.signature(fit if is_one else source.fit).parameters
    check_names(animate, fit_options, of_fit.__contains__, "one of `fit`", of_fit)
    if is_one:
        check_model(source)
    members = members if isinstance(members, int | np.integer) else list(members)  # it is asked more than once
    if not is_one:
        chosen(source, members)  # who cannot be shown is said before the training
    at = _epochs_of(frames, epochs, begun)
    check_columns(columns)
    n = features_of(source, x)
    plane = cut(n, x, y, xlim, ylim, grid_resolution, features, fixed, projection)
    outputs, threshold = _outputs_of(source, plane), threshold_of(source, threshold)
    meaning(np.zeros(0), outputs, y, threshold, regression)  # what answers cannot mean is said before the training
    taken: dict[int, np.ndarray] = {}

    def look(trained: Any, epoch: int) -> None:
        options = {"batch_size": 10_000, "verbose": 0}
        if is_one:
            taken[epoch] = answers(trained.predict, plane, **options)[None]
        else:  # the first fit with folds has made several members of each
            taken[epoch] = answers_of_members(trained, plane)[chosen(trained, members)]

    fit_options |= {"callbacks": [*listed(fit_options.get("callbacks")), Snapshots(look, at, begun)], "epochs": epochs}
    history = fit(source, x, y, **fit_options) if is_one else source.fit(x, y, **fit_options)
    reached, shown = np.array(list(taken)), np.zeros(1, int) if is_one else chosen(source, members)
    values = _losses(history, shown, reached)
    told = {"metric": None if values is None else "loss", "values": values, "begun": begun}
    seeds, count = ((), 1) if is_one else (tuple(source.seeds[i] for i in shown), len(source.seeds))
    responses = np.stack(list(taken.values()))
    means = meaning(responses, outputs, y, threshold, regression)
    frames_of = {"responses": responses, "epochs": reached, "columns": columns}
    return Film(**plane, **means, **frames_of, **told, seeds=seeds, members=count).plot(ax)


def _outputs_of(source: Any, plane: dict) -> tuple:
    """Returns the shape of one answer, () or (class,): what the source says itself, else that of what it answers."""
    shape: Any = getattr(source, "output_shape", None)

    def nothing(points: np.ndarray) -> Any:
        is_one = isinstance(shape, tuple) and not isinstance(shape[0], tuple)
        return np.zeros((len(points), *(each or 1 for each in shape[1:]))) if is_one else shape

    untrained = answers(source.predict, plane, verbose=0) if shape is None else answers(nothing, plane)
    return untrained.shape[2:]


def _epochs_of(frames: Any, epochs: Any, initial_epoch: Any) -> list[int]:
    """Returns the numbers of epochs at which to look, in order."""
    check_integer("epochs", epochs, 1)
    check_integer("initial_epoch", initial_epoch, 0)
    accepted, step = f"an integer from 0 to {epochs - 1}, below `epochs`", "Pass a later epoch to stop after."
    require(initial_epoch < epochs, "initial_epoch", accepted, initial_epoch, step)
    if isinstance(frames, int | np.integer):
        check_integer("frames", frames, 2)
        return sorted({round(each) for each in np.linspace(initial_epoch, epochs, int(frames))})
    accepted = f"a number of at least 2, or epochs from {initial_epoch} to {epochs}"
    require(isinstance(frames, Iterable), "frames", accepted, frames, "Pass for example 40.", TypeError)
    asked = list(frames)
    is_fit = asked and all(isinstance(each, int | np.integer) and initial_epoch <= each <= epochs for each in asked)
    require(is_fit, "frames", accepted, frames, "Pass for example 40.")
    return sorted({int(each) for each in asked})


def _losses(history: Any, shown: np.ndarray, epochs: np.ndarray) -> np.ndarray | None:
    """Returns the loss of each shown member after so many epochs, (frame, member): of one that stopped, its last."""
    logs = getattr(history, "history", history)
    if "loss" not in logs:
        return None
    values = np.atleast_2d(np.asarray(logs["loss"], float))[shown]
    stopped = np.asarray(getattr(history, "stopped_epoch", [-1]))[shown]
    last = np.where(stopped >= 0, stopped, epochs[:, None] - 1)
    last = np.minimum(last, epochs[:, None] - 1) - history.epoch[0]
    known = np.take_along_axis(values, np.maximum(last, 0).T, axis=1).T
    return np.where(last < 0, np.nan, known)
