"""Windows that slide over an image: what convolution and pooling share before any arithmetic."""

from collections.abc import Sequence
from numbers import Integral


def pair(value: int | Sequence[int], name: str) -> tuple[int, int]:
    """`3` → (3, 3) and `(3, 5)` → (3, 5), as (height, width). Raises ValueError for anything else."""
    values = (value, value) if not isinstance(value, Sequence) else tuple(value)
    if len(values) != 2 or not all(isinstance(v, Integral) for v in values):
        raise ValueError(f"{name} must be an integer or a pair of integers (height, width), got {value!r}")
    return int(values[0]), int(values[1])


def output_size(
    op: str, size: tuple, kernel: tuple, stride: tuple, padding: tuple, ceil_mode: bool = False
) -> tuple[int, int]:
    """(H + 2·padding − K) // stride + 1 in each direction.

    With `ceil_mode` the quotient is rounded up: what is left over at the end gets a window too, which reaches past the
    padding, unless it would begin there (PyTorch's rule).

    Raises ValueError, naming `op`, where that is less than one or the geometry itself makes no sense.
    """
    if min(kernel) < 1 or min(stride) < 1 or min(padding) < 0:
        raise ValueError(
            f"{op}: kernel {kernel} and stride {stride} must be at least 1, and padding {padding} at least 0"
        )
    rest = (t - 1 for t in stride) if ceil_mode else (0, 0)
    out = tuple((s + 2 * p - k + r) // t + 1 for s, k, t, p, r in zip(size, kernel, stride, padding, rest, strict=True))
    if ceil_mode:
        out = tuple(o - ((o - 1) * t >= s + p) for o, s, t, p in zip(out, size, stride, padding, strict=True))
    if min(out) < 1:
        raise ValueError(f"{op}: a {kernel} window does not fit into {size} with padding {padding}")
    return out


def check_nchw(op: str, x) -> None:
    """Raise ValueError unless `x` has the four dimensions (N, C, H, W), none of them empty."""
    if x.ndim != 4 or 0 in x.shape:
        raise ValueError(f"{op}: expected a non-empty (N, C, H, W) array, got shape {x.shape}")


def check_parameters(op: str, x, w, b, outputs: int) -> None:
    """Raise ValueError unless w and b (which may be None) have x's dtype, and b one value for each output."""
    dtypes = [a.dtype for a in (x, w, b) if a is not None]
    if len(set(dtypes)) > 1:
        raise ValueError(f"{op}: x, w and b must share one dtype, got " + ", ".join(map(str, dtypes)))
    if b is not None and b.shape != (outputs,):
        raise ValueError(f"{op}: b must have shape ({outputs},), one value for each output, got {b.shape}")


def check_gradient(op: str, dy, y_shape: tuple, dtype) -> None:
    """Raise ValueError unless the upstream gradient `dy` has the shape and dtype of the output that it belongs to."""
    if dy.shape != tuple(y_shape) or dy.dtype != dtype:
        raise ValueError(
            f"{op}: dy must have the output's shape {tuple(y_shape)} and dtype {dtype}, got {dy.shape} {dy.dtype}"
        )
