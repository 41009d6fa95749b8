"""Keras's .h5 and .weights.h5: the datasets of an HDF5 file by their paths, and the order in which its layers come.

HDF5 lists a group's members by name, and Keras says their order elsewhere: in the attributes `layer_names` and
`weight_names` (.h5), in a model's description (`model.save`), or in the members' numbers (.weights.h5). Needs h5py.

An HDF5 file may point to other files (external links, external and virtual data); those are refused, and compression
other than gzip's.
"""

import json
import math
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from minivgg.errors import BadInput
from minivgg.weights.entries import DEFLATE_LIMIT, MAX_ARRAYS, MAX_HEADER, Entry

_MAX_OBJECTS = 3 * MAX_ARRAYS  # with the groups
_MAX_CHUNK = 1 << 22  # bytes that HDF5 unpacks at once, or an array's own size; what h5py writes has at most a megabyte
_DEFLATE, _SHUFFLE, _FLETCHER32 = 1, 2, 3  # HDF5's numbers of its filters

Step = tuple[bool, list, str]  # where one stands among one's siblings: not told?, sorted by, which may be compared
Place = tuple[Step, ...]


@dataclass(frozen=True)
class Layers:
    """What a file says of its layers: `places` sort the datasets' paths (see `told_apart`), `epsilon` is that of each
    batch normalisation by its layer's path, where the file has it. `nested` are the layers of a model in a model whose
    description is not there: Keras lists those that are trained first, and then those that are frozen; with whether
    some visibly are. `genuine` says that Keras wrote the file."""

    places: dict[str, Place] = field(default_factory=dict)
    epsilon: dict[str, float] = field(default_factory=dict)
    nested: dict[str, bool] = field(default_factory=dict)
    genuine: bool = False


def told_apart(one: Place, other: Place) -> bool:
    """Does the file say which of two comes first? It does by a list, and by numbers after the same name."""
    first = next(((a, b) for a, b in zip(one, other, strict=False) if a != b), None)
    return first is None or first[0][::2] == first[1][::2]


def layer_of(path: str) -> str:
    """The path of the layer whose dataset this is: of "layers/conv2d/vars/0" and "conv1/conv1/kernel:0"."""
    group = path.rpartition("/")[0]
    return group.removesuffix("/vars")


def read(path: Path, opened: Callable | None = None, config: dict | None = None) -> tuple[dict[str, Entry], Layers]:
    """Every dataset by its path, such as "block1_conv1/block1_conv1_W_1:0", in the order of the file's layers.

    `opened()` is a context that gives the file's path or a binary stream of it; `config` is Keras's description of the
    model, where it is not in the file. Raises BadInput without h5py.
    """
    h5py, opened = _h5py(), opened or (lambda: nullcontext(path))
    entries, groups, seen = {}, [""], 0
    with opened() as where, h5py.File(where, "r") as file:
        for prefix in groups:  # which grows
            group = file[prefix or "/"]
            for name in group:
                seen += 1
                full = f"{prefix}/{name}".lstrip("/")
                if len(entries) > MAX_ARRAYS or seen > _MAX_OBJECTS:
                    raise BadInput(f"more than {MAX_ARRAYS:,} arrays, or groups that hold themselves")
                if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                    raise BadInput(f"{full}: a link to elsewhere, which weights do not need")
                thing = group[name]
                if isinstance(thing, h5py.Dataset):
                    entries |= {full: _entry(opened, full, thing)} if thing.shape is not None else {}
                elif full.count("/") > 20:
                    raise BadInput(f"{full[:100]}…: groups within groups without end")
                else:
                    groups.append(full)
        lists = {prefix: _listed(h5py, file[prefix or "/"]) for prefix in groups}
        genuine = any("keras_version" in g.attrs for g in (file, file.get("model_weights", file))) or "vars" in file
        if config is None and "model_config" in file.attrs:
            config = description("".join(_texts(file, "model_config")))
    named, epsilon = _described(config or {})
    places = {name: _place(name, lists, named) for name in entries}
    numbers = {layer_of(name): _known(name, named) for name in entries}
    epsilon = {layer: epsilon[number] for layer, number in numbers.items() if number in epsilon}
    nested = {layer: frozen for layer, frozen in _nested(entries, lists) if numbers[layer] is None}
    return {name: entries[name] for name in sorted(entries, key=places.get)}, Layers(places, epsilon, nested, genuine)


