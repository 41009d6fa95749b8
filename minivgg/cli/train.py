"""`minivgg train`: watch a network learn, and find its pictures in the run's folder."""

import argparse
import math
import sys
import time
from pathlib import Path

from minivgg.errors import BadInput, check_range
from minivgg.training.config import Config

RUNS = Path("runs")

# Options of the command line that set a field of `training.run.Config`: field, type, metavar, what it is.
_SETTINGS = {
    "data": {
        "data": (str, "NAME", "fashion-mnist-mini, fashion-mnist, cifar10, an .npz, or a folder of images per class"),
        "size": (int, "PX", "height and width the network sees (default: that of the images, at least 32; photos 64)"),
        "resize": (int, "PX", "shorter side that images are scaled to before the crop (default: from --size)"),
        "scale": (int, "PX", "training draws the shorter side between two sizes: --scale 256 512"),
        "pad": (int, "PX", "black border before the random crop (default: 2, for photos 0)"),
        "flip": (bool, None, "mirror images at random"),
        "colour": (float, "STD", "strength of the random colour shift (AlexNet's is 0.1)"),
    },
    "network": {
        "model": (str, "NAME", "vgg11 … vgg19_bn, the paper's A … E, alexnet, googlenet, …"),
        "width": (float, "X", "multiplies the number of filters"),
        "classifier_width": (int, "N", "units of the two hidden linear layers"),
        "dropout": (float, "P", "share dropped in the classifier"),
        "init": (str, "NAME", "he, xavier, paper, lsuv, or normal:STD such as normal:0.01"),
        "init_from": (
            str,
            "RUN",
            "then copy the first four convolutions and the linear layers of a trained shallower net, as the paper did "
            "(default: none)",
        ),
        "algorithm": (
            str,
            "NAME",
            "how convolutions are computed: auto, or a rung of the ladder such as direct or winograd",
        ),
    },
    "optimisation": {
        "epochs": (int, "N", "passes over the training set"),
        "batch_size": (int, "N", "images a step"),
        "optimizer": (str, "NAME", "sgd or adam"),
        "lr": (float, "RATE", "peak learning rate"),
        "momentum": (float, "M", "of sgd"),
        "weight_decay": (float, "D", "L2 penalty on weights"),
        "schedule": (str, "NAME", "constant, step, cosine or plateau (the paper's)"),
        "warmup": (float, "EPOCHS", "epochs over which the rate rises to its peak"),
        "label_smoothing": (float, "E", "probability spread over all classes"),
        "clip_norm": (float, "NORM", "scale gradients down to this joint norm"),
        "seed": (int, "N", "the same seed gives the same weights, to the last bit"),
        "device": (str, "NAME", "cpu, gpu (a CUDA GPU, through CuPy) or sim (the GPU's kernels, simulated: slow)"),
        "graphs": (bool, None, "on a GPU, record a step as CUDA graphs and replay it (off until measured)"),
    },
}

_FIELDS = {"download", *(name for settings in _SETTINGS.values() for name in settings)}


def add(commands) -> None:
    command = commands.add_parser(
        "train",
        help="train a network; with no arguments, a small VGG on the bundled images",
        description="Train a network and leave weights, log and pictures in the run's folder. With no arguments: a "
        "small VGG with batch norm on 10,000 bundled images of clothes. Ctrl-C saves; --resume goes on, bit for bit "
        "as if it had never stopped (on the same machine, versions and number of threads).",
    )
    command.add_argument("--run", type=Path, metavar="DIR", help="the run's folder (default: runs/MODEL-DATE-TIME)")
    command.add_argument(
        "--resume",
        type=Path,
        metavar="DIR",
        help="go on with the run in DIR, with its own settings (and --data, if that has moved)",
    )
    command.add_argument(
        "--save-minutes", type=float, default=5, metavar="M", help="save within long epochs (default: 5)"
    )
    command.add_argument("--quiet", action="store_true", help="no progress bars")
    command.add_argument("--download", action="store_true", default=None, help="allow the data to be downloaded")
    for title, settings in _SETTINGS.items():
        group = command.add_argument_group(title)
        for name, (kind, metavar, text) in settings.items():
            default = getattr(Config(), name)
            text = text if default is None or "default" in text else f"{text} (default: {default})"
            flag = f"--{name.replace('_', '-')}"
            if kind is bool:
                group.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=text)
            else:
                several = {"nargs": 2} if name == "scale" else {}
                group.add_argument(flag, type=kind, metavar=metavar, default=None, help=text, **several)
    command.set_defaults(command=run)


