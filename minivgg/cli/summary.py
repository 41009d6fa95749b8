"""`minivgg summary MODEL`: the ledger of a network."""

import argparse
import json


def add(commands) -> None:
    command = commands.add_parser(
        "summary",
        help="print a network layer by layer: shapes, parameters, MACs, memory, receptive field",
        description="Print a network layer by layer: output shape, parameters, multiply-accumulates (MACs), activation "
        "memory, size of the im2col matrix, and how many input pixels a unit sees. Nothing is run or downloaded.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    command.add_argument("model", metavar="MODEL", help="vgg11 … vgg19_bn, the paper's A … E, alexnet, googlenet, …")
    command.add_argument("--input-size", type=int, default=224, metavar="PX", help="height and width of the image")
    command.add_argument("--batch-size", type=int, default=1, metavar="N", help="images at once")
    command.add_argument(
        "--channels", type=int, default=None, metavar="C", help="input channels (default: the model's)"
    )
    command.add_argument("--classes", type=int, default=None, metavar="K", help="classes (default: the model's)")
    command.add_argument("--width", type=float, default=1.0, metavar="X", help="multiplies the number of filters")
    command.add_argument("--json", action="store_true", help="print JSON instead of a table")
    command.set_defaults(command=run)


def run(arguments) -> None:
    from minivgg import models
    from minivgg.errors import BadInput
    from minivgg.insight.ledger import ledger
    from minivgg.layers import Conv2d

    if arguments.batch_size < 1:
        raise BadInput(f"--batch-size must be at least 1, got {arguments.batch_size}")
    given = {"channels": arguments.channels, "classes": arguments.classes}
    options = {name: value for name, value in given.items() if value is not None}
    size = arguments.input_size
    model = models.build(arguments.model, input_size=size, width=arguments.width, init="zeros", **options)
    first = next(layer for _, layer in model.walk() if isinstance(layer, Conv2d))
    book = ledger(model, (arguments.batch_size, first.weight.data.shape[1], size, size))
    print(json.dumps({"model": arguments.model, **book.as_dict()}, indent=2) if arguments.json else book)
