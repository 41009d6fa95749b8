"""From images to vectors: what stands between the last pooling and the first linear layer."""

from minivgg.ops.windows import check_gradient


def flatten_forward(x):
    """x (N, …) → y (N, F) in (C, H, W) order, whatever the memory order: the order published weights expect."""
    return x.reshape(len(x), -1), (x.shape, x.dtype)


def flatten_backward(dy, cache):
    """dx in the shape of x."""
    shape, dtype = cache
    size = 1
    for d in shape[1:]:
        size *= d
    check_gradient("flatten_backward", dy, (shape[0], size), dtype)
    return dy.reshape(shape)
