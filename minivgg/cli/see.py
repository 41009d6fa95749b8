"""`minivgg see WHAT IMAGE…`: what a trained network looks at, as a picture."""

import argparse
from pathlib import Path

from minivgg.cli.predict import _newest_run
from minivgg.errors import BadInput

BUNDLED = 6  # pictures of different classes that are looked at where no image is named


def add(commands) -> None:
    command = commands.add_parser(
        "see",
        help="draw what a trained network looks at: filters, maps, saliency, Grad-CAM, occlusion, neighbours",
        description="Draw what a trained network looks at. Without IMAGE: one bundled test image of each of the first "
        f"{BUNDLED} classes.",
    )
    things = command.add_subparsers(title="what", metavar="WHAT", required=True)

    def thing(name: str, text: str, run, images="*"):
        sub = things.add_parser(
            name, help=text, description=f"Draw {text}.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        if images:
            sub.add_argument("images", nargs=images, type=Path, metavar="IMAGE", help="a picture that Pillow can open")
        sub.add_argument("--run", metavar="DIR", type=Path, help="a run's folder (the newest in runs/)")
        sub.add_argument("--picture", type=Path, default=Path(f"{name}.png"), metavar="PNG", help="where to draw")
        sub.set_defaults(command=run)
        return sub

    def explains(sub):
        sub.add_argument("--label", metavar="CLASS", help="the class to explain, by name or index (the predicted one)")
        return sub

    thing("filters", "the first layer's filters", _filters, images=None)
    sub = thing("maps", "the feature maps of a layer", _maps, images="?")
    sub.add_argument("--layer", metavar="NAME", help="such as features.2 (the first convolution, with its ReLU)")
    sub = explains(thing("saliency", "which pixels a class's score depends on (Simonyan et al. 2013)", _saliency))
    sub.add_argument("--guided", action="store_true", help="guided backpropagation (Springenberg et al. 2015)")
    sub = explains(thing("grad-cam", "where a network sees a class (Selvaraju et al. 2017)", _grad_cam))
    sub.add_argument("--layer", metavar="NAME", nargs="+", help="such as features.28 (the last of each stage)")
    sub = explains(thing("occlusion", "how sure a network is with a part hidden (Zeiler & Fergus 2014)", _occlusion))
    sub.add_argument("--size", type=int, metavar="PX", help="side of the square that hides (a quarter of the image)")
    sub.add_argument("--stride", type=int, metavar="PX", help="how far it moves (a 32nd of the image)")
    sub = thing("neighbours", "the bundled images that a network finds most alike", _neighbours)
    sub.add_argument("--count", type=int, default=6, metavar="K", help="how many")
    sub.add_argument("--layer", metavar="NAME", help="whose output is compared (what the last linear layer sees)")


class _Subject:
    """The network, and the images that it looks at: `x` normalised (N, C, H, W), `shown` uint8, `names`."""

    def __init__(self, arguments, most: int = BUNDLED):
        import numpy as np

        from minivgg.training.formats import read_image
        from minivgg.training.run import load_model

        self.model, self.preprocessing, self.classes = load_model(arguments.run or _newest_run())
        paths = getattr(arguments, "images", None)
        paths = [paths] if isinstance(paths, Path) else paths
        if paths:
            pictures, self.names = [read_image(path, self.preprocessing.channels) for path in paths], []
            self.names = [path.stem for path in paths]
        else:
            _, test = bundled(self.preprocessing.channels)
            first = [int((test.labels == k).argmax()) for k in range(most)]
            pictures, self.names = [test.image(i) for i in first], [test.classes[test.labels[i]] for i in first]
        self.x = np.stack([self.preprocessing(picture) for picture in pictures])
        self.shown = [pixels(self.preprocessing, x) for x in self.x]

    def label(self, given: str | None) -> int | None:
        """The index of the class that was asked for."""
        if given is None:
            return None
        if given in self.classes:
            return self.classes.index(given)
        if given.isdecimal() and int(given) < len(self.classes):
            return int(given)
        raise BadInput(
            f"--label {given}: no such class; there are {', '.join(self.classes[:10])}, or 0 to {len(self.classes) - 1}"
        )

    def rows(self, label: int | None) -> tuple[list[int], list[str]]:
        """For each image the label that is explained, and what to write beside it."""
        labels = [int(p.argmax()) if label is None else label for p in self.model.forward(self.x)]
        return labels, [f"{name}\nas {self.classes[k]}" for name, k in zip(self.names, labels, strict=True)]


def bundled(channels: int):
    """The bundled training and test images, with so many channels."""
    from dataclasses import replace

    from minivgg.training.datasets import load

    sets = load()
    if channels == 1:
        return sets
    return [replace(one, images=one.images.repeat(channels, axis=3), channels=channels) for one in sets]


def pixels(preprocessing, x):
    """What the network sees, as a picture again: x float32 (C, H, W) → uint8 (H, W, C)."""
    import numpy as np

    mean, std = (np.array(value)[:, None, None] for value in (preprocessing.mean, preprocessing.std))
    return np.clip(255 * (x * std + mean), 0, 255).round().astype(np.uint8).transpose(1, 2, 0)


def _drawn(figure, arguments) -> None:
    from minivgg.insight import pictures

    print(f"drawn to {pictures.save(figure, arguments.picture)}")


def _filters(arguments) -> None:
    from minivgg.insight import pictures, seeing
    from minivgg.training.run import load_model

    model, _, _ = load_model(arguments.run or _newest_run())
    _drawn(pictures.filters(seeing.first_filters(model)), arguments)


def _maps(arguments) -> None:
    from minivgg.insight import pictures, seeing

    subject = _Subject(arguments, 1)
    maps = seeing.feature_maps(subject.model, subject.x, arguments.layer)
    _drawn(pictures.maps(maps[0], subject.shown[0], arguments.layer or "First layer"), arguments)


def _saliency(arguments) -> None:
    from minivgg.insight import pictures, seeing

    subject = _Subject(arguments)
    labels, rows = subject.rows(subject.label(arguments.label))
    heats = [
        [seeing.saliency(subject.model, x, k, guided=arguments.guided)] for x, k in zip(subject.x, labels, strict=True)
    ]
    column = "guided\nbackpropagation" if arguments.guided else "saliency"
    text = "|∂ score / ∂ pixel|, each map by itself"
    _drawn(pictures.heat(subject.shown, heats, rows, [column], text, limits=None, overlay=False), arguments)


def _grad_cam(arguments) -> None:
    from minivgg.insight import pictures, seeing

    subject = _Subject(arguments)
    labels, rows = subject.rows(subject.label(arguments.label))
    layers = arguments.layer or seeing.stage_layers(subject.model)
    heats = [
        [seeing.scaled(m, x.shape[1:]) for m in seeing.grad_cam_maps(subject.model, x, k, layers)]
        for x, k in zip(subject.x, labels, strict=True)
    ]
    sizes = [seeing.feature_maps(subject.model, subject.x[:1], layer).shape[2:] for layer in layers]
    columns = [f"{layer}\n{h}×{w}" for layer, (h, w) in zip(layers, sizes, strict=True)]
    _drawn(pictures.heat(subject.shown, heats, rows, columns, "Grad-CAM: each map's largest value is 1"), arguments)


def _occlusion(arguments) -> None:
    from minivgg.insight import pictures, seeing

    subject = _Subject(arguments)
    labels, rows = subject.rows(subject.label(arguments.label))
    side = min(subject.x.shape[2:])
    size, stride = arguments.size or max(1, side // 4), arguments.stride or max(1, side // 32)
    found = [
        seeing.occlusion(subject.model, x, k, size=size, stride=stride, progress=True)
        for x, k in zip(subject.x, labels, strict=True)
    ]
    rows = [f"{row}, {whole:.0%}" for row, (whole, _) in zip(rows, found, strict=True)]
    column = f"{size}×{size} hidden\naround each pixel"
    text = "probability of the class"
    _drawn(pictures.heat(subject.shown, [[p] for _, p in found], rows, [column], text, overlay=False), arguments)


def _neighbours(arguments) -> None:
    import numpy as np

    from minivgg.insight import pictures, seeing

    if arguments.count < 1:
        raise BadInput(f"--count must be at least 1, got {arguments.count}")
    subject = _Subject(arguments)
    gallery, _ = bundled(subject.preprocessing.channels)
    x = np.stack([subject.preprocessing(gallery.image(i)) for i in range(len(gallery))])
    theirs = seeing.features(subject.model, x, arguments.layer, progress=True)
    mine = seeing.features(subject.model, subject.x, arguments.layer)
    order, cosines = seeing.neighbours(mine, theirs, arguments.count)
    found = [[pixels(subject.preprocessing, x[i]) for i in row] for row in order]
    captions = [
        [f"{gallery.classes[gallery.labels[i]]}\n{c:.3f}" for i, c in zip(row, values, strict=True)]
        for row, values in zip(order, cosines, strict=True)
    ]
    _drawn(pictures.alike(subject.shown, found, subject.names, captions), arguments)
