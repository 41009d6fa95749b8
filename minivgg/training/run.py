"""A run: one training from its settings to its folder, where everything about it lies.

config.json             the settings, for people and for resuming
log.csv                 a row an epoch
checkpoint.safetensors  where training stands: weights, optimiser, place
model.safetensors       the weights by torchvision's names, with what it takes to use them: all that `predict` reads
"""

import csv
import json
from dataclasses import asdict, fields
from pathlib import Path

from minivgg import __version__, models
from minivgg.backends.array import check_device
from minivgg.errors import BadInput
from minivgg.files import atomically
from minivgg.layers import Sequential
from minivgg.models.roles import Transfer, copy_roles
from minivgg.training import checkpoints
from minivgg.training.augmentation import Augmentation, colour_basis
from minivgg.training.config import Config
from minivgg.training.datasets import Dataset, load
from minivgg.training.loader import Loader
from minivgg.training.loop import Trainer
from minivgg.training.optim import SGD, Adam
from minivgg.training.preprocessing import Preprocessing, fit
from minivgg.training.schedules import schedule


class Run:
    """A training in its folder. `Run(config, folder)` begins one, `Run.resume(folder)` goes on with one.

    `transfer` says what was copied from the run `config.init_from`, which is looked at only where a run begins.
    """

    def __init__(self, config: Config, folder: Path, *, begin: bool = True):
        check_device(config.device)
        self.config, self.folder = config, Path(folder)
        train, test = load(config.data, download=config.download)
        self.test_set, self.classes = test, train.classes
        in_memory = not isinstance(train.images, tuple)
        native = train.images.shape[1] if in_memory else None
        size, resize = config.size, config.resize
        if not size:  # small images whole, padded to 32; twice as large for a network that needs more pixels
            size = max(32, native) if in_memory else 64
            times = -(-models.smallest_input(config.model) // size)
            size, native = times * size, times * native if in_memory else None
        resize = resize or (native if in_memory else size * 8 // 7)  # 256 to 224, as ImageNet's crops are
        self.preprocessing = fit(train, size, resize=resize)
        pad = config.pad if config.pad is not None else (2 if in_memory else 0)
        basis = colour_basis(train) if config.colour else ()
        augmentation = Augmentation(config.scale, pad, config.flip, config.colour, basis)
        chosen = {name: getattr(config, name) for name in ("width", "classifier_width", "dropout", "algorithm")}
        given = {name: value for name, value in chosen.items() if value is not None}
        self.options = {"classes": len(train.classes), "channels": train.channels, "input_size": size, **given}
        batches = Loader(
            train, self.preprocessing, config.batch_size, augmentation=augmentation, shuffle=True, seed=config.seed
        )
        # LSUV looks at images; everything else draws while the network is built
        init = "zeros" if config.init == "lsuv" else config.init
        model = models.build(config.model, **self.options, init=init, seed=config.seed)
        if config.init == "lsuv":
            models.initialise(model, "lsuv", seed=config.seed, x=next(batches.epoch(0))[0])
        self.transfer = _start_from(model, Path(config.init_from)) if begin and config.init_from else None
        model.to(config.device)  # as the CPU has initialised it: the same weights everywhere
        self.trainer = Trainer(
            model,
            batches,
            Loader(test, self.preprocessing, min(256, max(1, len(test)))),
            self._optimizer(model),
            schedule(config.schedule, config.epochs, config.warmup),
            config.lr,
            config.epochs,
            config.label_smoothing,
            config.clip_norm,
            config.device,
            config.graphs,
        )

    def _optimizer(self, model: Sequential):
        params, decay = model.named_params(), self.config.weight_decay
        return (
            SGD(params, self.config.momentum, decay)
            if self.config.optimizer == "sgd"
            else Adam(params, weight_decay=decay)
        )

    @classmethod
    def resume(cls, folder: Path) -> "Run":
        """The run in `folder`, as its last checkpoint left it. Raises BadInput if that is missing or damaged."""
        folder = Path(folder)
        run = cls(read_config(folder / "config.json"), folder, begin=False)
        path = folder / "checkpoint.safetensors"
        arrays, place = checkpoints.load(path)
        try:
            run.trainer.restore(arrays, place)
        except BadInput as error:
            raise BadInput(f"{path}: {error}") from None
        return run

    def save(self) -> None:
        """Write where training stands into the folder; between epochs also the weights, the log and the settings."""
        trainer = self.trainer
        checkpoints.save(self.folder / "checkpoint.safetensors", trainer.arrays(), trainer.place())
        if trainer.batch == 0:
            with atomically(self.folder / "config.json") as path:
                path.write_text(json.dumps({"minivgg": __version__, **asdict(self.config)}, indent=2) + "\n")
            with atomically(self.folder / "log.csv") as path, path.open("w", newline="") as file:
                if trainer.history:
                    writer = csv.DictWriter(file, trainer.history[0])
                    writer.writeheader()
                    writer.writerows(trainer.history)
            checkpoints.save(self.folder / "model.safetensors", trainer.model.state_dict(), self._description())

    def _description(self) -> dict:
        return {
            "model": self.config.model,
            "options": self.options,
            "classes": list(self.classes),
            "preprocessing": self.preprocessing.as_dict(),
        }


def load_model(path: Path) -> tuple[Sequential, Preprocessing, tuple[str, ...]]:
    """The network of a run's folder (or of a `model.safetensors` itself), its preprocessing and its class names.

    Raises BadInput, naming the file, where it is missing, damaged, or does not describe a network.
    """
    path = Path(path)
    path = path / "model.safetensors" if path.is_dir() else path
    arrays, description = checkpoints.load(path)
    try:
        model = models.build(description["model"], **description["options"], init="zeros")
        preprocessing = Preprocessing.from_dict(description["preprocessing"])
        model.load_state_dict(arrays)
        return model, preprocessing, tuple(description["classes"])
    except KeyError as error:
        raise BadInput(f"{path}: holds no {error}, so it is not the weights of a run") from None
    except (TypeError, ValueError) as error:
        raise BadInput(f"{path}: {error}") from None


def test_set(folder: Path) -> Dataset:
    """The labelled images that the run in `folder` was tested on. Raises BadInput where they are gone."""
    return load(read_config(Path(folder) / "config.json").data)[1]


def _start_from(model: Sequential, path: Path) -> Transfer:
    """Copy layers of the run at `path` into `model`. Raises BadInput, naming the run, where that is not possible."""
    source, _, _ = load_model(path)
    try:
        return copy_roles(model, source)
    except BadInput as error:
        raise BadInput(f"{path}: cannot start from this run: {error}") from None


def read_config(path: Path) -> Config:
    """The settings that a run keeps in its `config.json`. Raises BadInput if that is missing or damaged."""
    try:
        settings = json.loads(path.read_text())
        known = {field.name for field in fields(Config)}
        return Config(**{name: _tuple(value) for name, value in settings.items() if name in known})
    except FileNotFoundError:
        raise BadInput(f"{path.parent}: no run to resume here (no {path.name})") from None
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError, TypeError) as error:
        raise BadInput(f"{path}: damaged: {error}") from None


def _tuple(value):
    return tuple(value) if isinstance(value, list) else value
