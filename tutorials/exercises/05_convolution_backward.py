"""The exercises of ../05_convolution_backward.ipynb: minivgg check 05.1 --file 05_convolution_backward.py"""

import numpy as np


def grad_weight(dy, x, spec):
    raise NotImplementedError("exercise 05.1")  # your code here


def grad_input(dy, w, spec):
    raise NotImplementedError("exercise 05.2")  # your code here


def col2im(columns, spec):
    raise NotImplementedError("exercise 05.3")  # your code here
