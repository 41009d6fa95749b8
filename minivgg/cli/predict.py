"""`minivgg predict IMAGE…`: what a trained network sees."""

import argparse
from pathlib import Path

from minivgg.cli import network
from minivgg.errors import BadInput
from minivgg.texts import in_line

BATCH = 16
MOST_DRAWN = 20  # a picture can only be so high
SMALLEST_TO_EXPLAIN = 64  # pixels: below that a VGG's last maps have three pixels at most, which show no "where"


def add(commands) -> None:
    command = commands.add_parser(
        "predict",
        help="name what is on images with a trained network",
        description="Print the most probable classes of each image, with bars, and draw them to a picture, beside "
        "where the network saw the first (Grad-CAM, for networks of 64 pixels or more). With --weights, a network that "
        "knows ImageNet's 1,000 classes looks at photographs. Without, one that you have trained looks at images like "
        "those it was trained on (Fashion-MNIST: one piece of clothing, bright on black).",
    )
    command.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="a picture that Pillow can open")
    network.add_options(command)
    command.add_argument("--device", **network.DEVICE)
    command.add_argument("--top", type=int, default=5, metavar="K", help="how many classes to show (default: 5)")
    command.add_argument(
        "--picture",
        type=Path,
        default=Path("predictions.png"),
        metavar="FILE",
        help="where to draw (default: predictions.png)",
    )
    command.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> None:
    import numpy as np

    from minivgg.backends.array import check_device, to, to_cpu
    from minivgg.insight import pictures
    from minivgg.ops.softmax_cross_entropy import softmax_forward
    from minivgg.training.formats import read_image

    if arguments.top < 1:
        raise BadInput(f"--top must be at least 1, got {arguments.top}")
    check_device(arguments.device)
    model, preprocessing, classes = network.find(arguments)
    images, xs = [], []
    for path in arguments.images:
        image = read_image(path, preprocessing.channels)
        try:
            xs.append(preprocessing(image))
        except BadInput as error:
            raise BadInput(f"{path}: {error}") from error
        images.append(pictures.thumbnail(image))
    frozen = model.freeze().to(arguments.device)
    batches = (to(np.stack(xs[i : i + BATCH]), arguments.device) for i in range(0, len(xs), BATCH))
    scores = np.concatenate([to_cpu(frozen.forward(batch)) for batch in batches])
    model.to("cpu")  # for the pictures
    if not np.isfinite(scores).all():
        raise BadInput("the network's scores are not finite numbers: its weights are damaged")
    probabilities = softmax_forward(scores)[0]
    for path, p in zip(arguments.images, probabilities, strict=True):
        print(in_line(path))
        best = np.argsort(-p, kind="stable")[: arguments.top]
        width = max(len(in_line(classes[k])) for k in best)
        for k in best:
            print(f"  {in_line(classes[k]):{width}}  {p[k]:6.1%}  {'█' * round(30 * p[k])}".rstrip())
    images, xs, probabilities = images[:MOST_DRAWN], xs[:MOST_DRAWN], probabilities[:MOST_DRAWN]
    views = None
    if preprocessing.size >= SMALLEST_TO_EXPLAIN:
        from minivgg.insight.seeing import grad_cam

        views = [
            (preprocessing.denormalise(x), grad_cam(model, x, int(p.argmax())))
            for x, p in zip(xs, probabilities, strict=True)
        ]
    figure = pictures.predictions(images, probabilities, classes, arguments.top, views)
    drawn = f"the first {MOST_DRAWN} drawn" if len(arguments.images) > MOST_DRAWN else "drawn"
    print(f"{drawn} to {pictures.save(figure, arguments.picture)}")
