"""Every picture. A function takes arrays and returns a Matplotlib figure; `save` writes it.

Colours are Okabe and Ito's, which people with any colour vision can tell apart; maps run from light to dark.
"""

import numpy as np
from matplotlib import colors, rc_context
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from PIL import Image

from minivgg.figures import save as save
from minivgg.ops.softmax_cross_entropy import softmax_forward
from minivgg.texts import in_line

BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#666666"

STYLE = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "axes.axisbelow": True,
    "figure.constrained_layout.use": True,
    "text.parse_math": False,  # a class may be called "US$ or CA$"
}


def _name(text: str) -> str:
    """A text with a name from outside in it, as it can be drawn: in no font is a byte that is no text."""
    return in_line(text, keep="\n")


def _names(classes) -> list[str]:
    return [in_line(name) for name in classes]


def curves(history: list[dict]) -> Figure:
    """Loss, accuracy and learning rate against epochs, from the rows of a training's history."""
    epochs = [row["epoch"] for row in history]
    with rc_context(STYLE):
        figure = Figure(figsize=(12, 3.8))
        loss, accuracy, rate = figure.subplots(1, 3, width_ratios=(5, 5, 3))
        for axes, name in ((loss, "loss"), (accuracy, "accuracy")):
            axes.plot(
                epochs, [row[f"train_{name}"] for row in history], "o--", color=ORANGE, label="training (augmented)"
            )
            axes.plot(epochs, [row[f"test_{name}"] for row in history], "s-", color=BLUE, label="test")
            axes.set(xlabel="epoch", title=name.capitalize())
            axes.legend(frameon=False)
        loss.set(ylabel="cross-entropy (nats)", ylim=(0, None))
        accuracy.set(ylabel="correct")
        accuracy.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        accuracy.set_title(f"Accuracy: {history[-1]['test_accuracy']:.2%} on the test set")
        rate.plot(epochs, [row["lr"] for row in history], "o-", color=GREY)
        rate.set(xlabel="epoch", ylabel="after the epoch", title="Learning rate", ylim=(0, None))
        for axes in (loss, accuracy, rate):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        return figure


def confusion(predicted: np.ndarray, labels: np.ndarray, classes: tuple[str, ...]) -> Figure:
    """How often each class (row) is taken for each (column), as counts; diagonal entries are right answers."""
    classes = _names(classes)
    K = len(classes)
    counts = np.zeros((K, K), int)
    np.add.at(counts, (labels, predicted), 1)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = max(5.0, 0.62 * K + 2.2)
    with rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(side + 1, side))
        axes = figure.subplots()
        # Off the diagonal the interesting shares are small: a square root brings them out.
        image = axes.imshow(shares, cmap="Blues", norm=colors.PowerNorm(0.5, 0, 1))
        axes.set(
            xlabel="predicted", ylabel="true class", title=f"{np.trace(counts) / max(counts.sum(), 1):.2%} correct"
        )
        axes.set_xticks(range(K), classes, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(K), classes)
        if K <= 20:
            for i, j in np.argwhere(counts):
                dark = shares[i, j] > 0.25
                axes.text(j, i, counts[i, j], ha="center", va="center", size=9, color="white" if dark else "black")
        bar = figure.colorbar(image, shrink=0.8, ticks=[0, 0.05, 0.2, 0.5, 1])
        bar.set_label("share of the true class")
        bar.ax.yaxis.set_major_formatter(PercentFormatter(1))
        return figure


def filters(weight: np.ndarray, title: str = "First-layer filters") -> Figure:
    """Each filter of a convolution (O, C, KH, KW): in colour if C is 3, else its first channel, blue below zero."""
    O, C, _, _ = weight.shape
    columns = min(O, 16 if O > 32 else 8)
    rows = -(-O // columns)
    span = np.abs(weight).max() or 1.0
    with rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(0.75 * columns + 1.2, 0.75 * rows + 0.8))
        grid = figure.subplots(rows, columns, squeeze=False)
        for o, axes in enumerate(grid.flat):
            axes.axis("off")
            if o < O and C == 3:
                axes.imshow(weight[o].transpose(1, 2, 0) / (2 * span) + 0.5, interpolation="nearest")
            elif o < O:
                image = axes.imshow(weight[o, 0], cmap="RdBu_r", vmin=-span, vmax=span, interpolation="nearest")
        figure.suptitle(f"{title}: {O} of {weight.shape[2]}×{weight.shape[3]}" + (" (RGB)" if C == 3 else ""))
        if C != 3:
            figure.colorbar(image, ax=grid, shrink=0.8, label="weight")
        return figure


