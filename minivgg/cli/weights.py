"""`minivgg weights`: published weights: which there are, fetching them, looking into a file, turning it into ours."""

from pathlib import Path

from minivgg.texts import in_line


def add(commands) -> None:
    command = commands.add_parser(
        "weights",
        help="published weights: list them, download them, inspect a file, convert it",
        description="Pretrained weights. Files of PyTorch (.pth, .pt), safetensors, npz and Keras (.h5, .keras) are "
        "read; nothing in them is ever executed.",
    )
    what = command.add_subparsers(title="commands", metavar="COMMAND", required=True)

    listing = what.add_parser("list", help="print the weights that have a name, and which of them are here")
    listing.set_defaults(command=run_list)

    download = what.add_parser("download", help="fetch weights into the cache, once; used offline from then on")
    download.add_argument("name", metavar="NAME", help="a name of `minivgg weights list`")
    download.set_defaults(command=run_download)

    inspect = what.add_parser("inspect", help="print a file's arrays, and which network they fit; reads no values")
    inspect.add_argument("file", metavar="FILE", help="a file of weights, or a name of `minivgg weights list`")
    inspect.add_argument("--part", metavar="NAME", help="which state dict, where a checkpoint holds several")
    inspect.set_defaults(command=run_inspect)

    convert = what.add_parser("convert", help="write a file's weights under torchvision's names")
    convert.add_argument("source", metavar="SOURCE", help="a file of weights, or a name of `minivgg weights list`")
    convert.add_argument("out", metavar="OUT", type=Path, help="the file to write: .safetensors, .npz, .pth or .pt")
    convert.add_argument("--model", required=True, metavar="MODEL", help="the network that the weights are of")
    convert.add_argument("--part", metavar="NAME", help="which state dict, where a checkpoint holds several")
    convert.set_defaults(command=run_convert)


def run_list(arguments) -> None:
    from minivgg.weights import SOURCES

    rows = [("NAME", "MODEL", "MB", "LICENCE", "HERE", "WHAT")]
    for name, known in SOURCES.items():
        here = "ships" if known.url is None else "yes" if known.path.is_file() else "no"
        rows.append((name, known.model, f"{known.megabytes:g}", known.licence, here, known.about))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    for row in rows:
        print("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=False)) + f"  {row[5]}")
    print("\nFetch one with: minivgg weights download vgg16")


def run_download(arguments) -> None:
    from minivgg.weights import SOURCES, download

    path = download(arguments.name)
    print(f"{path}: {SOURCES[arguments.name].about} ({SOURCES[arguments.name].licence})")


def run_inspect(arguments) -> None:
    from minivgg.weights import fitting, read
    from minivgg.weights.entries import shown
    from minivgg.weights.sources import resolve

    contents = read(resolve(arguments.file)[0], arguments.part)
    print(f"{in_line(contents.path)}: {contents.format}")
    rows = [(shown(name, 100), str(entry.shape), entry.dtype) for name, entry in contents.entries.items()]
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(2)]
    for name, shape, dtype in rows:
        print(f"  {name:{widths[0]}}  {shape:{widths[1]}}  {dtype}".rstrip())
    values = sum(entry.size for entry in contents.entries.values())
    print(f"{len(rows)} arrays, {values:,} values")
    for name, what in list(contents.beside.items())[:20]:
        print(f"  beside them  {shown(name)}: {shown(what, 100)}")
    if whole := fitting(contents):
        print(f"fits {_those(whole)}")
    else:
        part = fitting(contents, part=True)
        print(f"fits a part of {_those(part)}" if part else "fits no network of minivgg's")


def _those(found: dict[str, dict]) -> str:
    return ", ".join(name + _options(options) for name, options in found.items())


def run_convert(arguments) -> None:
    import warnings

    import numpy as np

    from minivgg.errors import BadInput
    from minivgg.layers import BatchNorm2d
    from minivgg.weights import load, read, save
    from minivgg.weights.fits import build_for
    from minivgg.weights.loading import writer
    from minivgg.weights.sources import resolve

    writer(arguments.out)  # can it be written at all?
    path, known = resolve(arguments.source)
    if known and known.partial:
        raise BadInput(f"{arguments.source}: holds some layers of {known.model} only")
    model, options = build_for(arguments.model, read(path, arguments.part))
    with warnings.catch_warnings(action="ignore"):  # the report says them
        report = load(model, arguments.source, part=arguments.part)
    for _, layer in model.walk():  # readers of torchvision's names have torchvision's epsilon: the same scores with it
        if isinstance(layer, BatchNorm2d):
            layer.running_var[...] = np.maximum(layer.running_var + (layer.eps - 1e-5), 0)
    save(model, arguments.out)
    print(report)
    print(f"{arguments.out}: {arguments.model}{_options(options)}, torchvision names")


def _options(options: dict) -> str:
    """{"classes": 10} → " (classes=10)"."""
    return f" ({', '.join(f'{name}={value}' for name, value in options.items())})" if options else ""
