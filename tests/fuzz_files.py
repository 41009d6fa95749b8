"""Well-formed files of every kind that is read from outside, and the cases made from them: `CASES` is kind → (what
makes one case's bytes from a generator of random numbers, what reads a file of it). Run in a process with limits:

    python fuzz_files.py KIND SEED COUNT FOLDER

reads so many cases, and prints what went wrong and how much memory and time it took (JSON).
"""

import contextlib
import io
import json
import pickle
import random
import re
import resource
import signal
import sys
import time
import traceback
import warnings
from functools import cache, partial
from pathlib import Path

import fuzzing
import hostile_files
import hostile_h5
import numpy as np
from fuzzing import mutated
from hostile_files import GOOD, STATE, written
from PIL import Image
from weight_files import KERAS, keras_state, layers_of, state_code, tensor, text, write_archive, write_h5, zip_members

from minivgg import weights
from minivgg.cli.main import main as command
from minivgg.errors import BadInput
from minivgg.training import datasets, formats

model = cache(hostile_files.model)


# ---- weights ----


def checkpoint():
    """A state dict among what training scripts put beside it."""
    beside = {
        "args": {1, 2},
        "epoch": 3,
        "loss": [1.5] * 50,
        "path": Path("/x"),
        "rng": random.Random(0).getstate()[1][:50],
    }
    codes = b"".join(text(name) + pickle.dumps(value, 2)[2:-1] for name, value in beside.items())
    state = state_code({name: tensor(str(i), a) for i, (name, a) in enumerate(STATE.items())})
    code = b"}(" + codes + text("state_dict") + state + b"u"
    return written(lambda path: write_archive(path, zip_members(STATE, code)))


def keras_file(generation):
    return written(partial(write_h5, keras_state(STATE, layers_of(model()), **KERAS[generation])))


def described_layers():
    names = [name for name, _ in layers_of(model())]
    kinds = [
        "Conv2D" if name.startswith("features") else "Dense" for name, kind in layers_of(model()) if kind != "pool"
    ]
    about = [
        {"class_name": kind, "config": {"name": name, "epsilon": 0.1}} for kind, name in zip(kinds, names, strict=False)
    ]
    return {"class_name": "Sequential", "config": {"name": "a", "layers": about}}


def keras_zip(config, h5):
    members = {"metadata.json": b"{}", "config.json": json.dumps(config).encode(), "model.weights.h5": h5}
    return written(lambda path: write_archive(path, members))


@cache
def good(kind):
    """Files that load: bytes."""
    if kind in GOOD:
        return GOOD[kind]
    makers = {
        "checkpoint": checkpoint,
        "h5": hostile_h5.h5_good,
        "Keras 2": partial(keras_file, "Keras 2, whole model"),
        "Keras 3": partial(keras_file, "Keras 3"),
        "keras": lambda: keras_zip(described_layers(), good("Keras 3")),
    }
    return makers[kind]()


def attributes(rng):
    """A Keras file whose notes of the order are something else."""
    import h5py

    names = ["block1_conv1", "fc1", "none", "", "/", "..", "ζ", "fc1/kernel", "x" * 1000]
    values = [
        *(rng.sample(names, k) for k in (1, 3, 9)),
        *(
            [name.encode() for name in names],
            7,
            1.5,
            "text",
            np.zeros((3, 3)),
            [[1, 2]],
            h5py.Empty("S9"),
            [b"\xff\xfe"],
        ),
        json.dumps(fuzzing.json_damaged(described_layers(), rng)),
        "[" * 9000,
        '{"config": {"layers": [{"class_name": 1}]}}',
    ]

    def change(_, file):
        for name in rng.sample(
            ["layer_names", "layer_names0", "layer_names1", "weight_names", "model_config", "keras_version"], 3
        ):
            rng.choice((file, file["fc1"], file)).attrs[name] = rng.choice(values)

    return hostile_h5.h5(change)


def load_weights(path, rng):
    action = rng.randrange(40)  # inspecting tries every network
    if action == 0:
        status = command(["weights", "inspect", str(path)])
        assert status in (0, 2), status
    elif action < 5:
        weights.load(model(), path, part=rng.choice(("state_dict", "x", "")))
    else:
        weights.load(model(), path, strict=False)


def raw(kind):
    return lambda rng: mutated(good(kind), rng, good(rng.choice(["zip", "legacy", kind])))


