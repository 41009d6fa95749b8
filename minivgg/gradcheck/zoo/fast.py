"""Bugs of the fast convolutions: what goes wrong at the seams of tiles, bands and panels."""

import numpy as np

from minivgg.gradcheck.zoo.bug import bug
from minivgg.gradcheck.zoo.cases import FAST
from minivgg.ops.conv2d import ALGORITHMS

DIRECT, IMPLICIT_GEMM, WINOGRAD2, WINOGRAD = (
    ALGORITHMS[name] for name in ("direct", "implicit_gemm", "winograd2", "winograd")
)


def without(x, rows=slice(0), columns=slice(0)):
    """x with zeros in some rows or columns of its images."""
    x = x.copy()
    x[:, :, rows], x[..., columns] = 0, 0
    return x


@bug(WINOGRAD.grad_input, FAST["winograd"], "x: none of the known patterns")
def winograd_dx_filters_not_turned(dy, w, spec, mask=None):
    """grad_input convolves dy with the filters as they are, where it should turn them by 180°."""
    return WINOGRAD.grad_input(dy, w[..., ::-1, ::-1], spec)


@bug(WINOGRAD.grad_weight, FAST["winograd"], "w: none of the known patterns")
def winograd_dw_forgets_tiles_over_the_border(dy, x, spec):
    """Tiles that reach over the lower border are left out: the last rows of dy count for nothing."""
    return WINOGRAD.grad_weight(without(dy, rows=slice(spec.OH - spec.OH % 4, None)), x, spec)


@bug(WINOGRAD2.grad_input, FAST["winograd2"], "x: wrong only in the last columns")
def winograd_dx_tiles_do_not_overlap(dy, w, spec, mask=None):
    """Every other column of dy is not seen by the tile to its left: tiles overlap by two pixels, not by one."""
    return WINOGRAD2.grad_input(without(dy, columns=slice(2, None, 2)), w, spec)


@bug(WINOGRAD2.grad_weight, FAST["winograd2"], "w: a constant factor, 2 times too large")
def winograd_dw_scale_of_a_point(dy, x, spec):
    """A transform's factor of ½ is left out."""
    return 2 * WINOGRAD2.grad_weight(dy, x, spec)


@bug(DIRECT.grad_input, FAST["direct"], "x: none of the known patterns")
def direct_dx_turned_about_one_axis(dy, w, spec, mask=None):
    """The filters are turned upside down but not left to right."""
    return DIRECT.grad_input(dy, w[..., ::-1], spec)


@bug(DIRECT.grad_weight, FAST["direct"], "w: wrong only in the first filter rows")
def direct_dw_forgets_the_last_row(dy, x, spec):
    """The last row of a band is taken for the spare one behind it."""
    return DIRECT.grad_weight(without(dy, rows=slice(-1, None)), x, spec)


@bug(IMPLICIT_GEMM.grad_input, FAST["implicit_gemm"], "x: wrong only in the last samples")
def implicit_gemm_dx_stale_panel(dy, w, spec, mask=None):
    """The panel of one image is used for the next."""
    return IMPLICIT_GEMM.grad_input(np.repeat(dy[:1], spec.N, axis=0), w, spec)


@bug(IMPLICIT_GEMM.grad_weight, FAST["implicit_gemm"], "w: none of the known patterns")
def implicit_gemm_dw_last_panel_only(dy, x, spec):
    """Each panel overwrites the sums of the one before."""
    dy = dy.copy()
    dy[:-1] = 0
    return IMPLICIT_GEMM.grad_weight(dy, x, spec)
