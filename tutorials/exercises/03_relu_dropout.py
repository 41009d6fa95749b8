"""The exercises of ../03_relu_dropout.ipynb: minivgg check 03.1 --file 03_relu_dropout.py"""

import numpy as np


def relu_forward(x):
    raise NotImplementedError("exercise 03.1")  # your code here


def relu_backward(dy, cache):
    raise NotImplementedError("exercise 03.1")  # your code here


def dropout_forward(x, p, seed):
    raise NotImplementedError("exercise 03.2")  # your code here


def dropout_backward(dy, cache):
    raise NotImplementedError("exercise 03.2")  # your code here
