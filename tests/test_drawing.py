"""What the tutorials draw with: numbers where they belong, and films that play."""

import io

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from minivgg.insight import drawing


def test_a_matrix_shows_its_numbers():
    axes = Figure().subplots()
    drawing.matrix(axes, np.array([[1.5, np.nan], [-2, 0]]), "title")
    texts = {(text.get_position(), text.get_text()) for text in axes.texts}
    assert texts == {((0, 0), "1.5"), ((0, 1), "-2"), ((1, 1), "0")}
    image = axes.images[0]
    low, high = image.get_clim()
    assert -low == high > 2  # zero is in the middle, and the largest is not too dark for black numbers
    assert image.get_cmap().name == "RdBu_r"


def test_numbers_can_be_left_out():
    axes = Figure().subplots()
    drawing.matrix(axes, np.zeros((2, 3)), numbers="")
    assert not axes.texts


def test_a_frame_is_around_its_elements():
    axes = Figure().subplots()
    drawing.matrix(axes, np.eye(5))
    drawing.frame(axes, 1, 2, 3, 2)
    (patch,) = axes.patches
    assert (patch.get_x(), patch.get_y(), patch.get_width(), patch.get_height()) == (1.5, 0.5, 2, 3)


def scene(shade):
    figure = Figure(figsize=(1, 1))
    figure.patch.set_facecolor((shade, shade, shade))
    return figure


def test_a_film_has_its_pictures_in_order():
    shades = 0.0, 0.5, 1.0
    film = drawing.film(map(scene, shades), seconds=0.2, dpi=20)
    picture = Image.open(io.BytesIO(film._repr_png_()))
    assert (picture.format, picture.n_frames, picture.size) == ("PNG", 3, (20, 20))
    seen = []
    for number in range(3):
        picture.seek(number)
        seen.append((picture.info["duration"], np.asarray(picture.convert("L")).mean() / 255))
    assert [duration for duration, _ in seen] == [200, 200, 600]
    assert np.allclose([shade for _, shade in seen], shades, atol=0.02)


def test_the_same_film_is_the_same_bytes():
    assert drawing.film(map(scene, (0.1, 0.9))).png == drawing.film(map(scene, (0.1, 0.9))).png


def test_drawing_needs_no_screen():
    before = matplotlib.get_backend()
    drawing.film([scene(0.5)])
    assert matplotlib.get_backend() == before
