"""Bugs of convolution. Most are one word away from the definition, which NumPy says in a few lines:

y = Σ windows · w,  dw = Σ windows · dy,  and dx: every dy·w back to where its window looked.
"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from minivgg.gradcheck.zoo.bug import bug
from minivgg.gradcheck.zoo.cases import CONV2D, NAIVE, POINTWISE, STRIDED, WITH_GAPS, op
from minivgg.ops.channels import sum_per_channel
from minivgg.ops.conv2d import conv2d_backward, im2col, naive
from minivgg.ops.conv2d.im2col import _scatter_add, grad_input, grad_weight
from minivgg.ops.conv2d.naive import forward as naive_forward
from minivgg.ops.conv2d.naive import grad_input as naive_grad_input
from minivgg.ops.conv2d.naive import grad_weight as naive_grad_weight


def windows(x, spec, stride):
    """What each output pixel looks at: (N, C, OH, OW, KH, KW)."""
    (p, q), (s, t) = spec.padding, stride
    padded = np.pad(x, ((0, 0), (0, 0), (p, p), (q, q)))
    return sliding_window_view(padded, (spec.KH, spec.KW), (2, 3))[:, :, ::s, ::t][:, :, : spec.OH, : spec.OW]


def send_back(dy, w, spec, put):
    """dx with its padding: `put(here, what)` sends each tap's dy·w to the pixels that it looked at."""
    (p, q), (s, t) = spec.padding, spec.stride
    dx = np.zeros((spec.N, spec.C, spec.H + 2 * p, spec.W + 2 * q), dy.dtype)
    for kh, kw in np.ndindex(spec.KH, spec.KW):
        here = dx[:, :, kh : kh + s * (spec.OH - 1) + 1 : s, kw : kw + t * (spec.OW - 1) + 1 : t]
        put(here, np.einsum("nohw,oc->nchw", dy, w[:, :, kh, kw]))
    return dx


def crop(dx, spec):
    """dx without its padding, a view."""
    p, q = spec.padding
    return dx[:, :, p : p + spec.H, q : q + spec.W]


def add(here, what):
    here += what


def assign(here, what):
    here[...] = what


# ---- The gradient of the filters ----


@bug(im2col.grad_weight, CONV2D, "rotated by 180°")
def conv2d_dw_rotated(dy, x, spec):
    """The filters' gradient is turned by 180°, as mathematicians' convolution has it and ours does not."""
    return grad_weight(dy, x, spec)[..., ::-1, ::-1]


@bug(im2col.grad_weight, CONV2D, "transposed: filter row and filter column swapped")
def conv2d_dw_transposed(dy, x, spec):
    """The filters' gradient has kh and kw in the wrong order: invisible in shapes, since filters are square."""
    return grad_weight(dy, x, spec).swapaxes(2, 3)


@bug(im2col.grad_weight, CONV2D, "transposed: output channel and input channel swapped")
def conv2d_dw_channels_swapped(dy, x, spec):
    """The filters' gradient is (C, O, KH, KW) where it should be (O, C, KH, KW): it fits wherever O = C."""
    return grad_weight(dy, x, spec).swapaxes(0, 1)


@bug(im2col.grad_weight, CONV2D, "shifted by +1 along its filter columns")
def conv2d_dw_tap_off_by_one(dy, x, spec):
    """Every tap of the filter gets the gradient of the tap to its left."""
    return np.roll(grad_weight(dy, x, spec), 1, axis=3)


@bug(im2col.grad_weight, STRIDED, "w: none of the known patterns")
def conv2d_dw_stride_ignored(dy, x, spec):
    """The filters' gradient slides its window pixel by pixel, although the forward strides."""
    return np.einsum("nchwij,nohw->ocij", windows(x, spec, (1, 1)), dy)


@bug(im2col.grad_weight, CONV2D, "a constant factor, 3 times too small, which is N: divided by it once too often")
def conv2d_dw_over_n(dy, x, spec):
    """The filters' gradient is divided by N once more, although the loss has done so already."""
    return grad_weight(dy, x, spec) / spec.N


@bug(im2col.grad_weight, CONV2D, "w: none of the known patterns")
def conv2d_dw_of_the_last_image(dy, x, spec):
    """The filters' gradient is overwritten by each image instead of summed: only the last one counts."""
    return np.einsum("nchwij,nohw->ocij", windows(x, spec, spec.stride)[-1:], dy[-1:])


