"""Wrong answers to the exercises 06 to 08, with what must be said of them, and right ones in other styles.

A wrong one is the solution with one thing changed: (exercise, what stands there, what is put in its place, words).
"""

MISTAKES = [
    ("06.1", "np.add.at(dx, (n, c, i * stride + winner // size, j * stride + winner % size), dy)",
     "dx[n, c, i * stride + winner // size, j * stride + winner % size] += dy", "gradients are the slopes of forward"),
    ("06.1", "flat.argmax(axis=-1)", "size * size - 1 - flat[..., ::-1].argmax(axis=-1)", "went to place 3"),
    ("06.1", "flat.argmax(axis=-1)", "flat.argmin(axis=-1)", "forward computes what the formula says"),
    ("06.1", "winner // size, j", "winner % size, j", "x: "),
    ("06.1", "i * stride + winner", "i * size + winner", "gradients are the slopes of forward"),
    ("06.1", "np.zeros(shape, dy.dtype)", "np.zeros(shape)", "dtype in is dtype out"),
    ("06.1", "winner % size), dy)", "winner % size), 2 * dy)", "2 times too large"),
    ("06.2", "- through_mean - through_variance", "- through_variance", "what goes through the mean of each channel"),
    ("06.2", "- through_mean - through_variance", "- through_mean", "what goes through the variance of each channel"),
    ("06.2", "- through_mean - through_variance", "", "what goes through the mean and variance of each channel"),
    ("06.2", "weight[:, None, None] * istd *", "istd *", "x: a missing factor weight"),
    ("06.2", "x.var(axis=(0, 2, 3), keepdims=True)", "x.var(axis=(0, 2, 3), keepdims=True, ddof=1)",
     "divided by m − 1"),
    ("06.2", " + 1e-5)", ")", "ε is missing"),
    ("06.2", "np.sqrt(x.var(axis=(0, 2, 3), keepdims=True) + 1e-5)",
     "(np.sqrt(x.var(axis=(0, 2, 3), keepdims=True)) + 1e-5)", "ε belongs under the root"),
    ("06.2", "axis=(0, 2, 3), keepdims", "axis=(2, 3), keepdims", "of each sample alone"),
    ("06.2", "np.sqrt(x.var(axis=(0, 2, 3), keepdims=True) + 1e-5)", "(x.var(axis=(0, 2, 3), keepdims=True) + 1e-5)",
     "divided by the variance, not by its root"),
    ("06.2", "dbias = dy.sum(axis=(0, 2, 3))", "dbias = dy.sum(axis=0)", "one gradient for each argument"),
    ("06.2", "+ 1e-5)", "+ np.float64(1e-5))", "dtype in is dtype out"),
    ("07.1", "(size - 1) * jump", "size - 1", "strides are left out"),
    ("07.1", "(size - 1) * jump", "size * jump", "expected 3"),
    ("07.1", "field, jump = 1, 1", "field, jump = 0, 1", "off by one"),
    ("07.1", "field += (size - 1) * jump\n        jump *= stride", "jump *= stride\n        field += (size - 1) * jump",
     "a window's own stride"),
    ("07.1", "in windows", "in reversed(windows)", "read from the wrong end"),
    ("07.1", "return field", "windows.clear()\n    return field", "it has been changed"),
    ("07.1", "return field", "return f'{field} pixels'", "expected 1"),
    ("07.2", " ** 2 + 1)", " ** 2)", "the convolutions' biases are missing"),
    ("07.2", "(widths[i] + 1)", "widths[i]", "the linear layers' biases are missing"),
    ("07.2", "int(size or 3)", "3", "`256:1` is a 1×1 convolution"),
    ("07.2", "channels * 7 * 7", "channels", "7×7 pixels"),
    ("07.2", "return total +", "return total #", "the convolutions alone"),
    ("07.2", "4096, classes\n", "4096, 1000\n", "that is with 1000 classes"),
    ("07.2", "total = 0", "total, channels = 0, 3", "that is with 3 channels"),
    ("07.2", '.replace("LRN", " ")', "", "ValueError: invalid literal"),
    ("08.1", "np.sqrt(2 / np.prod(shape[1:]))", "2 / np.prod(shape[1:])", "that is the variance"),
    ("08.1", "2 / ", "1 / ", "the 2 is missing"),
    ("08.1", "shape[1:]", "shape[1]", "the window is forgotten"),
    ("08.1", "shape[1:]", "shape", "the number of filters is counted in"),
    ("08.1", "np.prod(shape[1:])", "(shape[0] * np.prod(shape[2:]))", "that is from the fan-out"),
    ("08.1", "2 / np.prod(shape[1:])", "2 / (np.prod(shape[1:]) + shape[0] * np.prod(shape[2:]))", "that is Glorot's"),
    ("08.2", "+ decay * w", "", "the decay is missing"),
    ("08.2", "+ decay * w", "- decay * w", "the decay has the wrong sign"),
    ("08.2", "w - rate * v", "w + rate * v", "uphill"),
    ("08.2", "momentum * v + (dw + decay * w)\n    return w - rate * v, v",
     "momentum * v + rate * (dw + decay * w)\n    return w - v, v", "old steps keep the old rate"),
    ("08.2", "return w - rate * v, v", "return w - rate * (dw + decay * w + momentum * v), v", "Nesterov"),
    ("08.2", "(dw + decay * w)", "(1 - momentum) * (dw + decay * w)", "an average"),
    ("08.2", "momentum * v + (dw + decay * w)\n    return w - rate * v, v",
     "momentum * v + dw\n    return w - rate * (v + decay * w), v", "AdamW"),
    ("08.2", "v = momentum * v + (dw + decay * w)\n    return w - rate * v, v",
     "return w - rate * v, momentum * v + (dw + decay * w)", "the step is taken"),
    ("08.2", "momentum * v +", "0 * v +", "the momentum is missing"),
    ("08.2", "return w - rate * v, v", "w -= rate * v\n    return w, v", "they have been written to"),
    ("08.2", "rate * v, v", "np.float64(rate) * v, v", "float64 and float32"),
    ("08.2", "return w - rate * v, v", "return w - rate * v", "(w, v), both (3, 2)"),
]  # fmt: skip

