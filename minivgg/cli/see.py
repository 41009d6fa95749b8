"""`minivgg see WHAT IMAGE…`: what a trained network looks at, as a picture."""

from pathlib import Path

from minivgg.cli import network
from minivgg.errors import BadInput, check_range

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
        sub = things.add_parser(name, help=text, description=f"Draw {text}.")
        if images:
            sub.add_argument("images", nargs=images, type=Path, metavar="IMAGE", help="a picture that Pillow can open")
        network.add_options(sub)
        where = Path(f"{name}.png")
        sub.add_argument(
            "--picture", type=Path, default=where, metavar="FILE", help=f"where to draw (default: {where})"
        )
        sub.set_defaults(command=run)
        return sub

    def explains(sub):
        sub.add_argument(
            "--label", metavar="CLASS", help="class to explain, by name or index (default: the predicted one)"
        )
        return sub

    thing("filters", "the first layer's filters", _filters, images=None)
    sub = thing("maps", "the feature maps of a layer", _maps, images="?")
    sub.add_argument("--layer", metavar="NAME", help="such as relu4_3 or features.22 (default: the first convolution)")
    sub = explains(thing("saliency", "which pixels a class's score depends on (Simonyan et al. 2013)", _saliency))
    sub.add_argument("--guided", action="store_true", help="guided backpropagation (Springenberg et al. 2015)")
    sub = explains(thing("grad-cam", "where a network sees a class (Selvaraju et al. 2017)", _grad_cam))
    sub.add_argument("--layer", metavar="NAME", nargs="+", help="such as relu5_3 (default: the last of each stage)")
    sub = explains(thing("occlusion", "how sure a network is with a part hidden (Zeiler & Fergus 2014)", _occlusion))
    sub.add_argument("--size", type=int, metavar="PX", help="side of the hiding square (default: a quarter)")
    sub.add_argument("--stride", type=int, metavar="PX", help="how far it moves (default: a 32nd of the image)")
    sub = thing("neighbours", "the bundled images that a network finds most alike", _neighbours)
    sub.add_argument("--count", type=int, default=6, metavar="K", help="how many (default: 6)")
    sub.add_argument("--layer", metavar="NAME", help="whose output to compare (default: what the last layer sees)")


class _Subject:
    """The network, and the images that it looks at: `x` normalised (N, C, H, W), `shown` uint8, `names`."""

    def __init__(self, arguments, most: int = BUNDLED, partial: bool = False):
        import numpy as np

        from minivgg.training.formats import read_image

        self.model, self.preprocessing, self.classes = network.find(arguments, partial=partial)
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
        self.shown = [self.preprocessing.denormalise(x) for x in self.x]

    def layer(self, given: str | None) -> str | None:
        """The layer's name in the network, for one that the literature may call otherwise."""
        return self.model.landmarks.get(given, given)

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


def _drawn(figure, arguments) -> None:
    from minivgg.insight import pictures

    print(f"drawn to {pictures.save(figure, arguments.picture)}")


def _filters(arguments) -> None:
    from minivgg.insight import pictures, seeing

    model, preprocessing, _ = network.find(arguments, partial=True)
    w = seeing.first_filters(model)
    _drawn(pictures.filters(w[:, ::-1] if preprocessing.bgr else w), arguments)


def _maps(arguments) -> None:
    from minivgg.insight import pictures, seeing

    subject = _Subject(arguments, 1, partial=True)
    maps = seeing.feature_maps(subject.model, subject.x, subject.layer(arguments.layer))
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
    layers = [subject.layer(name) for name in arguments.layer or seeing.stage_layers(subject.model)]
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
    for name in ("size", "stride"):
        if getattr(arguments, name) is not None:
            check_range(f"--{name}", getattr(arguments, name), 1, side, integer=True)
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

    check_range("--count", arguments.count, 1, 100, integer=True)
    subject = _Subject(arguments)
    gallery, _ = bundled(subject.preprocessing.channels)
    x = np.stack([subject.preprocessing(gallery.image(i)) for i in range(len(gallery))])
    theirs = seeing.features(subject.model, x, subject.layer(arguments.layer), progress=True)
    mine = seeing.features(subject.model, subject.x, subject.layer(arguments.layer))
    order, cosines = seeing.neighbours(mine, theirs, arguments.count)
    found = [[subject.preprocessing.denormalise(x[i]) for i in row] for row in order]
    captions = [
        [f"{gallery.classes[gallery.labels[i]]}\n{c:.3f}" for i, c in zip(row, values, strict=True)]
        for row, values in zip(order, cosines, strict=True)
    ]
    _drawn(pictures.alike(subject.shown, found, subject.names, captions), arguments)
