"""The races: who is asked for what and when, what is made of the samples, and what is said about it."""

import json
import os
import sys
import time
from functools import partial

import numpy as np
import pytest
from PIL import Image

from minivgg.bench import conv, pytorch, race, record, vgg
from minivgg.bench import worker as bench_worker
from minivgg.bench.race import Failed, Result, Worker, heat
from minivgg.bench.tables import Table, duration, summary, tables, times
from minivgg.cli.main import main
from minivgg.errors import BadInput
from minivgg.insight.ledger import ledger
from minivgg.models import build
from minivgg.ops.conv2d import ALGORITHMS, plan, planning

MACHINE = {"CPU": "2 cores", "Python": "3.11.7 (Linux)", "NumPy": "2", "Numba": "0.68", "PyTorch": "2.13"}


class Fake:
    """A worker that writes down what it is asked, takes `seconds` for a sample, and fails at the question `fails`."""

    def __init__(self, name, seconds=1.0, fails=None):
        self.name, self.seconds, self.fails, self.log = name, seconds, fails, []

    def ask(self, method, *arguments):
        self.log.append((self.name, method))
        if method == self.fails:
            raise Failed("no")
        return {"sample": self.seconds, "finish": (10, "value")}.get(method)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(race, "PAUSE", 0)


def run_fakes(*fakes, **settings):
    log = []
    for fake in fakes:
        fake.log = log
    settings = {"samples": 3, "turn": 0.1, "seconds": 100} | settings
    results, _ = heat({fake.name: (fake, None) for fake in fakes}, **settings)
    return results, log


def test_everybody_warms_up_then_samples_are_interleaved():
    results, log = run_fakes(Fake("a", 1.0), Fake("b", 2.0))
    started = [(name, question) for name in "ab" for question in ("prepare", "warm_up")]
    assert log == [
        *started,
        *[("a", "sample"), ("b", "sample")] * 3,
        ("a", "finish"),
        ("b", "finish"),
    ]
    assert [results[name].median for name in "ab"] == [1.0, 2.0]
    assert results["a"].memory == 10
    assert results["a"].value == "value"


def test_the_slow_stop_early_but_never_without_a_sample():
    results, _ = run_fakes(Fake("a", 1.0), Fake("b", 40.0), Fake("c", 1000.0), samples=5)
    assert [len(results[name].samples) for name in "abc"] == [5, 2, 1]


@pytest.mark.parametrize("question", ["prepare", "warm_up", "sample", "finish"])
def test_who_fails_is_out_and_the_others_race_on(question):
    results, log = run_fakes(Fake("a", fails=question), Fake("b"))
    assert results["a"] == Result(failure="no")
    assert len(results["b"].samples) == 3
    assert log.count(("a", question)) == 1


def test_medians_and_quartiles():
    found = Result([5.0, 1.0, 2.0, 4.0, 30.0], memory=7).as_dict()
    assert found == {"seconds": 4.0, "lower": 2.0, "upper": 5.0, "samples": 5, "memory_bytes": 7}


def test_a_race_needs_samples_time_and_threads():
    for settings in ({"samples": 0}, {"seconds": 0}, {"threads": 0}, {"threads": 10**4}):
        with pytest.raises(BadInput):
            race.check(**{"samples": 1, "seconds": 1.0} | settings)


def test_neighbours_are_seen():
    """Between two looks: 30 ticks of work, 60 of idling and 10 of waiting for the disk."""
    looks = iter([np.zeros(7), np.array([20, 0, 10, 60, 10, 0, 0], float)])
    neighbours = race.Neighbours()
    assert neighbours.busy is None
    neighbours._ticks = lambda: next(looks)
    neighbours.pause()
    assert neighbours.busy == pytest.approx(0.3)


# ---- Processes


@pytest.fixture(scope="module")
def worker():
    with Worker(2) as worker:
        yield worker


def test_a_worker_samples_and_answers(worker):
    worker.ask("prepare", partial(partial, time.sleep, 0.02))
    worker.ask("warm_up")
    assert 0.02 <= worker.ask("sample", 0.01) < 1
    worker.ask("prepare", partial(partial, os.getenv, "NUMBA_NUM_THREADS"))
    assert worker.ask("finish", True)[1] == "2"
    worker.ask("prepare", partial(partial, print, "noise"))
    assert worker.ask("finish", True)[1] is None


