"""`minivgg predict IMAGE…`: what a trained network sees."""

import argparse
from pathlib import Path

from minivgg.cli.train import RUNS
from minivgg.errors import BadInput


def add(commands) -> None:
    command = commands.add_parser(
        "predict",
        help="name what is on images with a trained network",
        description="Print the most probable classes of each image, with bars, and draw them to a picture. Images are "
        "brought to the size that the network was trained at; they should look like what it was trained on "
        "(Fashion-MNIST: one piece of clothing, bright on black).",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    command.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="a picture that Pillow can open")
    command.add_argument("--run", metavar="DIR", type=Path, help="a run's folder (the newest in runs/)")
    command.add_argument("--top", type=int, default=5, metavar="K", help="how many classes to show")
    command.add_argument("--picture", type=Path, default=Path("predictions.png"), metavar="PNG", help="where to draw")
    command.set_defaults(command=run)


def run(arguments) -> None:
    import numpy as np

    from minivgg.insight import pictures
    from minivgg.ops.softmax_cross_entropy import softmax_forward
    from minivgg.training.formats import read_image
    from minivgg.training.run import load_model

    if arguments.top < 1:
        raise BadInput(f"--top must be at least 1, got {arguments.top}")
    model, preprocessing, classes = load_model(arguments.run or _newest_run())
    images = [read_image(path, preprocessing.channels) for path in arguments.images]
    scores = model.freeze().forward(np.stack([preprocessing(image) for image in images]))
    probabilities = softmax_forward(scores)[0]
    width = max(map(len, classes))
    for path, p in zip(arguments.images, probabilities, strict=True):
        print(path)
        for k in np.argsort(-p, kind="stable")[: arguments.top]:
            print(f"  {classes[k]:{width}}  {p[k]:6.1%}  {'█' * round(30 * p[k])}")
    figure = pictures.predictions(images, probabilities, classes, arguments.top)
    print(f"drawn to {pictures.save(figure, arguments.picture)}")


def _newest_run() -> Path:
    found = sorted(RUNS.glob("*/model.safetensors"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise BadInput(f"no trained network in {RUNS}/: run minivgg train first, or name a run's folder with --run")
    return found[-1].parent
