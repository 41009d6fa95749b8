"""Answers to the exercises on speed, 10 and 11, wrong and right; see `answers`."""

MISTAKES = [
    ("10.1", "m0 + m1 + m2", "m0 + m1 - m2", "both outputs are right"),
    ("10.1", "(d[1] + d[2])", "(d[1] - d[2])", "on       d = [0, 0, 1, 0], g = [1, 0, 0]"),
    ("10.1", "/ 2", "", "expected 0, 1"),
    ("10.1", "return m0 + m1 + m2,", "return (d[0] * g[0] + d[1] * g[1] + d[2] * g[2]),", "found    7"),
    ("11.1", "i < pixels * channels", "i <= pixels * channels", "reads 4 bytes of x[2048]"),
    ("11.1", "i < pixels * channels", "i < pixels * channels - 1", "found    nan, and 1 of 2048 are wrong"),
    ("11.1", "i += gridDim.x * blockDim.x", "i += blockDim.x", "no two threads race for a place"),
    ("11.1", "i += gridDim.x * blockDim.x", "i += 128", "x (37, 5), 3 blocks of 32 threads"),
    ("11.1", "sum > 0 ? sum : 0", "sum", "the result is what the formula says"),
    ("11.1", "b[i % channels]", "b[i / channels]", "reads 4 bytes of b[32]"),
    (
        "11.1",
        "const float sum = x[i] + b[i % channels];\n        y[i]",
        "const int at = i % pixels * channels + i / pixels;\n"
        "        const float sum = x[at] + b[i / pixels];\n        y[at]",
        "neighbouring threads ask for neighbouring numbers",
    ),
    ("11.1", "const float sum = ", "const float sum == ", "the source compiles"),
    ("11.1", "void bias_relu(", "void biasRelu(", "has no kernel bias_relu; there is biasRelu"),
    ("11.1", "int channels\n", "long long channels\n", "expected void bias_relu("),
    ("11.1", 'return """', '7 and """', "a string of CUDA C"),
    ("11.2", "__syncthreads();\n        for", "for", "race"),
    ("11.2", "        __syncthreads();\n    }", "    }", "race"),
    ("11.2", "if (oh < H && ow < W)", "", "which has"),
    ("11.2", "float sum = 0;", "if (top + row >= H || left + column >= W) return;\n    float sum = 0;", "barrier"),
    ("11.2", "i < 18 * 18; i += 256", "i < 256; i += 256", "the result is what the formula says"),
    ("11.2", "top + i / 18 - 1", "top + i / 18", "the result is what the formula says"),
    ("11.2", "0 <= h && h < H", "h < H", "x[-"),
    ("11.2", "tile[18][18]", "tile[16][18]", "shared tile["),
    ("11.2", "tile[row + kh][column + kw]", "tile[row + kw][column + kh]", "the result is what the formula says"),
    (
        "11.2",
        "sum += tile[row + kh][column + kw] *",
        "if (0 <= top + row + kh - 1 && top + row + kh - 1 < H && 0 <= left + column + kw - 1 && "
        "left + column + kw - 1 < W) sum += x[((n * C + c) * H + top + row + kh - 1) * W + left + column + kw - 1] *",
        "read half as often",
    ),
]  # fmt: skip

STYLES = [
    ("10.1", '''
def f23(d, g):
    A = np.array([[1, 1, 1, 0], [0, 1, -1, -1]])
    G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
    B = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
    return A @ ((G @ g) * (B @ d))
'''),
    ("10.1", '''
def f23(d, g):
    even, odd = 0.5 * (g[0] + g[2]), 0.5 * g[1]
    one, other = (even + odd) * (d[1] + d[2]), (odd - even) * (d[1] - d[2])
    return [one + other - g[0] * (d[2] - d[0]), one - other + -(d[1] - d[3]) * g[2]]
'''),
    ("11.1", '''
def bias_relu():
    return """
    // one block row at a time: threads of a warp side by side, and whole rows apart
    extern "C" __global__ void bias_relu(const float *x, const float *b, float *y, int P, int K) {
        const unsigned all = gridDim.x * blockDim.x, me = threadIdx.x + blockDim.x * blockIdx.x;
        for (unsigned j = 0; me + j * all < (unsigned)(P * K); ++j) {
            const unsigned at = me + j * all;
            y[at] = fmaxf(0.0f, b[at - at / K * K] + x[at]);
        }
    }"""
'''),
    ("11.1", '''
KERNEL = r"""
__device__ float positive(float v) { return v < 0 ? 0 : v; }
extern "C" __global__ void bias_relu(const float* image, const float* offset, float* out, int rows, int wide) {
    int start = blockIdx.x * blockDim.x + threadIdx.x;
    while (start < rows * wide) {
        out[start] = positive(image[start] + offset[start % wide]);
        start += gridDim.x * blockDim.x;
    }
}
"""
bias_relu = lambda: KERNEL
'''),
    ("11.2", '''
def tiled_conv():
    return """
    #define SIDE 18
    extern "C" __global__ void tiled_conv(const float* x, const float* w, float* y, int C, int O, int H, int W) {
        __shared__ float pixels[SIDE * SIDE], filter[9];
        int right = blockIdx.x * 16 + threadIdx.x, down = blockIdx.y * 16 + threadIdx.y;
        const float* image = x + blockIdx.z / O * C * H * W;
        float total = 0.0f;
        for (int c = 0; c < C; ++c, image += H * W) {
            __syncthreads();
            for (int a = threadIdx.y; a < SIDE; a += 16)
                for (int b = threadIdx.x; b < SIDE; b += 16) {
                    int h = (int)blockIdx.y * 16 + a - 1, v = (int)blockIdx.x * 16 + b - 1;
                    pixels[a * SIDE + b] = h < 0 || v < 0 || h >= H || v >= W ? 0.0f : image[h * W + v];
                }
            if (threadIdx.y == 0 && threadIdx.x < 9)
                filter[threadIdx.x] = w[(blockIdx.z % O * C + c) * 9 + threadIdx.x];
            __syncthreads();
            for (int tap = 0; tap < 9; ++tap)
                total += filter[tap] * pixels[(threadIdx.y + tap / 3) * SIDE + threadIdx.x + tap % 3];
        }
        if (down < H && right < W) y[(blockIdx.z * H + down) * W + right] = total;
    }"""
'''),
]  # fmt: skip