def test_a_turn_is_the_mean_of_many_runs_after_half_as_long_to_warm_up(monkeypatch):
    """On a clock that only the task moves: two long runs at first, and then short ones."""
    now, lengths = [0.0], []

    def task():
        lengths.append(0.3 if len(lengths) < 2 else 0.25)
        now[0] += lengths[-1]

    monkeypatch.setattr(bench_worker.time, "perf_counter", lambda: now[0])
    contestant = bench_worker.Contestant()
    contestant.prepare(lambda: task)
    assert contestant.sample(1.0) == 0.25
    assert len(lengths) == 2 + 4
    assert contestant.sample(0.2) == 0.25
    assert len(lengths) == 6 + 2


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says")
def test_a_worker_weighs_its_task_alone(worker):
    worker.ask("prepare", partial(partial, bytearray, 200_000_000))
    worker.ask("warm_up")
    heavy, _ = worker.ask("finish", False)
    worker.ask("prepare", partial(partial, bytearray, 1000))
    worker.ask("warm_up")
    light, _ = worker.ask("finish", False)
    assert 190e6 < heavy < 300e6  # the kernel counts roughly
    assert light < 100e6


def test_errors_in_a_worker_are_told_and_survived(worker):
    worker.ask("prepare", partial(partial, int, "seven"))
    with pytest.raises(Failed, match=r"ValueError: invalid literal for int.*'seven'"):
        worker.ask("warm_up")
    with pytest.raises(Failed, match="the process died, exit status 3"):
        worker.ask("prepare", partial(os._exit, 3))
    worker.ask("prepare", partial(partial, abs, -5))
    assert worker.ask("finish", True)[1] == 5


def test_an_import_that_fails_is_told():
    with Worker(1, ("no_such_module",)) as worker, pytest.raises(Failed, match="no_such_module"):
        worker.ask("warm_up")


# ---- What is raced


def test_the_layers_are_those_of_the_network():
    book = ledger(build("vgg16", init="zeros"), (2, 3, 224, 224))
    convolutions = [row for row in book.rows if row.layer.startswith("Conv2d")]
    specs = conv.layers(2, 224)
    assert [spec.macs for spec in specs.values()] == [row.macs for row in convolutions]
    assert [*specs][::12] == ["conv1_1", "conv5_3"]


@pytest.mark.parametrize("direction", conv.DIRECTIONS)
def test_ours_do_what_the_reference_does(direction):
    spec = conv.layers(1, 32)["conv4_1"]
    value = conv.prepare(partial(conv.ours, algorithm="auto"), spec, direction)()
    assert value.dtype == np.float32
    assert record.error(value, conv.reference(spec, direction)) < 1e-5


def test_an_answer_that_is_wrong_is_no_result(monkeypatch):
    reference = np.array([3.0, 4.0])
    values = {"minivgg right": reference + 1e-6, "minivgg wrong": reference + 1, "PyTorch": reference}
    found = {name: Result([0.5], value=value) for name, value in values.items()}
    found |= {record.PEAK: Result([0.5], value=50e9), "PyTorch NCHW": Result(failure="no")}
    monkeypatch.setattr(record, "heat", lambda entries, **settings: (found, 0.25))
    limits = {"fma_gflops": 1.0, "read_gbs": 40.0}
    row = record.race({}, None, flop=10e9, nbytes=1e9, limits=limits, reference=reference)
    assert row["results"]["minivgg wrong"] == {"failure": "the result is wrong: its error is 2.8e-01"}
    assert row["results"]["PyTorch NCHW"] == {"failure": "no"}
    right = row["results"]["minivgg right"]
    assert (right["gflops"], right["times_pytorch"]) == (20, 1)
    assert right["share_of_limit"] == pytest.approx(0.1 / 0.5)  # 10 GFLOP at 100 GFLOP/s; the bytes take 25 ms
    assert (row["fma_gflops"], row["busy"]) == (100, 0.25)


