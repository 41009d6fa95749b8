"""A run: one training from its settings to its folder, where everything about it lies. See `training.folder`."""

import csv
import math
import os
import warnings
from dataclasses import replace
from pathlib import Path

from minivgg import models
from minivgg.backends.array import check_device
from minivgg.errors import BadInput
from minivgg.files import absolute, atomically
from minivgg.layers import Conv2d, Sequential
from minivgg.models.options import check_memory
from minivgg.models.roles import Transfer, copy_roles
from minivgg.training import checkpoints
from minivgg.training.augmentation import Augmentation, colour_basis
from minivgg.training.config import Config
from minivgg.training.datasets import Dataset, from_anywhere, load
from minivgg.training.fingerprint import difference, fingerprint, other_classes
from minivgg.training.folder import CHECKPOINT, CONFIG, LOG, MODEL, PREVIOUS, Record, read_settings, write_settings
from minivgg.training.loader import Loader
from minivgg.training.loop import Trainer
from minivgg.training.optim import SGD, Adam
from minivgg.training.preprocessing import Preprocessing, fit
from minivgg.training.schedules import schedule

_TEST_BATCH = 1 << 24  # pixels at most, 256 images of 256×256
_OPTIONS = {"classes", "channels", "input_size", "width", "classifier_width", "dropout", "algorithm"}