def _listed(h5py, group) -> dict[str, int]:
    """Names in a group → their number, where the file gives it: by attributes, which Keras 2 and 3 split into
    `layer_names0`, `layer_names1`, … above 64 KB, or by the order in which the members were made, if HDF5 noted it."""
    for name in ("layer_names", "weight_names"):
        found = [name] if name in group.attrs else []
        while f"{name}{len(found)}" in group.attrs:
            found.append(f"{name}{len(found)}")
        if found:
            names = [text for part in found for text in _texts(group, part)]
            return {text: i for i, text in reversed(list(enumerate(names)))}
    if group.id.get_create_plist().get_link_creation_order() & h5py.h5p.CRT_ORDER_TRACKED:
        return {name: i for i, name in enumerate(group)}
    return {}


def _texts(group, name: str) -> list[str]:
    """A text or a list of them, as bytes or not."""
    about = group.attrs.get_id(name)
    if math.prod(about.shape or ()) > MAX_ARRAYS:
        raise BadInput(f"{group.name}: its attribute {name} is longer than any network needs")
    values = np.ravel(np.asarray(group.attrs[name], object)).tolist()
    return [value.decode() if isinstance(value, bytes) else str(value) for value in values]


def description(text: str | bytes) -> dict:
    """Keras's description of a model, which is JSON."""
    if len(text) > MAX_HEADER:
        raise BadInput(f"a description of {len(text):,} bytes; more than {MAX_HEADER:,} are refused")
    return json.loads(text)


def _place(path: str, lists: dict[str, dict[str, int]], named: dict[str, int]) -> Place:
    """Where a dataset stands: by the model's description, else by each list on the way to it, else by its names."""
    if (at := _known(path, named)) is not None:
        return ((False, [at], ""), (True, _natural(path), ""))
    steps, here, parts = [], "", path.split("/")
    while parts:
        ends = range(1, len(parts) + 1)  # a layer's own name may have slashes
        count = next((n for n in ends if "/".join(parts[:n]) in lists.get(here, ())), None)
        name = "/".join(parts[: count or 1])
        if count:
            steps.append((False, [lists[here][name]], ""))
        else:
            steps += by_names(name)
        here, parts = f"{here}/{name}".lstrip("/"), parts[count or 1 :]
    return tuple(steps)


def by_names(path: str) -> Place:
    """Where a layer or dataset stands by its path alone."""
    return tuple((True, _natural(name), re.sub(r"_?\d+", "", name)) for name in path.split("/"))


def _nested(paths: Iterable[str], lists: dict[str, dict[str, int]]) -> Iterator[tuple[str, bool]]:
    """The layers whose datasets are in a list with those of other layers; and whether it has weights after running
    averages, which are never trained: then those weights are frozen."""
    owners = {f"{group}/{name}".lstrip("/"): group for group, names in lists.items() for name in names}
    several = {group for group, names in lists.items() if len({layer_of(name) for name in names}) > 1}
    frozen = {}
    for group in several:
        kinds = "".join("m" if "/moving_" in name else "w" for name in sorted(lists[group], key=lists[group].get))
        frozen[group] = "mw" in kinds
    yield from ((layer_of(path), frozen[owners[path]]) for path in paths if owners.get(path) in several)


