"""Answers to the exercises: wrong ones, each a solution with one thing changed, and right ones in other styles."""

# exercise, what the solution has, what stands there instead, what the verdict says
MISTAKES = [
    ("01.1", "dy.T @ x", "x.T @ dy", "w: the gradient is transposed"),
    ("01.1", "dy.sum(axis=0)", "dy", "found    db (3, 4)"),
    ("01.1", "dy @ w,", "dy @ w.T,", "x: none of the known patterns"),
    ("01.1", "x @ w.T + b", "x @ w.T", "forward computes what the formula says"),
    ("01.1", "x @ w.T + b", "(x @ w.T + b).astype(np.float64)", "dtype in is dtype out"),
    ("01.1", "return dy @ w, dy.T @ x,", "return dy.T @ x, dy @ w,", "one gradient for each argument"),
    (
        "01.1",
        "return dy @ w, dy.T @ x, dy.sum(axis=0)",
        "return 3 * dy @ w, dy.T @ x, dy.sum(axis=0)",
        "3 times too large",
    ),
    ("01.1", "dy.T @ x", "dy.T @ y", "NameError: name 'y' is not defined"),
    ("01.2", "x - x.max(axis=1, keepdims=True)", "x", "large scores do not overflow"),
    ("01.2", "x.max(axis=1, keepdims=True)", "x.max()", "large scores do not overflow"),
    ("01.2", "e.sum(axis=1, keepdims=True)", "e.sum()", "forward computes what the formula says"),
    ("01.3", "dscores = p.copy()", "dscores = p", "twice the same gives the same bits"),
    ("01.3", "p.dtype.type(dloss / len(labels))", "p.dtype.type(dloss)", "which is N: its inverse is missing"),
    ("01.3", "prices.mean()", "prices.sum()", "forward computes what the formula says"),
    ("01.3", "p.dtype.type(dloss / len(labels))", "p.dtype.type(1 / len(labels))", "dy = 0 gives 0"),
    ("02.1", "(2 * h)", "h", "differences are central"),
    ("02.1", "f(x + h * v) - f(x - h * v)) / (2 * h)", "f(x + h * v) - f(x)) / h", "off by"),
    ("02.2", "rng.standard_normal(y.shape), rng", "np.ones(y.shape), rng", "softmax-seven-times"),
    ("02.2", "1e-9 *", "1e-2 *", "sigmoid-one-in-ten-thousand"),
    ("02.2", "1e-9 *", "1e-6 *", "sigmoid-in-float32"),
    ("02.2", "1e-9 *", "1e-13 *", "right gradients are accepted"),
    ("02.2", "1e-5", "1e-11", "right gradients are accepted"),
    ("02.2", "rise = forward", "x = x.astype(np.float32)\n        rise = forward", "right gradients are accepted"),
    ("03.1", "cache > 0", "cache >= 0", "x: backward hands on dy as it is"),
    ("03.1", "cache > 0", "cache <= 0", "the mask is inverted"),
    ("03.1", "np.maximum(x, 0)", "np.maximum(x, 0, out=x)", "arguments and dy are left alone"),
    ("03.1", "dy * (cache > 0)", "dy * cache", "gradients are the slopes of forward"),
    ("03.2", "return dy * keep / (1 - p)", "return dy * keep", "1.66667 times too small"),
    ("03.2", "return x * keep / (1 - p)", "return x * keep", "1.66667 times too large"),
    ("03.2", "/ (1 - p)", "", "a share p is dropped, and the mean stays"),
    ("03.2", ">= p", "< p", "a share p is dropped, and the mean stays"),
    ("03.2", "default_rng(seed)", "default_rng()", "twice the same gives the same bits"),
    ("03.2", "/ (1 - p), (keep", "/ np.float64(1 - p), (keep", "dtype in is dtype out"),
    ("04.1", "2 * padding", "padding", "as many as fit"),
    ("04.1", " + 1", "", "as many as fit"),
    (
        "04.2",
        "0 <= h < spec.H and 0 <= v < spec.W",
        "h < spec.H and v < spec.W",
        "forward computes what the formula says",
    ),
    ("04.2", "y[n, o, oh, ow] +=", "y[n, o, oh, ow] =", "forward computes what the formula says"),
    ("04.2", "w[o, c, kh, kw]", "w[o, c, kw, kh]", "forward computes what the formula says"),
    ("04.2", "np.zeros(spec.y_shape, x.dtype)", "np.zeros(spec.y_shape)", "dtype in is dtype out"),
    ("04.2", "oh * down - top", "oh * right - top", "forward computes what the formula says"),
    ("04.2", "h < spec.H and", "", "IndexError"),
    ("04.3", "(left, left)", "(top, top)", "forward computes what the formula says"),
    ("04.3", "columns[..., kh, kw]", "columns[..., kw, kh]", "forward computes what the formula says"),
    ("04.3", "seen.transpose(0, 2, 3, 1)", "seen.transpose(0, 3, 2, 1)", "forward computes what the formula says"),
    ("04.3", "return columns.reshape(-1, spec.columns)", "return columns", "forward computes what the formula says"),
    ("05.1", "dw[o, c, kh, kw] +=", "dw[o, c, -1 - kh, -1 - kw] +=", "rotated by 180°"),
    ("05.1", "dw[o, c, kh, kw] +=", "dw[o, c, kh, kw] =", "w: "),
    ("05.1", "return dw", "return dw / spec.N", "which is N"),
    ("05.1", "return dw", "return dw.astype(np.float32).astype(dw.dtype)", "a float32 intermediate"),
    ("05.1", "return dw", "return dw.swapaxes(0, 1)", "transposed: output channel and input channel swapped"),
    ("05.2", "right] += owed", "right] = owed", "gradients are the slopes of forward"),
    ("05.2", "w[:, :, kh, kw]", "w[:, :, -1 - kh, -1 - kw]", "x: none of the known patterns"),
    ("05.2", "left : left + spec.W]", ": spec.W]", "shifted by +1 along its columns"),
    ("05.2", "return padded[:, :, top : top + spec.H, left : left + spec.W].copy()", "return padded", "its shape"),
    ("05.3", "right] += columns", "right] = columns", "forward computes what the formula says"),
    (
        "05.3",
        "columns = columns.reshape",
        "columns += 1\n    columns = columns.reshape",
        "arguments and dy are left alone",
    ),
    ("05.3", "columns[..., kh, kw]", "columns[..., kw, kh]", "forward computes what the formula says"),
]