@pytest.mark.slow
def test_a_race_of_naive_and_im2col_from_end_to_end(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(pytorch, "installed", lambda: False)
    files = ["--json", str(tmp_path / "race.json"), "--picture", str(tmp_path / "race.png")]
    assert main(["bench", "conv", "--quick", "--quiet", "--details", "--algorithms", "naive", "im2col", *files]) == 0
    printed = capsys.readouterr()
    assert "pip install 'minivgg[bench]'" in printed.err
    assert "minivgg naive" in printed.out
    found = json.loads((tmp_path / "race.json").read_text())
    assert found["contestants"] == ["minivgg naive", "minivgg im2col"]
    assert [(row["layers"], row["pass"]) for row in found["rows"]] == [
        ([name], direction) for name in conv.QUICK for direction in conv.DIRECTIONS
    ]
    for row in found["rows"]:
        naive, im2col = row["results"].values()
        assert min(naive["seconds"], im2col["seconds"]) > 0
        assert max(naive["error"], im2col["error"]) < 1e-6
        assert naive["times_pytorch"] is None
    with Image.open(tmp_path / "race.png") as image:
        image.load()


@pytest.mark.slow
def test_a_race_of_networks_from_end_to_end(monkeypatch, tmp_path):
    monkeypatch.setattr(pytorch, "installed", lambda: False)
    files = ["--json", str(tmp_path / "race.json"), "--picture", str(tmp_path / "race.png")]
    assert main(["bench", "vgg", "--quick", "--quiet", *files]) == 0
    forward, step = json.loads((tmp_path / "race.json").read_text())["rows"]
    assert forward["results"]["minivgg"]["error"] < 1e-5
    assert step["flop"] == pytest.approx(3 * forward["flop"], rel=0.1)
    assert step["results"]["minivgg"]["seconds"] > 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("conv --samples 0", "at least one sample"),
        ("conv --seconds 0", "must be positive"),
        ("vgg --threads 0", "threads must be from 1"),
        ("conv --batch-size 0", "at least one image"),
        ("conv --input-size 16", "at least 32 pixels"),
        ("conv --algorithms fft", 'no algorithm "fft"'),
        ("conv --layers conv6_1", 'no layer "conv6_1" in VGG-16; there are conv1_1'),
        ("vgg --tasks forward", 'no task "forward"; there are forward-224-8'),
    ],
)
def test_bad_input_is_one_line(arguments, says, monkeypatch, capsys):
    monkeypatch.setattr(pytorch, "installed", lambda: True)
    assert main(["bench", *arguments.split()]) == 2
    printed = capsys.readouterr().err
    assert says in printed
    assert printed.count("\n") == 1


# ---- What is said


def conv_record(rival=True):
    """Two geometries, one of them twice in the network; of one, `fast` does nothing, and `slow` fails at a pass."""

    def result(seconds):
        ratio = 2 / seconds if rival else None
        spread = {"lower": seconds - 0.5, "upper": seconds + 0.5, "samples": 3, "memory_bytes": None}
        said = {"gflops": 8 / seconds, "share_of_limit": 1 / seconds, "times_pytorch": ratio, "error": 1e-7 * seconds}
        return {"seconds": seconds, **spread, **said}

    rows = []
    for layers in (["conv1_1"], ["conv3_2", "conv3_3"]):
        for direction in conv.DIRECTIONS:
            fast = {"unsupported": "too few channels"} if len(layers) == 1 else result(1)
            slow = {"failure": "died"} if direction == "grad_weight" else result(4)
            results = {"minivgg fast": fast, "minivgg slow": slow} | ({"PyTorch NCHW": result(2)} if rival else {})
            heat = {"flop": 8e9, "bytes": 1, "fma_gflops": 100.0, "busy": 0.2 if direction == "forward" else 0.01}
            rows.append({"layers": layers, "pass": direction, "results": results, **heat})
    settings = {"threads": 2, "batch": 8, "size": 224, "samples": 3, "turn": 0.05, "seconds": 9}
    limits = {"fma_gflops": 100, "read_gbs": 10.0, "copy_gbs": 20.0, "triad_gbs": 15.0}
    about = {"race": "conv", "date": "2030-01-01", "machine": MACHINE, "settings": settings, "limits": limits}
    return {**about, "contestants": list(results), "rows": rows}


def test_the_table_of_convolutions():
    table = summary(conv_record())
    assert table.head[-3:] == ["each layer", "of the limit", "error up to"]
    fast, slow, rival = table.rows
    assert fast == ["minivgg fast", *["2.00 s (2.00×)*"] * 3, "", "2.00–2.00×", "100%", "1.0e-07"]
    assert slow == ["minivgg slow", *["12.0 s (0.50×)"] * 2, "", "", "0.50–0.50×", "25%", "4.0e-07"]
    assert rival[4] == "18.0 s (1.00×)"
    assert "the 3 convolutions of VGG-16 at batch 8" in table.caption
    assert "* Only the layers" in table.caption
    assert "100 GFLOP/s" in table.caption
    assert "20 GB/s" in table.caption
    assert "In 2 of 6 heats other programs took 5% to 20% of the cores" in table.caption


