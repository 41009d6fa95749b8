"""What the scripts that race have in common: run the race, save its record, draw it, fill the README's table."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from readme import fill, table

from minivgg.bench import pytorch
from minivgg.bench.pictures import picture
from minivgg.bench.race import cores
from minivgg.bench.record import save
from minivgg.bench.tables import summary
from minivgg.cli.info import describe
from minivgg.insight import pictures

HERE = Path(__file__).parent


def main(name: str, run: Callable[..., dict], says: str) -> None:
    """Measure with `run`, or with --redraw take the record that is there, and write what the script `name` writes."""
    parser = argparse.ArgumentParser(description=says.splitlines()[0])
    parser.add_argument("--threads", type=int, default=cores(), metavar="N", help="of each contestant (default: cores)")
    parser.add_argument("--samples", type=int, default=9, metavar="N", help="of each contestant (default: 9)")
    parser.add_argument("--redraw", action="store_true", help="measure nothing: picture and table from the JSON")
    arguments = parser.parse_args()
    results = HERE / "results" / f"{name}.json"
    if arguments.redraw:
        record = json.loads(results.read_text(encoding="utf-8"))
    elif not pytorch.installed():
        raise SystemExit("there is no PyTorch to race against: pip install -e '.[bench]'")
    else:
        record = run(machine=describe(), threads=arguments.threads, samples=arguments.samples)
        save(record, results)
    pictures.save(picture(record), HERE.parent / "docs" / f"{name}.png")
    found = summary(record)
    alt = "GFLOP/s of each layer" if record["race"] == "conv" else "Time of each task"
    fill(name, f"{table(found.head, found.rows, found.left)}\n\n{found.caption}\n\n![{alt}](docs/{name}.png)")
