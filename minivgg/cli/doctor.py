"""`minivgg doctor MODEL`: will this network train, and if not, why?"""

import argparse
import math
from pathlib import Path

from minivgg.errors import BadInput

INITIALISERS = ("he", "xavier", "normal:0.01", "normal:0.1")
LEGEND = """\
mean, spread: of what a layer gives, after its batch norm and ReLU; zero: the share that is 0; dead: the share of its
channels or units that are 0 for every image; gradient: RMS of the loss's gradient there; σ: RMS of the weights;
step/weight: what share of its weights one step of gradient descent changes (1e-3 is healthy; momentum makes it more)"""
TRIALS_LEGEND = """\
× a layer: what a layer does to the RMS of activations; differ by: how much probabilities differ between images"""


def add(commands) -> None:
    command = commands.add_parser(
        "doctor",
        help="run one batch through a network, and say whether it will train, and why",
        description="Run one batch through a network, forward and back, and report layer by layer what becomes of "
        "activations and gradients; compare ways to start; say what will happen, why, and what helps.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    command.add_argument("model", nargs="?", metavar="MODEL", help="vgg11 … vgg19, vgg11_bn … or the paper's A … E")
    command.add_argument("--run", type=Path, metavar="DIR", help="examine the trained network of a run instead")
    command.add_argument("--init", default="he", metavar="NAME", help="he, xavier, paper, lsuv, or normal:STD")
    command.add_argument("--lr", type=float, default=0.01, metavar="RATE", help="learning rate that training would use")
    command.add_argument("--width", type=float, default=1.0, metavar="X", help="multiplies the number of filters")
    command.add_argument("--classifier-width", type=int, default=4096, metavar="N", help="units of the linear layers")
    command.add_argument("--input-size", type=int, default=32, metavar="PX", help="height and width of the images")
    command.add_argument("--data", default="fashion-mnist-mini", metavar="NAME", help="as for minivgg train")
    command.add_argument("--batch-size", type=int, default=32, metavar="N", help="images in the batch")
    command.add_argument("--seed", type=int, default=0, metavar="N", help="of weights and of the choice of images")
    command.add_argument("--raw", action="store_true", help="leave pixels at 0 to 255, to see what that does")
    command.add_argument(
        "--compare", action=argparse.BooleanOptionalAction, default=True, help="try other starts, with batch norm too"
    )
    command.add_argument("--picture", type=Path, default=Path("doctor.png"), metavar="PNG", help="where to draw them")
    command.set_defaults(command=run)


def run(arguments) -> None:
    from minivgg.insight import doctor, pictures
    from minivgg.training.run import load_model

    if (arguments.model is None) == (arguments.run is None):
        raise BadInput("name a model, such as vgg16, or a run by --run DIR, and not both")
    if arguments.batch_size < 2 or not arguments.lr > 0:
        raise BadInput(f"--batch-size must be at least 2 and --lr above 0: {arguments.batch_size}, {arguments.lr:g}")
    if arguments.run:
        model, preprocessing, _ = load_model(arguments.run)
        x, labels, _ = _batch(arguments, preprocessing)
        name = f"{arguments.run}, trained"
    else:
        x, labels, classes = _batch(arguments, None)
        options = {"classes": classes, "channels": x.shape[1], "input_size": arguments.input_size}
        build = _builder(arguments, options, x)
        model = build(arguments.model, arguments.init)
        name = f"{arguments.model}, started by {arguments.init}"
    checkup = doctor.examine(model, x, labels, arguments.lr)
    N, C, H, W = x.shape
    print(f"{name}: {model.parameter_count():,} parameters, a batch of {N} images of {C}×{H}×{W}\n")
    print(checkup)
    print(f"\n{LEGEND}")
    chance = math.log(checkup.classes)
    print(f"\nloss {checkup.loss:.4g}; log({checkup.classes}) = {chance:.4g} is that of knowing nothing")
    findings = doctor.diagnose(checkup)
    print(f"\n{doctor.verdict(findings)}")
    print(*(f"- {finding}" for finding in findings), sep="\n")
    if arguments.run or not arguments.compare:
        return
    del model
    starts = _starts(arguments.model, arguments.init, build)
    trials = doctor.try_initialisers(starts, x, labels, arguments.lr, progress=True)
    print(f"\n{doctor.trials_table(trials)}\n\n{TRIALS_LEGEND}")
    spreads = {name: [(row.name, row.rms, row.gradient) for row in c.rows] for name, c in trials.items()}
    print(f"\ndrawn to {pictures.save(pictures.spreads(spreads), arguments.picture)}")


def _builder(arguments, options: dict, x):
    """A function (model, initialiser) → network."""
    from minivgg import models

    def build(model: str, init: str):
        given = options | {"width": arguments.width, "classifier_width": arguments.classifier_width}
        first = "zeros" if init == "lsuv" else init
        net = models.build(model, **given, init=first, seed=arguments.seed)
        return models.initialise(net, "lsuv", seed=arguments.seed, x=x) if init == "lsuv" else net

    return build


def _starts(model: str, init: str, build) -> dict:
    """Name → a function that builds a network: each initialiser, without and with batch norm where there is a twin."""
    from functools import partial

    from minivgg import models

    plain = model.removesuffix("_bn")
    twins = {"": plain, " + BN": f"{plain}_bn"}
    twins = {name: twin for name, twin in twins.items() if twin in models.MODELS} or {"": model}
    inits = [*INITIALISERS, *([init] if init not in INITIALISERS else [])]
    return {f"{way}{name}": partial(build, twin, way) for name, twin in twins.items() for way in inits}


def _batch(arguments, preprocessing):
    """x (N, C, H, W) and labels (N,), drawn from the training images, and how many classes there are."""
    import numpy as np

    from minivgg.training.augmentation import fit
    from minivgg.training.datasets import load

    train, _ = load(arguments.data)
    chosen = np.random.default_rng(arguments.seed).permutation(len(train))[: arguments.batch_size]
    pictures = [train.image(i) for i in chosen]
    if preprocessing is None:
        native = pictures[0].shape[0] if isinstance(train.images, np.ndarray) else None
        size = arguments.input_size
        resize = native if native and native <= size < 2 * native else size
        preprocessing = fit(train, size, resize=resize)
    elif preprocessing.channels != train.channels:
        raise BadInput(f"{arguments.data} has {train.channels} channels, the run's network {preprocessing.channels}")
    x = np.stack([preprocessing(picture) for picture in pictures])
    if arguments.raw:
        mean, std = (np.array(v, np.float32)[:, None, None] for v in (preprocessing.mean, preprocessing.std))
        x = 255 * (x * std + mean)
    return x, train.labels[chosen], len(train.classes)
