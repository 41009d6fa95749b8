"""One 5×5 against two 3×3, and one 7×7 against three: the VGG paper's experiment (§2.3 and §4), small.

    python benchmarks/stacks.py [--seeds 3] [--most N]

The paper replaced each pair of 3×3 convolutions of its network B by one 5×5, and lost 7% of top-1 accuracy. Here a
network of three stages, each ended by a pool, has one of four stacks in every stage, and learns Fashion-MNIST's bundled
images. Everything else is the same, and nothing was tuned for any of them. A run is a seed and a stack; what has been
measured is kept in `benchmarks/results/stacks.json`, and only what is missing is run, `--most` so many runs at a time.
Prints the table, and puts it into `benchmarks/results/README.md`.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

from readme import fill, table

from minivgg.cli.info import describe
from minivgg.files import atomically
from minivgg.insight.ledger import human, ledger
from minivgg.layers import Conv2d, Dropout, Flatten, Linear, MaxPool2d, ReLU, Sequential
from minivgg.models import initialise
from minivgg.training.augmentation import Augmentation
from minivgg.training.datasets import load
from minivgg.training.loader import Loader
from minivgg.training.loop import Trainer
from minivgg.training.optim import SGD
from minivgg.training.preprocessing import fit
from minivgg.training.schedules import schedule

RESULTS = Path(__file__).parent / "results" / "stacks.json"
STACKS = {"one 5×5": (5,), "two 3×3": (3, 3), "one 7×7": (7,), "three 3×3": (3, 3, 3)}
SETTINGS = {
    "data": "fashion-mnist-mini",
    "size": 32,
    "filters": [16, 32, 64],
    "hidden": 128,
    "dropout": 0.2,
    "init": "he",
    "epochs": 3,
    "batch_size": 64,
    "lr": 0.02,
    "momentum": 0.9,
    "weight_decay": 1e-3,
    "schedule": "cosine",
    "warmup": 1.0,
}


def network(windows: tuple[int, ...], seed: int = 0) -> Sequential:
    """x (N, 1, 32, 32) → scores (N, 10), with convolutions of these windows in each stage, no batch norm."""
    layers, channels = [], 1
    for filters in SETTINGS["filters"]:
        for window in windows:
            layers += [Conv2d(channels, filters, window, padding=window // 2), ReLU()]
            channels = filters
        layers.append(MaxPool2d(2))
    pixels = SETTINGS["size"] // 2 ** len(SETTINGS["filters"])
    hidden = SETTINGS["hidden"]
    layers += [Flatten(), Linear(channels * pixels**2, hidden), ReLU(), Dropout(SETTINGS["dropout"])]
    return initialise(Sequential(*layers, Linear(hidden, 10)), SETTINGS["init"], seed=seed)


def measure(stack: str, seed: int) -> dict:
    """Train one network: its accuracy on the test set after the last epoch, and how long that took."""
    train, test = load(SETTINGS["data"])
    preprocessing = fit(train, SETTINGS["size"], resize=28)
    model = network(STACKS[stack], seed)
    augmentation = Augmentation(pad=2, flip=True)
    batch, epochs = SETTINGS["batch_size"], SETTINGS["epochs"]
    trainer = Trainer(
        model,
        Loader(train, preprocessing, batch, augmentation=augmentation, shuffle=True, seed=seed),
        Loader(test, preprocessing, 250),
        SGD(model.named_params(), SETTINGS["momentum"], SETTINGS["weight_decay"]),
        schedule(SETTINGS["schedule"], epochs, SETTINGS["warmup"]),
        SETTINGS["lr"],
        epochs,
    )
    began = time.perf_counter()
    trainer.fit(progress=False)
    last = trainer.history[-1]
    return {
        "stack": stack,
        "seed": seed,
        "test_accuracy": last["test_accuracy"],
        "train_loss": round(last["train_loss"], 4),
        "seconds": round(time.perf_counter() - began, 1),
    }


def facts(stack: str) -> dict:
    """What the ledger says: how far one stack sees, its weights for C channels in and out, and the whole network."""
    windows = STACKS[stack]
    book = ledger(network(windows), (1, 1, SETTINGS["size"], SETTINGS["size"]))
    return {
        "sees": 1 + sum(window - 1 for window in windows),
        "weights": sum(window**2 for window in windows),
        "parameters": book.parameters,
        "macs": book.macs,
    }


def rows(runs: list[dict]) -> list[list[str]]:
    """The table's rows, of the stacks that have been measured."""
    result = []
    for stack in STACKS:
        accuracies = [run["test_accuracy"] for run in runs if run["stack"] == stack]
        if not accuracies:
            continue
        about = facts(stack)
        spread = f"{min(accuracies):.1%} to {max(accuracies):.1%}" if len(accuracies) > 1 else ""
        result.append(
            [
                stack,
                f"{about['sees']}×{about['sees']}",
                f"{about['weights']} C²",
                f"{about['parameters']:,}",
                human(about["macs"]),
                f"{statistics.mean(accuracies):.2%}",
                spread,
                str(len(accuracies)),
            ]
        )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="how many runs of each stack")
    parser.add_argument("--most", type=int, default=None, help="run at most so many of those missing, and stop")
    arguments = parser.parse_args()
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if kept.get("settings") != SETTINGS:
        kept = {"settings": SETTINGS, "runs": []}
    done = {(run["stack"], run["seed"]) for run in kept["runs"]}
    missing = [(stack, seed) for seed in range(arguments.seeds) for stack in STACKS if (stack, seed) not in done]
    for stack, seed in missing[: arguments.most]:
        kept["runs"].append(measure(stack, seed))
        print(kept["runs"][-1], flush=True)
        with atomically(RESULTS) as path:
            path.write_text(json.dumps({"machine": describe(), **kept}, indent=2, ensure_ascii=False) + "\n")
    head = ["each stage has", "sees", "weights", "parameters", "MACs", "mean test accuracy", "range", "runs"]
    found = table(head, rows(kept["runs"]))
    print(f"\n{found}")
    fill("stacks", found, RESULTS.with_name("README.md"))


if __name__ == "__main__":
    main()
