"""The exercises of ../09_using.ipynb: minivgg check 09.1 --file 09_using.py"""

import numpy as np


def grad_cam(maps, gradients):
    raise NotImplementedError("exercise 09.1")  # your code here


def slide(x, w, b, height, width):
    raise NotImplementedError("exercise 09.2")  # your code here
