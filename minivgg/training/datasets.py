"""Labelled images: what a set is, and `load`, which finds one by name or by path.

    train, test = load()                    the bundled 10,000 + 2,000 images of Fashion-MNIST
    train, test = load("path/to/photos")    your own, one folder a class

Nothing is downloaded unless `download=True` says so. The file formats are next door, in `formats.py`.
"""

import difflib
import functools
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from minivgg.caches import user_folder
from minivgg.errors import BadInput
from minivgg.files import absolute
from minivgg.training.formats import (
    CIFAR_TEST,
    CIFAR_TRAIN,
    IMAGE_SUFFIXES,
    read_cifar_tar,
    read_idx_gz,
    read_image,
    read_npz,
)

NAMED = ("fashion-mnist-mini", "fashion-mnist", "cifar10")
ASSETS = Path(__file__).parents[1] / "assets"

FASHION_MNIST_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
FASHION_MNIST_DEBIAN = Path("/usr/share/datasets/fashion-mnist")
FASHION_MNIST_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
# Of the uncompressed contents: Debian and Zalando compress them differently.
FASHION_MNIST_SHA256 = {
    "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
CIFAR10_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"


@dataclass(frozen=True, eq=False)
class Dataset:
    """N labelled images of one number of channels.

    `images` is a uint8 array (N, H, W, C) when the set is held in memory, or a tuple of N paths that are opened when
    asked for and may differ in size. `labels` is (N,) int64, each an index into `classes`. `channels` is 1 or 3;
    for a folder it may be chosen freely, `replace(dataset, channels=1)` reads the same pictures as grey.

    Raises `BadInput` if lengths or channels disagree, or a label has no class.
    """

    name: str
    images: np.ndarray | tuple[Path, ...] = field(repr=False)
    labels: np.ndarray = field(repr=False)
    classes: tuple[str, ...]
    channels: int

    def __post_init__(self):
        labels = np.asarray(self.labels)
        if self.channels not in (1, 3):
            raise BadInput(f"{self.name}: {self.channels} channels; images have 1 (grey) or 3 (RGB)")
        if isinstance(self.images, np.ndarray) and (
            self.images.dtype != np.uint8 or self.images.ndim != 4 or self.images.shape[3] != self.channels
        ):
            found = f"{self.images.dtype} {self.images.shape}"
            raise BadInput(f"{self.name}: images are {found}; they should be uint8 (N, H, W, {self.channels})")
        if labels.ndim != 1 or labels.dtype.kind not in "iu":
            raise BadInput(f"{self.name}: labels are {labels.dtype} {labels.shape}; they should be integers (N,)")
        if len(self.images) != len(labels):
            raise BadInput(f"{self.name}: {len(self.images)} images but {len(labels)} labels; give one label an image")
        wrong = np.flatnonzero((labels < 0) | (labels >= len(self.classes)))
        if wrong.size:
            index, last = wrong[0], len(self.classes) - 1
            raise BadInput(f"{self.name}: label {labels[index]} of image {index} has no class; labels are 0 to {last}")
        object.__setattr__(self, "labels", labels.astype(np.int64))

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> np.ndarray:
        """Image `index`: uint8 (H, W, C). A file is opened now, and `BadInput` names it if it is not an image."""
        if isinstance(self.images, np.ndarray):
            return self.images[index]
        return read_image(self.images[index], self.channels)

    def subset(self, indices: Sequence[int] | np.ndarray | slice) -> "Dataset":
        """The images that `indices` selects, in that order: integers, a boolean mask or a slice, as NumPy has them."""
        chosen = np.arange(len(self))[indices]
        if isinstance(self.images, np.ndarray):
            images = self.images[chosen]
        else:
            images = tuple(self.images[i] for i in chosen)
        return replace(self, images=images, labels=self.labels[chosen])


def load(source: str | Path = "fashion-mnist-mini", *, download: bool = False) -> tuple[Dataset, Dataset]:
    """The training and the test set of `source`, which is one of:

    - `"fashion-mnist-mini"`: 10,000 + 2,000 images of Fashion-MNIST, which ship with minivgg;
    - `"fashion-mnist"`: all 70,000 (Xiao, Rasul & Vollgraf 2017), from Debian's `dataset-fashion-mnist` if installed;
    - `"cifar10"`: 60,000 32 x 32 colour images (Krizhevsky 2009);
    - a folder of `train/<class>/*` and `test/<class>/*` (or `val`), or only of `<class>/*`, where every fifth picture
      of a class by name is held out as the test set;
    - an `.npz` file of `train_images` (N, H, W) or (N, H, W, C) uint8, `train_labels` (N,), `test_images`,
      `test_labels`, and, if they have names, `classes`.

    Named sets are looked for in the cache folder (`$MINIVGG_CACHE`, else `~/.cache/minivgg`), and put there if
    `download` allows it. Raises `BadInput` if the source is unknown, not there, or malformed.
    """
    named = {
        "fashion-mnist-mini": lambda: _from_npz(ASSETS / "fashion_mnist_mini.npz", "fashion-mnist-mini"),
        "fashion-mnist": lambda: read_fashion_mnist(_find_fashion_mnist(download)),
        "cifar10": lambda: _from_cifar10(download),
    }
    if str(source) in named:
        return named[str(source)]()
    path = Path(source).expanduser()
    if path.is_dir():
        return _from_folder(path)
    if path.suffix == ".npz" and path.is_file():
        return _from_npz(path, path.stem)
    raise BadInput(f"{source}: neither a folder, nor an .npz file, nor one of the sets {', '.join(named)}")


def from_anywhere(source: str) -> str:
    """`source` as `load` finds it from any folder: a path whole; the name of a set as it is."""
    return source if source in NAMED else absolute(source)


def cache_dir() -> Path:
    """Where downloads go: `$MINIVGG_CACHE` if set, else `minivgg` in the user's cache folder. It may not exist yet."""
    return user_folder("minivgg", "MINIVGG_CACHE")


def read_fashion_mnist(folder: Path) -> tuple[Dataset, Dataset]:
    """Training and test set from the four `*-ubyte.gz` files in `folder`, each checked against its sha256."""
    arrays = [read_idx_gz(Path(folder) / name, sha256) for name, sha256 in FASHION_MNIST_SHA256.items()]
    return _pair("fashion-mnist", *arrays, FASHION_MNIST_CLASSES)


def _pair(name, train_images, train_labels, test_images, test_labels, classes) -> tuple[Dataset, Dataset]:
    """Two sets from four arrays; grey images may lack their axis of channels."""

    def one(part: str, images: np.ndarray, labels: np.ndarray) -> Dataset:
        images = images[..., None] if images.ndim == 3 else images
        channels = images.shape[-1] if images.ndim == 4 else 1
        return Dataset(f"{name}/{part}", images, labels, tuple(classes), channels)

    return one("train", train_images, train_labels), one("test", test_images, test_labels)


def _from_npz(path: Path, name: str) -> tuple[Dataset, Dataset]:
    names = ("train_images", "train_labels", "test_images", "test_labels")
    arrays = read_npz(path, (*names, "classes"))
    if missing := [key for key in names if key not in arrays]:
        raise BadInput(f"{path}: lacks the array {missing[0]}; it should hold {', '.join(names)}")
    classes = arrays.get("classes", np.unique(arrays["train_labels"]))
    return _pair(name, *(arrays[key] for key in names), [str(c) for c in classes.ravel()])


def _find_fashion_mnist(download: bool) -> Path:
    """The folder that holds the four files, after fetching them if that is allowed."""
    cached = cache_dir() / "fashion-mnist"
    for folder in (FASHION_MNIST_DEBIAN, cached):
        if all((folder / file).is_file() for file in FASHION_MNIST_SHA256):
            return folder
    if not download:
        raise BadInput(
            "fashion-mnist: not on this machine; ask for download=True (31 MB), install Debian's package "
            f"dataset-fashion-mnist, or put its four .gz files into {cached}"
        )
    for file in FASHION_MNIST_SHA256:
        _download(FASHION_MNIST_URL + file, cached)  # read_fashion_mnist checks what they hold
    return cached


def _from_cifar10(download: bool) -> tuple[Dataset, Dataset]:
    path = cache_dir() / "cifar-10-binary.tar.gz"
    if not path.is_file():
        if not download:
            raise BadInput(
                f"cifar10: not on this machine; ask for download=True (170 MB), or put {CIFAR10_URL} into {path.parent}"
            )
        _download(CIFAR10_URL, path.parent)
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != CIFAR10_SHA256:
        raise BadInput(f"{path}: sha256 is {found}, not {CIFAR10_SHA256}; delete it and fetch it again")
    return _pair("cifar10", *read_cifar_tar(path, CIFAR_TRAIN), *read_cifar_tar(path, CIFAR_TEST), CIFAR10_CLASSES)


def _download(url: str, folder: Path) -> None:
    """Fetch `url` into `folder`. Who reads the file checks its sha256, however it got there."""
    try:
        import pooch
    except ImportError as error:
        raise BadInput(f"{url}: downloading needs pooch: pip install 'minivgg[weights]'") from error
    try:
        pooch.retrieve(url, known_hash=None, fname=url.rsplit("/", 1)[1], path=folder, progressbar=True)
    except (OSError, ValueError) as error:
        raise BadInput(f"{url}: cannot be fetched: {error}") from error


@functools.cache
def imagenet_classes() -> dict[str, str]:
    """ImageNet's 1,000 classes in the order of a network's scores: synset → name, `{"n01440764": "tench", …}`."""
    lines = (ASSETS / "imagenet_classes.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split(" ", 1) for line in lines)


def labelled_folder(folder: Path, classes: Sequence[str], channels: int = 3) -> Dataset:
    """The pictures of `folder`, one folder a class, labelled for a network that knows `classes`.

    A folder is called as its class is, or, if the classes are ImageNet's, by its synset. As long as only one class can
    be meant, case does not matter, and `_` may stand for a space or a slash. Not every class need be there. Raises
    `BadInput` for a folder whose name is no class, and for whatever is not a picture.
    """
    exact = {name: k for k, name in enumerate(classes)}
    if tuple(classes) == tuple(imagenet_classes().values()):
        exact |= {synset: k for k, synset in enumerate(imagenet_classes())}
    plain = Counter(map(_plain, classes))  # ImageNet's Cardigan is a dog, and its cardigan is not
    loose = {_plain(name): k for k, name in enumerate(classes) if plain[_plain(name)] == 1}
    pictures, labels = _by_class(Path(folder)), []
    for name, paths in pictures.items():
        label = exact.get(name, loose.get(_plain(name)))
        if label is None:
            close = difflib.get_close_matches(name, exact, n=3) or classes[:3]
            known = f"none of the network's {len(classes)} classes; {', '.join(close)} are"
            raise BadInput(f"{Path(folder) / name}: {known}")
        labels += [label] * len(paths)
    images = tuple(path for paths in pictures.values() for path in paths)
    return Dataset(Path(folder).resolve().name, images, np.array(labels), tuple(classes), channels)


def _plain(name: str) -> str:
    return name.casefold().replace("_", " ").replace("/", " ")


def _from_folder(folder: Path) -> tuple[Dataset, Dataset]:
    held_out = next((folder / name for name in ("test", "val") if (folder / name).is_dir()), None)
    if held_out and (folder / "train").is_dir():
        train, test = _by_class(folder / "train"), _by_class(held_out)
        if unknown := sorted(test.keys() - train.keys()):
            raise BadInput(f"{held_out / unknown[0]}: not a class of {folder / 'train'}, which has {', '.join(train)}")
    elif [p.name for p in folder.iterdir() if p.is_dir()] == ["train"]:
        raise BadInput(f"{folder}: train/ without test/ or val/; add one, or load {folder / 'train'}")
    else:
        pictures = _by_class(folder)
        for name, paths in pictures.items():
            if len(paths) < 5:
                raise BadInput(f"{folder / name}: {len(paths)} images; holding out every fifth takes at least 5")
        test = {name: paths[4::5] for name, paths in pictures.items()}
        train = {name: [p for i, p in enumerate(paths) if i % 5 != 4] for name, paths in pictures.items()}

    classes = tuple(train)
    if len(classes) < 2:
        raise BadInput(f"{folder}: one class, {classes[0]}; there should be two folders or more, one a class")

    def one(part: str, pictures: dict[str, list[Path]]) -> Dataset:
        paths = tuple(path for name in pictures for path in pictures[name])
        labels = np.repeat([classes.index(name) for name in pictures], [len(pictures[name]) for name in pictures])
        return Dataset(f"{folder.resolve().name}/{part}", paths, labels, classes, channels=3)

    return one("train", train), one("test", test)


def _by_class(folder: Path) -> dict[str, list[Path]]:
    """The pictures of each class of `folder`, both sorted by name, so that every machine sees one order."""
    pictures = {}
    for path in _sorted(folder):
        if not path.is_dir():
            continue
        pictures[path.name] = _sorted(path)
        if not pictures[path.name]:
            raise BadInput(f"{path}: no images; put some in, or remove the folder")
        for file in pictures[path.name]:
            if file.suffix.lower() not in IMAGE_SUFFIXES or not file.is_file():
                raise BadInput(f"{file}: not an image ({' '.join(IMAGE_SUFFIXES)}); move it out of the class's folder")
    if not pictures:
        raise BadInput(f"{folder}: no folders; there should be two or more, one a class, with images in them")
    return pictures


def _sorted(folder: Path) -> list[Path]:
    return sorted((p for p in folder.iterdir() if not p.name.startswith(".")), key=lambda p: p.name)
