"""Implicit GEMM on a GPU's tensor cores: eight times as many multiply-adds a second, or more, with shorter factors.

A tensor core multiplies small matrices whose numbers have 11 bits, and adds up in float32. So float16, which has as
many, goes in as it is: that is `fp16`, a row of its own, which takes nothing else; float32 would have to be rounded for
it, and to a narrower range. A product of two float16 is exact in float32, and the sum is rounded to float16 once, when
it is stored. There are two ways to feed float32 to a tensor core (see `tensor_core.cu`):

`tf32`      Each factor is rounded to TF32, off by 2⁻¹¹ of itself at most; so a product is off by 2⁻¹⁰. Much of deep
            learning runs on that. It is 8192 times coarser than float32's own 2⁻²³.
`fp16x3`    Each factor is the sum of two float16, off by 2⁻²² of itself, and the three products that matter are added;
            the fourth, which is left out, is at most 2⁻²² of the product. All in all it is off by 3·2⁻²² ≈ 7·10⁻⁷ at
            most, and as signs vary by a few 10⁻⁸: then rounding in the sums, which is float32's, is what one sees.

float64 has no short cut: there these two are implicit_gemm's. An infinity may come out as a nan.

Source: Markidis et al., NVIDIA Tensor Core Programmability, Performance & Precision (2018), §V; Ootomo & Yokota,
Recovering single precision accuracy from Tensor Cores while surpassing the FP32 theoretical peak performance (2022).
"""

from functools import partial

from minivgg.ops.conv2d.spec import Algorithm, ConvSpec
from minivgg.ops.conv2d.tiling import (
    FMA,
    Tile,
    Units,
    filters_on_gpu,
    forward_on_gpu,
    grad_input_on_gpu,
    grad_weight_on_gpu,
)

_FILE = "ops/conv2d/tensor_core.cu"
_SMALLEST = Tile(32, 32, 4, 4, BLOCKS=4, speed=0.3)


def _tiles(itemsize: int, large: int, medium: int, small: int) -> dict[int, tuple[Tile, ...]]:
    """Tiles by the bytes of a number, and by how many blocks of each are to share a multiprocessor's registers."""
    return {
        itemsize: (
            Tile(128, 128, 8, 8, BLOCKS=large, speed=1.0, BK=32, STAGES=3),
            Tile(128, 64, 8, 8, BLOCKS=medium, speed=0.9, BK=32),
            Tile(64, 64, 8, 4, BLOCKS=small, speed=0.6, BK=32),
            _SMALLEST,
        )
    }


TF32 = Units(_FILE, _tiles(4, 2, 2, 4), (("HALVES", 0),), pixel_pad=8, row_pad=4, scaled=False)
FP16 = Units(_FILE, _tiles(2, 2, 3, 4), (("HALVES", 1),), pixel_pad=8, row_pad=8, scaled=False)
FP16X3 = Units(_FILE, _tiles(4, 1, 2, 3), (("HALVES", 3),), pixel_pad=8, row_pad=4, scaled=True)


def variants() -> list[dict]:
    """What tensor_core.cu is compiled with."""
    return TF32.variants() + FP16.variants() + FP16X3.variants()


def _units(units: Units, x) -> Units:
    return units if x.itemsize in units.tiles else FMA


def forward(units: Units, x, w, spec: ConvSpec, **options):
    return forward_on_gpu(x, w, spec, units=_units(units, x), **options)


def grad_input(units: Units, dy, w, spec: ConvSpec, mask=None):
    return grad_input_on_gpu(dy, w, spec, mask, units=_units(units, dy))


def grad_weight(units: Units, dy, x, spec: ConvSpec):
    return grad_weight_on_gpu(dy, x, spec, units=_units(units, x))


def supports(spec: ConvSpec, device: str) -> str | None:
    return None if device == "gpu" else "it runs on a GPU's tensor cores, which a CPU does not have"


def _row(name: str, reason: str, units: Units, **more) -> Algorithm:
    passes = (partial(one, units) for one in (forward, grad_input, grad_weight))
    return Algorithm(name, reason, *passes, supports, fuses=True, prepare=filters_on_gpu, **more)


ALGORITHMS = (
    _row("tf32", "tensor cores: factors of 11 bits, sums in float32", TF32, eps=2.0**-10),
    _row("fp16x3", "tensor cores, three products for one: as good as float32", FP16X3, eps=3 * 2.0**-22),
    _row("fp16", "tensor cores, for float16: sums in float32", FP16, dtypes=("float16",)),
)