def mistakes(images: list[np.ndarray], labels: np.ndarray, scores: np.ndarray, classes: tuple[str, ...]) -> Figure:
    """The images (uint8 (H, W, C)) that the network got most confidently wrong, as many as are given, worst first."""
    classes = _names(classes)
    columns = 6
    rows = max(1, -(-len(images) // columns))
    with rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(2 * columns, 2.5 * rows + 0.5))
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes in grid.flat:
            axes.axis("off")
        for axes, image, label, p in zip(grid.flat, images, labels, softmax_forward(scores)[0], strict=False):
            _show(axes, image)
            axes.set_title(f"{classes[p.argmax()]} {p.max():.0%}\nis {classes[label]} {p[label]:.0%}", size=9.5)
        figure.suptitle("Worst mistakes: predicted, and what it is, with the network's probabilities")
        return figure


def worst(scores: np.ndarray, labels: np.ndarray, count: int = 24) -> np.ndarray:
    """Indices of the wrong answers with the least probability on the truth, worst first, `count` at most."""
    probabilities, _ = softmax_forward(scores)
    truth = probabilities[np.arange(len(labels)), labels]
    wrong = np.flatnonzero(scores.argmax(axis=1) != labels)
    return wrong[np.argsort(truth[wrong], kind="stable")][:count]


def predictions(
    images: list[np.ndarray],
    probabilities: np.ndarray,
    classes: tuple[str, ...],
    top: int = 5,
    views: list[tuple[np.ndarray, np.ndarray]] | None = None,
) -> Figure:
    """A row for each image (uint8 (H, W, C)): the picture, and bars for its `top` classes by probability.

    `views` puts between them what the network saw, uint8 (h, w, C), under a heat map of where it saw the first class,
    (h, w) in 0-1, as Grad-CAM makes it.
    """
    classes = _names(classes)
    top = min(top, len(classes))
    height = max(3.0 if views else 1.6, 0.36 * top + 0.5)
    columns = 3 if views else 2
    with rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(12 if views else 7, height * len(images)))
        grid = figure.subplots(len(images), columns, squeeze=False, width_ratios=[1, 1, 1.5] if views else None)
        for i, (image, p) in enumerate(zip(images, probabilities, strict=True)):
            picture, bars = grid[i, 0], grid[i, -1]
            _show(picture, image)
            picture.axis("off")
            order = np.argsort(-p, kind="stable")[:top][::-1]
            bars.barh(range(top), p[order], color=[GREY] * (top - 1) + [BLUE])
            bars.set_yticks(range(top), [classes[k] for k in order])
            for y, k in enumerate(order):
                bars.text(p[k] + 0.02, y, f"{p[k]:.1%}", va="center", size=10)
            bars.set(xlim=(0, 1.25), xticks=[])
            bars.spines["bottom"].set_visible(False)
            if views:
                heat = _overlay(grid[i, 1], *views[i])
                grid[i, 1].set_title(f"where it saw\n{classes[order[-1]]}", size=10)
        if views:
            bar = figure.colorbar(heat, ax=grid[:, 1], ticks=[0, 0.5, 1], aspect=30 * len(images), pad=0.03)
            bar.set_label("Grad-CAM, share of maximum", size=9)
        return figure