@bug(im2col.grad_weight, CONV2D, "w: wrong only in the last filter column (2 of 0 to 2), and there the gradient is all")
def conv2d_dw_last_tap_forgotten(dy, x, spec):
    """A loop over kw stops one early: the last column of each filter learns nothing."""
    dw = grad_weight(dy, x, spec)
    dw[..., -1] = 0
    return dw


@bug(im2col.grad_weight, CONV2D, "w: wrong only in the last output channel (1 of 0 to 1), and there a constant factor")
def conv2d_dw_last_filter_twice(dy, x, spec):
    """The loop that handles left-over filters runs over one that was done already, and adds it again."""
    dw = grad_weight(dy, x, spec)
    dw[-1] *= 2
    return dw


@bug(im2col.grad_weight, CONV2D, "w: relative errors of")
def conv2d_dw_in_float32(dy, x, spec):
    """The filters' gradient is gathered in a float32 array whatever x is."""
    return grad_weight(dy, x, spec).astype(np.float32).astype(x.dtype)


@bug(im2col.grad_weight, CONV2D, "w: none of the known patterns")
def conv2d_dw_last_chunk_lost(dy, x, spec):
    """The column matrix comes in chunks of five output rows, and what is left over at the end is dropped."""
    flat = dy.transpose(0, 2, 1, 3).reshape(spec.N * spec.OH, spec.O, spec.OW).copy()
    flat[len(flat) // 5 * 5 :] = 0
    return grad_weight(flat.reshape(spec.N, spec.OH, spec.O, spec.OW).transpose(0, 2, 1, 3), x, spec)


# ---- The gradient of the input ----


@bug(im2col.grad_input, CONV2D, "x: none of the known patterns")
def conv2d_dx_filter_rotated(dy, w, spec):
    """The input's gradient rotates the filter, and then so does the loop: once too often."""
    return grad_input(dy, w[..., ::-1, ::-1], spec)


@bug(im2col.grad_input, CONV2D, "x: none of the known patterns")
def conv2d_dx_filter_transposed(dy, w, spec):
    """The input's gradient reads w[…, kw, kh] for w[…, kh, kw]."""
    return grad_input(dy, w.swapaxes(2, 3), spec)


@bug(im2col.grad_input, CONV2D, "x: none of the known patterns")
def conv2d_dx_channels_swapped(dy, w, spec):
    """The input's gradient multiplies by w[c, o] for w[o, c]: it fits wherever O = C."""
    return grad_input(dy, w.swapaxes(0, 1), spec)


@bug(im2col.grad_input, CONV2D, "x: the gradient is shifted by -1 along its columns")
def conv2d_dx_crop_off_by_one(dy, w, spec):
    """One column too much is cut off with the padding, so that all of dx moves to the left."""
    return np.roll(grad_input(dy, w, spec), -1, axis=3)


@bug(im2col.grad_input, CONV2D, "x: none of the known patterns")
def conv2d_dx_assigned(dy, w, spec):
    """col2im writes = for +=: where windows overlap, only the last one counts."""
    return crop(send_back(dy, w, spec, assign), spec)


@bug(im2col.grad_input, CONV2D, "x: wrong only in the border, and there the gradient is all zeros")
def conv2d_dx_border_zero(dy, w, spec):
    """Pixels whose windows reach into the padding are skipped: a frame of zeros around the gradient."""
    dx = np.zeros(spec.x_shape, dy.dtype)
    dx[:, :, 1:-1, 1:-1] = grad_input(dy, w, spec)[:, :, 1:-1, 1:-1]
    return dx


@bug(im2col.grad_input, CONV2D, "x: wrong only in the last column (3 of 0 to 3)")
def conv2d_dx_wraps_around(dy, w, spec):
    """What falls over the left edge comes back in on the right: an index of −1 is the last one, in Python."""
    padded, (p, q) = send_back(dy, w, spec, add), spec.padding
    dx = crop(padded, spec)
    dx[..., -q:] += padded[:, :, p : p + spec.H, :q]
    return dx


@bug(im2col.grad_input, CONV2D, "x: wrong only in the last sample (2 of 0 to 2), and there the gradient is all zeros")
def conv2d_dx_last_image_lost(dy, w, spec):
    """A loop over images stops one early: the last image of the batch gets no gradient."""
    dx = grad_input(dy, w, spec)
    dx[-1] = 0
    return dx


@bug(im2col.grad_input, CONV2D, "a batch leak")
def conv2d_dx_images_leak(dy, w, spec):
    """One buffer for all images, never cleared: each gets the sum of all gradients."""
    dx = grad_input(dy, w, spec)
    return np.repeat(dx.sum(axis=0, keepdims=True), len(dx), axis=0)


@bug(im2col.grad_input, WITH_GAPS, "x: the mask is missing")
def conv2d_dx_gaps_filled(dy, w, spec):
    """Pixels that no window visits, where strides are longer than windows, get their neighbours' gradient."""
    dx = grad_input(dy, w, spec)
    for axis in 2, 3:
        dx = np.where(dx == 0, np.roll(dx, 1, axis), dx)
    return dx


@bug(im2col.grad_input, POINTWISE, "x: none of the known patterns")
def conv2d_pointwise_untransposed(dy, w, spec):
    """The short cut for 1×1 filters multiplies by wᵀ for w: right everywhere else, and it fits wherever O = C."""
    return grad_input(dy, w.swapaxes(0, 1) if spec.is_pointwise else w, spec)


@bug(
    im2col._scatter_add,
    op("conv2d", (2, 3, 4, 4), (2, 3, 3, 3)),
    "x: wrong only in the last channel (2 of 0 to 2), and there the gradient is all zeros",
)
def conv2d_dx_vector_tail_lost(columns, dx, first, stride, padding):
    """Channels go in vectors of two, and the one that is left over is forgotten."""
    _scatter_add(columns, dx, first, stride, padding)
    dx[..., dx.shape[3] // 2 * 2 :] = 0


@bug(im2col._scatter_add, CONV2D, "x: a constant factor, 2 times too large")
def conv2d_dx_chunk_added_twice(columns, dx, first, stride, padding):
    """A chunk that two threads share is added by both of them."""
    for _ in range(2):
        _scatter_add(columns, dx, first, stride, padding)


# ---- The bias ----


@bug(conv2d_backward, CONV2D, "b: not summed over dimension 0: the gradient is (3, 2), the argument (2,)")
def conv2d_db_not_over_the_batch(dy, cache, need_dx=True):
    """The bias's gradient is summed over pixels and not over the batch."""
    dx, dw, _ = conv2d_backward(dy, cache, need_dx=need_dx)
    return dx, dw, dy.sum(axis=(2, 3))


@bug(conv2d_backward, CONV2D, "b: a constant factor, 48 times too small, which is N·H·W")
def conv2d_db_mean(dy, cache, need_dx=True):
    """The bias's gradient is the mean over pixels where it should be the sum."""
    dx, dw, _ = conv2d_backward(dy, cache, need_dx=need_dx)
    return dx, dw, dy.mean(axis=(0, 2, 3))


@bug(sum_per_channel, CONV2D, "b: none of the known patterns")
def conv2d_db_last_row_lost(x):
    """The bias's gradient leaves out the last row of the output."""
    return sum_per_channel(x[:, :, :-1])


# ---- The seven loops ----


@bug(naive.grad_input, NAIVE, "x: the sign is wrong")
def naive_dx_sign(dy, w, spec):
    """The seven loops subtract where they should add."""
    return -naive_grad_input(dy, w, spec)


@bug(naive.grad_input, NAIVE, "x: none of the known patterns")
def naive_dx_one_filter_for_all(dy, w, spec):
    """The seven loops read w[0] for w[o]: every output channel hands back through the first filter."""
    return naive_grad_input(dy, np.broadcast_to(w[:1], w.shape), spec)


@bug(naive.grad_weight, NAIVE, "channels-last memory gives another gradient of w")
def naive_dw_misreads_memory(dy, x, spec):
    """The seven loops take x as it lies in memory for x in (N, C, H, W) order."""
    return naive_grad_weight(dy, x.ravel(order="K").reshape(x.shape), spec)


@bug(naive.grad_weight, NAIVE, "w: none of the known patterns")
def naive_dw_forgets_padding(dy, x, spec):
    """The seven loops leave out the padding: h = oh + kh for h = oh + kh − padding."""
    return naive_grad_weight(dy, np.roll(x, -1, axis=(2, 3)), spec)


@bug(naive.forward, NAIVE, "x: none of the known patterns")
def naive_forward_rotated(x, w, spec):
    """Forward is a true convolution, with the filter turned; backward is that of a cross-correlation."""
    return naive_forward(x, w[..., ::-1, ::-1], spec)