WEIGHTS = {
    **{kind: raw(kind) for kind in (*GOOD, "checkpoint", "h5", "Keras 2", "Keras 3", "keras")},
    "safetensors, header": lambda rng: fuzzing.safetensors_rebuilt(good("safetensors"), rng),
    "npz, inside": lambda rng: fuzzing.zip_rebuilt(good("npz"), rng),
    "zip, inside": lambda rng: fuzzing.zip_rebuilt(good("zip"), rng),
    "checkpoint, inside": lambda rng: fuzzing.zip_rebuilt(good("checkpoint"), rng),
    "keras, inside": lambda rng: fuzzing.zip_rebuilt(good("keras"), rng),
    "keras, description": lambda rng: keras_zip(fuzzing.json_damaged(described_layers(), rng), good("Keras 3")),
    "h5, attributes": attributes,
}

# ---- pictures ----


@cache
def pictures():
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 4), dtype=np.uint8)
    rgba = Image.fromarray(pixels)
    rgb, exif = rgba.convert("RGB"), Image.Exif()
    palette, grey = rgb.convert("P"), rgb.convert("L")
    exif[0x0112], exif[0x010E] = 6, "a picture"
    frames = {"save_all": True, "append_images": [rgba.transpose(Image.Transpose.ROTATE_180)], "duration": 9}
    kinds = {
        "PNG": [
            (rgb, {}),
            (rgba, {"exif": exif}),
            (rgb.convert("P"), {"transparency": 3}),
            (rgb.convert("1"), {}),
            (rgba, frames),
        ],
        "JPEG": [
            (rgb, {}),
            (rgb, {"progressive": True, "exif": exif}),
            (rgb.convert("CMYK"), {}),
            (rgb.convert("L"), {}),
        ],
        "GIF": [(rgb, {}), (rgba, frames)],
        "BMP": [(rgb, {}), (palette, {}), (rgba, {})],
        "TIFF": [(rgb, {"compression": c}) for c in (None, "tiff_lzw", "tiff_deflate", "jpeg", "packbits")]
        + [(rgba, {"exif": exif})],
        "WEBP": [(rgb, {}), (rgba, {"lossless": True, "exif": exif}), (rgba, frames)],
        "PPM": [(rgb, {}), (grey, {}), (rgb.convert("1"), {})],
    }
    found = {}
    for kind, variants in kinds.items():
        found[kind] = []
        for picture, options in variants:
            file = io.BytesIO()
            picture.save(file, kind, **options)
            found[kind].append(file.getvalue())
    found["PPM"].append(b"P3 2 2 255\n" + b"1 2 3  " * 4)
    return found


def picture_of(kind):
    def make(rng):
        data = rng.choice(pictures()[kind])
        if kind == "PNG" and rng.random() < 0.6:
            return fuzzing.png_rebuilt(data, rng)
        return mutated(data, rng, rng.choice(pictures()[kind]))

    return make


def read_picture(path, rng):
    image = formats.read_image(path, rng.choice((1, 3)))
    assert image.dtype == np.uint8
    assert image.ndim == 3
    assert image.size


# ---- sets of images ----

TRAIN, TEST = formats.CIFAR_TRAIN[:1], formats.CIFAR_TEST


@cache
def sets():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 5, 4), dtype=np.uint8)
    arrays = {
        f"{part}_{what}": a
        for part in ("train", "test")
        for what, a in (("images", images), ("labels", np.arange(6) % 3))
    }
    npz = [io.BytesIO(), io.BytesIO()]
    np.savez(npz[0], **arrays, classes=np.array(["a", "b", "ζ"]))
    np.savez_compressed(npz[1], **arrays)
    batch = b"".join(bytes([i]) + rng.bytes(3072) for i in range(2))
    idx = struct_idx(images)
    return {
        "npz": [file.getvalue() for file in npz],
        "idx": [idx, struct_idx(images[0, 0])],
        "idx.gz": [fuzzing.gzip.compress(idx)],
        "cifar": [batch],
        "tar.gz": [fuzzing.tarball({TRAIN[0]: batch, TEST[0]: batch, "../x": b"x"})],
    }


def struct_idx(array):
    return bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def set_of(kind):
    def make(rng):
        data = rng.choice(sets()[kind])
        if kind == "npz" and rng.random() < 0.7:
            return fuzzing.zip_rebuilt(data, rng)
        if kind.endswith("gz") and rng.random() < 0.7:
            return fuzzing.gzip_rebuilt(data, rng, data)
        return mutated(data, rng, data)

    return make


