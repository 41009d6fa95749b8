"""The ops once more, as formulas: forward only, slow, for float64, and sharing nothing with `minivgg.ops`.

Options are those of the ops. Gradients need no oracle: they are held to the slopes of forward.
"""

import numpy as np


def relu(x):
    return np.maximum(x, 0)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def flatten(x):
    return x.reshape(len(x), -1)


def linear(x, w, b=0.0):
    return np.einsum("nf,of->no", x, w) + b


def softmax(x):
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def softmax_cross_entropy(scores, labels, label_smoothing=0.0):
    surprise = -np.log(softmax(scores))
    of_labels = surprise[np.arange(len(labels)), labels]
    return np.mean((1 - label_smoothing) * of_labels + label_smoothing * surprise.mean(axis=1))


def batchnorm(x, weight, bias, *, mean=None, var=None, eps=1e-5):
    pixels = tuple(axis for axis in range(x.ndim) if axis != 1)
    mean, var = (x.mean(axis=pixels), x.var(axis=pixels)) if mean is None else (mean, var)
    mean, var, weight, bias = (np.expand_dims(v, tuple(range(1, x.ndim - 1))) for v in (mean, var, weight, bias))
    return (x - mean) / np.sqrt(var + eps) * weight + bias


def lrn(x, size=5, alpha=1e-4, beta=0.75, k=1.0):
    around = [(0, 0), (size // 2, (size - 1) // 2), (0, 0), (0, 0)]
    energy = np.lib.stride_tricks.sliding_window_view(np.pad(x**2, around), size, axis=1).mean(axis=-1)
    return x / (k + alpha * energy) ** beta


def windows(x, kernel, stride, padding, fill=0.0):
    """x (N, C, H, W) → (N, C, OH, OW, KH, KW): all that each pixel of the output looks at."""
    (top, left), (down, right) = _two(padding), _two(stride)
    x = np.pad(x, [(0, 0), (0, 0), (top, top), (left, left)], constant_values=fill)
    return np.lib.stride_tricks.sliding_window_view(x, kernel, axis=(2, 3))[:, :, ::down, ::right]


def conv2d(x, w, b=None, *, stride=1, padding=0, algorithm="any"):
    y = np.einsum("nchwij,ocij->nohw", windows(x, w.shape[2:], stride, padding), w)
    return y if b is None else y + b[:, None, None]


def maxpool2d(x, kernel_size, stride=None, padding=0, ceil_mode=False, relu=False):
    kernel, (top, left) = _two(kernel_size), _two(padding)
    down, right = stride = _two(stride or kernel)
    if ceil_mode:  # as if there were more image of −∞, and then only the windows that begin in the real one
        more = np.pad(x, [(0, 0), (0, 0), (0, down - 1), (0, right - 1)], constant_values=-np.inf)
        y = windows(more, kernel, stride, padding, fill=-np.inf).max(axis=(4, 5))
        y = y[:, :, : -(-(x.shape[2] + top) // down), : -(-(x.shape[3] + left) // right)]
    else:
        y = windows(x, kernel, stride, padding, fill=-np.inf).max(axis=(4, 5))
    return np.maximum(y, 0) if relu else y


def avgpool2d(x, kernel_size, stride=None, padding=0, count_include_pad=True):
    kernel = _two(kernel_size)
    counts = windows(np.ones_like(x), kernel, stride or kernel, padding, fill=float(count_include_pad))
    return windows(x, kernel, stride or kernel, padding).sum(axis=(4, 5)) / counts.sum(axis=(4, 5))


def adaptive_avgpool2d(x, output_size):
    (H, W), (OH, OW) = x.shape[2:], _two(output_size)
    rows = [slice(i * H // OH, -(-(i + 1) * H // OH)) for i in range(OH)]
    columns = [slice(i * W // OW, -(-(i + 1) * W // OW)) for i in range(OW)]
    return np.stack([np.stack([x[:, :, r, c].mean(axis=(2, 3)) for c in columns], axis=-1) for r in rows], axis=-2)


def _two(value) -> tuple:
    return (value, value) if np.isscalar(value) else tuple(value)
