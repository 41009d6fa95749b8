"""The paper's evaluation against NumPy in float64, and on sets whose errors are known before anything runs."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import minivgg as mv
from minivgg.errors import BadInput
from minivgg.training.datasets import Dataset, imagenet_classes, labelled_folder
from minivgg.training.evaluate import Evaluator, Protocol, evaluate, rank
from minivgg.training.preprocessing import Preprocessing

K, SIZE = 4, 8
PRE = Preprocessing(3, SIZE, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), resize=10)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def network(seed=0):
    """Means of 4 × 4 pixels, and a linear layer on 2 × 2 of them: small enough to write down again, below."""
    model = mv.Sequential(
        {
            "features": mv.Sequential(mv.AvgPool2d(4)),
            "avgpool": mv.AdaptiveAvgPool2d(2),
            "flatten": mv.Flatten(),
            "classifier": mv.Sequential(mv.Linear(12, K)),
        }
    )
    rng = np.random.default_rng(seed)
    for p in model.named_params().values():
        p.data[...] = rng.standard_normal(p.data.shape)
    return model


def softmax(scores):
    e = np.exp(scores - scores.max())
    return e / e.sum()


def scores_by_hand(model, pixels):
    """The map of scores (K, h, w) of normalised pixels (H, W, 3), in float64: place by place."""
    w = model.classifier[0].weight.data.astype(np.float64).reshape(K, 3, 2, 2)
    b = model.classifier[0].bias.data
    H, W = (length // 4 for length in pixels.shape[:2])
    means = pixels[: 4 * H, : 4 * W].reshape(H, 4, W, 4, 3).mean(axis=(1, 3))
    return np.array(
        [
            [[np.sum(w[k].transpose(1, 2, 0) * means[i : i + 2, j : j + 2]) + b[k] for j in range(W - 1)]
             for i in range(H - 1)]
            for k in range(K)
        ]
    )  # fmt: skip


def by_hand(model, image, way, scale, flip):
    """The mean of the probabilities of all looks at an image, and how many there are."""
    H, W, _ = image.shape
    width, height = (scale, int(scale * H / W)) if W <= H else (int(scale * W / H), scale)
    pixels = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    pixels = (pixels / 255 - PRE.mean) / PRE.std
    if way == "dense":
        looks = [pixels]
    elif way == "centre":
        top, left = round((height - SIZE) / 2), round((width - SIZE) / 2)
        looks = [pixels[top : top + SIZE, left : left + SIZE]]
    else:
        tops, lefts = (np.round(np.linspace(0, length - SIZE, 5)).astype(int) for length in (height, width))
        looks = [pixels[y : y + SIZE, x : x + SIZE] for y in tops for x in lefts]
    looks += [look[:, ::-1] for look in looks] if flip or way == "crops" else []
    posteriors = [softmax(scores_by_hand(model, look).mean(axis=(1, 2))) for look in looks]
    return np.mean(posteriors, axis=0), len(posteriors)


PROTOCOLS = [
    Protocol(),
    Protocol(flip=True),
    Protocol(dense=True),
    Protocol(crops=True),
    Protocol(dense=True, flip=True, scales=(9, 16)),
    Protocol(dense=True, crops=True, flip=True, scales=(8, 12, 16)),
    Protocol(dense=True, crops=True, scales=(12,)),
]


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=str)
@settings(max_examples=5)
@given(st.lists(st.tuples(st.integers(6, 40), st.integers(6, 40)), min_size=1, max_size=3), st.integers(1, 60))
def test_posteriors_are_those_of_the_paper(protocol, shapes, batch_size):
    model = network()
    evaluator = Evaluator(model, PRE, protocol, batch_size)
    images = [noise(*shape, 3, seed=i) for i, shape in enumerate(shapes)]
    for image, found in zip(images, evaluator.posteriors(images), strict=True):
        assert list(found) == evaluator.rows
        for (ways, scales), p in found.items():
            ways = ways.split(" + ")
            parts = [by_hand(model, image, way, scale, protocol.flip) for way in ways for scale in scales]
            # the mean of float32 scores of size 10 or so, through a softmax
            np.testing.assert_allclose(p, np.mean([part for part, _ in parts], axis=0), rtol=0, atol=1e-5)
            assert evaluator.looks((" + ".join(ways), scales)) == sum(count for _, count in parts)


def test_the_papers_150_crops():
    evaluator = Evaluator(network(), PRE, Protocol(crops=True, scales=(8, 10, 12)))
    assert evaluator.looks(("crops", (8,))) == 50
    assert evaluator.looks(("crops", (8, 10, 12))) == 150
    views = [view for _, view in evaluator.views(noise(12, 30, 3))]
    assert {view.shape for view in views} == {(3, 8, 8)}
    assert len(views) == 150


def test_rows_of_a_full_report():
    evaluator = Evaluator(network(), PRE, Protocol(dense=True, crops=True, scales=(8, 16)))
    singles = [("dense", (8,)), ("dense", (16,)), ("crops", (8,)), ("crops", (16,))]
    assert evaluator.rows == [*singles, ("dense", (8, 16)), ("crops", (8, 16)), ("dense + crops", (8, 16))]
    assert Evaluator(network(), PRE, Protocol()).rows == [("centre", (10,))]


def test_batches_do_not_change_the_answer():
    images = [noise(9 + i, 30 - i, 3, seed=i) for i in range(7)]
    protocol = Protocol(dense=True, crops=True, flip=True, scales=(8, 12))
    one, many = (Evaluator(network(), PRE, protocol, size).posteriors(images) for size in (1, 64))
    for a, b in zip(one, many, strict=True):
        for row in a:
            np.testing.assert_allclose(a[row], b[row], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("protocol", "batch_size", "words"),
    [
        (Protocol(scales=(8, 7)), 16, "scale 7 is below the network's input of 8"),
        (Protocol(scales=(8, 9, 8)), 16, "8, 9, 8: one is there twice"),
        (Protocol(), 0, "batch_size"),
    ],
)
def test_refusals(protocol, batch_size, words):
    with pytest.raises(BadInput, match=words):
        Evaluator(network(), PRE, protocol, batch_size)


def test_dense_refuses_a_network_without_a_classifier():
    with pytest.raises(BadInput, match="fully_convolutional"):
        Evaluator(mv.Sequential(mv.Conv2d(3, K, 8), mv.Flatten()), PRE, Protocol(dense=True))


# ---- errors known beforehand ----


def shades(ranks, classes=8):
    """A network that prefers, on any grey image, class 7 to 6 to 5 …, and images whose labels have these ranks."""
    model = mv.Sequential({"avgpool": mv.AdaptiveAvgPool2d(1), "flatten": mv.Flatten(), "fc": mv.Linear(3, classes)})
    model.fc.weight.data[...] = np.arange(classes)[:, None]  # scores k · (r + g + b), with r, g, b above 0
    pre = Preprocessing(3, SIZE, (-1.0,) * 3, (1.0,) * 3, resize=SIZE)
    images = np.repeat(np.linspace(1, 255, len(ranks)).astype(np.uint8), SIZE * SIZE * 3)
    labels = classes - 1 - np.array(ranks)
    names = tuple(f"class {k}" for k in range(classes))
    return model, pre, Dataset("shades", images.reshape(-1, SIZE, SIZE, 3), labels, names, 3)


RANKS = [0, 0, 1, 4, 5, 7, 0, 2, 6, 0]


@pytest.mark.parametrize("protocol", [Protocol(), Protocol(dense=True, crops=True, flip=True, scales=(8, 16))], ids=str)
@pytest.mark.parametrize("batch_size", [1, 3, 500])
def test_errors_are_those_that_were_built_in(protocol, batch_size):
    model, pre, dataset = shades(RANKS)
    evaluator = Evaluator(model, pre, protocol, batch_size)
    errors = evaluate(evaluator, dataset)
    for row in evaluator.rows:
        assert errors.ranks[row].tolist() == RANKS
        assert errors.top(1, row) == 6 / 10
        assert errors.top(5, row) == 3 / 10


def test_a_network_without_an_opinion_gets_no_present():
    model, pre, dataset = shades(range(8))
    model.fc.weight.data[...] = 0
    errors = evaluate(Evaluator(model, pre, Protocol()), dataset)
    assert errors.top(1, ("centre", (SIZE,))) == 7 / 8  # not 0, as counting only larger scores would have it


def test_scores_that_are_not_numbers_are_an_error():
    model, pre, dataset = shades(RANKS)
    model.fc.weight.data[3, 1] = np.nan
    with pytest.raises(BadInput, match="not finite"):
        evaluate(Evaluator(model, pre, Protocol()), dataset)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=8), st.data())
def test_rank_is_the_place_in_a_stable_sort(values, data):
    label = data.draw(st.integers(0, len(values) - 1))
    order = sorted(range(len(values)), key=lambda k: (-values[k], k))
    assert rank(np.array(values) / 8, label) == order.index(label)


def test_a_bad_image_is_named(tmp_path):
    model, pre, _ = shades(RANKS)
    for name, size in {"class 1/a.png": (8, 8), "class_2/b.png": (1, 70_000)}.items():
        (tmp_path / name).parent.mkdir(parents=True)
        Image.new("RGB", size).save(tmp_path / name)
    dataset = labelled_folder(tmp_path, [f"class {k}" for k in range(8)])
    evaluator = Evaluator(model, pre, Protocol(dense=True))
    with pytest.raises(BadInput, match=r"class_2/b.png: 560000x8|class_2/b.png: 8x560000"):
        evaluate(evaluator, dataset)


# ---- folders of classes ----


def test_imagenets_classes():
    classes = imagenet_classes()
    assert len(classes) == len(set(classes.values())) == 1000
    assert list(classes) == sorted(classes)  # the order of the challenge's classes, and of every network's scores
    assert all(re.fullmatch(r"n\d{8}", synset) for synset in classes)
    names = list(classes.values())
    assert {k: names[k] for k in (0, 281, 285, 517, 134, 999)} == {
        0: "tench",
        281: "tabby",
        285: "Egyptian cat",
        517: "crane",
        134: "crane bird",
        999: "toilet tissue",
    }
    assert classes["n02124075"] == "Egyptian cat"  # WordNet 3.0


def folder_of(tmp_path, *names):
    for name in names:
        (tmp_path / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name / "a.png")
    return tmp_path


def test_folders_are_matched_by_name_or_synset(tmp_path):
    names = tuple(imagenet_classes().values())
    dataset = labelled_folder(folder_of(tmp_path, "n01443537", "egyptian_cat", "Tench", "crane", "Cardigan"), names)
    found = {path.parent.name: int(label) for path, label in zip(dataset.images, dataset.labels, strict=True)}
    assert found == {"n01443537": 1, "egyptian_cat": 285, "Tench": 0, "crane": 517, "Cardigan": 264}


def test_a_folder_that_could_be_two_classes_is_refused(tmp_path):
    names = tuple(imagenet_classes().values())
    (garment, dog) = (labelled_folder(folder_of(tmp_path / name, name), names) for name in ("cardigan", "Cardigan"))
    assert (garment.labels.tolist(), dog.labels.tolist()) == ([474], [264])
    with pytest.raises(BadInput, match="CARDIGAN: none of"):
        labelled_folder(folder_of(tmp_path / "both", "CARDIGAN"), names)


def test_folders_of_other_classes(tmp_path):
    classes = ("T-shirt/top", "Dress")
    dataset = labelled_folder(folder_of(tmp_path, "t-shirt_top", "Dress"), classes, channels=1)
    assert sorted(dataset.labels.tolist()) == [0, 1]
    assert dataset.classes == classes
    assert dataset.image(0).shape == (8, 8, 1)
    with pytest.raises(BadInput, match="Dress: none of the network's 2 classes; tench, dressing gown are"):
        labelled_folder(tmp_path, ("tench", "dressing gown"))
    with pytest.raises(BadInput, match="n01443537: none of"):  # synsets are ImageNet's alone
        labelled_folder(folder_of(tmp_path, "n01443537"), (*classes, "goldfish"))
