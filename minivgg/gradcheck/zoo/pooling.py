"""Bugs of pooling: who won, who gets how much, and which pixels a window had."""

import numpy as np

from minivgg.backends.array import nchw
from minivgg.gradcheck.zoo.bug import bug
from minivgg.gradcheck.zoo.cases import ADAPTIVE, AVGPOOL, COUNTING_PIXELS, MAXPOOL, OVERLAPPING, PADDED, op
from minivgg.gradcheck.zoo.oracles import adaptive_windows_cover_all, the_first_of_equals_wins
from minivgg.ops.avgpool import _pool, adaptive_avgpool2d_forward, avgpool2d_backward
from minivgg.ops.maxpool import maxpool2d_backward, maxpool2d_forward


def places(cache):
    """Yield (n, oh, ow, c), the row and the column in x of each window's winner."""
    (s, t), (p, q) = cache.stride, cache.padding
    for n, oh, ow, c in np.ndindex(cache.argmax.shape):
        kh, kw = divmod(int(cache.argmax[n, oh, ow, c]), cache.kernel[1])
        yield (n, oh, ow, c), oh * s - p + kh, ow * t - q + kw


# ---- Max-pooling ----


@bug(maxpool2d_backward, MAXPOOL, "x: the right numbers in the wrong places")
def maxpool_winner_off_by_one(dy, cache):
    """The gradient goes to the place after the winner."""
    window = cache.kernel[0] * cache.kernel[1]
    return maxpool2d_backward(dy, cache._replace(argmax=(cache.argmax + 1) % window))


@bug(maxpool2d_backward, MAXPOOL, "x: the mask is missing")
def maxpool_gradient_to_all(dy, cache):
    """Every pixel of the window gets the gradient, as if the maximum were the sum."""
    return sum(
        maxpool2d_backward(dy, cache._replace(argmax=np.full_like(cache.argmax, k)))
        for k in range(np.prod(cache.kernel))
    )


@bug(maxpool2d_backward, MAXPOOL, "x: another mask")
def maxpool_winner_is_the_corner(dy, cache):
    """The gradient goes to the top left pixel of each window: right where that has won, as a quarter of them has."""
    return maxpool2d_backward(dy, cache._replace(argmax=np.zeros_like(cache.argmax)))


@bug(maxpool2d_backward, OVERLAPPING, "WRONG")
def maxpool_overlap_assigned(dy, cache):
    """A pixel that wins in several windows keeps the gradient of the last one: = for +=."""
    dx = np.zeros(cache.x_shape, dy.dtype)
    for (n, oh, ow, c), h, v in places(cache):
        dx[n, c, h, v] = dy[n, c, oh, ow]
    return dx


