"""`load` puts a file's weights into a network, `save` writes a network's weights for PyTorch to read."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from minivgg.errors import BadInput
from minivgg.files import atomically, write_safetensors
from minivgg.layers import BatchNorm2d, Layer
from minivgg.weights import formats, preprocessing, torch_files
from minivgg.weights.checkpoints import ANOTHER
from minivgg.weights.entries import FLOATS, Entry, shown
from minivgg.weights.keras_h5 import Layers, layer_of
from minivgg.weights.names import torchvision_names, translate
from minivgg.weights.sources import resolve

_ABSURD = 1e20  # weights are around one; numbers whose bytes are in the wrong order are around 1e±38

_KERAS_EPSILON = 0.001


@dataclass(frozen=True)
class Report:
    """What `load` did. Names are the network's own where it has one, the file's otherwise; `print(report)` reads well.

    `mismatched` maps names to what does not fit ("(10, 512), the network needs (1000, 512)"), `skipped` are those that
    the caller did not want, `warnings` what looks wrong with the weights, `notes` what else was done or was there.
    """

    source: str
    format: str
    convention: str
    loaded: tuple[str, ...] = ()
    values: int = 0
    missing: tuple[str, ...] = ()
    left_over: tuple[str, ...] = ()
    mismatched: dict[str, str] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def problems(self) -> str:
        """What does not fit, in one line; empty if all does."""
        parts = [f"missing {_first(self.missing)}"] if self.missing else []
        parts += [f"left over {_first(self.left_over)}"] if self.left_over else []
        parts += [f"{shown(name)} is {what}" for name, what in list(self.mismatched.items())[:3]]
        more = len(self.mismatched) - 3
        return "; ".join(parts) + (f"; and {more} more that do not fit" if more > 0 else "")

    def __str__(self):
        wanted = len(self.loaded) + len(self.missing) + len(self.mismatched)
        rows = [
            ("loaded", f"{len(self.loaded)} of {wanted} arrays, {self.values:,} values ({', '.join(self.dtypes)})"),
            ("missing", _first(self.missing, 8)),
            ("left over", _first(self.left_over, 8)),
            *(("misfit", f"{shown(name)} is {what}") for name, what in self.mismatched.items()),
            *([("skipped", _first(self.skipped, 8))] if self.skipped else []),
            *(("warning", text) for text in self.warnings),
            *(("note", text) for text in self.notes),
        ]
        return f"{self.source}: {self.format}, {self.convention} names\n" + "\n".join(
            f"  {name:10} {text}" for name, text in rows
        )


def load(
    model: Layer,
    source: str | Path,
    *,
    only: str | tuple[str, ...] = "*",
    skip: str | tuple[str, ...] = (),
    strict: bool = True,
    input: str | None = None,
    part: str | None = None,
) -> Report:
    """Put the weights of `source`, a path or a name of `minivgg weights list`, into `model`; returns what was done.

    Everything must fit, or nothing is changed: each array of the network is there once, of the right shape and floating
    point, and none is left over. `only` and `skip` are patterns of the network's names that restrict what "everything"
    is: `only="features.*"` takes the convolutions, `skip="classifier.6.*"` all but the last layer. `strict=False` takes
    whatever fits, and reports the rest.

    `input` says what images the network will be fed: "torchvision" (RGB, 0–1, normalised) or "caffe" (BGR, 0–255, minus
    means). Weights that are known to want another kind are warned of, with the fix; "any" silences that. By default it
    is "torchvision", and for sources with a known preprocessing, that.

    `part` names the state dict to take where a checkpoint holds several, such as "state_dict_ema".

    Raises BadInput, one line, for a file that is missing, damaged or hostile, and for weights that do not fit. Cost:
    memory for one more copy of what is loaded; nothing is read before all names and shapes fit.
    """
    path, known = resolve(source)
    contents = formats.read(path, part)
    report, chosen = _plan(model, contents, str(source), _matcher(only, skip))
    partial = bool(known and known.partial)  # of such a source all must fit, but it is no whole network
    if strict and (report.left_over or report.mismatched or (report.missing and not partial)):
        raise BadInput(f"{path}: does not fit the network: {report.problems}")
    if not chosen:
        raise BadInput(f"{path}: nothing in it fits the network: {report.problems}")
    arrays, notes = {}, []
    for name, (told, entry) in chosen.items():
        arrays[name] = _read(path, told, entry)
        notes += _oddities(shown(told), arrays[name])
    with np.errstate(over="ignore"):  # float64 beyond float32: infinite, and noted as absurd
        model.load_state_dict(arrays, strict=False)
    notes += preprocessing.check(model, arrays.keys(), input or (known.input if known else "torchvision"))
    for note in notes:
        warnings.warn(f"{path}: {note}", stacklevel=2)
    said = _epsilons(model, contents.keras, chosen) if contents.keras else ()
    return Report(**vars(report) | {"warnings": tuple(notes), "notes": (*report.notes, *said)})


def plan(model: Layer, contents: formats.Contents) -> Report:
    """What `load` would do with these contents, by their header alone."""
    return _plan(model, contents, str(contents.path), _matcher("*", ()))[0]


def save(model: Layer, path: str | Path) -> None:
    """Write the network's weights under torchvision's names, in the format that the file's name asks for: .safetensors,
    .npz, or .pth and .pt for PyTorch's `torch.load(path, weights_only=True)` and `load_state_dict`.

    The file is written whole or not at all. Raises BadInput, before anything is written, for another suffix.
    """
    path = Path(path)
    write = writer(path)
    names = torchvision_names(model)
    arrays = {names[name]: np.ascontiguousarray(value) for name, value in model.state_dict().items()}
    with atomically(path) as temporary:
        write(temporary, arrays)


def writer(path: Path) -> Callable[[Path, dict[str, np.ndarray]], None]:
    """What writes the format that this file's name asks for. Raises BadInput where nothing does."""
    suffix = path.suffix.lower()
    if suffix not in _WRITERS:
        raise BadInput(
            f"{path}: weights are written as {', '.join(_WRITERS)}; not as {suffix or 'a file of no suffix'}"
        )
    return _WRITERS[suffix]


