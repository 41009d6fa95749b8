"""The trained network that a command is about: that of a run, or one with published weights."""

import sys
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from minivgg.cli.train import RUNS
from minivgg.errors import BadInput
from minivgg.texts import in_line

DEVICE = {  # of `add_argument("--device", …)`
    "choices": ("cpu", "gpu", "sim"),
    "default": "cpu",
    "help": "where to compute: cpu, gpu (a CUDA GPU, through CuPy), or sim (the GPU's kernels on a simulator; slow)",
}


class Network(NamedTuple):
    """A network, how it wants its images (a `training.preprocessing.Preprocessing`), and what its scores are called."""

    model: object
    preprocessing: object
    classes: tuple[str, ...]


def add_options(command) -> None:
    """The options that name a network: those that `find` reads."""
    group = command.add_argument_group("which network")
    group.add_argument("--run", metavar="DIR", type=Path, help="that of a run (default: the newest in runs/)")
    group.add_argument("--weights", metavar="NAME|FILE", help="one that knows ImageNet: vgg16, or a file of weights")
    group.add_argument("--model", metavar="NAME", help="what network the file of weights is for: vgg16")
    group.add_argument(
        "--preprocessing",
        metavar="NAME",
        help="how the weights want their images: torchvision (RGB, 0 to 1; the default), or caffe (BGR, 0 to 255; the "
        "default for Keras's .h5 and .keras files)",
    )


def find(arguments, *, partial: bool = False) -> Network:
    """The network that the options name. `partial` allows weights of its first layers only, which give no scores.

    Raises BadInput where the options name nothing, or where the weights cannot be used.
    """
    from minivgg.training.run import load_model

    for option in ("model", "preprocessing") if not arguments.weights else ("run",):
        if getattr(arguments, option):
            without = "without" if option != "run" else "beside"
            raise BadInput(f"--{option} {without} --weights; give --weights NAME or FILE, or else --run DIR")
    if not arguments.weights:
        return Network(*load_model(arguments.run or newest_run()))
    return _published(arguments.weights, arguments.model, arguments.preprocessing, partial)


def _published(weights: str, name: str | None, preprocessing: str | None, partial: bool) -> Network:
    from minivgg import models
    from minivgg.training.datasets import imagenet_classes
    from minivgg.training.preprocessing import PREPROCESSINGS
    from minivgg.weights import SOURCES, load

    known = SOURCES.get(weights)
    if known and known.partial and not partial:
        raise BadInput(f"--weights {weights}: some of a network's layers, and no classifier; it cannot name anything")
    name = name or (known.model if known else None)
    if name is None:
        raise BadInput(
            f"--weights {weights}: say what network the file is for, such as --model vgg16; "
            f"these have a name: {', '.join(key for key, source in SOURCES.items() if not source.partial)}"
        )
    wanted = preprocessing or (
        known.input if known else "caffe" if weights.endswith((".h5", ".keras")) else "torchvision"
    )
    if wanted not in PREPROCESSINGS:
        raise BadInput(f'no preprocessing "{wanted}"; there are {", ".join(PREPROCESSINGS)}')
    classes = tuple(imagenet_classes().values())
    model = models.build(name, classes=len(classes), init="zeros")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they are in the report, too
        report = load(model, weights, input=wanted)
    for note in report.warnings:
        print(f"minivgg: {in_line(weights)}: {in_line(note)}", file=sys.stderr)
    return Network(model, PREPROCESSINGS[wanted], classes)


@contextmanager
def told():
    """What the library warns of in this block, as lines of `minivgg: …`."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield
    for warning in caught:
        print(f"minivgg: {in_line(warning.message)}", file=sys.stderr)


def newest_run() -> Path:
    """The folder of the newest run in `runs/`. Raises BadInput if there is none."""
    found = sorted(RUNS.glob("*/model.safetensors"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise BadInput(
            f"no trained network in {RUNS}/: run minivgg train first, or name one with --run DIR or --weights vgg16"
        )
    return found[-1].parent