def _natural(name: str) -> list:
    """Sorts conv2d, conv2d_2, conv2d_10 as people count."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d{1,18})", name)]


def _known(path: str, named: dict[str, int]) -> int | None:
    """The number that the model's description gives to the layer of this dataset: by its path (.weights.h5, whose
    groups have other names than the layers), or by one of the groups it lies in, the innermost first."""
    layer = layer_of(path)
    if "/vars/" in path:
        return named.get(layer.replace("_layer_checkpoint_dependencies/", "layers/"))  # Keras 2.12's name for them
    names = reversed(layer.split("/")) if named and not path.startswith("optimizer") else ()
    return next((named[name] for name in names if name in named), None)


def _described(config: dict) -> tuple[dict[str, int], dict[int, float]]:
    """The layers of Keras's description of a model, numbered in their order, by their names and by their paths in
    a .weights.h5; and the epsilon of the batch normalisations among them, by number."""
    paths: dict[str, int] = {}
    names: dict[str, list[int]] = defaultdict(list)
    epsilon: dict[int, float] = {}

    def visit(model: dict, prefix: str) -> None:
        about = model.get("config", {})
        counts: Counter = Counter()
        for layer in about if isinstance(about, list) else about.get("layers", []):  # a list: Keras before 2.2.3
            kind, inside = _snake_case(layer["class_name"]), layer.get("config", {})
            path = f"{prefix}layers/{kind}{f'_{counts[kind]}' if counts[kind] else ''}"
            counts[kind] += 1
            if isinstance(inside, list) or "layers" in inside:
                visit(layer, f"{path}/")
                continue
            number = paths[path] = len(paths)
            names[layer.get("name") or inside.get("name")].append(number)
            if kind == "batch_normalization" and "epsilon" in inside:
                epsilon[number] = float(inside["epsilon"])

    visit(config, "")
    return {name: found[0] for name, found in names.items() if len(found) == 1} | paths, epsilon


def _snake_case(name: str) -> str:
    """Keras's own rule, by which it names the groups of a .weights.h5 (keras/src/utils/naming.py)."""
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", name))
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def _entry(opened: Callable, name: str, dataset) -> Entry:
    if dataset.is_virtual or dataset.external:
        raise BadInput(f"{name}: its values are said to be in another file")
    if dataset.compression not in (None, "gzip"):
        raise BadInput(f"{name}: compressed by {dataset.compression}; only gzip is read")
    stored = dataset.id.get_storage_size()
    if dataset.nbytes > stored * (1 if dataset.compression is None else DEFLATE_LIMIT):
        raise BadInput(f"{name}: {dataset.dtype} {dataset.shape} takes {dataset.nbytes:,} bytes, there are {stored:,}")
    return Entry(dataset.shape, dataset.dtype.name, lambda: _values(opened, name))


def _values(opened: Callable, name: str) -> np.ndarray:
    h5py = _h5py()
    with opened() as where, h5py.File(where, "r") as file:
        dataset = file[name]
        if dataset.chunks:
            _check_chunks(dataset)
        array = dataset[()]
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _check_chunks(dataset) -> None:
    """HDF5 takes memory for a whole chunk, and unpacks one to whatever it turns out to be: what, is looked at here."""
    size = math.prod(dataset.chunks) * dataset.dtype.itemsize
    plan = dataset.id.get_create_plist()
    filters = [plan.get_filter(i)[0] for i in range(plan.get_nfilters())]
    if size > max(_MAX_CHUNK, dataset.nbytes):
        raise BadInput(f"stored in chunks of {size:,} bytes, more than all of it takes")
    if set(filters) - {_DEFLATE, _SHUFFLE, _FLETCHER32} or len(set(filters)) < len(filters):
        raise BadInput(f"packed by HDF5's filters {filters}; only gzip, shuffle and Fletcher's checksum are read")
    chunks: list = []
    if _DEFLATE in filters:
        dataset.id.chunk_iter(chunks.append)
    for chunk in chunks:
        if chunk.filter_mask:
            raise BadInput(f"the chunk at {chunk.chunk_offset} is packed in another way than the rest")
        packed = dataset.id.read_direct_chunk(chunk.chunk_offset)[1]
        if (
            len(zlib.decompressobj().decompress(packed, size + 5)) > size + 4
        ):  # 4: Fletcher's checksum, if it came first
            raise BadInput(f"the chunk at {chunk.chunk_offset} unpacks to more than the {size:,} bytes of a chunk")


def _h5py():
    try:
        import h5py
    except ImportError:
        raise BadInput("reading HDF5 needs h5py: pip install 'minivgg[weights]'") from None
    return h5py
