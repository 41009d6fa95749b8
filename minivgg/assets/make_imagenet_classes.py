"""Make `imagenet_classes.txt`: for each of ImageNet's 1,000 classes, in the order of the scores, synset and name.

    pip download --no-deps torchvision==0.29.2 timm==1.0.31
    python -m minivgg.assets.make_imagenet_classes torchvision-*.whl timm-*.whl

The names are torchvision's, no two alike; the synsets (WordNet's, and the names of ImageNet's folders) are timm's.
Nothing of either wheel is run.
"""

import ast
import sys
from pathlib import Path
from zipfile import ZipFile

ASSETS = Path(__file__).parent


def main(torchvision: Path, timm: Path) -> None:
    """Write the list beside this script, from the two wheels."""
    with ZipFile(torchvision) as wheel:
        tree = ast.parse(wheel.read("torchvision/models/_meta.py"))
    with ZipFile(timm) as wheel:
        synsets = wheel.read("timm/data/_info/imagenet_synsets.txt").decode().split()
    lists = {node.targets[0].id: node.value for node in tree.body if isinstance(node, ast.Assign)}
    names = ast.literal_eval(lists["_IMAGENET_CATEGORIES"])
    lines = [f"{synset} {name}\n" for synset, name in zip(synsets, names, strict=True)]
    (ASSETS / "imagenet_classes.txt").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
