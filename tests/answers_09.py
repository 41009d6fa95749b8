"""Wrong answers to the exercises 09, with what must be said of them, and right ones in other styles.

A wrong one is the solution with one thing changed: (exercise, what stands there, what is put in its place, words).
"""

MISTAKES = [
    ("09.1", "np.maximum(total, 0)", "total", "the ReLU is missing"),
    ("09.1", "gradients.mean(axis=(1, 2))", "gradients.sum(axis=(1, 2))", "added up, not averaged"),
    ("09.1", "gradients.mean(axis=(1, 2))", "np.ones(len(maps))", "every map weighs the same"),
    ("09.1", "gradients.mean(axis=(1, 2))", "np.abs(gradients.mean(axis=(1, 2)))", "without its sign"),
    ("09.1", "gradients.mean(axis=(1, 2))", "np.maximum(gradients, 0).mean(axis=(1, 2))", "on the gradients"),
    ("09.1", "gradients.mean(axis=(1, 2))", "gradients.mean(axis=(0, 1))", "for each row or column"),
    ("09.1", "gradients.mean(axis=(1, 2))", "gradients.mean(axis=(0, 2))", "for each row or column"),
    ("09.1", "gradients.mean(axis=(1, 2))", "gradients.mean(axis=0)", "found    shape (2, 2, 2)"),
    ("09.1", "weights[:, None, None] * maps", "np.maximum(weights[:, None, None] * maps, 0)", "stands before the sum"),
    ("09.1", "weights[:, None, None] * maps", "gradients * maps", "place by place"),
    ("09.1", "weights[:, None, None] * maps", "gradients.mean(axis=0) * maps", "averaged over the maps; the mean is"),
    ("09.1", "weights[:, None, None] * maps", "weights[:, None, None] * gradients", "sum of the gradients"),
    ("09.1", "* maps).sum(axis=0)", "* maps).mean(axis=0)", "averaged over the maps, not added up"),
    ("09.1", "* maps).sum(axis=0)", "* maps).sum(axis=(1, 2))", "one number for each place"),
    ("09.1", "np.maximum(total, 0)", "np.abs(total)", "the size of the sum"),
    ("09.1", "np.maximum(total, 0)", "np.maximum(total, 0) / max(total.max(), 1e-30)", "its largest value is 1"),
    ("09.1", "np.maximum(total, 0)", "np.multiply(np.maximum(total, 0), 1, out=maps[0])", "they have been written to"),
    ("09.2", " + b[:, None, None]", "", "the bias is missing"),
    ("09.2", "w.reshape(O, C, height, width)", "w.reshape(O, height, width, C).transpose(0, 3, 1, 2)", "channels last"),
    ("09.2", "w.reshape(O, C, height, width)", "w.reshape(O, C, width, height).swapaxes(2, 3)",
     "rows and columns of each filter are exchanged"),
    ("09.2", "w.reshape(O, C, height, width)", "w.reshape(O, C, height, width)[:, :, ::-1, ::-1]", "turned by 180°"),
    ("09.2", "w.reshape(O, C, height, width)", "w.reshape(-1, O).T.reshape(O, C, height, width)",
     "its rows are outputs"),
    ("09.2", "w.reshape(O, C, height, width)", "w.reshape(O, C, height, width) / (height * width)",
     "the products are added up"),
    ("09.2", "-> nohw", "-> noh", "for each output and each place"),
    ("09.2", "-> nohw", "-> onhw", "for each output and each place"),
    ("09.2", "b[:, None, None]", "b", "for each output and each place"),
    ("09.2", "return ", "x *= 1.5\n    return ", "they have been written to"),
]  # fmt: skip

STYLES = [
    ("09.1", "def grad_cam(A, dA):\n"
             "    return np.tensordot(dA.mean((1, 2)), A, 1).clip(0)"),
    ("09.1", """
def grad_cam(maps, slopes):
    K, H, W = maps.shape
    out = np.zeros((H, W))
    for k in range(K):
        weight = sum(slopes[k, i, j] for i in range(H) for j in range(W)) / (H * W)
        out += weight * maps[k]
    out[out < 0] = 0
    return out
"""),
    ("09.1", "def grad_cam(a, g):\n"
             "    total = np.einsum('kij,k->ij', a, g.reshape(len(g), -1).mean(1))\n"
             "    return np.where(total > 0, total, 0.0)"),
    ("09.2", """
def slide(x, weight, bias, P, Q):
    from minivgg.ops.conv2d import conv2d_forward
    y, _ = conv2d_forward(x, weight.reshape(len(weight), -1, P, Q), bias)
    return y
"""),
    ("09.2", """
def slide(x, w, b, height, width):
    H, W = x.shape[2] - height + 1, x.shape[3] - width + 1
    rows = [
        [x[:, :, i : i + height, j : j + width].reshape(len(x), -1) @ w.T + b for j in range(W)] for i in range(H)
    ]
    return np.array(rows).transpose(2, 3, 0, 1)
"""),
    ("09.2", """
def slide(maps, w, b, P, Q):
    N, C, H, W = maps.shape
    h, v = H - P + 1, W - Q + 1
    out = np.zeros((N, len(w), h, v)) + b.reshape(1, -1, 1, 1)
    column = 0
    for c in range(C):
        for i in range(P):
            for j in range(Q):
                out += w[:, column, None, None] * maps[:, c, None, i : i + h, j : j + v]
                column += 1
    return out
"""),
]  # fmt: skip
