"""Pictures are drawn from awkward data too, and say what they should."""

import numpy as np
import pytest
from PIL import Image

from minivgg.insight import pictures

RNG = np.random.default_rng(0)
CLASSES = ("cat", "dog", "a class with a rather long name")


def row(epoch):
    numbers = {"lr": 0.1, "train_loss": 1.0, "test_loss": 0.9, "train_accuracy": 0.5, "test_accuracy": 0.61}
    return {"epoch": epoch, **numbers}


def drawn(figure, tmp_path):
    path = pictures.save(figure, tmp_path / "picture.png", dpi=50)
    with Image.open(path) as image:
        image.load()
        return image.size


@pytest.mark.parametrize("epochs", [1, 2, 40])
def test_curves(epochs, tmp_path):
    figure = pictures.curves([row(e) for e in range(1, epochs + 1)])
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["Loss", "Accuracy: 61.00% on the test set", "Learning rate"]
    assert drawn(figure, tmp_path) == (600, 190)


@pytest.mark.parametrize("count", [0, 1, 50])
def test_confusion_counts(count, tmp_path):
    labels, predicted = RNG.integers(0, 3, (2, count))
    figure = pictures.confusion(predicted, labels, CLASSES)
    written = sum(int(text.get_text()) for text in figure.axes[0].texts)
    assert written == count
    assert drawn(figure, tmp_path)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (8, 3, 3, 3), (64, 3, 11, 11), (10, 16, 3, 3)])
def test_filters(shape, tmp_path):
    assert drawn(pictures.filters(RNG.standard_normal(shape)), tmp_path)


def test_filters_of_zeros(tmp_path):
    assert drawn(pictures.filters(np.zeros((4, 1, 3, 3))), tmp_path)


def test_worst_are_wrong_answers_in_order():
    scores = np.log(np.array([[0.9, 0.1, 1e-3], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1], [0.05, 0.05, 0.9]]))
    labels = np.array([1, 1, 2, 0])
    assert pictures.worst(scores, labels).tolist() == [3, 0, 2]
    assert pictures.worst(scores, labels, 1).tolist() == [3]


@pytest.mark.parametrize("count", [0, 1, 24])
@pytest.mark.parametrize("channels", [1, 3])
def test_mistakes(count, channels, tmp_path):
    images = list(RNG.integers(0, 256, (count, 28, 28, channels), np.uint8))
    figure = pictures.mistakes(images, RNG.integers(0, 3, count), RNG.standard_normal((count, 3)), CLASSES)
    assert drawn(figure, tmp_path)


def test_predictions_show_the_top_classes(tmp_path):
    p = np.array([[0.1, 0.7, 0.2], [0.3, 0.3, 0.4]])
    images = list(RNG.integers(0, 256, (2, 20, 30, 3), np.uint8))
    figure = pictures.predictions(images, p, CLASSES, top=2)
    assert [t.get_text() for t in figure.axes[1].get_yticklabels()] == [CLASSES[2], CLASSES[1]]
    assert drawn(figure, tmp_path)
