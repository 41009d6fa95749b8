"""What `minivgg train` with no arguments reaches: accuracy, time and memory over several seeds, for the README.

    python benchmarks/train_mini.py [--seeds 3]

Each seed is a process of its own, as a user would start it. Writes `benchmarks/results/train_mini.json`, the README's
table, and the first seed's curves and filters as the README's pictures. On Linux only: peak memory is the kernel's own
account of the finished process.
"""

import argparse
import csv
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from readme import fill, table

from minivgg.cli.info import describe

HERE = Path(__file__).parent


def measure(seed: int, folder: Path) -> dict:
    """Train with this seed into `folder`: the last epoch's row, wall seconds and peak resident memory in MB."""
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "minivgg", "train", "--seed", str(seed), "--run", str(folder)])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"seed {seed}: training failed")
    wall = time.perf_counter() - began
    with (folder / "log.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
    return {
        "seed": seed,
        "epochs": int(last["epoch"]),
        "test_accuracy": float(last["test_accuracy"]),
        "images_per_second": float(last["images_per_second"]),
        "wall_seconds": round(wall, 1),
        "peak_memory_mb": round(usage.ru_maxrss * 1024 / 1e6),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="how many runs")
    seeds = parser.parse_args().seeds
    with tempfile.TemporaryDirectory() as scratch:
        rows = [measure(seed, Path(scratch) / str(seed)) for seed in range(seeds)]
        for name in ("curves", "filters"):
            shutil.copy(Path(scratch) / "0" / f"{name}.png", HERE.parent / "docs" / f"{name}.png")
    machine = describe()
    results = HERE / "results" / "train_mini.json"
    results.parent.mkdir(exist_ok=True)
    results.write_text(json.dumps({"machine": machine, "runs": rows}, indent=2, ensure_ascii=False) + "\n")
    head = ["seed", "test accuracy", "images/s, last epoch", "wall time", "peak memory"]
    cells = [
        [
            str(row["seed"]),
            f"{row['test_accuracy']:.2%}",
            f"{row['images_per_second']:,.0f}",
            f"{row['wall_seconds']:.0f} s",
            f"{row['peak_memory_mb']} MB",
        ]
        for row in rows
    ]
    median = statistics.median(row["test_accuracy"] for row in rows)
    said = (
        f"Median test accuracy {median:.1%} after {rows[0]['epochs']} epochs, on {machine['CPU']}, "
        f"Python {machine['Python'].split()[0]}, NumPy {machine['NumPy']}, Numba {machine['Numba'].split()[0]}."
    )
    fill("train_mini", f"{table(head, cells, right=0)}\n\n{said}")


if __name__ == "__main__":
    main()