def read_gz(path, _):
    with contextlib.suppress(OSError, EOFError, fuzzing.zlib.error):
        digest = formats.hashlib.sha256(fuzzing.gzip.decompress(path.read_bytes())).hexdigest()
        formats.read_idx_gz(path, digest)
    formats.read_idx_gz(path, "0" * 64)


def read_set(path, _):
    renamed = path.with_suffix(".npz")
    path.rename(renamed)
    try:
        for part in datasets.load(renamed):
            if len(part):
                part.image(0)
    finally:
        renamed.unlink()


NAMES = [
    "a",
    "ζ",
    "a b",
    "a\nb",
    "\x1b[31m",
    "$x$",
    "-x",
    "..x",
    "train",
    "test",
    "val",
    "x" * 200,
    "CON",
    "%s",
    "{0}",
    ".hidden",
    "\udcff",
]


def folder_of(rng):
    """Not bytes: the names of folders and files of a set, and what is in them."""
    files = pictures()["PNG"] + [b"", b"text", pictures()["GIF"][0][:40]]
    suffixes = [".png", ".PNG", ".jpg", "", ".txt", ".png.exe", ".gif"]
    found = {}
    for folder in rng.sample(NAMES, rng.randrange(5)):
        for part in rng.sample(("", "train/", "test/", "val/"), rng.choice((1, 1, 2))):
            for name in rng.sample(NAMES, rng.choice((0, 1, 6, 8))):
                found[f"{part}{folder}/{name}{rng.choice(suffixes) if rng.random() < 0.2 else '.png'}"] = rng.choice(
                    files
                )
    return found


def read_folder(path, rng):
    for name, content in folder_of(rng).items():
        with contextlib.suppress(OSError):
            (path.parent / "set" / name).parent.mkdir(parents=True, exist_ok=True)
            (path.parent / "set" / name).write_bytes(content)
    (path.parent / "set").mkdir(exist_ok=True)
    try:
        for part in datasets.load(path.parent / "set"):
            for i in range(len(part)):
                part.image(i)
    finally:
        __import__("shutil").rmtree(path.parent / "set")


CASES = {
    **{f"weights, {kind}": (make, load_weights) for kind, make in WEIGHTS.items()},
    **{
        f"picture, {kind}": (picture_of(kind), read_picture)
        for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
    },
    "set, npz": (set_of("npz"), read_set),
    "set, idx": (set_of("idx"), lambda path, _: formats.read_idx(path.read_bytes(), str(path))),
    "set, idx.gz": (set_of("idx.gz"), read_gz),
    "set, cifar": (set_of("cifar"), lambda path, _: formats.read_cifar(path.read_bytes(), str(path))),
    "set, tar.gz": (set_of("tar.gz"), lambda path, rng: formats.read_cifar_tar(path, rng.choice((TRAIN, TEST)))),
    "set, folder": (lambda rng: b"", read_folder),
}


def one(kind, seed, folder):
    """What is wrong with how case `seed` of a kind is read, or "": a traceback, or a message that is not one line."""
    make, read = CASES[kind]
    rng, path = random.Random(f"{kind} {seed}"), Path(folder) / "file"
    path.write_bytes(make(rng))
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
            read(path, rng)
        assert said.getvalue().count("\n") < 2, said.getvalue()
    except BadInput as error:
        names_odd = kind == "set, folder"  # whose newlines are the names' own
        return (
            ""
            if names_odd or ("\n" not in str(error) and len(str(error)) < 1000)
            else f"not one line: {str(error)[:500]!r}"
        )
    except Exception:
        return traceback.format_exc()[-1500:]
    return ""


def main(kinds, seed, count, folder):
    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
    for kind in kinds.split(";"):
        for number in range(seed, seed + count):
            print(json.dumps([kind, number]), file=sys.stderr, flush=True)  # the last one, if the process dies
            signal.alarm(20)
            start = time.process_time()
            wrong = one(kind, number, folder)
            seconds = time.process_time() - start
            status = Path(
                "/proc/self/status"
            ).read_text()  # getrusage's peak is that of the process that started us, too
            peak = int(re.search(r"VmHWM:\s+(\d+)", status)[1]) >> 10
            signal.alarm(0)
            if wrong or seconds > 5 or peak > 900:
                print(json.dumps([kind, number, wrong, round(seconds, 1), peak]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