def thumbnail(image: np.ndarray, side: int = 512) -> np.ndarray:
    """uint8 (H, W, C) averaged down by a whole number until its shorter side is below 2·`side`: enough for a figure."""
    factor = max(1, min(image.shape[:2]) // side)
    small = np.asarray(Image.fromarray(image.squeeze(axis=2) if image.shape[2] == 1 else image).reduce(factor))
    return small.reshape(*small.shape[:2], -1)


def _overlay(axes, image: np.ndarray, heat: np.ndarray):
    """An image in grey under a heat map (H, W) in 0-1 that hides less the less there is; returns the map's artist."""
    grey = image.mean(axis=2)
    axes.imshow(grey, cmap="gray", vmin=0, vmax=255)
    axes.axis("off")
    axes.imshow(heat, cmap="inferno", vmin=0, vmax=1, alpha=0.15 + 0.5 * heat)
    return ScalarMappable(colors.Normalize(0, 1), "inferno")


def maps(channels: np.ndarray, image: np.ndarray, title: str, most: int = 63) -> Figure:
    """An image (uint8 (H, W, C)) and its feature maps (channels, h, w), the first `most`, on one scale.

    The scale ends where only one value in 200 is larger: a few of them are ten times the others.
    """
    shown = channels[:most]
    columns = 8 if len(shown) > 15 else 4
    rows = -(-(len(shown) + 1) // columns)
    low, high = min(0.0, float(shown.min())), float(np.quantile(shown, 0.995))
    with rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(1.15 * columns + 1.2, 1.3 * rows + 0.6))
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes in grid.flat:
            axes.axis("off")
        _show(grid.flat[0], image)
        grid.flat[0].set_title("image", size=9)
        for k, (axes, channel) in enumerate(zip(list(grid.flat)[1:], shown, strict=False)):
            drawn = axes.imshow(channel, cmap="cividis", vmin=low, vmax=max(high, low + 1e-9), interpolation="nearest")
            axes.set_title(str(k), size=9)
        count, h, w = channels.shape
        first = f", the first {most}" if count > most else ""
        figure.suptitle(f"{title}: {count} maps of {h}×{w}{first}")
        figure.colorbar(drawn, ax=grid, shrink=0.8, extend="max", label="activation")
        return figure


def heat(
    images: list[np.ndarray],
    heats: list[list[np.ndarray]],
    rows: list[str],
    columns: list[str],
    label: str,
    *,
    limits: tuple[float, float] | None = (0, 1),
    overlay: bool = True,
) -> Figure:
    """A row for each image (uint8 (H, W, C)): the image, and maps (h, w) of any resolution, stretched over it.

    `limits`: of the maps' values, as is said beside the `label` of the colour bar; None scales each map by itself. With
    `overlay` the image shows through.
    """
    with rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(1.9 * (len(columns) + 1) + 1.8, 2.3 * len(images) + 0.5))
        grid = figure.subplots(len(images), len(columns) + 1, squeeze=False)
        for line, image, values, row in zip(grid, images, heats, rows, strict=True):
            for axes in line:
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(False)
            _show(line[0], image)
            line[0].set_title(_name(row), size=10)
            H, W = image.shape[:2]
            for axes, value in zip(line[1:], values, strict=True):
                if overlay:
                    axes.imshow(image.mean(axis=2), cmap="gray", vmin=0, vmax=255, extent=(0, W, H, 0))
                low, high = limits or (0, max(float(value.max()), 1e-30))
                drawn = axes.imshow(
                    value,
                    cmap="cividis",
                    vmin=low,
                    vmax=high,
                    extent=(0, W, H, 0),
                    alpha=0.65 if overlay else 1,
                    interpolation="nearest",
                )
        for axes, column in zip(grid[0, 1:], columns, strict=True):
            axes.set_title(column, size=10)
        bar = figure.colorbar(drawn, ax=grid, shrink=0.85, aspect=30)
        if limits is None:
            bar.set_ticks([0, drawn.get_clim()[1]], labels=["0", "largest"])
        bar.set_label(label)
        return figure


def alike(
    images: list[np.ndarray], found: list[list[np.ndarray]], rows: list[str], captions: list[list[str]]
) -> Figure:
    """A row for each image (uint8 (H, W, C)): the image, and those that were found to be most like it, best first."""
    with rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(1.6 * (len(found[0]) + 1) + 0.6, 2.1 * len(images) + 0.4))
        grid = figure.subplots(len(images), len(found[0]) + 1, squeeze=False)
        for axes in grid.flat:
            axes.axis("off")
        for line, image, others, row, texts in zip(grid, images, found, rows, captions, strict=True):
            for axes, shown, text in zip(line, [image, *others], [row, *texts], strict=True):
                _show(axes, shown)
                axes.set_title(_name(text), size=9, fontweight="bold" if shown is image else "normal")
        return figure