def run(arguments) -> int:
    from minivgg.cli.network import told
    from minivgg.training.folder import begun, check_free, occupied
    from minivgg.training.run import Run

    check_range("--save-minutes", arguments.save_minutes, 0, math.inf)
    given = {name: value for name, value in vars(arguments).items() if name in _FIELDS and value is not None}
    if arguments.resume:
        data = given.pop("data", None)
        if given or arguments.run:
            names = ", ".join(f"--{name.replace('_', '-')}" for name in [*given, *(["run"] if arguments.run else [])])
            raise BadInput(f"--resume goes on with the run's own settings and folder; leave out {names}")
        with occupied(arguments.resume):
            with told():
                session = Run.resume(arguments.resume, data)
            return _train(session, arguments)
    config = Config(**{name: tuple(v) if isinstance(v, list) else v for name, v in given.items()})
    folder = arguments.run or RUNS / time.strftime(f"{config.model}-%Y%m%d-%H%M%S")
    if arguments.run:
        check_free(folder)  # before anything is read
    session = Run(config, folder)
    with begun(folder, named=arguments.run is not None) as session.folder:
        session.save()
        return _train(session, arguments)


def _train(session, arguments) -> int:
    from minivgg.training.loop import Stopped

    print(_headline(session), flush=True)
    try:
        session.trainer.fit(session.save, save_minutes=arguments.save_minutes, progress=not arguments.quiet)
    except Stopped:
        _draw(session)
        print(f"\nstopped and saved; go on with: minivgg train --resume {session.folder}", file=sys.stderr)
        return 130
    _draw(session)
    print(f"\ntest accuracy {session.trainer.history[-1]['test_accuracy']:.2%}; see {session.folder}/")
    print(f"try it:  minivgg predict IMAGE --run {session.folder}")
    return 0


def _headline(session) -> str:
    trainer, config = session.trainer, session.config
    data, pixels = trainer.train.dataset, session.preprocessing.size
    place = f", from epoch {trainer.epoch + 1}, batch {trainer.batch + 1}" if trainer.epoch or trainer.batch else ""
    first = (
        "" if trainer.optimizer.steps else "\n(the first steps are slow on a new machine: Numba compiles, and keeps it)"
    )
    copied = f"\nfrom {config.init_from}: {session.transfer}" if session.transfer else ""
    return (
        f"{config.model} with {trainer.model.parameter_count():,} parameters on {len(data):,} images of "
        f"{data.name.partition('/')[0]} at {pixels}×{pixels}, {len(session.classes)} classes{place}{copied}{first}"
    )


def _draw(session) -> None:
    """The run's pictures: curves, confusion matrix, first-layer filters, worst mistakes."""
    from minivgg.backends.array import to_cpu
    from minivgg.insight import pictures
    from minivgg.layers import Conv2d
    from minivgg.training.loop import evaluate

    trainer, folder = session.trainer, session.folder
    if not trainer.history:
        return
    result = evaluate(trainer.model, trainer.test, device=trainer.device)
    chosen = pictures.worst(result.scores, result.labels)
    images = [session.test_set.image(i) for i in chosen]
    first = next(layer for _, layer in trainer.model.walk() if isinstance(layer, Conv2d))
    figures = {
        "curves": pictures.curves(trainer.history),
        "confusion": pictures.confusion(result.scores.argmax(axis=1), result.labels, session.classes),
        "filters": pictures.filters(to_cpu(first.weight.data)),
        "mistakes": pictures.mistakes(images, result.labels[chosen], result.scores[chosen], session.classes),
    }
    for name, figure in figures.items():
        pictures.save(figure, folder / f"{name}.png")