# exercise, code
STYLES = [
    (
        "01.1",
        """
def linear_forward(pictures, weights, offset):
    out = np.zeros((len(pictures), len(weights)), pictures.dtype)
    for o in range(len(weights)):
        for n in range(len(pictures)):
            out[n, o] = offset[o] + sum(pictures[n] * weights[o])
    return out, {"p": pictures, "w": weights}

def linear_backward(up, kept):
    dp = np.einsum("no,of->nf", up, kept["w"])
    dw = np.einsum("no,nf->of", up, kept["p"])
    return [dp, dw, np.add.reduce(up)]
""",
    ),
    ("01.1", "linear_forward = lambda x, w, b: np.einsum('nf,of->no', x, w) + b\n"
             "linear_backward = lambda dy, x, w, b: (dy.dot(w), np.tensordot(dy, x, (0, 0)), dy.T.sum(axis=1))"),
    ("01.2", """
def softmax_forward(s):
    rows = []
    for row in s:
        powers = np.exp(row - np.max(row))
        rows.append(powers / np.sum(powers))
    return np.array(rows)
"""),
    ("01.2", "def softmax_forward(s):\n"
             "    s = s - s.max(1)[:, None]\n"
             "    return np.exp(s - np.log(np.exp(s).sum(1))[:, None])"),
    ("01.3", """
def cross_entropy_forward(s, t):
    top = s.max(axis=-1)
    log_sum = np.log(np.exp((s.T - top).T).sum(axis=-1)) + top
    loss = sum(log_sum[n] - s[n, t[n]] for n in range(len(t))) / len(t)
    return s.dtype.type(loss), (s, log_sum, t)

def cross_entropy_backward(up, kept):
    s, log_sum, t = kept
    truth = np.eye(s.shape[1], dtype=s.dtype)[t]
    return (np.exp(s - log_sum[:, None]) - truth) * s.dtype.type(up) / len(t)
"""),
    ("02.1", "def central_difference(g, at, along, step):\n"
             "    up = g(at + step * along)\n"
             "    down = g(at - step * along)\n"
             "    return 0.5 * up / step - 0.5 * down / step"),
    ("02.2", """
def is_right(forward, backward, x):
    generator = np.random.default_rng(7)
    y, cache = forward(x)
    up = generator.uniform(-1, 1, y.shape)
    claimed = backward(up.copy(), cache)
    if claimed.shape != x.shape:
        return False
    measured = np.empty(x.size)
    for i in range(x.size):
        step = np.zeros(x.size)
        step[i] = 3e-6
        step = step.reshape(x.shape)
        measured[i] = np.vdot(up, forward(x + step)[0] - forward(x - step)[0]) / 6e-6
    distance = np.linalg.norm(claimed.ravel() - measured)
    return bool(distance < 1e-8 * np.linalg.norm(measured) + 1e-10)
"""),
    ("04.1", "output_size = lambda n, k, s, p: len(range(0, n + 2 * p - k + 1, s))"),
    ("04.1", "import math\n\ndef output_size(n, k, s, p):\n    return math.floor((n + 2 * p - k) / s + 1)"),
    ("04.2", """
def conv_forward(images, filters, geometry):
    (s, t), (p, q) = geometry.stride, geometry.padding
    images = np.pad(images, [(0, 0), (0, 0), (p, p), (q, q)])
    seen = np.lib.stride_tricks.sliding_window_view(images, filters.shape[2:], axis=(2, 3))[:, :, ::s, ::t]
    return np.einsum("nchwij,ocij->nohw", seen, filters)
"""),
    ("04.2", """
def conv_forward(x, w, g):
    rows = []
    for image in np.pad(x, [(0, 0), (0, 0), (g.padding[0],) * 2, (g.padding[1],) * 2]):
        for o in range(g.O):
            for i in range(0, g.OH * g.stride[0], g.stride[0]):
                for j in range(0, g.OW * g.stride[1], g.stride[1]):
                    rows.append((image[:, i : i + g.KH, j : j + g.KW] * w[o]).sum())
    return np.array(rows, x.dtype).reshape(g.N, g.O, g.OH, g.OW)
"""),
    ("04.3", """
def im2col(x, g):
    matrix = np.zeros((g.N * g.OH * g.OW, g.C * g.KH * g.KW), dtype=x.dtype)
    row = 0
    for n in range(g.N):
        for i in range(g.OH):
            for j in range(g.OW):
                column = 0
                for c in range(g.C):
                    for a in range(g.KH):
                        for b in range(g.KW):
                            h, v = i * g.stride[0] - g.padding[0] + a, j * g.stride[1] - g.padding[1] + b
                            if h in range(g.H) and v in range(g.W):
                                matrix[row, column] = x[n, c, h, v]
                            column += 1
                row += 1
    return matrix
"""),
    ("05.1", """
def grad_weight(up, images, g):
    (s, t), (p, q) = g.stride, g.padding
    images = np.pad(images, [(0, 0), (0, 0), (p, p), (q, q)])
    seen = np.lib.stride_tricks.sliding_window_view(images, (g.KH, g.KW), axis=(2, 3))[:, :, ::s, ::t]
    return np.tensordot(up, seen, axes=([0, 2, 3], [0, 2, 3]))
"""),
    ("05.2", """
def grad_input(dy, w, g):
    dx = np.zeros((g.N, g.C, g.H, g.W), dy.dtype)
    for o, c, kw, kh in np.ndindex(g.O, g.C, g.KW, g.KH):
        for ow, oh in np.ndindex(g.OW, g.OH):
            h, v = oh * g.stride[0] - g.padding[0] + kh, ow * g.stride[1] - g.padding[1] + kw
            if not (h < 0 or v < 0 or h >= g.H or v >= g.W):
                dx[:, c, h, v] += w[o, c, kh, kw] * dy[:, o, oh, ow]
    return dx
"""),
    ("05.2", """
def grad_input(dy, w, g):
    (s, t), (p, q) = g.stride, g.padding
    spread = np.zeros((g.N, g.O, g.H + 2 * p + g.KH - 1, g.W + 2 * q + g.KW - 1), dy.dtype)
    spread[:, :, g.KH - 1 :: s, g.KW - 1 :: t][:, :, : g.OH, : g.OW] = dy
    seen = np.lib.stride_tricks.sliding_window_view(spread, (g.KH, g.KW), axis=(2, 3))
    dx = np.einsum("nohwij,ocij->nchw", seen, w[:, :, ::-1, ::-1])
    return dx[:, :, p : p + g.H, q : q + g.W].copy()
"""),
    ("05.3", """
def col2im(matrix, g):
    dx = np.zeros((g.N, g.C, g.H, g.W), matrix.dtype)
    for row, (n, i, j) in enumerate(np.ndindex(g.N, g.OH, g.OW)):
        for column, (c, a, b) in enumerate(np.ndindex(g.C, g.KH, g.KW)):
            h, v = i * g.stride[0] - g.padding[0] + a, j * g.stride[1] - g.padding[1] + b
            if 0 <= h < g.H and 0 <= v < g.W:
                dx[n, c, h, v] += matrix[row, column]
    return dx
"""),
    ("03.1", "def relu_forward(z):\n    return z * (z > 0), z > 0\n"
             "def relu_backward(up, open_):\n    return np.where(open_, up, np.zeros_like(up))"),
    ("03.1", "relu_forward = lambda x: np.clip(x, 0, None)\nrelu_backward = lambda dy, x: dy * np.heaviside(x, 0)"),
    ("03.2", """
def dropout_forward(x, p, seed):
    generator = np.random.default_rng(seed)
    scale = (generator.random(x.shape, dtype=x.dtype) < 1 - p).astype(x.dtype) / x.dtype.type(1 - p)
    return x * scale, scale

def dropout_backward(dy, scale):
    return scale * dy
"""),
    ("03.2", """
def mask(shape, p, seed):
    return np.random.default_rng(seed).binomial(1, 1 - p, shape).astype(bool)

def dropout_forward(x, p, seed):
    return np.where(mask(x.shape, p, seed), x / (1 - p), np.zeros_like(x)), (x.shape, p, seed)

def dropout_backward(dy, drawn):
    return np.where(mask(*drawn), dy / (1 - drawn[1]), np.zeros_like(dy))
"""),
]  # fmt: skip