def test_details_give_reasons():
    details = tables(conv_record())[1]
    assert details.rows[0] == ["conv1_1 forward", "minivgg fast", "not done", *[""] * 6]
    assert details.rows[9][:5] == ["conv3_2–3 forward", "minivgg fast", "1.00 s", "500 ms – 1.50 s", "2.00×"]
    assert details.caption.endswith("minivgg fast: too few channels\nminivgg slow: died")


def test_without_pytorch_there_are_no_ratios():
    found = summary(conv_record(rival=False))
    assert "each layer" not in found.head
    assert "×" not in "".join(cell for row in found.rows for cell in row)
    assert "PyTorch" not in found.caption.split("Race again")[0].split("In 2 of")[0]


def test_the_table_of_networks():
    found = conv_record()
    results = found["rows"][-1]["results"]
    task = {"what": "step", "size": 32, "batch": 1, "results": results}
    table = summary(found | {"race": "vgg", "rows": [found["rows"][-1] | task]})
    assert table.head == ["", "minivgg fast", "minivgg slow", "PyTorch NCHW"]
    assert table.rows == [["training step, 1 image of 32×32", "1.00 s (2.00×)", "failed", "2.00 s (1.00×)"]]
    assert "minivgg slow: died" in table.caption


def test_a_table_is_aligned():
    assert str(Table(["", "time"], [["a", "1 s"], ["long", "10 s"]], "said")).splitlines() == [
        "      time",
        "──────────",
        "a      1 s",
        "long  10 s",
        "",
        "said",
    ]


def test_durations_have_three_digits():
    assert [duration(s) for s in (12.34, 1.0, 0.1234, 0.001234, 0.00001234, 1e-8)] == [
        *["12.3 s", "1.00 s", "123 ms", "1.23 ms", "12.3 µs", "0.0100 µs"]
    ]
    assert times(1.006) == "1.01×"


# ---- PyTorch, where it is installed


@pytest.mark.parametrize("channels_last", [False, True])
def test_pytorch_computes_the_same(channels_last, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    task = vgg.QUICK[0]
    scores = vgg.theirs(task, channels_last=channels_last)()
    assert record.error(scores, vgg.ours(task)().astype(float)) < 1e-5
    assert vgg.theirs(vgg.QUICK[1], channels_last=channels_last)() == pytest.approx(np.log(10), rel=0.3)
    spec = conv.layers(1, 32)["conv3_1"]
    for direction in conv.DIRECTIONS:
        rival = partial(pytorch.convolution, channels_last=channels_last)
        value = conv.prepare(rival, spec, direction)()
        assert record.error(value, conv.reference(spec, direction)) < 1e-6


# ---- Tuning ----


def test_tuning_is_believed_and_kept(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("MINIVGG_TUNING", str(tmp_path / "folder" / "table.json"))
    planning.measurements.cache_clear()
    try:
        assert main(["bench", "conv", "--tune", "--quick", "--quiet"]) == 0
        printed = capsys.readouterr().out
        assert "plan was" in printed and str(tmp_path) in printed
        (table,) = json.loads((tmp_path / "folder" / "table.json").read_text()).values()
        specs = conv.layers(1, 32)
        assert len(table) == len(conv.QUICK) * 3
        for name in conv.QUICK:
            for direction in conv.DIRECTIONS:
                times = table[planning.key(specs[name], direction)]
                assert set(times) == {n for n in ALGORITHMS if n not in ("naive", "tf32", "fp16x3")}
                assert plan(specs[name], direction).name == min(times, key=times.get)
        before = (tmp_path / "folder" / "table.json").read_text()
        assert (
            main(
                ["bench", "conv", "--tune", "--quiet", "--batch-size", "1", "--input-size", "32", "--layers", "conv5_1"]
            )
            == 0
        )
        after = json.loads((tmp_path / "folder" / "table.json").read_text())
        assert next(iter(json.loads(before).values())).items() <= next(iter(after.values())).items()  # nothing is lost
    finally:
        planning.measurements.cache_clear()


def test_tuning_refuses_threads_that_are_not_there(capsys):
    assert main(["bench", "conv", "--tune", "--threads", "1000"]) == 2
    assert "--threads must be from 1 to" in capsys.readouterr().err