@bug(maxpool2d_backward, MAXPOOL, "x: another mask: 0 elements too many")
def maxpool_window_clipped(dy, cache):
    """Backward looks through windows without their last row: those who won there get nothing."""
    dy = np.where(nchw(cache.argmax) // cache.kernel[1] < cache.kernel[0] - 1, dy, 0)
    return maxpool2d_backward(dy, cache)


@bug(maxpool2d_backward, OVERLAPPING, "WRONG")
def maxpool_padding_forgotten(dy, cache):
    """Backward forgets the padding: the gradient lands down and to the right of the winner."""
    dx = np.zeros(cache.x_shape, dy.dtype)
    for (n, oh, ow, c), h, v in places(cache._replace(padding=(0, 0))):
        if h < dx.shape[2] and v < dx.shape[3]:
            dx[n, c, h, v] += dy[n, c, oh, ow]
    return dx


@bug(maxpool2d_backward, op("maxpool2d", (1, 2, 6, 5), kernel_size=2, stride=1), "WRONG")
def maxpool_stride_is_the_window(dy, cache):
    """Backward takes windows to lie side by side, whatever the stride."""
    dx = np.zeros(cache.x_shape, dy.dtype)
    for (n, oh, ow, c), h, v in places(cache._replace(stride=cache.kernel)):
        if h < dx.shape[2] and v < dx.shape[3]:
            dx[n, c, h, v] += dy[n, c, oh, ow]
    return dx


@bug(
    maxpool2d_forward,
    op("maxpool2d", (1, 2, 17, 17), kernel_size=17, draw="ascending"),
    "x: wrong only in the last rows (1 to 16 of 0 to 16), the last columns (15 to 16 of 0 to 16)",
)
def maxpool_winner_in_a_byte(x, kernel_size, stride=None, padding=0):
    """Which place has won is kept in one byte, also for windows of more than 256 places."""
    y, cache = maxpool2d_forward(x, kernel_size, stride, padding)
    return y, cache._replace(argmax=cache.argmax.astype(np.uint8))


@bug(
    maxpool2d_forward,
    op("maxpool2d", (1, 1, 2, 2), kernel_size=2, draw="constant"),
    "the gradient of a tie went to place 3",
    the_first_of_equals_wins,
)
def maxpool_tie_to_the_last(x, kernel_size, stride=None, padding=0):
    """A tie goes to the last maximum: a fair gradient, but not the one that every other library has."""
    y, cache = maxpool2d_forward(x[..., ::-1, ::-1], kernel_size, stride, padding)
    argmax = np.prod(cache.kernel) - 1 - cache.argmax[:, ::-1, ::-1]
    return y[..., ::-1, ::-1], cache._replace(argmax=argmax.astype(np.uint8))


@bug(maxpool2d_backward, op("maxpool2d", (1, 1, 4, 4), kernel_size=4, draw="constant"), "WRONG")
def maxpool_tie_to_all(dy, cache):
    """All who tie get the whole gradient, as a mask x == y has it; more than any one of them could give."""
    return np.repeat(np.repeat(dy, cache.kernel[0], 2), cache.kernel[1], 3)


# ---- Average pooling ----


@bug(avgpool2d_backward, AVGPOOL, "x: a constant factor, 4 times too large, which is KH·KW: its inverse is missing")
def avgpool_not_divided(dy, cache):
    """Every pixel of the window gets all of dy, not its share."""
    return avgpool2d_backward(dy, cache._replace(area=np.ones_like(cache.area)))


@bug(avgpool2d_backward, PADDED, "x: wrong only in the border")
def avgpool_clipped_area_in_backward(dy, cache):
    """Backward divides by the pixels inside the image, forward by all of the window: they part at the border."""
    area = np.outer(cache.rows[1] - cache.rows[0], cache.cols[1] - cache.cols[0])
    return avgpool2d_backward(dy, cache._replace(area=area.astype(cache.area.dtype)))


@bug(avgpool2d_backward, COUNTING_PIXELS, "x: wrong only in the border")
def avgpool_padding_counted(dy, cache):
    """Backward divides by all of the window, although the padding is not to count."""
    return avgpool2d_backward(dy, cache._replace(area=np.full_like(cache.area, cache.area.max())))


@bug(avgpool2d_backward, AVGPOOL, "x: wrong only in the last rows (4 to 5 of 0 to 5), and there the gradient is all")
def avgpool_last_window_lost(dy, cache):
    """A loop over output rows stops one early: the last rows of the image get nothing."""
    rows = cache.rows.copy()
    rows[1, -1] = rows[0, -1]
    return avgpool2d_backward(dy, cache._replace(rows=rows))


@bug(avgpool2d_backward, AVGPOOL, "x: wrong only in the first channel (0 of 0 to 1), and there")
def avgpool_channel_factor(dy, cache):
    """The first channel is divided twice."""
    dx = np.array(avgpool2d_backward(dy, cache))
    dx[:, 0] /= cache.area.max()
    return dx


@bug(avgpool2d_backward, AVGPOOL, "x: none of the known patterns")
def avgpool_all_to_the_corner(dy, cache):
    """All of dy goes to the first pixel of the window, and none to the others."""
    ends = cache.rows[0] + 1, cache.cols[0] + 1
    rows, cols = (np.stack([begin, end]) for begin, end in zip((cache.rows[0], cache.cols[0]), ends, strict=True))
    return avgpool2d_backward(dy, cache._replace(rows=rows, cols=cols, area=np.ones_like(cache.area)))


@bug(avgpool2d_backward, op("avgpool2d", (1, 2, 6, 6), kernel_size=(2, 3), stride=1), "x: none of the known patterns")
def avgpool_window_on_its_side(dy, cache):
    """Backward takes a window of 2×3 for one of 3×2."""
    (KH, KW), (H, W) = (bounds[1, 0] - bounds[0, 0] for bounds in cache[1:3]), cache.x_shape[2:]
    rows = np.stack([cache.rows[0], np.minimum(cache.rows[0] + KW, H)])
    cols = np.stack([cache.cols[0], np.minimum(cache.cols[0] + KH, W)])
    return avgpool2d_backward(dy, cache._replace(rows=rows, cols=cols))


@bug(adaptive_avgpool2d_forward, ADAPTIVE, "x: wrong only in")
def adaptive_windows_disjoint(x, output_size):
    """Backward ends each window where the next begins, although they may share a row."""
    y, cache = adaptive_avgpool2d_forward(x, output_size)
    rows = cache.rows.copy()
    rows[1, :-1] = np.minimum(rows[1, :-1], rows[0, 1:])
    return y, cache._replace(rows=rows)


@bug(adaptive_avgpool2d_forward, ADAPTIVE, "x: none of the known patterns")
def adaptive_area_by_division(x, output_size):
    """Backward divides by H·W / OH·OW, as if all windows were of one size."""
    y, cache = adaptive_avgpool2d_forward(x, output_size)
    (H, W), (OH, OW) = x.shape[2:], cache.area.shape
    return y, cache._replace(area=np.full_like(cache.area, H * W / (OH * OW)))


@bug(adaptive_avgpool2d_forward, ADAPTIVE, "means are", adaptive_windows_cover_all)
def adaptive_windows_too_short(x, output_size):
    """Windows end at ⌊(i + 1)·H/OH⌋ for ⌈(i + 1)·H/OH⌉, forward and backward: no gradient sees it."""
    bounds = [np.arange(o + 1) * s // o for s, o in zip(x.shape[2:], output_size, strict=True)]
    rows, cols = (np.stack([b[:-1], b[1:]]) for b in bounds)
    return _pool(x, rows, cols, np.outer(rows[1] - rows[0], cols[1] - cols[0]))
