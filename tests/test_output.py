"""What is printed and drawn: any encoding, any name, any stream, any format of picture; never a traceback."""

import io
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from minivgg import figures, progress, streams
from minivgg.cli.main import main
from minivgg.errors import BadInput
from minivgg.gradcheck import check
from minivgg.insight import pictures
from minivgg.texts import in_line

ROOT = Path(__file__).parents[1]
HOSTILE = {  # names that files and classes may have, and how they are shown
    "US$ or CA$ x^{": "US$ or CA$ x^{",
    "$\\frac{": "$\\frac{",
    "\x1b[31mred\x07": "\\x1b[31mred\\x07",
    "new\nline": "new\\nline",
    "back\rto": "back\\rto",
    "\udcff\udcfe": "\\xff\\xfe",
    "\u202egnp.evil": "\\u202egnp.evil",
    "\x9b31m \u2028": "\\x9b31m \\u2028",
    "chat 猫 🐈": "chat 猫 🐈",
    "100% _ # & ~ \\ {}": "100% _ # & ~ \\ {}",
}


def test_names_are_shown_harmlessly():
    assert {name: in_line(name) for name in HOSTILE} == HOSTILE
    assert in_line("two\nlines", keep="\n") == "two\nlines"


# ---- Streams ----


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-16", "utf-8", "shift_jis"])
def test_any_encoding_takes_what_is_printed(encoding, monkeypatch):
    memory = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(memory, encoding))
    with streams.made_safe():
        print("├ ok █─ 3×3 → ⟨x, y⟩ ‖w‖ −1 … 猫 🐈 \udcff \x1b[31m\r")
    assert sys.stdout.errors == "strict"
    text = memory.getvalue().decode(encoding)
    assert "\x1b" not in text
    assert "\\xff \\x1b[31m\\r\n" in text
    if encoding == "ascii":
        assert text.startswith("\\u251c ok #- 3x3 -> <x, y> ||w|| -1 ... \\u732b \\U0001f408 \\xff")


@pytest.mark.parametrize(
    "arguments", [["bugs"], ["bugs", "show", "conv2d-dw-rotated"], ["summary", "vgg11"], ["--help"]]
)
@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_commands_print_in_any_encoding(encoding, arguments, monkeypatch):
    memory = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(memory, encoding))
    with pytest.raises(SystemExit) if "--help" in arguments else warnings.catch_warnings():
        assert main(arguments) == 0
    assert len(memory.getvalue()) > 500


class _Gone(io.RawIOBase):
    """What becomes of a pipe whose reader went away, or of a file on a full disk, after some bytes."""

    def __init__(self, error, after=0):
        self.error, self.left = error, after

    def writable(self):
        return True

    def write(self, data):
        self.left -= len(data)
        if self.left < 0:
            raise self.error
        return len(data)


@pytest.mark.parametrize("after", [0, 3000])
@pytest.mark.parametrize(("error", "status"), [(BrokenPipeError(32, "Broken pipe"), 141), (OSError(28, "No space"), 2)])
def test_a_reader_that_goes_away(error, status, after, monkeypatch, capsys):
    gone = io.TextIOWrapper(io.BufferedWriter(_Gone(error, after), 100), "utf-8", write_through=True)
    monkeypatch.setattr(sys, "stdout", gone)
    assert main(["bugs"]) == status
    assert capsys.readouterr().err == ("" if status == 141 else "output: No space\n")
    gone.buffer.raw.error, gone.buffer.raw.left = None, 1 << 30


@pytest.mark.parametrize("out", [None, "closed"])
@pytest.mark.parametrize("err", [None, "closed"])
def test_without_streams_all_goes_on(out, err, monkeypatch):
    def stream(kind):
        opened = io.StringIO()
        opened.close()
        return opened if kind else None

    monkeypatch.setattr(sys, "stdout", stream(out))
    monkeypatch.setattr(sys, "stderr", stream(err))
    assert main(["bugs"]) == 0
    assert main(["bugs", "show", "nothing"]) == 2
    with progress.tqdm(range(3)) as bar:
        assert list(bar) == [0, 1, 2]


