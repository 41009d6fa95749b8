// im2col and its adjoint, col2im: a thread for each number that is written, neighbours on neighbouring channels.
//
// Arrays lie in memory as (N, H, W, C); the columns of a chunk as (rows, OW, KH, KW, C), where `first` is the chunk's
// first row among all N·OH rows of outputs. Both kernels move data and hardly compute: what counts is that a warp reads
// and writes whole sectors of 32 bytes, which it does where C is a multiple of 8 (float32), and all but does elsewhere.
// variants: T=float|double|__half

#define GEOMETRY                                                                                                   \
    int N, int C, int H, int W, int O, int KH, int KW, int OH, int OW, int stride_h, int stride_w, int padding_h, \
        int padding_w

// Writes the column matrix once, and reads each number of x up to KH·KW times: all but the first from a cache.
extern "C" __global__ void im2col(const T* x, T* columns, GEOMETRY, int first, long long count) {
    const long long i = global_thread();
    if (i >= count) return;
    const long long pixel = i / (KH * KW * C);
    const int k = i % (KH * KW * C), c = k % C, kw = k / C % KW, kh = k / (C * KW);
    const int row = first + static_cast<int>(pixel / OW), ow = pixel % OW, oh = row % OH, n = row / OH;
    const int h = oh * stride_h - padding_h + kh, v = ow * stride_w - padding_w + kw;
    const bool inside = 0 <= h && h < H && 0 <= v && v < W;  // beyond the border x counts as zero
    columns[i] = inside ? x[((static_cast<long long>(n) * H + h) * W + v) * C + c] : T(0);
}

// Adds to each number of the images `first / OH`, … what the columns of this chunk have of it: a gather, looking for
// the columns that overlap the pixel, always in the same order. A scatter would need atomics, whose order is chance.
extern "C" __global__ void col2im(const T* columns, Acc* dx, GEOMETRY, int first, int rows, long long count) {
    const long long i = global_thread();
    if (i >= count) return;
    const int c = i % C, v = i / C % W, h = i / (static_cast<long long>(C) * W) % H;
    const int n = first / OH + static_cast<int>(i / (static_cast<long long>(C) * W * H));
    Acc sum = 0;
    for (int kh = 0; kh < KH; kh++) {
        const int down = h + padding_h - kh, oh = down / stride_h, row = n * OH + oh - first;
        if (down < 0 || down % stride_h != 0 || oh >= OH || row < 0 || row >= rows) continue;
        for (int kw = 0; kw < KW; kw++) {
            const int right = v + padding_w - kw, ow = right / stride_w;
            if (right < 0 || right % stride_w != 0 || ow >= OW) continue;
            sum += Acc(columns[(((static_cast<long long>(row) * OW + ow) * KH + kh) * KW + kw) * C + c]);
        }
    }
    dx[i + static_cast<long long>(first / OH) * H * W * C] += sum;
}
