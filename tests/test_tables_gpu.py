"""What is said of a race on a GPU: the tables and the pictures of a record that is made up, and stands nowhere."""

from minivgg.bench import conv, pictures
from minivgg.bench.tables import tables
from minivgg.insight.pictures import save

LIMITS = {"fp32_gflops": 10.0, "tf32_gflops": 20.0, "fp16_gflops": 40.0, "read_gbs": 1.0, "copy_gbs": 2.0}


def made_up():
    """Not a measurement: one layer of three, at 1, 2 and 4 seconds, where cuDNN's Winograd takes 1."""
    algorithms = [{"name": "WINOGRAD_NONFUSED", "seconds": 1.0, "error": 1e-6}]
    algorithms.append({"name": "ALGO_1", "seconds": 3.0, "error": 2e-7})

    def result(seconds, **more):
        spread = {"lower": seconds, "upper": seconds, "samples": 3, "memory_bytes": 2.5e9}
        said = {"gflops": 8 / seconds, "share_of_limit": 0.5 / seconds, "times_rival": 1 / seconds, "error": 1e-7}
        return {"seconds": seconds, **spread, **said, **more}

    rows = []
    for direction in conv.DIRECTIONS:
        results = {
            "minivgg a": result(2.0) if direction == "forward" else {"unsupported": "no"},
            "minivgg b": result(4.0),
            "cuDNN NCHW": result(1.0, chosen="WINOGRAD_NONFUSED", algorithms=algorithms),
        }
        about = {"precision": "fp32", "batch": 32, "layers": ["conv3_2", "conv3_3"], "pass": direction, "flop": 8e9}
        rows.append({**about, "bytes": 1, "results": results})
    machine = {"GPU": "Fake GPU", "CuPy": "0", "cuDNN": "9", "CUDA driver": "1", "PyTorch": "not installed"}
    settings = {"size": 224, "samples": 3, "turn": 1, "seconds": 1}
    about = {"race": "conv_gpu", "date": "2030-01-01", "machine": machine, "settings": settings, "limits": LIMITS}
    return {**about, "lacks": [], "contestants": list(results), "rows": rows}


def test_the_tables_of_convolutions():
    overview, part, algorithms, every = tables(made_up())
    assert overview.head == ["", "fp32, batch 32"]
    assert overview.rows == [
        ["minivgg a", ""],
        ["minivgg b", "24.0 s (0.25×)"],
        ["cuDNN NCHW", "6.00 s (1.00×)"],
        ["cuDNN without Winograd", "18.0 s (0.33×)"],
    ]
    assert part.head[-1] == "× cuDNN without Winograd"
    assert [line[-1] for line in part.rows] == ["", "0.75×", "3.00×", "1.00×"]
    assert part.rows[0][1:5] == ["4.00 s (0.50×)", "", "", ""]
    assert algorithms.rows == [
        ["cuDNN NCHW", "WINOGRAD_NONFUSED", *["2.00 s"] * 3, "6"],
        ["cuDNN NCHW", "ALGO_1", *["6.00 s"] * 3, ""],
    ]
    assert every.rows[0][:3] == ["fp32, batch 32, conv3_2–3 forward", "minivgg a", "2.00 s"]
    assert "0.0 TFLOP/s strict float32" in overview.caption and "2 GB/s" in overview.caption
    assert "PyTorch not" not in overview.caption


def test_the_table_of_networks(tmp_path):
    record = made_up()
    task = {"task": "step-224-32", "what": "step", "size": 224, "batch": 32, "classes": 10}
    rows = [row | task for row in record["rows"][:1]]
    record |= {"race": "vgg_gpu", "rows": rows}
    table, _ = tables(record)
    assert table.rows[0] == [
        "training step, 32 images of 224×224, strict float32",
        "2.00 s (0.50×)",
        "4.00 s (0.25×)",
        "1.00 s (1.00×)",
    ]
    assert table.rows[1] == ["", "2.50 GB", "2.50 GB", "2.50 GB"]
    save(pictures.picture(record), tmp_path / "race.png")
