"""Does the doctor tell the truth? VGG-16 without and with batch norm from several starts: what the doctor says after
one batch, and what a short training on the bundled images then does. For docs/doctor.md.

    python benchmarks/doctor.py [--only START …] [--write]

Without `--only`, every start; each takes about a minute on two cores. Results are kept in
`benchmarks/results/doctor.json`, start by start, so that they can be measured one at a time; `--write` only fills the
table and draws the pictures from what is there. Starts from A need A's run, which lies in runs/doctor-A below the
folder that all are run from.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
from readme import fill, table
from tqdm import tqdm

from minivgg.cli.info import describe
from minivgg.files import atomically
from minivgg.insight import doctor, pictures
from minivgg.training.config import Config
from minivgg.training.loop import Diverged, evaluate
from minivgg.training.run import Run

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "results" / "doctor.json", HERE.parent / "docs" / "doctor.md"
NET_A, NET_A_START = Path("runs") / "doctor-A", "A, He"

# The paper's optimiser; width, batch, images and their number are what two cores do in a minute.
COMMON = {
    "width": 0.5,
    "classifier_width": 1024,
    "dropout": 0.5,
    "lr": 0.01,
    "weight_decay": 5e-4,
    "schedule": "constant",
    "warmup": 0,
    "batch_size": 64,
    "epochs": 1,
}
STARTS = {
    "D, std 0.01": {"model": "vgg16", "init": "normal:0.01"},
    "D, std 0.1": {"model": "vgg16", "init": "normal:0.1"},
    "D, Glorot": {"model": "vgg16", "init": "xavier"},
    "D, He": {"model": "vgg16", "init": "he"},
    "D + BN, std 0.01": {"model": "vgg16_bn", "init": "normal:0.01"},
    "D + BN, std 0.1": {"model": "vgg16_bn", "init": "normal:0.1"},
    "D + BN, He": {"model": "vgg16_bn", "init": "he"},
    NET_A_START: {"model": "A", "init": "he", "epochs": 2},
    "D from A, rest std 0.01": {"model": "vgg16", "init": "normal:0.01", "init_from": str(NET_A)},
    "D from A, rest std 0.1": {"model": "vgg16", "init": "normal:0.1", "init_from": str(NET_A)},
    "D from A, rest He": {"model": "vgg16", "init": "he", "init_from": str(NET_A)},
}


def begin(name: str) -> Run:
    """The run of a start, nothing trained yet."""
    return Run(Config(**COMMON | STARTS[name]), NET_A if name == NET_A_START else NET_A.with_name("doctor"))


def consult(run: Run) -> dict:
    """What the doctor says after the first batch."""
    trainer = run.trainer
    checkup = doctor.examine(trainer.model, *next(trainer.train.epoch(0)), run.config.lr, run.config.warmup)
    findings = doctor.diagnose(checkup)
    return {
        "factor": checkup.factor,
        "scores_rms": checkup.scores,
        "step_share": checkup.update,
        "first_loss": checkup.loss,
        "verdict": doctor.verdict(findings),
        "findings": [str(finding) for finding in findings],
        "rows": [{"name": row.name, "rms": row.rms, "gradient": row.gradient} for row in checkup.rows],
    }


def train(name: str, run: Run) -> dict:
    """What then happens: the loss of each step, where it stops being a number, and accuracy in the end."""
    trainer, began, losses, failure = run.trainer, time.perf_counter(), [], None
    batches = (batch for epoch in range(trainer.epochs) for batch in trainer.train.epoch(epoch))
    try:
        for x, labels in tqdm(batches, name, trainer.epochs * len(trainer.train), leave=False):
            losses.append(trainer.step(x, labels)[0])
            trainer.batch += 1  # its place, for the message of Diverged
    except Diverged as error:
        failure = str(error)
    accuracy = None if failure else evaluate(trainer.model, trainer.test).accuracy
    if name == NET_A_START:
        trainer.batch = 0  # it stands between epochs, where the weights are written
        run.save()
    return {
        "losses": [float(f"{loss:.6g}") for loss in losses],
        "failure": failure,
        "test_accuracy": accuracy,
        "seconds": round(time.perf_counter() - began, 1),
    }


def said(name: str, result: dict) -> list[str]:
    """A row of the page's table."""
    losses = result["losses"]
    later = f"{np.mean(losses[-20:]):.2f}" if not result["failure"] else f"no number after step {len(losses)}"
    accuracy = result["test_accuracy"]
    return [
        name,
        f"{result['factor']:.2f}",
        f"{result['scores_rms']:.0e}",
        f"{result['step_share']:.0e}",
        result["verdict"],
        f"{result['first_loss']:,.2f}",
        later,
        "" if accuracy is None else f"{accuracy:.1%}",
    ]


def write(record: dict) -> None:
    """The table of the page, and its pictures."""
    starts = {name: record["starts"][name] for name in STARTS if name in record["starts"]}
    head = ["start", "× a layer", "scores' RMS", "step/weight", "the doctor", "first loss", "last 20 steps", "correct"]
    machine = record["machine"]
    note = (
        f"{len(next(iter(starts.values()))['losses'])} steps of {COMMON['batch_size']} images "
        f"(A: {len(starts[NET_A_START]['losses'])}), half the paper's width, 32×32 pixels, rate {COMMON['lr']}, "
        f"momentum 0.9, weight decay {COMMON['weight_decay']}, dropout {COMMON['dropout']}; 2,000 test images. "
        f"On {machine['CPU']}, NumPy {machine['NumPy']}, Numba {machine['Numba'].split()[0]}."
    )
    fill("doctor", f"{table(head, [said(*item) for item in starts.items()])}\n\n{note}", PAGE)
    spreads = {
        name: [(row["name"], row["rms"], row["gradient"]) for row in result["rows"]]
        for name, result in starts.items()
        if name.startswith("D") and "from A" not in name
    }
    pictures.save(pictures.spreads(spreads), HERE.parent / "docs" / "doctor.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=STARTS, metavar="START", help="measure these (default: all)")
    parser.add_argument("--write", action="store_true", help="measure nothing: write the page again")
    arguments = parser.parse_args()
    record = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"starts": {}}
    for name in () if arguments.write else arguments.only or STARTS:
        record["machine"] = describe()
        run = begin(name)
        record["starts"][name] = {"settings": COMMON | STARTS[name], **consult(run), **train(name, run)}
        with atomically(RESULTS) as path:
            path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        print(*said(name, record["starts"][name]), sep="  ")
    if record["starts"].keys() >= STARTS.keys():
        write(record)


if __name__ == "__main__":
    main()
