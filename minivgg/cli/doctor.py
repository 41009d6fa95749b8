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
    command.add_argument("--lr", type=float, metavar="RATE", help="learning rate to judge by (0.01, or the run's)")
    command.add_argument("--warmup", type=float, metavar="EPOCHS", help="epochs until that rate (1, or the run's)")
    command.add_argument("--width", type=float, metavar="X", help="multiplies the number of filters (the model's own)")
    command.add_argument("--classifier-width", type=int, metavar="N", help="units of the linear layers (the model's)")
    command.add_argument("--input-size", type=int, default=32, metavar="PX", help="height and width of the images")
    command.add_argument("--data", metavar="NAME", help="as for minivgg train (the bundled images, or the run's)")
    command.add_argument("--batch-size", type=int, default=64, metavar="N", help="images in the batch, as in training")
    command.add_argument("--seed", type=int, default=0, metavar="N", help="of weights and of the choice of images")
    command.add_argument("--raw", action="store_true", help="leave pixels at 0 to 255, to see what that does")
    command.add_argument(
        "--compare", action=argparse.BooleanOptionalAction, default=True, help="try other starts, with batch norm too"
    )
    command.add_argument("--picture", type=Path, default=Path("doctor.png"), metavar="FILE", help="where to draw them")
    command.set_defaults(command=run)


def run(arguments) -> None:
    from minivgg.cli.network import told
    from minivgg.insight import doctor, pictures
    from minivgg.training.config import Config, check_setting
    from minivgg.training.datasets import load
    from minivgg.training.run import data_of, load_model, read_config

    if (arguments.model is None) == (arguments.run is None):
        raise BadInput("name a model, such as vgg16, or a run by --run DIR, and not both")
    if arguments.batch_size < 2 or not (arguments.lr is None or arguments.lr > 0):
        raise BadInput(f"--batch-size must be at least 2 and --lr above 0: {arguments.batch_size}, {arguments.lr}")
    for name in ("lr", "warmup", "batch_size", "seed", "input_size"):
        if getattr(arguments, name) is not None:
            check_setting(name, getattr(arguments, name))
    if arguments.run:
        model, preprocessing, known = load_model(arguments.run)
        config = read_config(arguments.run / "config.json") if arguments.run.is_dir() else Config()
        with told():
            own = arguments.run.is_dir() and not arguments.data
            train = data_of(arguments.run, "training") if own else load(arguments.data or config.data)[0]
        if len(train.classes) > len(known):
            raise BadInput(
                f"{arguments.data or config.data} has {len(train.classes)} classes, the network {len(known)}"
            )
        x, labels, _ = _batch(arguments, train, preprocessing)
        name, default_lr, default_warmup = f"{arguments.run}, trained", config.lr, config.warmup
    else:
        x, labels, classes = _batch(arguments, load(arguments.data or Config().data)[0], None)
        build = _builder(arguments, classes, x)
        model = build(arguments.init)
        name, default_lr, default_warmup = f"{arguments.model}, started by {arguments.init}", 0.01, Config().warmup
    lr = default_lr if arguments.lr is None else arguments.lr
    warmup = default_warmup if arguments.warmup is None else arguments.warmup
    checkup = doctor.examine(model, x, labels, lr, warmup)
    N, C, H, W = x.shape
    print(f"{name}: {model.parameter_count():,} parameters, a batch of {N} images of {C}×{H}×{W}\n")
    print(checkup)
    print(f"\n{LEGEND}")
    chance = math.log(checkup.classes)
    print(f"\nloss {checkup.loss:.4g}; log({checkup.classes}) = {chance:.4g} is that of knowing nothing")
    findings = doctor.diagnose(checkup)
    print(f"\n{doctor.verdict(findings)}")
    print(*(f"- {finding}" for finding in findings), sep="\n")
    if arguments.run and config.optimizer != "sgd":
        print(f"Steps are judged as those of SGD; of {config.optimizer}'s, which the run takes, this says nothing.")
    if arguments.run or not arguments.compare:
        return
    del model
    trials = doctor.try_initialisers(_starts(arguments, build), x, labels, lr, warmup, progress=True)
    print(f"\n{doctor.trials_table(trials)}\n\n{TRIALS_LEGEND}")
    spreads = {name: [(row.name, row.rms, row.gradient) for row in c.rows] for name, c in trials.items()}
    print(f"\ndrawn to {pictures.save(pictures.spreads(spreads), arguments.picture)}")


def _builder(arguments, classes: int, x):
    """A function from an initialiser's name to the network that the arguments name; it takes further options, too."""
    from minivgg import models

    chosen = {name: getattr(arguments, name) for name in ("width", "classifier_width", "input_size")}
    given = {name: value for name, value in chosen.items() if value is not None}
    options = given | {"classes": classes, "channels": x.shape[1], "seed": arguments.seed}

    def build(init: str, **others):
        net = models.build(arguments.model, init="zeros" if init == "lsuv" else init, **options, **others)
        return models.initialise(net, "lsuv", seed=arguments.seed, x=x) if init == "lsuv" else net

    return build


def _starts(arguments, build) -> dict:
    """Name → a function that builds a network: each initialiser, without and with batch norm if the model has both."""
    from functools import partial
    from inspect import signature

    from minivgg import models

    both = "batch_norm" in signature(models.MODELS[arguments.model]).parameters
    twins = {"": {"batch_norm": False}, " + BN": {"batch_norm": True}} if both else {"": {}}
    inits = dict.fromkeys([*INITIALISERS, arguments.init])
    return {f"{init}{name}": partial(build, init, **twin) for name, twin in twins.items() for init in inits}


def _batch(arguments, train, preprocessing):
    """x (N, C, H, W) and labels (N,), drawn from the training images, and how many classes there are."""
    import numpy as np

    from minivgg.training.preprocessing import fit

    chosen = np.random.default_rng(arguments.seed).permutation(len(train))[: arguments.batch_size]
    pictures = [train.image(i) for i in chosen]
    if preprocessing is None:
        native = pictures[0].shape[0] if isinstance(train.images, np.ndarray) else None
        size = arguments.input_size
        resize = native if native and native <= size < 2 * native else size
        preprocessing = fit(train, size, resize=resize)
    elif preprocessing.channels != train.channels:
        raise BadInput(f"{train.name} has {train.channels} channels, the run's network {preprocessing.channels}")
    x = np.stack([preprocessing(picture) for picture in pictures])
    if arguments.raw:
        mean, std = (np.array(v, np.float32)[:, None, None] for v in (preprocessing.mean, preprocessing.std))
        x = 255 * (x * std + mean)
    return x, train.labels[chosen], len(train.classes)
