"""Weights with a name: those that ship, and those that `download` fetches, once, when asked."""

from dataclasses import dataclass
from pathlib import Path

from minivgg.caches import user_folder
from minivgg.errors import BadInput

ASSETS = Path(__file__).parents[1] / "assets"
_TIMM = "https://huggingface.co/timm/{0}.tv_in1k/resolve/main/model.safetensors"
_KERAS = "https://storage.googleapis.com/tensorflow/keras-applications/vgg16/"


@dataclass(frozen=True)
class Known:
    """A file of weights that has a name.

    `url` is None for one that ships; `hash` is "sha256:…" or "md5:…" of a downloaded one. `partial` says that it holds
    some layers of a network only, `input` what images it was made for (see `load`).
    """

    model: str
    about: str
    licence: str
    file: str
    megabytes: float
    url: str | None = None
    hash: str = ""
    partial: bool = False
    input: str = "torchvision"

    @property
    def path(self) -> Path:
        """Where it lies, or would lie."""
        return (cache() if self.url else ASSETS) / self.file


def _timm(model: str, megabytes: float, sha256: str) -> Known:
    about = "ImageNet, 1000 classes; torchvision's, as timm publishes them"
    url, name = _TIMM.format(model), f"{model}.tv_in1k.safetensors"
    return Known(model, about, "BSD-3-Clause", name, megabytes, url, f"sha256:{sha256}")


def _keras(suffix: str, about: str, megabytes: float, md5: str, partial: bool) -> Known:
    file = f"vgg16_weights_tf_dim_ordering_tf_kernels{suffix}.h5"
    return Known("vgg16", about, "CC BY 4.0", file, megabytes, _KERAS + file, f"md5:{md5}", partial, "caffe")


SOURCES = {
    "oxford": Known(
        "vgg16",
        "the first seven convolutions of Oxford's VGG-16, in half precision",
        "CC BY 4.0",
        "vgg16_oxford_conv7.npz",
        3.2,
        partial=True,
        input="caffe",
    ),
    "vgg11": _timm("vgg11", 531, "682c023808812148d4e60c76d80ad83dbeaf5d50eb1a952a0b836895003151e5"),
    "vgg16": _timm("vgg16", 553, "57b026918159a6bf9faf8405c3a551903768e7138989d9c6224a14227203fad8"),
    "vgg19": _timm("vgg19", 575, "11aea017b543ff59233749d8f1cf544cda749378f5790d2fedab841fb86b7669"),
    "vgg16-keras": _keras(
        "", "Oxford's VGG-16, ImageNet, 1000 classes; Keras's copy", 553, "64373286793e3c8b2b4e3219cbf3544b", False
    ),
    "vgg16-keras-notop": _keras(
        "_notop", "Oxford's VGG-16 without its classifier; Keras's copy", 59, "6d6bbae143d832006294945121d1f1fc", True
    ),
}


def cache() -> Path:
    """The folder of downloads: MINIVGG_CACHE, or minivgg's in the user's cache folder."""
    return user_folder("minivgg", "MINIVGG_CACHE")


def resolve(source: str | Path) -> tuple[Path, Known | None]:
    """The file that `source` means: a name of `SOURCES`, else a path. Nothing is downloaded.

    Raises BadInput for a name whose file is not there yet.
    """
    known = SOURCES.get(source) if isinstance(source, str) else None
    if not known:
        path = Path(source)
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "no such file"
            raise BadInput(f"{source}: {what}, nor a name of weights, which are {', '.join(SOURCES)}")
        return path, None
    if not known.path.is_file():
        raise BadInput(f"{source}: not here yet; fetch it with: minivgg weights download {source}")
    return known.path, known


def download(name: str) -> Path:
    """Fetch the weights called `name` (see `SOURCES`) into the cache, unless they are there, and return their path.

    What comes is compared with the published hash, and so is what is there already; only then does it get its name.
    A progress bar is drawn on stderr. Needs pooch. Raises BadInput, one line, where the name is unknown, pooch is
    missing, the network fails or the hash differs.
    """
    if name not in SOURCES:
        raise BadInput(f'no weights "{name}"; there are {", ".join(SOURCES)}')
    known = SOURCES[name]
    if known.url is None:
        return known.path
    try:
        import pooch
    except ImportError:
        raise BadInput(f"{name}: downloading needs pooch: pip install 'minivgg[weights]'") from None
    try:
        found = pooch.retrieve(known.url, known.hash, fname=known.file, path=cache(), progressbar=True)
    except (OSError, ValueError) as error:  # requests' errors are OSErrors; a wrong hash is a ValueError
        raise BadInput(f"{known.url}: cannot be fetched: {' '.join(str(error).split())}") from error
    return Path(found)
