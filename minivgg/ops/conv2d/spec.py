"""What a convolution is asked to do (`ConvSpec`), and what a way of doing it consists of (`Algorithm`)."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from minivgg.ops.windows import check_window, output_size


@dataclass(frozen=True)
class ConvSpec:
    """The geometry of one convolution: x (N, C, H, W) with filters w (O, C, KH, KW) → y (N, O, OH, OW).

    y[n, o, oh, ow] = Σ_c Σ_kh Σ_kw  x[n, c, oh·stride − padding + kh, ow·stride − padding + kw] · w[o, c, kh, kw],
    where x counts as zero outside its borders (a cross-correlation, as everywhere in deep learning).
    """

    N: int
    C: int
    H: int
    W: int
    O: int
    KH: int
    KW: int
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    OH: int = field(init=False)
    OW: int = field(init=False)

    def __post_init__(self):
        kernel, stride, padding = check_window("conv2d", (self.KH, self.KW), self.stride, self.padding)
        OH, OW = output_size("conv2d", (self.H, self.W), kernel, stride, padding)
        for name, value in {"stride": stride, "padding": padding, "OH": OH, "OW": OW}.items():
            object.__setattr__(self, name, value)

    @classmethod
    def of(cls, x_shape: tuple, w_shape: tuple, stride=1, padding=0) -> "ConvSpec":
        """The spec of x and w by their shapes. Raises ValueError, with both shapes, where they do not go together."""
        if len(x_shape) != 4 or len(w_shape) != 4 or 0 in x_shape[1:] or 0 in w_shape:
            raise ValueError(
                "conv2d: expected x (N, C, H, W) and w (O, C, KH, KW), of which only N may be 0, "
                f"got x {x_shape} and w {w_shape}"
            )
        if x_shape[1] != w_shape[1]:
            raise ValueError(
                f"conv2d: x has {x_shape[1]} channels but the filters take {w_shape[1]}: x {x_shape}, w {w_shape}"
            )
        O, C, KH, KW = w_shape
        N, _, H, W = x_shape
        return cls(N, C, H, W, O, KH, KW, stride, padding)

    @property
    def x_shape(self) -> tuple[int, int, int, int]:
        return self.N, self.C, self.H, self.W

    @property
    def w_shape(self) -> tuple[int, int, int, int]:
        return self.O, self.C, self.KH, self.KW

    @property
    def y_shape(self) -> tuple[int, int, int, int]:
        return self.N, self.O, self.OH, self.OW

    @property
    def sizes(self) -> tuple[int, ...]:
        """N, C, H, W, O, KH, KW, OH, OW, stride and padding (height, width): what a CUDA kernel needs to be told."""
        return *self.x_shape, self.O, self.KH, self.KW, self.OH, self.OW, *self.stride, *self.padding

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one pass; a FLOP count is twice this."""
        return self.N * self.OH * self.OW * self.O * self.columns

    @property
    def columns(self) -> int:
        """KH·KW·C, the length of one row of the column matrix: all that one output pixel looks at."""
        return self.KH * self.KW * self.C

    @property
    def is_pointwise(self) -> bool:
        """A 1×1 convolution with stride 1 and no padding: a matrix product over pixels, nothing to gather."""
        return (self.KH, self.KW, *self.stride, *self.padding) == (1, 1, 1, 1, 0, 0)


def supports_everything(spec: ConvSpec, device: str) -> None:
    """The `supports` of an algorithm for every geometry and device."""
    return


EVERY_DTYPE = ("float16", "float32", "float64")


@dataclass(frozen=True)
class Algorithm:
    """One row of `ALGORITHMS`: three functions and a reason.

    forward(x, w, spec) -> y            (N, C, H, W), (O, C, KH, KW) → (N, O, OH, OW)
    grad_input(dy, w, spec) -> dx       (N, O, OH, OW), (O, C, KH, KW) → (N, C, H, W)
    grad_weight(dy, x, spec) -> dw      (N, O, OH, OW), (N, C, H, W) → (O, C, KH, KW)
    supports(spec, device) -> None | "why not", where device is "cpu" or "gpu"

    Arrays come in one dtype, one of `dtypes`, in any memory order, and are not written to. Bias, validation, dtype and
    cache are handled above, in `conv2d_forward` and `conv2d_backward`. That is all that a rung needs. It may also say
    that it

    fuses       forward takes `bias` (O,) and `relu=True`, and gives relu(y + bias); grad_input takes `mask`, of dx's
                shape, and gives 0 where mask ≤ 0: done while the results are in registers, they cost next to nothing
    pools       forward takes `pool=True`, too, and gives the largest of each 2×2 of these, (N, O, OH // 2, OW // 2)
    prepare     prepare(w) makes of the filters what forward can take as `prepared`, for filters that no longer change
    growth      how much larger than the definition's products the numbers are that it adds up, in the mean square:
                the conformance tests allow so much more rounding
    eps         how far a product of two float32 may be off, relative to itself, if not by float32's own 2⁻²³: the
                conformance tests allow for that, too
    mixes       the kinds of devices ("cpu", "gpu") on which an infinity or NaN may reach outputs that do not see it
    dtypes      which it takes; float16, whose sums are then in float32, on a GPU alone
    """

    name: str
    reason: str
    forward: Callable
    grad_input: Callable
    grad_weight: Callable
    supports: Callable = supports_everything
    fuses: bool = False
    pools: bool = False
    prepare: Callable | None = None
    growth: float = 1.0
    eps: float = 2.0**-23
    mixes: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ("float32", "float64")

    def why_not(self, spec: ConvSpec, device: str, dtype) -> str | None:
        """Why it cannot do a geometry on a device ("cpu" or "gpu") with arrays of a dtype; None if it can."""
        dtype, takes = np.dtype(dtype).name, [name for name in self.dtypes if (name, device) != ("float16", "cpu")]
        wrong = f"on a {device.upper()} its arrays are {' or '.join(takes)}, not {dtype}"
        return self.supports(spec, device) or (None if dtype in takes else wrong)
