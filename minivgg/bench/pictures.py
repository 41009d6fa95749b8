"""A race's record as a picture: GFLOP/s over the layers, or seconds a task. `insight.pictures.save` writes it."""

import math

from matplotlib import rc_context
from matplotlib.figure import Figure

from minivgg.bench import tables_gpu
from minivgg.bench.record import is_rival
from minivgg.bench.tables import duration, layer_names, task_name, times
from minivgg.insight.pictures import BLUE, GREEN, GREY, ORANGE, RED, STYLE

# Ours are cold colours, PyTorch's warm ones; markers and dashes tell them apart without any.
_OURS = ((BLUE, "o"), (GREEN, "s"), ("#56B4E9", "^"), ("#000000", "v"), ("#CC79A7", "D"), ("#5D4A9C", "P"))
_THEIRS = ((ORANGE, "X"), (RED, "*"), ("#9C5B00", "d"))
_TITLES = {"forward": "Forward", "grad_input": "Input gradient", "grad_weight": "Weight gradient"}


def picture(record: dict) -> Figure:
    """The picture that suits the race."""
    return {"conv": _conv, "vgg": _vgg, "conv_gpu": _conv_gpu, "vgg_gpu": _vgg_gpu}[record["race"]](record)


def _looks(names: list[str]) -> dict[str, tuple[str, str]]:
    """Name → (colour, marker)."""
    ours, theirs = [n for n in names if not is_rival(n)], [n for n in names if is_rival(n)]
    return {
        name: palette[i % len(palette)]
        for group, palette in ((ours, _OURS), (theirs, _THEIRS))
        for i, name in enumerate(group)
    }


def _conv(record: dict) -> Figure:
    settings = record["settings"]
    title = (
        f"VGG-16's convolutions, batch {settings['batch']}, {settings['size']}×{settings['size']} pixels, float32, "
        f"{settings['threads']} CPU threads: higher is faster"
    )
    return _rates(record, [row["fma_gflops"] for row in record["rows"]], title)


def _conv_gpu(record: dict) -> Figure:
    """Strict float32, at a batch of 32 if that was raced."""
    found = tables_gpu.parts(record)
    precision, batch = ("fp32", 32) if ("fp32", 32) in found else found[0]
    of_one, size = tables_gpu.part(record, precision, batch), record["settings"]["size"]
    title = (
        f"VGG-16's convolutions, batch {batch}, {size}×{size} pixels, {tables_gpu.PRECISIONS[precision]}, "
        f"{record['machine']['GPU']}: higher is faster"
    )
    return _rates(of_one, [record["limits"][f"{precision}_gflops"]] * len(of_one["rows"]), title)


def _rates(record: dict, peaks: list[float], title: str) -> Figure:
    """A panel for each pass: GFLOP/s of every contestant, layer by layer, and the peak of each row."""
    looks = _looks(record["contestants"])
    with rc_context(STYLE):
        figure = Figure(figsize=(14, 5))
        panels = figure.subplots(1, 3, sharey=True)
        for axes, (direction, heading) in zip(panels, _TITLES.items(), strict=True):
            chosen = [i for i, row in enumerate(record["rows"]) if row["pass"] == direction]
            rows = [record["rows"][i] for i in chosen]
            for name, (colour, marker) in looks.items():
                rates = [row["results"].get(name, {}).get("gflops", math.nan) for row in rows]
                line = "--" if is_rival(name) else "-"
                # "auto" is one of the others on every layer: a broad band behind it.
                look = (
                    {"linewidth": 7, "alpha": 0.35} if name.endswith(" auto") else {"linewidth": 1.5, "marker": marker}
                )
                axes.plot(rates, line, color=colour, label=name, markersize=7, **look)
            axes.plot([peaks[i] for i in chosen], ":", color=GREY, label="arithmetic alone (peak)")
            axes.set_xticks(range(len(rows)), map(layer_names, rows), rotation=50, ha="right", rotation_mode="anchor")
            axes.set(title=heading, ylim=(0, None))
        panels[0].set_ylabel("GFLOP/s, counted as direct convolution")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(5, len(labels)), frameon=False)
        figure.suptitle(title)
        return figure


def _vgg(record: dict) -> Figure:
    return _times(record, f"VGG-16, float32, {record['settings']['threads']} CPU threads", task_name)


def _vgg_gpu(record: dict) -> Figure:
    return _times(record, f"VGG-16, {record['machine']['GPU']}", tables_gpu.vgg_title)


def _times(record: dict, what: str, name_of) -> Figure:
    """A panel for each task: a bar of time for every contestant, with quartiles, and its ratio to PyTorch's best."""
    rows = record["rows"]
    columns = min(3, len(rows))
    lines = -(-len(rows) // columns)
    most = max(len(row["results"]) for row in rows)
    with rc_context(STYLE):
        figure = Figure(figsize=(5 * columns, lines * (0.42 * most + 1.1) + 0.6))
        grid = list(figure.subplots(lines, columns, squeeze=False).flat)
        for axes, row in zip(grid, rows, strict=False):
            _bars(axes, row, most, name_of(row))
        for axes in grid[len(rows) :]:
            axes.axis("off")
        figure.suptitle(f"{what}: shorter is faster (in brackets: how many times as fast as the best of PyTorch)")
        return figure


def _bars(axes, row: dict, most: int, title: str) -> None:
    """The bars of one task, as thick as if there were `most`."""
    done = {name: result for name, result in row["results"].items() if "seconds" in result}
    axes.set_title(title)
    if not done:
        return
    unit, scale = ("s", 1) if max(result["seconds"] for result in done.values()) >= 1 else ("ms", 1000)
    for y, (name, result) in enumerate(done.items()):
        centre, lower, upper = (result[key] * scale for key in ("seconds", "lower", "upper"))
        axes.barh(y, centre, color=ORANGE if is_rival(name) else BLUE, height=0.7)
        axes.errorbar(centre, y, xerr=[[centre - lower], [upper - centre]], color="black", capsize=3, linewidth=1)
        ratio = result["times_rival"]
        says = duration(result["seconds"]) + (f" ({times(ratio)})" if ratio and not is_rival(name) else "")
        axes.annotate(says, (upper, y), (5, 0), textcoords="offset points", va="center", size=10)
    axes.set_yticks(range(len(done)), done)
    axes.set_ylim(most - 0.5, -0.5)  # the first on top
    axes.grid(axis="y", visible=False)
    axes.set(xlabel=f"time ({unit})", xlim=(0, 1.55 * max(result["upper"] for result in done.values()) * scale))
