"""What a run's data is, so that other data in its place is noticed: a class renamed, a picture added, labels exchanged.

A network knows classes by their number alone. Where a folder gets another name, the numbers move, and all answers are
those of other classes: nothing else would say so.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

from minivgg.training.datasets import Dataset

READ_WHOLE = 8 << 30  # bytes: of larger sets, only the beginning of each file is read, and its size
_BEGINNING = 1 << 16


def fingerprint(dataset: Dataset) -> dict:
    """The classes of a set, in their order, how many pictures each has, and a hash of these, as JSON-able values.

    Pictures count with their bytes (arrays: their pixels) and in their order, whatever their files are called. Cost:
    every file is read once, at about 1 GB/s.
    """
    hashes = [hashlib.blake2b(digest_size=8) for _ in dataset.classes]
    labels = dataset.labels.tolist()
    for label, content in zip(labels, _contents(dataset), strict=True):
        hashes[label].update(len(content).to_bytes(8, "little"))
        hashes[label].update(content)
    shape = dataset.images.shape if isinstance(dataset.images, np.ndarray) else ()
    return {
        "classes": list(dataset.classes),
        "counts": np.bincount(dataset.labels, minlength=len(hashes)).tolist(),
        "contents": [one.hexdigest() for one in hashes],
        "order": hashlib.blake2b(f"{shape} {labels}".encode(), digest_size=8).hexdigest(),
    }


def _contents(dataset: Dataset):
    """The bytes of each picture, one after another."""
    if isinstance(dataset.images, np.ndarray):
        yield from (np.ascontiguousarray(image).reshape(-1) for image in dataset.images)
        return
    whole = sum(path.stat().st_size for path in dataset.images) <= READ_WHOLE
    for path in dataset.images:
        with path.open("rb") as file:
            yield file.read() if whole else file.read(_BEGINNING) + b"%d" % path.stat().st_size


def difference(was: dict, now: dict, part: str) -> str | None:
    """What is different in the fingerprint of a set, in words; None where nothing is. `part`: "training" or "test"."""
    if was == now:
        return None
    if not _is_fingerprint(was):
        return f"what the run has noted of its {part} pictures is damaged"
    before, after = was["classes"], now["classes"]
    contents = dict(zip(after, now["contents"], strict=True)), dict(zip(before, was["contents"], strict=True))
    for name in sorted(set(before) - set(after)):
        if same := [other for other in sorted(set(after) - set(before)) if contents[0][other] == contents[1][name]]:
            return f"class {name!r} is called {same[0]!r} now"
    if what := other_classes(before, after):
        return what
    for name, a, b in zip(after, was["counts"], now["counts"], strict=True):
        if a != b:
            return f"class {name!r} has {b} {part} pictures, and had {a}"
    for name, a, b in zip(after, was["contents"], now["contents"], strict=True):
        if a != b:
            return f"the {part} pictures of class {name!r} are others, or in another order"
    return f"the {part} pictures are in another order"


def other_classes(before: Sequence[str], after: Sequence[str]) -> str | None:
    """What is different in the classes of a set, in words; None where nothing is."""
    gone, new = [name for name in before if name not in after], [name for name in after if name not in before]
    if gone:
        return f"class {gone[0]!r} is gone" + (f", and class {new[0]!r} is new" if new else "")
    if new:
        return f"class {new[0]!r} is new"
    if changed := [(i, a, b) for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b]:
        return "the classes are in another order: number {} was {!r}, and is {!r}".format(*changed[0])
    return None if len(before) == len(after) else f"there are {len(after)} classes, and were {len(before)}"


def _is_fingerprint(value) -> bool:
    match value:
        case {"classes": [*classes], "counts": [*counts], "contents": [*contents], "order": _}:
            texts = all(isinstance(text, str) for text in [*classes, *contents])
            return texts and len(classes) == len(counts) == len(contents)
    return False