def spreads(starts: dict[str, list[tuple[str, float, float]]]) -> Figure:
    """RMS of activations and of gradients, layer by layer, for several starts: name → (layer, activation, gradient)."""
    powers_of_ten = {"text.parse_math": True}
    palette = [(BLUE, "o"), (ORANGE, "s"), (GREEN, "^"), (RED, "v"), ("#CC79A7", "D"), (GREY, "P"), ("#000000", "X")]
    plain = list(dict.fromkeys(name.replace(" + BN", "") for name in starts))  # a twin with BN: same colour, dashed
    with rc_context(STYLE | powers_of_ten):
        figure = Figure(figsize=(12, 4.8))
        panels = figure.subplots(1, 2)
        for axes, column, title in zip(panels, (1, 2), ("Activations", "Gradients of the loss"), strict=True):
            for name, rows in starts.items():
                colour, marker = palette[plain.index(name.replace(" + BN", "")) % len(palette)]
                values = np.array([row[column] for row in rows], float)
                values[~(np.isfinite(values) & (values > 0))] = np.nan
                look = {"linestyle": "--", "markerfacecolor": "white"} if "BN" in name else {"linestyle": "-"}
                axes.plot(values, marker=marker, color=colour, label=name, markersize=6, linewidth=1.5, **look)
            names = max(([row[0] for row in rows] for rows in starts.values()), key=len)
            axes.set_xticks(range(len(names)), names, rotation=50, ha="right", rotation_mode="anchor", size=9)
            axes.set_yscale("log")
            axes.set(title=title, ylabel="root mean square")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), frameon=False)
        return figure


def _show(axes, image: np.ndarray) -> None:
    axes.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")


def comparison(entries: list) -> Figure:
    """The `compare.Entry` of each network as bars: a panel for each measure, a row for each network."""
    timed = entries[0].seconds is not None
    panels = [
        ("Weight layers", "layers", [[e.depth for e in entries]], "{:.0f}"),
        ("Parameters", "millions", [[e.parameters / 1e6 for e in entries]], "{:.3g}"),
        ("Arithmetic", "GMAC", [[e.macs / 1e9 for e in entries]], "{:.3g}"),
        (
            "Memory",
            "MiB",
            [[e.inference_bytes / 2**20 for e in entries], [e.training_bytes / 2**20 for e in entries]],
            "{:,.0f}",
        ),
        ("A unit sees", "pixels", [[e.receptive_field or 0 for e in entries]], "{:.0f}"),
    ]
    panels += [("Forward, measured", "ms", [[1000 * e.seconds for e in entries]], "{:.3g}")] if timed else []
    N, _, H, W = entries[0].input
    rows = np.arange(len(entries))
    named = [f"{e.name}\n{' '.join(f'{h}×{w}' for h, w in e.windows)}" for e in entries]
    with rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(2.3 * len(panels) + 2, 0.62 * len(entries) + 1.9))
        grid = figure.subplots(1, len(panels))
        for axes, (title, unit, bars, form) in zip(grid, panels, strict=True):
            height = 0.7 / len(bars)
            for j, (values, colour) in enumerate(zip(bars, (BLUE, ORANGE), strict=False)):
                places = rows + (j - (len(bars) - 1) / 2) * height
                drawn = axes.barh(places, values, 0.92 * height, color=colour, label=("inference", "training")[j])
                axes.bar_label(drawn, [form.format(v) for v in values], padding=3, size=9.5)
            axes.set(title=title, xlabel=unit, xlim=(0, 1.45 * max(max(map(max, bars)), 1e-9)), xticks=[])
            axes.set_yticks(rows, named if axes is grid[0] else [""] * len(entries))
            axes.tick_params(left=False)
            axes.invert_yaxis()
            axes.spines["bottom"].set_visible(False)
            if len(bars) > 1:
                axes.legend(frameon=False, fontsize=9.5, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2)
        figure.suptitle(f"{N} image{'s' if N > 1 else ''} of {H}×{W} pixels, float32")
        return figure
