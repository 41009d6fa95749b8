"""Which learning rates are too large? What the doctor says of a rate after one batch, and whether a network then trains
with it: two epochs on the bundled images, by `minivgg train` at its defaults but for what a row names. For
docs/doctor.md.

    python benchmarks/doctor_rates.py [--write]

Rows lie in `benchmarks/results/doctor_rates.json` as soon as they are measured, and are not measured again: delete the
file to begin anew. Each takes some ten seconds on two cores. `--write` only fills the table from what is there.
"""

import argparse
import json
from pathlib import Path

from doctor import PAGE, train
from readme import fill, table

from minivgg.cli.info import describe
from minivgg.files import atomically
from minivgg.insight import doctor
from minivgg.training.config import Config
from minivgg.training.run import Run

RESULTS = Path(__file__).parent / "results" / "doctor_rates.json"
TRAINS = 0.5  # test accuracy after two epochs: chance is 0.1, what trains reaches 0.7 and more

COLD = {"warmup": 0.0}
ROWS = [
    *({"model": "vgg11_bn", "lr": lr} for lr in (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)),
    *({"model": "vgg11_bn", "lr": lr} | COLD for lr in (0.1, 0.3, 1.0, 3.0)),
    *({"model": "vgg11_bn", "lr": 0.1, "init": init} for init in ("xavier", "normal:0.01", "normal:0.1")),
    *({"model": "vgg16_bn", "lr": lr} for lr in (0.03, 0.1, 0.3, 1.0)),
    *({"model": "vgg11", "lr": lr} for lr in (0.01, 0.03, 0.1, 0.3, 1.0)),
    *({"model": "vgg11", "lr": lr} | COLD for lr in (0.01, 0.03, 0.1)),
    *({"model": "vgg16", "lr": lr} for lr in (0.01, 0.03, 0.1)),
]


def name(row: dict) -> str:
    return json.dumps(row, sort_keys=True)


def measure(row: dict) -> dict:
    config = Config(**{"epochs": 2} | row)
    run = Run(config, Path("runs") / "doctor-rates")
    checkup = doctor.examine(run.trainer.model, *next(run.trainer.train.epoch(0)), config.lr, config.warmup)
    findings = doctor.diagnose(checkup)
    largest = {
        kind: max((r.update for r in checkup.hidden if r.normalised is kind), default=None) for kind in (True, False)
    }
    result = train(name(row), run)
    return {
        "row": row,
        "warmup": config.warmup,
        "before_a_norm": largest[True],
        "others": largest[False],
        "too_large": any(finding.name == doctor.RATE for finding in findings),
        "verdict": doctor.verdict(findings),
        "steps": len(result["losses"]),
        "failure": result["failure"],
        "test_accuracy": result["test_accuracy"],
    }


def told(result: dict) -> list[str]:
    row, accuracy = result["row"], result["test_accuracy"]
    shares = (f"{result[kind]:.2%}" if result[kind] is not None else "" for kind in ("before_a_norm", "others"))
    right = result["too_large"] != trains(result)
    became = f"no number after {result['steps']} steps" if result["failure"] else f"{accuracy:.1%}"
    said = "too large" if result["too_large"] else ""
    model = row["model"] + (f", {row['init']}" if "init" in row else "")
    return [model, f"{row['lr']:g}", f"{result['warmup']:g}", *shares, said, became, "" if right else "wrong"]


def trains(result: dict) -> bool:
    return not result["failure"] and result["test_accuracy"] >= TRAINS


def write(record: dict) -> None:
    results = [record["rows"][name(row)] for row in ROWS]
    head = ["network", "rate", "warm-up", "before a norm", "others", "the doctor", "test accuracy", ""]
    good, bad = ([r for r in results if trains(r) is wanted] for wanted in (True, False))
    named, alarms = (sum(r["too_large"] for r in some) for some in (bad, good))
    machine = record["machine"]
    note = (
        f"Of {len(bad)} rates that do not train the doctor names {named}; of {len(good)} that do it calls {alarms} too "
        f"large. Trains: {TRAINS:.0%} of the test images right after two epochs; chance is 10%. The shares are the "
        f"largest of any hidden layer. On {machine['CPU']}, NumPy {machine['NumPy']}, Numba "
        f"{machine['Numba'].split()[0]}."
    )
    fill("doctor_rates", f"{table(head, [told(result) for result in results])}\n\n{note}", PAGE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="measure nothing: write the page again")
    arguments = parser.parse_args()
    record = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": {}}
    for row in () if arguments.write else ROWS:
        if name(row) not in record["rows"]:
            record["machine"] = describe()
            record["rows"][name(row)] = measure(row)
            with atomically(RESULTS) as path:
                path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        print(*told(record["rows"][name(row)]), sep="  ", flush=True)
    write(record)


if __name__ == "__main__":
    main()
