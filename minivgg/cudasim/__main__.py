"""`python -m minivgg.cudasim FILE.cu`: run one kernel of a file, and say what it did."""

import argparse
import re
import sys
from pathlib import Path

import numpy as np

from minivgg import cudasim, streams

_FILLS = {
    "random": lambda shape, rng: rng.standard_normal(shape),
    "zeros": lambda shape, rng: np.zeros(shape),
    "ones": lambda shape, rng: np.ones(shape),
    "count": lambda shape, rng: np.arange(np.prod(shape)).reshape(shape),
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m minivgg.cudasim",
        description="Run a CUDA C kernel on the CPU, in several orders of its threads: all must give the same bits.",
        epilog="example: python -m minivgg.cudasim saxpy.cu --grid 4 --block 256 x=random:1000 y=zeros:1000 a=2 n=1000",
    )
    parser.add_argument("file", type=Path, help="CUDA C source")
    parser.add_argument(
        "values",
        nargs="*",
        metavar="NAME=VALUE",
        help=f"for each parameter: a number, or for an array a fill ({', '.join(_FILLS)}) and a shape, x=random:32x64",
    )
    parser.add_argument("--kernel", help="which kernel (default: the only one)")
    parser.add_argument("--grid", type=_sizes, default=(1,), help="blocks, as 4 or 4x2 or 4x2x1 (default: 1)")
    parser.add_argument("--block", type=_sizes, default=(32,), help="threads a block (default: 32)")
    parser.add_argument("--shared-mem", type=int, default=0, metavar="BYTES", help="dynamic shared memory (default: 0)")
    parser.add_argument("--orders", type=int, default=4, help="orders of threads to try (default: 4)")
    parser.add_argument(
        "--seconds",
        type=float,
        default=10,
        help="that a block may compute for; who takes longer has no end (default: 10)",
    )
    parser.add_argument("--racecheck", action="store_true", help="find races, and name the two lines")
    parser.add_argument("--memcheck", action="store_true", help="find accesses out of bounds, and name the line")
    parser.add_argument("--traffic", action="store_true", help="count transactions and bank conflicts, line by line")
    parser.add_argument(
        "-D", action="append", default=[], dest="defines", metavar="NAME=VALUE", help="as for a compiler"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers (default: 0)")
    return parser


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("x"))


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 0 all is well, 1 the kernel is wrong, 2 it cannot be run."""
    with streams.made_safe() as out:
        return out.status(_main(argv))


def _main(argv: list[str] | None) -> int:
    options = _parser().parse_intermixed_args(argv)
    try:
        _run(options)
    except (cudasim.SimulatorError, cudasim.CompileError, OSError, ValueError) as error:
        at_file = isinstance(error, OSError) and error.filename
        print(f"{error.filename}: {error.strerror}" if at_file else error, file=sys.stderr)
        return 1 if isinstance(error, cudasim.SimulatorError) and not isinstance(error, cudasim.Refused) else 2
    except MemoryError as error:
        print(f"not enough memory: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _run(options) -> None:
    source = options.file.read_text(encoding="utf-8", errors="surrogateescape")
    names = [options.kernel] if options.kernel else cudasim.kernels_of(source)
    if len(names) != 1:
        raise ValueError(f"{options.file} has the kernels {', '.join(names) or 'none'}: choose one with --kernel")
    defines = tuple(f"-D{define}" for define in options.defines)
    kernel = cudasim.RawKernel(source, names[0], defines, file=options.file.name)
    given = dict(value.partition("=")[::2] for value in options.values)
    values = _values(kernel, given, np.random.default_rng(options.seed))
    orders = ("forward", "reverse", *range(1, options.orders - 1))[: max(options.orders, 1)]
    before = [v.copy() for v in values]
    watched = {name: True for name in ("racecheck", "memcheck", "traffic") if getattr(options, name)}
    with cudasim.checking(seconds=options.seconds, orders=orders):
        if watched:  # first, because it stops what would do harm, and names the lines
            with cudasim.checking(**watched) as launches:
                kernel(options.grid, options.block, [v.copy() for v in values], shared_mem=options.shared_mem)
        kernel(options.grid, options.block, values, shared_mem=options.shared_mem)
    print(f"{kernel.name}: the same in {len(orders)} order{'s' if len(orders) > 1 else ''} of threads")
    for name, value, old in zip(kernel.parameters, values, before, strict=True):
        if isinstance(value, np.ndarray) and not np.array_equal(value, old, equal_nan=True):
            print(f"{name} {value.shape} {value.dtype}:\n{np.array2string(value, threshold=40, precision=5)}")
    for name in watched:
        print("traffic:\n" + launches[0].table() if name == "traffic" else f"{name}: nothing found")


def _values(kernel, given: dict[str, str], rng) -> list:
    """The arguments of a launch, by the types that the kernel declares."""
    declared = dict(zip(kernel.parameters, kernel.types, strict=True))
    if unknown := set(given) - set(declared):
        raise ValueError(f"{kernel.name} has no parameter {', '.join(sorted(unknown))}; it has {', '.join(declared)}")
    if missing := [f"{type_} {name}" for name, type_ in declared.items() if name not in given]:
        raise ValueError(f"{kernel.name} needs a value for {', '.join(missing)}")
    return [_value(name, type_, given[name], rng) for name, type_ in declared.items()]


def _value(name: str, type_: str, text: str, rng):
    dtype = np.dtype(type_.removeprefix("const ").removesuffix("*"))
    if not type_.endswith("*"):
        try:
            return dtype.type(float(text) if dtype.kind == "f" else int(text))
        except (ValueError, OverflowError):
            raise ValueError(f"{name} is a number: {name}=N, {dtype}, not {text!r}") from None
    fill, _, shape = text.partition(":")
    if fill not in _FILLS or not re.fullmatch(r"\d+(x\d+)*", shape, re.ASCII):
        fills = ", ".join(_FILLS)
        raise ValueError(f"{name} is an array: {name}=FILL:SHAPE, a fill of {fills} and a shape as 32x64, not {text!r}")
    return _FILLS[fill](_sizes(shape), rng).astype(dtype)


if __name__ == "__main__":
    sys.exit(main())
