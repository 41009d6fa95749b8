"""`minivgg evaluate DIR`: how often a network is wrong about a folder of labelled pictures, the paper's way."""

import argparse
from pathlib import Path

from minivgg.cli import network
from minivgg.errors import BadInput


def add(commands) -> None:
    command = commands.add_parser(
        "evaluate",
        help="measure a network's errors on a folder of pictures: centre crop, dense, multi-scale, multi-crop",
        description="Print a network's top-1 and top-5 error on the pictures in DIR, which holds a folder for each "
        "class, called as the class is (or by its synset, for ImageNet). Probabilities are averaged over all looks at "
        "an image, as in section 4 of the VGG paper, whose best is --dense --crops --flip --scales 256,384,512.",
    )
    command.add_argument(
        "folder", nargs="?", type=Path, metavar="DIR", help="DIR/CLASS/PICTURE (default: with --run, its test set)"
    )
    network.add_options(command)
    group = command.add_argument_group("how an image is looked at (default: the centre crop)")
    group.add_argument("--dense", action="store_true", help="all of it: the network slid over it, its scores averaged")
    group.add_argument("--crops", action="store_true", help="5×5 crops and their mirror images; with --dense also both")
    group.add_argument("--flip", action="store_true", help="its mirror image, too")
    group.add_argument("--scales", type=_scales, default=(), metavar="PX,…", help="shorter sides: 256,384,512")
    command.add_argument("--data", metavar="NAME", help="where the run's own data is now, if it has moved")
    command.add_argument("--batch-size", type=int, default=16, metavar="N", help="crops at once (default: 16)")
    command.add_argument("--quiet", action="store_true", help="no progress bar")
    command.set_defaults(command=run)


def _scales(text: str) -> tuple[int, ...]:
    try:
        scales = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: should be whole numbers with commas between: 256,384,512") from None
    if min(scales) < 1:
        raise argparse.ArgumentTypeError(f"{text}: each should be 1 or more")
    return scales


def run(arguments) -> None:
    from minivgg.training.datasets import labelled_folder
    from minivgg.training.evaluate import Evaluator, Protocol, evaluate
    from minivgg.training.run import data_of

    if arguments.folder is None and not arguments.run:
        raise BadInput("name a folder of pictures, DIR/CLASS/PICTURE; or --run DIR, for its own test set")
    if arguments.data and (arguments.folder or not arguments.run):
        raise BadInput("--data says where the data of --run DIR is now; leave out the folder of pictures")
    if arguments.folder and not arguments.folder.is_dir():
        raise BadInput(f"{arguments.folder}: no such folder")
    model, preprocessing, classes = network.find(arguments)
    if arguments.folder:
        dataset = labelled_folder(arguments.folder, classes, preprocessing.channels)
    else:
        with network.told():
            dataset = data_of(arguments.run, "test", arguments.data)
    protocol = Protocol(arguments.dense, arguments.crops, arguments.flip, arguments.scales)
    evaluator = Evaluator(model, preprocessing, protocol, arguments.batch_size)
    errors = evaluate(evaluator, dataset, progress=not arguments.quiet)

    present = len(set(dataset.labels.tolist()))
    print(f"{len(dataset):,} images of {present:,} of the network's {len(classes):,} classes\n")
    tops = [k for k in (1, 5) if k < len(classes)] or [1]
    print(
        _table(
            ["", "scale", "looks", *(f"top-{k} error" for k in tops)],
            [
                [way, ", ".join(map(str, scales)), str(evaluator.looks((way, scales)))]
                + [f"{errors.top(k, (way, scales)):.2%}" for k in tops]
                for way, scales in evaluator.rows
            ],
        )
    )


def _table(head: list[str], rows: list[list[str]]) -> str:
    """Rows of text in columns, the first on the left, the others on the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    aligned = (str.ljust, *[str.rjust] * (len(widths) - 1))
    return "\n".join(
        "  ".join(align(cell, width) for align, cell, width in zip(aligned, row, widths, strict=True))
        for row in [head, *rows]
    )
