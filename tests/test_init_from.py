"""`minivgg train --init-from RUN`: a deep net started from a trained shallow one, and resumed without it."""

import shutil

import numpy as np
import pytest
from test_loop import stripes

from minivgg.cli.main import main
from minivgg.errors import BadInput
from minivgg.models.roles import roles
from minivgg.training.config import Config
from minivgg.training.run import Run, load_model

SMALL = {"width": 0.1, "classifier_width": 16, "batch_size": 10, "epochs": 2, "lr": 0.01, "dropout": 0.5}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """An .npz of striped images, and beside it a trained net A."""
    folder = tmp_path_factory.mktemp("data")
    train, test = stripes(50, 0), stripes(20, 1)
    arrays = {"train_images": train.images, "train_labels": train.labels, "test_images": test.images}
    np.savez(folder / "stripes.npz", **arrays, test_labels=test.labels, classes=np.array(train.classes))
    a = Run(config(folder, "A"), folder / "A")
    a.trainer.fit(a.save, progress=False)
    return folder


def config(folder, model, **changes):
    return Config(**{"data": str(folder / "stripes.npz"), "model": model, **SMALL, **changes})


def test_a_run_starts_from_another(data):
    a, _, _ = load_model(data / "A")
    run, plain = Run(config(data, "D", init_from=str(data / "A")), data / "x"), Run(config(data, "D"), data / "y")
    assert run.transfer.copied == ("conv1_1", "conv2_1", "conv3_1", "conv3_2", "fc6", "fc7", "fc8")
    assert plain.transfer is None
    sources = {**roles(plain.trainer.model), **{role: roles(a)[role] for role in run.transfer.copied}}
    for role, layer in roles(run.trainer.model).items():
        np.testing.assert_array_equal(layer.weight.data, sources[role].weight.data)
        np.testing.assert_array_equal(layer.bias.data, sources[role].bias.data)


@pytest.mark.parametrize("stop", [2, 7])  # batches; an epoch has five
def test_it_resumes_bit_for_bit_and_without_the_other_run(data, tmp_path, stop):
    shutil.copytree(data / "A", tmp_path / "A")
    settings = config(data, "D", init_from=str(tmp_path / "A"))
    whole = Run(settings, tmp_path / "whole")
    whole.trainer.fit(whole.save, progress=False)

    first = Run(settings, tmp_path / "first")
    first.save()
    step, steps = first.trainer.step, []

    def until(x, labels):
        steps.append(1)
        if len(steps) > stop:
            first.save()
            raise KeyboardInterrupt
        return step(x, labels)

    first.trainer.step = until
    with pytest.raises(KeyboardInterrupt):
        first.trainer.fit(first.save, progress=False)
    shutil.rmtree(tmp_path / "A")
    second = Run.resume(tmp_path / "first")
    assert second.trainer.epoch * 5 + second.trainer.batch == stop
    assert second.config == settings
    second.trainer.fit(second.save, progress=False)
    one, two = whole.trainer.arrays(), second.trainer.arrays()
    assert one.keys() == two.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(two[name], value, strict=True)


def options(data, *more):
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    return ["train", "--data", str(data / "stripes.npz"), "--quiet", *flags, *more]


def test_the_command_says_what_was_copied(data, tmp_path, capsys):
    more = ["--model", "D", "--epochs", "1", "--init-from", str(data / "A"), "--run", str(tmp_path / "D")]
    assert main(options(data, *more)) == 0
    said = f"from {data / 'A'}: conv1_1, conv2_1, conv3_1, conv3_2, fc6, fc7, fc8 ("
    printed = capsys.readouterr().out
    assert said in printed
    assert "values); as initialised: conv1_2, conv2_2, conv3_3, conv4_1" in printed
    assert main(["train", "--resume", str(tmp_path / "D"), "--quiet"]) == 0
    assert "as initialised" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["--width", "0.2"],
            "A: cannot start from this run: the weight of conv1_1 is (6, 1, 3, 3), the new",
        ),
        (["--model", "vgg16_bn"], "A: cannot start from this run: only the new one has batch norms"),
        (["--init-from", "nowhere"], "nowhere: no such file"),
    ],
)
def test_a_mistake_is_one_line(data, tmp_path, capsys, more, message):
    more = ["--model", "D", "--init-from", str(data / "A"), "--run", str(tmp_path / "D"), *more]
    assert main(options(data, *more)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "D").exists()


def test_a_missing_run_is_named_when_beginning(data):
    with pytest.raises(BadInput, match="gone"):
        Run(config(data, "D", init_from=str(data / "gone")), data / "z")