def _write_safetensors(path: Path, arrays: dict[str, np.ndarray]) -> None:
    write_safetensors(path, arrays, {"format": "pt"})


def _write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with path.open("wb") as file:  # a name's suffix would be changed
        np.savez(file, **arrays)


_WRITERS = {
    ".safetensors": _write_safetensors,
    ".npz": _write_npz,
    ".pth": torch_files.write_zip,
    ".pt": torch_files.write_zip,
}


def _plan(model: Layer, contents: formats.Contents, source: str, wanted: Callable[[str], bool]):
    """A report of what fits and what does not, and the entries that do: name → (the file's name, entry)."""
    try:
        named, convention = translate(contents.entries, model, contents.keras)
    except BadInput as error:
        raise type(error)(f"{contents.path}: {shown(error, 300)}") from None
    shapes, mismatched, chosen = model.state_shapes(), {}, {}
    for name, (told, entry) in named.items():
        if not wanted(name) or name not in shapes:
            continue
        if entry.shape != shapes[name]:
            mismatched[name] = f"{entry.shape}, the network needs {shapes[name]}"
        elif entry.dtype not in FLOATS:
            mismatched[name] = f"{entry.dtype}; weights are {', '.join(FLOATS)}"
        else:
            chosen[name] = told, entry
    return Report(
        source,
        contents.format,
        convention,
        loaded=tuple(name for name in shapes if name in chosen),
        values=sum(entry.size for _, entry in chosen.values()),
        missing=tuple(name for name in shapes if wanted(name) and name not in named),
        left_over=tuple(told for name, (told, _) in named.items() if wanted(name) and name not in shapes),
        mismatched=mismatched,
        skipped=tuple(name for name in {**shapes, **named} if not wanted(name)),
        dtypes=tuple(sorted({entry.dtype for _, entry in chosen.values()})),
        notes=tuple(_others(contents)),
    ), chosen


def _others(contents: formats.Contents) -> list[str]:
    """Says which other state dicts there were, and how to take one."""
    others = [repr(shown(name)) for name, what in contents.beside.items() if what.startswith(ANOTHER)]
    return [f"the file also holds {', '.join(others[:5])}: part={others[0]} takes that"] if others else []


def _matcher(only: str | tuple[str, ...], skip: str | tuple[str, ...]) -> Callable[[str], bool]:
    only, skip = ((patterns,) if isinstance(patterns, str) else tuple(patterns) for patterns in (only, skip))
    return lambda name: any(fnmatchcase(name, p) for p in only) and not any(fnmatchcase(name, p) for p in skip)


def _read(path: Path, name: str, entry: Entry) -> np.ndarray:
    try:
        return entry.read()
    except Exception as error:  # a wrong checksum, a file cut off: BadZipFile, zlib.error, OSError, and more
        raise BadInput(f"{path}: {shown(name)} cannot be read: {shown(error, 300)}") from error


def _epsilons(model: Layer, keras: Layers, chosen: dict[str, tuple[str, Entry]]) -> list[str]:
    """Give each batch normalisation that was loaded the epsilon that Keras's description has, and say so: another would
    give other scores. Weights alone do not have it; then only that is said."""
    said = {}
    for name, layer in model.walk():
        source, _ = chosen.get(f"{name}.running_var", ("", None))
        epsilon = keras.epsilon.get(layer_of(source))
        if not source or not isinstance(layer, BatchNorm2d) or epsilon == layer.eps:
            continue
        if epsilon is not None:
            said[f"batch norm's eps is {epsilon:g} now, as in the file; it was {layer.eps:g}"] = True
            layer.eps = epsilon
        elif keras.genuine and layer.eps != _KERAS_EPSILON:
            text = f"the file does not have batch norm's epsilon, Keras's is {_KERAS_EPSILON} unless chosen"
            said[f"{text}; the network's eps is {layer.eps:g}: set it, or load the whole model, saved as .keras"] = True
    return list(said)


def _oddities(name: str, values: np.ndarray) -> list[str]:
    """What no weights should be."""
    if not values.size:
        return []
    low, high = float(values.min()), float(values.max())  # NaN if there is one
    if not np.isfinite([low, high]).all():
        return [f"{name} holds numbers that are infinite or none (NaN)"]
    if max(-low, high) > _ABSURD:
        return [f"{name} holds values up to {max(-low, high):.0e}: its bytes may be in the wrong order"]
    return []


def _first(names: tuple[str, ...], count: int = 3) -> str:
    some = ", ".join(map(shown, names[:count]))
    return (some + (f" and {len(names) - count} more" if len(names) > count else "")) or "nothing"