def test_errors_are_one_line_whatever_the_name(capsys, tmp_path):
    for name in HOSTILE:
        assert main(["train", "--data", str(tmp_path / name)]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert in_line(name) in said


def test_progress_bars_keep_what_they_are_drawn_with(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    drawn = sys.stderr
    with streams.made_safe(), progress.tqdm(range(3), "outer") as outer, progress.tqdm(range(3), "inner") as inner:
        list(outer), list(inner)
        print("\x1b[2J \x1b[A\r", file=sys.stderr)
    assert "\r" in drawn.getvalue()
    assert "\x1b[A" in drawn.getvalue()
    assert "\\x1b[2J \\x1b[A\\r\n" in drawn.getvalue()


# ---- Pictures ----

STARTS = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml", "jpg": b"\xff\xd8\xff", "jpeg": b"\xff\xd8\xff"} | {
    "webp": b"RIFF", "tif": b"II*", "tiff": b"II*", "eps": b"%!PS", "ps": b"%!PS", "PNG": b"\x89PNG", "Pdf": b"%PDF"
}  # fmt: skip


def test_every_format_is_tried():
    assert {suffix.lower() for suffix in STARTS} == set(figures.FORMATS)


@pytest.mark.parametrize("suffix", STARTS)
def test_a_picture_is_what_its_name_says(suffix, tmp_path):
    figure = Figure()
    figure.subplots().plot([1, 2])
    for path in (tmp_path / f"a.{suffix}", tmp_path / f"b.tar.{suffix}"):
        assert pictures.save(figure, path) == path
        assert path.read_bytes().startswith(STARTS[suffix])
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("name", ["x", "x.gif", "x.bmp", "x.txt", "x.png.gz", "x.", ".png", "x.pgf", "x.raw"])
def test_another_suffix_is_refused_before_any_work(name, tmp_path, capsys):
    path = tmp_path / name
    commands = [["bugs", "show", "conv2d-dw-rotated"], ["compare", "vgg11"], ["see", "filters"], ["predict", "no.png"]]
    for command in commands:
        assert main([*command, "--picture", str(path)]) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert "a picture's name must end in one of .png, .pdf, .svg" in err
    report = _report()
    with pytest.raises(BadInput, match="must end in one of"):
        report.plot(path)
    assert not list(tmp_path.iterdir())


def _report():
    return check((lambda a: (a * a, a), lambda dy, a: dy * a), np.array([1.0, 2.0, 3.0]))


def test_the_gradients_picture_too(tmp_path):
    _report().plot(tmp_path / "x.pdf")
    assert (tmp_path / "x.pdf").read_bytes().startswith(b"%PDF")


def test_a_folder_that_cannot_be_written_to_is_one_line(tmp_path, capsys):
    (tmp_path / "file").touch()
    (tmp_path / "is.png").mkdir()
    for path in (tmp_path / "file" / "x.png", tmp_path / "is.png", Path("/proc/x.png"), Path("/dev/null/a/x.png")):
        assert main(["compare", "vgg11", "--no-time", "--picture", str(path)]) == 2
        assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_any_name_can_be_drawn(suffix, tmp_path):
    classes = tuple(HOSTILE)
    K = len(classes)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (8, 8, 1), dtype=np.uint8) for _ in range(K)]
    p = rng.dirichlet(np.ones(K), K).astype("f4")
    heats = [[rng.random((4, 4))] for _ in range(K)]
    drawn = {
        "confusion": pictures.confusion(rng.integers(0, K, 50), rng.integers(0, K, 50), classes),
        "mistakes": pictures.mistakes(images, np.arange(K), p, classes),
        "predictions": pictures.predictions(images, p, classes, K),
        "heat": pictures.heat(images, heats, list(classes), ["a$b$c_{"], "$\\frac{"),
        "alike": pictures.alike(images, [images[:1]] * K, list(classes), [[name] for name in classes]),
        "maps": pictures.maps(rng.random((3, 4, 4)), images[0], "$\\frac{ layer"),
    }
    for name, figure in drawn.items():
        assert pictures.save(figure, tmp_path / f"{name}.{suffix}", dpi=30).stat().st_size > 500


def test_powers_of_ten_are_still_set(tmp_path):
    spread = [("conv", 1.0, 1e-3), ("fc", 10.0, 1e-5)]
    pictures.save(figure := pictures.spreads({"he": spread}), tmp_path / "x.png")
    label = figure.axes[1].get_yticklabels()[2]
    assert label.get_parse_math()
    assert "\\mathdefault" in label.get_text()


# ---- All of it, from pictures in folders of such names to a prediction ----


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_network_of_classes_with_any_names(tmp_path):
    rng = np.random.default_rng(0)
    for k, name in enumerate(HOSTILE):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(5):
            image = Image.fromarray(rng.integers(20 * k, 20 * k + 40, (32, 32), dtype=np.uint8))
            image.save(tmp_path / "data" / name / f"{name}{i}.png")
    options = ["--width", "0.1", "--classifier-width", "16", "--batch-size", "10", "--epochs", "1", "--size", "32"]

    def run(*arguments, encoding):
        command = [sys.executable, "-m", "minivgg", *map(os.fsencode, arguments)]
        environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, timeout=300)
        assert (done.returncode, done.stderr) == (0, b"")
        assert not {*b"\x1b\x07\r\x9b"} & {*done.stdout.replace("猫".encode(), b"").replace("🐈".encode(), b"")} - {
            0x9B
        }
        return done.stdout.decode(encoding)

    assert "10 classes" in run("train", "--data", "data", "--run", "run", "--quiet", *options, encoding="ascii")
    images = [str(path) for path in (tmp_path / "data").glob("*/*0.png")]
    printed = run("predict", *images, "--run", "run", "--top", "10", encoding="utf-8")
    for shown in HOSTILE.values():
        assert f"  {shown} " in printed
        assert f"/{shown}/{shown}0.png\n" in printed
    assert printed.count("\n") == len(images) * 11 + 1
