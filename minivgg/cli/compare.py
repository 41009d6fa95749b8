"""`minivgg compare MODEL…`: networks side by side."""

import argparse
import json
from pathlib import Path


def add(commands) -> None:
    command = commands.add_parser(
        "compare",
        help="compare networks: depth, windows, parameters, MACs, memory, receptive field, time",
        description="Compare networks: weight layers, windows, parameters, multiply-accumulates (MACs), memory for "
        "inference and training, how many input pixels a unit sees, and how long a forward takes here. All but the "
        "time is computed from shapes.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    command.add_argument("models", nargs="+", metavar="MODEL", help="such as: alexnet vgg16 googlenet")
    command.add_argument("--input-size", type=int, default=224, metavar="PX", help="height and width of the images")
    command.add_argument("--batch-size", type=int, default=1, metavar="N", help="images at once")
    command.add_argument("--classes", type=int, default=1000, metavar="K", help="classes")
    command.add_argument("--width", type=float, default=1.0, metavar="X", help="multiplies the number of filters")
    command.add_argument("--runs", type=int, default=5, metavar="N", help="forwards timed; their median is shown")
    command.add_argument("--no-time", action="store_true", help="run nothing")
    command.add_argument("--json", action="store_true", help="print JSON instead of a table")
    command.add_argument(
        "--picture",
        type=Path,
        nargs="?",
        const=Path("compare.png"),
        metavar="FILE",
        help="draw it too (without a name, to compare.png)",
    )
    command.set_defaults(command=run)


def run(arguments) -> None:
    from minivgg.errors import BadInput
    from minivgg.insight.compare import compare, table

    for name in ("batch_size", "runs"):
        if getattr(arguments, name) < 1:
            raise BadInput(f"--{name.replace('_', '-')} must be at least 1, got {getattr(arguments, name)}")
    entries = compare(
        arguments.models,
        input_size=arguments.input_size,
        batch_size=arguments.batch_size,
        runs=0 if arguments.no_time else arguments.runs,
        classes=arguments.classes,
        width=arguments.width,
    )
    if arguments.json:
        print(json.dumps([entry.as_dict() for entry in entries], indent=2))
    else:
        print(table(entries))
    if arguments.picture:
        from minivgg.insight import pictures

        path = pictures.save(pictures.comparison(entries), arguments.picture)
        if not arguments.json:
            print(f"drawn to {path}")
