"""`minivgg weights`, and downloads: from a local server, since tests have no network."""

import hashlib
import http.server
import importlib.util
import re
import threading

import numpy as np
import pytest
import weight_files
from safetensors.numpy import load_file

from minivgg import build, weights
from minivgg.cli.main import main
from minivgg.errors import BadInput
from minivgg.weights import sources

SMALL = {"width": 0.125, "classes": 7, "classifier_width": 24, "input_size": 64}


def run(*arguments, status=0):
    assert main(["weights", *map(str, arguments)]) == status


@pytest.fixture
def timm_file(tmp_path):
    """A small VGG-16 as timm would publish it, and its state dict in torchvision's names."""
    state = build("vgg16", **SMALL, seed=5).state_dict()
    weight_files.write_safetensors(weight_files.timm_state(state, channels=64), tmp_path / "timm.safetensors")
    return tmp_path / "timm.safetensors", state


def test_list_names_licences_and_what_is_here(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("MINIVGG_CACHE", str(tmp_path))
    (tmp_path / weights.SOURCES["vgg19"].file).write_bytes(b"x")
    run("list")
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert re.search(r"CC BY 4\.0 +ships +the first seven convolutions", rows["oxford"])
    assert re.search(r"BSD-3-Clause +no +ImageNet", rows["vgg16"])
    assert re.search(r"BSD-3-Clause +yes +ImageNet", rows["vgg19"])


def test_inspect_prints_names_and_what_fits(timm_file, capsys):
    run("inspect", timm_file[0])
    printed = capsys.readouterr().out
    assert re.search(r"^  pre_logits\.fc1\.weight +\(24, 64, 2, 2\) +float32$", printed, re.MULTILINE)
    assert "vgg16 (classes=7, width=0.125, input_size=64, classifier_width=24)" in printed
    assert "vgg19" not in printed
    run("inspect", "oxford")
    assert re.search(r"14 arrays, 1,735,488 values\nfits a part of .*vgg16.*vgg16_bn", capsys.readouterr().out)


def test_inspect_of_what_fits_nothing(tmp_path, capsys):
    np.savez(tmp_path / "a.npz", x=np.ones(3))
    run("inspect", tmp_path / "a.npz")
    assert capsys.readouterr().out.endswith("1 arrays, 3 values\nfits no network of minivgg's\n")


def test_convert_writes_torchvisions_names(timm_file, tmp_path, capsys):
    run("convert", timm_file[0], tmp_path / "out.safetensors", "--model", "vgg16")
    assert "loaded     32 of 32 arrays" in capsys.readouterr().out
    found = load_file(tmp_path / "out.safetensors")
    assert found.keys() == timm_file[1].keys()
    for name, value in timm_file[1].items():
        np.testing.assert_array_equal(found[name], value)


def test_convert_says_what_images_oxfords_filters_want(tmp_path, capsys):
    model = build("vgg16", classes=3, classifier_width=4, input_size=32)
    weights.load(model, "oxford")
    weights.save(model, tmp_path / "a.safetensors")
    run("convert", tmp_path / "a.safetensors", tmp_path / "b.safetensors", "--model", "vgg16")
    assert "warning    the first layer is Oxford's" in capsys.readouterr().out


MISTAKES = {
    "no such file": (["inspect", "none.pth"], "none.pth: no such file, nor a name of weights, which are oxford"),
    "unknown weights": (["download", "resnet"], 'no weights "resnet"; there are oxford, vgg11, vgg16'),
    "not downloaded yet": (["inspect", "vgg16"], "vgg16: not here yet; fetch it with: minivgg weights download vgg16"),
    "another network": (
        ["convert", "{file}", "{out}", "--model", "vgg19"],
        r"does not fit the network: missing",
    ),
    "no such network": (["convert", "{file}", "{out}", "--model", "vgg12"], 'no model "vgg12"'),
    "another suffix": (
        ["convert", "{file}", "a.onnx", "--model", "vgg16"],
        r"a\.onnx: weights are written as \.safetensors, \.npz",
    ),
    "a part": (["convert", "oxford", "{out}", "--model", "vgg16"], "oxford: holds some layers of vgg16 only"),
    "not weights": (["inspect", __file__], "offset 0: '22 22 22 .*' begins no safetensors, npz, PyTorch or HDF5 file"),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_and_status_2(arguments, message, timm_file, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MINIVGG_CACHE", str(tmp_path / "cache"))
    run(*(a.format(file=timm_file[0], out=tmp_path / "out.safetensors") for a in arguments), status=2)
    error = capsys.readouterr().err
    assert re.search(message, error)
    assert error.startswith("minivgg: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("command", [[], ["list"], ["download"], ["inspect"], ["convert"]])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as end:
        main(["weights", *command, "--help"])
    assert end.value.code == 0
    assert f"usage: minivgg weights {' '.join(command)}".rstrip() in capsys.readouterr().out


@pytest.fixture
def server(tmp_path, monkeypatch, timm_file):
    """Serves the small VGG-16 under its published name; gives the requests seen so far and a way to stop."""
    requests = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            content = timm_file[0].read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    known = weights.SOURCES["vgg16"]
    changed = {"url": f"http://127.0.0.1:{running.server_port}/model.safetensors"}
    changed["hash"] = f"sha256:{hashlib.sha256(timm_file[0].read_bytes()).hexdigest()}"
    monkeypatch.setitem(weights.SOURCES, "vgg16", sources.Known(**vars(known) | changed))
    monkeypatch.setenv("MINIVGG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def stop():
        running.shutdown()
        running.server_close()
        thread.join()

    yield requests, stop
    if thread.is_alive():
        stop()


needs_pooch = pytest.mark.skipif(not importlib.util.find_spec("pooch"), reason="pooch is not installed")


@needs_pooch
def test_download_once_then_offline(server, timm_file, capsys):
    requests, stop = server
    model = build("vgg16", **SMALL, init="zeros")
    with pytest.raises(BadInput, match="vgg16: not here yet; fetch it with: minivgg weights download vgg16"):
        weights.load(model, "vgg16")
    assert requests == []  # nothing is downloaded unless asked
    run("download", "vgg16")
    printed = capsys.readouterr()
    assert "vgg16.tv_in1k.safetensors: ImageNet" in printed.out
    assert "100%" in printed.err  # the progress bar
    stop()
    run("download", "vgg16")
    assert requests == ["/model.safetensors"]
    assert weights.load(model, "vgg16").convention == "timm"
    for name, value in timm_file[1].items():
        np.testing.assert_array_equal(model.state_dict()[name], value)


@needs_pooch
def test_another_hash_is_refused(server, capsys, monkeypatch):
    wrong = sources.Known(**vars(weights.SOURCES["vgg16"]) | {"hash": f"sha256:{'0' * 64}"})
    monkeypatch.setitem(weights.SOURCES, "vgg16", wrong)
    run("download", "vgg16", status=2)
    error = capsys.readouterr().err
    assert re.search(r"^minivgg: http://127\.0\.0\.1.*cannot be fetched: SHA256 hash", error, re.MULTILINE)
    assert not wrong.path.exists()
    assert not list(wrong.path.parent.glob("*"))


@needs_pooch
def test_no_network(server, capsys):
    _, stop = server
    stop()
    run("download", "vgg16", status=2)
    assert re.search(r"^minivgg: http://127\.0\.0\.1.*cannot be fetched: ", capsys.readouterr().err, re.MULTILINE)
    assert not weights.SOURCES["vgg16"].path.exists()


def test_without_pooch_one_line_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "pooch", None)
    run("download", "vgg16", status=2)
    assert capsys.readouterr().err == ("minivgg: vgg16: downloading needs pooch: pip install 'minivgg[weights]'\n")


def test_what_ships_needs_no_download(capsys):
    run("download", "oxford")
    assert "vgg16_oxford_conv7.npz" in capsys.readouterr().out


def test_published_hashes_are_whole():
    for name, known in weights.SOURCES.items():
        if known.url:
            kind, _, digits = known.hash.partition(":")
            assert re.fullmatch("[0-9a-f]+", digits), name
            assert len(digits) == {"sha256": 64, "md5": 32}[kind], name
            assert known.url.startswith("https://")