STYLES = [
    ("06.1", """
def maxpool_forward(pictures, k, step):
    N, C, H, W = pictures.shape
    rows, columns = range(0, H - k + 1, step), range(0, W - k + 1, step)
    out = np.empty((N, C, len(rows), len(columns)), pictures.dtype)
    won = {}
    for n in range(N):
        for c in range(C):
            for a, h in enumerate(rows):
                for b, v in enumerate(columns):
                    best = (h, v)
                    for p in range(h, h + k):
                        for q in range(v, v + k):
                            if pictures[n, c, p, q] > pictures[(n, c, *best)]:
                                best = (p, q)
                    won[n, c, a, b] = best
                    out[n, c, a, b] = pictures[(n, c, *best)]
    return out, [won, pictures]

def maxpool_backward(up, kept):
    won, pictures = kept
    back = np.zeros_like(pictures)
    for (n, c, a, b), best in won.items():
        back[(n, c, *best)] += up[n, c, a, b]
    return back
"""),
    ("06.1", """
def maxpool_forward(x, k, s):
    H, W = ((n - k) // s + 1 for n in x.shape[2:])
    views = [x[:, :, i : i + s * H : s, j : j + s * W : s][:, :, :H, :W] for i in range(k) for j in range(k)]
    y = views[0].copy()
    place = np.zeros(y.shape, int)
    for number, view in enumerate(views):
        place[view > y] = number
        y = np.maximum(y, view)
    return y, (place, x, k, s)

def maxpool_backward(dy, cache):
    place, x, k, s = cache
    dx = np.zeros(x.shape, x.dtype)
    H, W = dy.shape[2:]
    for number in range(k * k):
        i, j = divmod(number, k)
        dx[:, :, i : i + s * (H - 1) + 1 : s, j : j + s * (W - 1) + 1 : s] += np.where(place == number, dy, 0)
    return dx
"""),
    ("06.2", """
def batchnorm_forward(x, g, b):
    N, C, H, W = x.shape
    rows = x.transpose(1, 0, 2, 3).reshape(C, -1)
    centred = rows - rows.mean(1)[:, None]
    sigma = np.sqrt((centred**2).mean(1) + x.dtype.type(1e-5))
    out = centred / sigma[:, None] * g[:, None] + b[:, None]
    return np.ascontiguousarray(out.reshape(C, N, H, W).swapaxes(0, 1)), (centred, sigma, g)

def batchnorm_backward(dy, kept):
    centred, sigma, g = kept
    N, C, H, W = dy.shape
    up, m = dy.transpose(1, 0, 2, 3).reshape(C, -1), N * H * W
    dxhat = up * g[:, None]
    dv = -(dxhat * centred).sum(1) / (2 * sigma**3)
    dmu = -dxhat.sum(1) / sigma
    dx = dxhat / sigma[:, None] + (2 / m) * centred * dv[:, None] + dmu[:, None] / m
    dx = np.ascontiguousarray(dx.reshape(C, N, H, W).swapaxes(0, 1))
    return [dx, (up * centred).sum(1) / sigma, up.sum(1)]
"""),
    ("06.2", """
def batchnorm_forward(x, weight, bias):
    y, cache = np.empty_like(x), []
    for c in range(x.shape[1]):
        one = x[:, c]
        xhat = (one - np.mean(one)) / np.sqrt(np.var(one) + 1e-5)
        y[:, c] = weight[c] * xhat + bias[c]
        cache.append((xhat, np.sqrt(np.var(one) + 1e-5), weight[c]))
    return y, cache

def batchnorm_backward(dy, cache):
    dx, dw, db = np.empty_like(dy), [], []
    for c, (xhat, sigma, weight) in enumerate(cache):
        up = dy[:, c]
        dx[:, c] = weight / sigma * (up - up.mean() - xhat * (up * xhat).mean())
        dw.append((up * xhat).sum())
        db.append(up.sum())
    return dx, np.array(dw), np.array(db)
"""),
    ("07.1", "def receptive_field(windows):\n"
             "    pixels = 1\n"
             "    for k, s in windows[::-1]:\n"
             "        pixels = (pixels - 1) * s + k\n"
             "    return np.int64(pixels)"),
    ("07.1", "def receptive_field(ws):\n"
             "    return 1 + sum((k - 1) * int(np.prod([s for _, s in ws[:i]])) for i, (k, _) in enumerate(ws))"),
    ("07.2", """
def parameters(text, colours, labels):
    count = 0
    for stage in text.split("|"):
        for word in stage.split():
            if word == "LRN":
                continue
            if word.endswith(":1"):
                out, window = int(word[:-2]), 1
            else:
                out, window = int(word), 9
            count += out * colours * window
            count += out
            colours = out
    return count + 25088 * 4096 + 4096 + 4096 * 4096 + 4096 + labels * 4097
"""),
    ("08.1", "def he_std(shape):\n"
             "    filters, *rest = shape\n"
             "    n = 1\n"
             "    for size in rest:\n"
             "        n *= size\n"
             "    return (2.0 / n) ** 0.5"),
    ("08.2", "def sgd(w, g, v, eta, mu, lam):\n"
             "    new = v.copy()\n"
             "    new *= mu\n"
             "    new += g\n"
             "    new += lam * w\n"
             "    return [w - eta * new, new]"),
]  # fmt: skip
