"""Published weights, read without PyTorch, TensorFlow or Keras, and written so that PyTorch can read them.

    from minivgg import build, weights

    model = build("vgg16", init="zeros")
    print(weights.load(model, "vgg16.pth"))       all of it, or an error that says what does not fit
    weights.load(model, "oxford")                 the first seven convolutions, which ship with minivgg
    weights.save(model, "mine.safetensors")       torchvision's names

loading.py         load, save, and the report of what was done
sources.py         weights with a name, and their download
formats.py         tells formats apart; safetensors and npz
torch_files.py     .pth and .pt, zip and legacy
pickle_machine.py  the pickles in those, followed without running them
checkpoints.py     which of the things in those are the weights?
keras_h5.py        .h5, and the order of its layers
keras_names.py     Keras's layers in the places of a network's
entries.py         one array that a file promises
names.py           torchvision's and timm's names
preprocessing.py   do these weights want BGR or RGB, bytes or 0–1?
fits.py            which network is this file of?
"""

from minivgg.weights.fits import fitting
from minivgg.weights.formats import read
from minivgg.weights.loading import Report, load, plan, save
from minivgg.weights.preprocessing import to_torchvision_input
from minivgg.weights.sources import SOURCES, download

__all__ = ["SOURCES", "Report", "download", "fitting", "load", "plan", "read", "save", "to_torchvision_input"]
