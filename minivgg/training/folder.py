"""A run's folder: what lies where in it, who may work there, and what it says of the run.

config.json                      the settings, and what the run must find again: its data's fingerprint, its
                                 preprocessing. Written first, so that what is there can always be gone on with
checkpoint.safetensors           where training stands: weights, optimiser, place
checkpoint.previous.safetensors  where it stood before, should the other one be damaged
log.csv                          a row an epoch
model.safetensors                the weights by torchvision's names, with what it takes to use them: all that `predict`
                                 reads
"""

import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from minivgg import __version__
from minivgg.errors import BadInput, check_range
from minivgg.files import atomically, held, sweep
from minivgg.training.config import Config
from minivgg.training.preprocessing import Preprocessing

CONFIG, LOG, MODEL = "config.json", "log.csv", "model.safetensors"
CHECKPOINT, PREVIOUS = "checkpoint.safetensors", "checkpoint.previous.safetensors"
_LONGEST = 1 << 26  # bytes of a config.json


@dataclass(frozen=True)
class Record:
    """What a run must find again: the fingerprints of its two sets, how it sees images, and the colours it varies."""

    dataset: dict | None = None  # {"training": …, "test": …}, see `fingerprint`
    preprocessing: Preprocessing | None = None
    colour_basis: tuple = ()
    classes: tuple[str, ...] | None = None  # where only these are known


@contextmanager
def begun(folder: Path, *, named: bool) -> Iterator[Path]:
    """A folder for a new run, made here, and held while the run lasts: `folder`, or `folder-2`, … where it is taken.

    A folder that was `named` has no other name: BadInput where it holds a run, or another process begins one in it.
    """
    for number in itertools.count(1):
        place = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        try:
            place.mkdir(parents=True, exist_ok=named)
            break
        except FileExistsError:
            if named:
                raise BadInput(f"{place}: not a folder; name another one for the run") from None
    with occupied(place):
        check_free(place)
        yield place


def check_free(folder: Path) -> None:
    """Raise BadInput where `folder` holds a run."""
    if any((folder / name).exists() for name in (CONFIG, CHECKPOINT, PREVIOUS, MODEL)):
        raise BadInput(f"{folder} holds a run already; go on with it by --resume {folder}, or name another folder")


@contextmanager
def occupied(folder: Path) -> Iterator[None]:
    """Work in a run's folder, alone; what was left in it by a process that was killed goes first.

    Raises BadInput where it is no folder, or another process works in it.
    """
    if not folder.is_dir():
        raise BadInput(f"{folder}: no run to resume here (no such folder)")
    with held(folder) as alone:
        if not alone:
            raise BadInput(f"{folder}: another process is training this run; wait for it, or name another folder")
        sweep(folder)
        yield


def write_settings(folder: Path, config: Config, record: Record) -> None:
    """Write config.json."""
    recorded = {"dataset": record.dataset, "colour_basis": record.colour_basis}
    recorded |= {"preprocessing": record.preprocessing.as_dict()}
    text = json.dumps({"minivgg": __version__, **asdict(config), **recorded}, indent=2)
    with atomically(folder / CONFIG) as path:
        path.write_text(text + "\n")


def read_settings(folder: Path) -> tuple[Config, Record]:
    """What a run's config.json holds; of an earlier version's the record is empty. Raises BadInput if it is missing or
    damaged."""
    path = folder / CONFIG
    if not path.is_file():
        raise BadInput(f"{folder}: no run to resume here (no {CONFIG})")
    try:
        with path.open("rb") as file:
            settings = json.loads(file.read(_LONGEST))
        known = {field.name for field in fields(Config)}
        config = Config(**{name: _tuples(value) for name, value in settings.items() if name in known})
        return config, _record(settings)
    except RecursionError:
        raise BadInput(f"{path}: damaged: nested too deeply") from None
    except (ValueError, AttributeError, TypeError) as error:
        raise BadInput(f"{path}: damaged: {error}") from None


def _record(settings: dict) -> Record:
    dataset, preprocessing = settings.get("dataset"), settings.get("preprocessing")
    basis = _tuples(settings.get("colour_basis", ()))
    if dataset is not None and (not isinstance(dataset, dict) or dataset.keys() != {"training", "test"}):
        raise BadInput('"dataset" should hold the fingerprints of "training" and "test"')
    for number in itertools.chain(*basis):
        check_range("colour_basis", number, -100, 100)
    return Record(dataset, None if preprocessing is None else Preprocessing.from_dict(preprocessing), basis)


def _tuples(value):
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