class Run:
    """A training in its folder. `Run(config, folder)` begins one, `Run.resume(folder)` goes on with one.

    `transfer` says what was copied from the run `config.init_from`, which is looked at only where a run begins.
    `record` is what an earlier process has noted of the run. Raises BadInput where a setting is wrong, the data cannot
    be read, is not what the record says, or the training would not fit into memory; nothing is written before `save`.
    """

    def __init__(self, config: Config, folder: Path, *, begin: bool = True, record: Record | None = None):
        check_device(config.device)
        start = None if config.init_from is None else absolute(config.init_from)
        self.config, self.folder = replace(config, data=from_anywhere(config.data), init_from=start), Path(folder)
        record = record or Record()
        train, test = _load(self.config, record, self.folder)
        self.test_set, self.classes, self._sets = test, train.classes, {"training": train, "test": test}
        self.preprocessing = record.preprocessing or _preprocessing(config, train)
        basis = (record.colour_basis or colour_basis(train)) if config.colour else ()
        self._record = Record(record.dataset, self.preprocessing, basis)
        pad = config.pad if config.pad is not None else (0 if isinstance(train.images, tuple) else 2)
        augmentation = Augmentation(config.scale, pad, config.flip, config.colour, basis)
        chosen = {name: getattr(config, name) for name in ("width", "classifier_width", "dropout", "algorithm")}
        given = {name: value for name, value in chosen.items() if value is not None}
        size = self.preprocessing.size
        self.options = {"classes": len(train.classes), "channels": train.channels, "input_size": size, **given}
        batches = Loader(
            train, self.preprocessing, config.batch_size, augmentation=augmentation, shuffle=True, seed=config.seed
        )
        lsuv = config.init == "lsuv"  # looks at images; everything else draws while the network is built
        model = models.build(config.model, **self.options, init="zeros" if lsuv else config.init, seed=config.seed)
        _check_batch(model, batches)
        if lsuv and begin:
            models.initialise(model, "lsuv", seed=config.seed, x=next(batches.epoch(0))[0])
        self.transfer = _start_from(model, Path(start)) if begin and start is not None else None
        model.to(config.device)  # as the CPU has initialised it: the same weights everywhere
        self.trainer = Trainer(
            model,
            batches,
            Loader(test, self.preprocessing, min(256, max(1, len(test)), max(1, _TEST_BATCH // size**2))),
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
    def resume(cls, folder: Path, data: str | None = None) -> "Run":
        """The run in `folder`, as its last whole checkpoint left it; `data` is where its images are now, if they moved.

        Warns where something is not as it should be, and the run goes on in spite of it. Raises BadInput, and changes
        nothing, if the run is missing or damaged, or its data is not what it was.
        """
        folder = Path(folder)
        config, record = read_settings(folder)
        if missing := not (folder / CHECKPOINT).exists() and not (folder / PREVIOUS).exists():
            if (folder / LOG).exists() or (folder / MODEL).exists():
                raise BadInput(f"{folder / CHECKPOINT}: missing, so that nobody knows where this training stands")
            warnings.warn(f"{folder}: stopped before its first checkpoint; begins anew", stacklevel=2)
        if record.dataset is None:
            record = _record_of_old(folder, record)
        run = cls(replace(config, data=data or config.data), folder, begin=missing, record=record)
        if not missing:
            run._restore()
            run._finish()
        if record.dataset is None or run.config != config:
            run._write_settings()
        return run

    def _restore(self) -> None:
        """Stand where the newest checkpoint that is whole was written."""
        newest, previous = self.folder / CHECKPOINT, self.folder / PREVIOUS
        try:
            return self._restore_from(newest)
        except BadInput as error:
            damage = str(error)
        try:
            self._restore_from(previous)
        except BadInput as error:
            why = (
                f"nor is there a whole one before it ({error})" if previous.exists() else "and there is none before it"
            )
            raise BadInput(f"{damage}; {why}: begin again in another folder, by --run DIR") from None
        if newest.exists():
            warnings.warn(
                f"{damage}; goes on from the one before it, {previous.name}, to the same result", stacklevel=3
            )

    def _restore_from(self, path: Path) -> None:
        arrays, place = checkpoints.load(path)
        try:
            self.trainer.restore(arrays, place)
        except BadInput as error:
            raise BadInput(f"{path}: {error}") from None

    def save(self) -> None:
        """Write where training stands into the folder; between epochs also the weights and the log.

        A process may be killed at any moment, and a disk be full: what is there can be gone on with. The settings come
        first, and the checkpoint last: where it is lost, what it comes after is written again, the same.
        """
        trainer = self.trainer
        if not (self.folder / CONFIG).exists() or self._record.dataset is None:
            self._write_settings()
        if trainer.batch == 0 and trainer.history:
            with atomically(self.folder / LOG) as path, path.open("w", newline="") as file:
                writer = csv.DictWriter(file, trainer.history[0])
                writer.writeheader()
                writer.writerows(trainer.history)
            checkpoints.save(self.folder / MODEL, trainer.model.state_dict(), self._description())
        newest, previous = self.folder / CHECKPOINT, self.folder / PREVIOUS
        checkpoints.save(newest, trainer.arrays(), trainer.place(), previous)
        self._finish()

    def _finish(self) -> None:
        """Where training has come to its end, the checkpoint before the last has done its service."""
        if self.trainer.epoch == self.trainer.epochs:
            (self.folder / PREVIOUS).unlink(missing_ok=True)

    def _write_settings(self) -> None:
        if self._record.dataset is None:
            now = {part: fingerprint(one) for part, one in self._sets.items()}
            self._record = replace(self._record, dataset=now)
        write_settings(self.folder, self.config, self._record)

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
    path = path / MODEL if path.is_dir() else path
    arrays, description = checkpoints.load(path)
    try:
        name, options, classes = (description[key] for key in ("model", "options", "classes"))
        preprocessing = Preprocessing.from_dict(description["preprocessing"])
        if not isinstance(name, str) or not isinstance(options, dict) or not options.keys() <= _OPTIONS:
            raise BadInput(f'should have a "model", a name, and "options" among {", ".join(sorted(_OPTIONS))}')
        if not isinstance(classes, list) or not all(isinstance(one, str) for one in classes):
            raise BadInput('"classes" should be a list of names')
        given = {"classes": len(classes), "channels": preprocessing.channels, "input_size": preprocessing.size}
        if any(type(options.get(key)) is not int or options[key] != value for key, value in given.items()):
            raise BadInput(f'"options" say other than "classes" and "preprocessing", which have {given}')
        if wrong := [key for key, array in arrays.items() if array.dtype.kind != "f"]:
            raise BadInput(f"{wrong[0]} is of {arrays[wrong[0]].dtype}, and weights are of float32")
        model = models.build(name, **options, init="zeros")
        model.load_state_dict(arrays)
        return model, preprocessing, tuple(classes)
    except KeyError as error:
        raise BadInput(f"{path}: holds no {error}, so it is not the weights of a run") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise BadInput(f"{path}: {error}") from None


def data_of(folder: Path, part: str, data: str | None = None) -> Dataset:
    """The "training" or the "test" images of the run in `folder`; `data` is where they are now, if they moved.

    Warns where an earlier version has not noted which they were. Raises BadInput where they are gone, or are others.
    """
    config, record = read_settings(Path(folder))
    if record.dataset is None:
        record = _record_of_old(Path(folder), record)
    moved = replace(config, data=from_anywhere(data or config.data))
    sets = _load(moved, record, Path(folder), parts=(part,))
    if record.dataset and moved != config and os.access(folder, os.W_OK):
        write_settings(Path(folder), moved, record)
    return sets[part == "test"]


def read_config(path: Path) -> Config:
    """The settings that a run keeps in its `config.json`. Raises BadInput if that is missing or damaged."""
    return read_settings(path.parent)[0]


def _load(config: Config, record: Record, folder: Path, parts=("training", "test")) -> tuple[Dataset, Dataset]:
    """The sets of `config.data`. Raises BadInput where their `parts` are not what the record of the run says."""
    where = "if it has moved, say where by --data"
    try:
        sets = load(config.data, download=config.download)
    except BadInput as error:
        known = record != Record() and not Path(config.data).exists()
        raise (BadInput(f"{error}; {where}") if known else error) from None
    what = other_classes(record.classes, sets[0].classes) if record.classes else None
    for part, one in zip(("training", "test"), sets, strict=True):
        if record.dataset and part in parts:
            what = what or difference(record.dataset[part], fingerprint(one), part)
    if what:
        raise BadInput(f"{config.data}: not what {folder} was trained on: {what}; put it back, or {where}")
    return sets


def _record_of_old(folder: Path, record: Record) -> Record:
    """What the weights of an earlier version's run tell of it: how it sees images, and its classes."""
    what = "only the classes of its data can"
    try:
        _, preprocessing, classes = load_model(folder)
        record = replace(record, preprocessing=preprocessing, classes=classes)
    except BadInput:  # it did not come as far
        what = "its data cannot"
    warnings.warn(f"{folder}: of an earlier version: {what} be checked", stacklevel=3)
    return record


def _preprocessing(config: Config, train: Dataset) -> Preprocessing:
    """Small images whole, padded to 32; twice as large for a network that needs more pixels; photographs at 64."""
    in_memory = not isinstance(train.images, tuple)
    native = train.images.shape[1] if in_memory else None
    size, resize = config.size, config.resize
    if not size:
        size = max(32, native) if in_memory else 64
        times = -(-models.smallest_input(config.model) // size)
        size, native = times * size, times * native if in_memory else None
    resize = resize or (native if in_memory else size * 8 // 7)  # 256 to 224, as ImageNet's crops are
    return fit(train, size, resize=resize)


def _check_batch(model: Sequential, batches: Loader) -> None:
    """Raise BadInput where a batch, those made ahead of it and what the first convolution gives pass the memory."""
    size, channels = batches.preprocessing.size, batches.preprocessing.channels
    shape = (batches.batch_size, channels, size, size)
    first = next(layer for _, layer in model.walk() if isinstance(layer, Conv2d))
    numbers = (1 + batches.prefetch) * math.prod(shape) + math.prod(first.output_shape(shape))
    check_memory(f"batches of {batches.batch_size} images of {size}×{size}", 4 * numbers)


def _start_from(model: Sequential, path: Path) -> Transfer:
    """Copy layers of the run at `path` into `model`. Raises BadInput, naming the run, where that is not possible."""
    source, _, _ = load_model(path)
    try:
        return copy_roles(model, source)
    except BadInput as error:
        raise BadInput(f"{path}: cannot start from this run: {error}") from None
