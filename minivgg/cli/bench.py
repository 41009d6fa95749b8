"""`minivgg bench RACE`: our convolutions and networks beside PyTorch's, and on a GPU beside cuDNN's."""

import argparse
import sys
from pathlib import Path

_ALL = argparse.ArgumentDefaultsHelpFormatter


def add(commands) -> None:
    command = commands.add_parser(
        "bench",
        help="race our convolutions and VGG-16 against PyTorch's",
        description="Race our convolutions, or VGG-16 as a whole, against PyTorch's, and on a GPU (--device gpu) "
        "against cuDNN's: contestants in processes of their own, samples interleaved, medians, beside what the machine "
        "could do at best. Without rivals ours race one another. Only ratios from one race mean anything, and only on "
        "a quiet machine.",
    )
    races = command.add_subparsers(title="races", metavar="RACE", required=True)

    conv = races.add_parser(
        "conv",
        help="VGG-16's convolutions, forward and both gradients, by every algorithm",
        description="Race every algorithm that can do them on VGG-16's convolutions, forward and both gradients.",
        formatter_class=_ALL,
    )
    _add_common(conv, seconds=20)
    _add_gpu(conv, "fp32, tf32 or fp16")
    conv.add_argument("--batch-size", type=int, default=8, metavar="N", help="images at once")
    conv.add_argument("--input-size", type=int, default=224, metavar="PX", help="height and width of the image")
    conv.add_argument(
        "--algorithms", nargs="+", metavar="NAME", help="of ours, or auto (None: auto and all but the slow naive)"
    )
    conv.add_argument("--layers", nargs="+", metavar="NAME", help="conv1_1 … conv5_3 (None: all)")
    conv.add_argument(
        "--tune", action="store_true", help="no race: measure our algorithms, and let auto choose by that from now on"
    )
    conv.set_defaults(command=run_conv)

    vgg = races.add_parser(
        "vgg",
        help="VGG-16 as a whole: forward passes and training steps",
        description="Race VGG-16 as a whole: forward passes and training steps, at 224 and at 32 pixels. A training "
        "step at 224 pixels takes about 3 GB of memory for each contestant.",
        formatter_class=_ALL,
    )
    _add_common(vgg, seconds=60)
    _add_gpu(vgg, "fp32 or tf32")
    vgg.add_argument(
        "--tasks",
        nargs="+",
        metavar="NAME",
        help="such as forward-224-8 or step-32-128: what, pixels, batch (None: all)",
    )
    vgg.set_defaults(command=run_vgg)


def _add_common(race, seconds: float) -> None:
    race.add_argument("--threads", type=int, metavar="N", help="of each contestant (None: all cores)")
    race.add_argument("--samples", type=int, default=9, metavar="N", help="of each contestant in each heat")
    race.add_argument(
        "--seconds", type=float, default=seconds, metavar="S", help="that a contestant may take in a heat; then fewer"
    )
    race.add_argument("--quick", action="store_true", help="something tiny, to see that it works; overrules most else")
    race.add_argument("--details", action="store_true", help="print the table of every heat, too")
    race.add_argument("--json", type=Path, metavar="FILE", help="save everything that was measured")
    race.add_argument("--picture", type=Path, metavar="FILE", help="draw it")
    race.add_argument("--quiet", action="store_true", help="no progress bar")


def _add_gpu(race, precisions: str) -> None:
    race.add_argument("--device", choices=("cpu", "gpu"), default="cpu", help="where to race")
    race.add_argument(
        "--precision", nargs="+", default=["fp32"], metavar="P", help=f"on a GPU, the arithmetic: {precisions}"
    )


def run_conv(arguments) -> int:
    from minivgg.bench import conv

    if arguments.tune:
        return _tune(arguments)
    batch, size, only = arguments.batch_size, arguments.input_size, _tuple(arguments.layers)
    if arguments.quick:
        batch, size, only = 1, 32, conv.QUICK
    chosen = {"algorithms": _tuple(arguments.algorithms), "size": size, "only": only}
    if arguments.device == "gpu":
        from minivgg.bench import conv_gpu

        return _race(conv_gpu.run, arguments, chosen | {"batches": (batch,)})
    return _race(conv.run, arguments, chosen | {"batch": batch})


def _tune(arguments) -> int:
    """Measure, and keep it for `plan`."""
    import numba

    from minivgg.bench import conv
    from minivgg.bench.tuning import tune, tuned_table
    from minivgg.errors import BadInput
    from minivgg.ops.conv2d.planning import table_path

    if arguments.threads is not None:
        most = numba.config.NUMBA_NUM_THREADS
        if not 1 <= arguments.threads <= most:
            raise BadInput(f"--threads must be from 1 to {most}, got {arguments.threads}")
        numba.set_num_threads(arguments.threads)
    batch, size = (1, 32) if arguments.quick else (arguments.batch_size, arguments.input_size)
    specs = conv.chosen_layers(batch, size, conv.QUICK if arguments.quick else _tuple(arguments.layers))
    print(tuned_table(tune(specs.values(), progress=not arguments.quiet)))
    print(f"\nmilliseconds, the shortest of several runs; kept in {table_path()}")
    return 0


def run_vgg(arguments) -> int:
    from minivgg.bench import vgg

    if arguments.device == "gpu":
        from minivgg.bench import vgg_gpu

        tasks = vgg.choose(arguments.tasks, vgg_gpu.TASKS) if arguments.tasks else vgg_gpu.TASKS
        return _race(vgg_gpu.run, arguments, {"tasks": vgg.QUICK if arguments.quick else tasks})
    tasks = vgg.choose(arguments.tasks) if arguments.tasks else vgg.TASKS
    return _race(vgg.run, arguments, {"tasks": vgg.QUICK, "turn": 0.05} if arguments.quick else {"tasks": tasks})


def _tuple(names: list[str] | None) -> tuple[str, ...] | None:
    return None if names is None else tuple(names)


def _race(run, arguments, chosen: dict) -> int:
    """Run, print and save a race; the exit status says whether one of our own contestants failed."""
    from minivgg.bench import gpu, pictures, pytorch
    from minivgg.bench.race import cores
    from minivgg.bench.record import is_rival, save
    from minivgg.bench.tables import tables
    from minivgg.cli.info import describe
    from minivgg.insight.pictures import save as save_picture

    if arguments.device == "gpu":
        gpu.check()
        where = {"machine": describe() | gpu.machine(), "precisions": tuple(arguments.precision)}
    else:
        where = {"machine": describe(), "threads": cores() if arguments.threads is None else arguments.threads}
    if not pytorch.installed():
        print("no PyTorch here, so ours race alone; to have it: pip install 'minivgg[bench]'\n", file=sys.stderr)
    record = run(
        **where,
        samples=2 if arguments.quick else arguments.samples,
        seconds=arguments.seconds,
        progress=not arguments.quiet,
        **chosen,
    )
    summary, *details = tables(record)
    print(summary)
    if arguments.details:
        print(*(f"\n{table}" for table in details), sep="\n")
    if arguments.json:
        save(record, arguments.json)
    if arguments.picture:
        save_picture(pictures.picture(record), arguments.picture)
    results = [(name, result) for row in record["rows"] for name, result in row["results"].items()]
    return int(any("failure" in result for name, result in results if not is_rival(name)))
