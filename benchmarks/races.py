"""What the scripts that race have in common: run the race, save its record, draw it, fill the README's table."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from readme import fill, table

from minivgg.bench import gpu, pytorch
from minivgg.bench.pictures import picture
from minivgg.bench.race import cores
from minivgg.bench.record import save
from minivgg.bench.tables import Table, summary, tables
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
    alt = "GFLOP/s of each layer" if record["race"] == "conv" else "Time of each task"
    fill(name, f"{markdown(summary(record))}\n\n![{alt}](docs/{name}.png)")


def markdown(found: Table) -> str:
    """A table and its caption."""
    return f"{table(found.head, found.rows, found.left)}\n\n{found.caption}"


def main_on_gpu(name: str, run: Callable[..., dict], says: str, precisions: tuple[str, ...], batches=()) -> None:
    """The same on a GPU, part by part, a precision (and a batch) each: what one has found is saved before the next, and
    replaces what an earlier race on the same GPU found for that part alone. Without a GPU it says so, and does nothing.
    """
    parser = argparse.ArgumentParser(description=says.splitlines()[0])
    parser.add_argument("--precisions", nargs="+", default=precisions, metavar="P", help=f"of {', '.join(precisions)}")
    parser.add_argument("--samples", type=int, default=5, metavar="N", help="of each contestant (default: 5)")
    parser.add_argument("--redraw", action="store_true", help="measure nothing: pictures and tables from the JSON")
    if batches:
        parser.add_argument("--batches", nargs="+", type=int, default=batches, metavar="N", help="images at once")
        parser.add_argument("--baseline", action="store_true", help="cuDNN's algorithms alone, printed and saved apart")
    arguments = parser.parse_args()
    baseline = batches and arguments.baseline
    results = HERE / "results" / f"{name}{'_baseline' if baseline else ''}.json"
    if not arguments.redraw:
        if reason := gpu.why_not():
            print(f"{name} skipped: {reason}")
            return
        machine = describe() | gpu.machine()
        for precision in arguments.precisions:
            for batch in arguments.batches if batches else (None,):
                chosen = {"batches": (batch,), "baseline": baseline} if batches else {}
                found = run(machine=machine, precisions=(precision,), samples=arguments.samples, **chosen)
                save(merged(results, found), results)
    record = json.loads(results.read_text(encoding="utf-8"))
    first, *others = tables(record)
    if baseline:
        print(*others[:-1], sep="\n\n")
        return
    pictures.save(picture(record), HERE.parent / "docs" / f"{name}.png")
    shown = "\n\n".join(markdown(found) for found in (first, *others[:-1]))
    fill(name, f"{shown}\n\n![{record['race']}]({name}.png)", HERE.parent / "docs" / "races_gpu.md")
    fill(name, f"{markdown(first)}\n\nMore in [docs/races_gpu.md](docs/races_gpu.md).\n\n![{name}](docs/{name}.png)")


def merged(path: Path, found: dict) -> dict:
    """What was found, and of the record in `path` what it does not replace, if it is of the same GPU and libraries."""

    def part(row: dict) -> tuple:
        return row["precision"], row.get("task", row["batch"])

    if not path.exists():
        return found
    before = json.loads(path.read_text(encoding="utf-8"))
    if before["machine"] != found["machine"] or before["settings"] != found["settings"]:
        return found
    replaced = {part(row) for row in found["rows"]}
    rows = [*(row for row in before["rows"] if part(row) not in replaced), *found["rows"]]
    names = dict.fromkeys([*found["contestants"], *before["contestants"]])
    there = [name for name in names if any(name in row["results"] for row in rows)]
    return found | {"rows": rows, "contestants": there}
