// Direct convolution on a GPU, three rungs of it: coalesced, tiled, blocked. Each is better than the one before by one
// idea; `naive.cu` is the rung below them, and `direct_on_gpu.py` launches them.
//
// Arrays lie in memory as x (N, H, W, C), filters (KH, KW, C, O) and y (N, OH, OW, O): neighbouring threads take
// neighbouring outputs, so that a warp reads 32 filters, and writes 32 results, as whole sectors of 32 bytes.
//
// The gradient of the input is a convolution, too: of dy, by filters turned by 180°, with the strides of the forward
// pass as zeros between the pixels of dy. So there is one kernel for both, which knows of a `dilation`. The gradient of
// the filters is a matrix product over all pixels, cut into parts, which `sum_parts` adds up in an order that never
// changes: float addition by atomics would give other bits each time.
// variants: T=float|double|__half RUN=16|32

constexpr int VECTOR = 16 / sizeof(T);  // numbers that a thread reads at once
constexpr int CHUNK = RUN / sizeof(T);  // channels that are in shared memory at a time: RUN bytes a pixel

struct alignas(16) Vector { T at[VECTOR]; };

#define VIEW                                                                                                       \
    int N, int C, int H, int W, int O, int KH, int KW, int OH, int OW, int stride_h, int stride_w, int offset_h, \
        int offset_w, int dilation_h, int dilation_w

// Where a place `at` of the image with zeros between its pixels is in the image itself; −1 where there is no pixel.
__device__ __forceinline__ int source(int at, int dilation, int size) {
    return at < 0 || at % dilation != 0 || at / dilation >= size ? -1 : at / dilation;
}

// ---- Coalesced: a thread an output ----
//
// For each of its multiply-adds a warp reads 32 neighbouring filters, 4 sectors, and one x for all of its lanes, 1
// sector: 5 sectors for 32 products, all of them from the caches, which is what this rung waits for.

extern "C" __global__ void coalesced(const T* x, const T* w, T* y, VIEW, long long count) {
    const long long i = global_thread();
    if (i >= count) return;
    const int o = i % O, ow = i / O % OW, oh = i / (static_cast<long long>(O) * OW) % OH;
    const int n = i / (static_cast<long long>(O) * OW * OH);
    Acc sum = 0;
    for (int kh = 0; kh < KH; kh++) {
        const int h = source(oh * stride_h - offset_h + kh, dilation_h, H);
        if (h < 0) continue;  // beyond the border x counts as zero
        for (int kw = 0; kw < KW; kw++) {
            const int v = source(ow * stride_w - offset_w + kw, dilation_w, W);
            if (v < 0) continue;
            const T* pixel = x + ((static_cast<long long>(n) * H + h) * W + v) * C;
            const T* filter = w + (kh * KW + kw) * C * O + o;
            for (int c = 0; c < C; c++) sum += Acc(pixel[c]) * Acc(filter[c * O]);
        }
    }
    y[i] = sum;
}

// ---- What the next two rungs keep in shared memory ----

// image (high, wide, CHUNK) = channels c0, … of x from (top, left) on: the block's tile with its halo, zeros elsewhere.
// Each pixel's channels are one run, so a warp reads whole sectors; each of them is read once for the whole block.
__device__ __forceinline__ void load_image(T* image, const T* x, int C, int H, int W, int dilation_h, int dilation_w,
                                           int n, int top, int left, int high, int wide, int c0, int thread,
                                           int threads) {
    for (int i = thread; i < high * wide * CHUNK; i += threads) {
        const int c = c0 + i % CHUNK, pixel = i / CHUNK;
        const int h = source(top + pixel / wide, dilation_h, H), v = source(left + pixel % wide, dilation_w, W);
        const bool inside = h >= 0 && v >= 0 && c < C;
        image[i] = inside ? x[((static_cast<long long>(n) * H + h) * W + v) * C + c] : T(0);
    }
}

// filters (taps, CHUNK, OUTPUTS) = those of the window's places first, …, channels c0, … and outputs o0, …
template <int OUTPUTS>
__device__ __forceinline__ void load_filters(T* filters, const T* w, int C, int O, int window, int first, int taps,
                                             int c0, int o0, int thread, int threads) {
    for (int i = thread; i < taps * CHUNK * OUTPUTS; i += threads) {
        const int o = o0 + i % OUTPUTS, c = c0 + i / OUTPUTS % CHUNK, tap = first + i / (OUTPUTS * CHUNK);
        filters[i] = tap < window && c < C && o < O ? w[(tap * C + c) * O + o] : T(0);
    }
}

// ---- Tiled: 4×4 pixels × 32 outputs a block, a thread for each ----
//
// A pixel of x is read from global memory once for the 32 outputs and for all windows of the tile that it is in; a
// filter once for 16 pixels. Multiply-adds read shared memory: a pixel for all lanes, and 32 filters side by side, so
// that no two lanes want different words of one bank. But each product still takes two reads of shared memory.

constexpr int TILE = 4, LANES = 32;

extern "C" __global__ void tiled(const T* x, const T* w, T* y, VIEW, int taps) {
    extern __shared__ __align__(16) T shared[];
    const int across = (OW + TILE - 1) / TILE, down = (OH + TILE - 1) / TILE;
    const int n = blockIdx.x / (across * down), tile = blockIdx.x % (across * down);
    const int oh0 = tile / across * TILE, ow0 = tile % across * TILE, o0 = blockIdx.y * LANES;
    const int high = (TILE - 1) * stride_h + KH, wide = (TILE - 1) * stride_w + KW;
    T *image = shared, *filters = shared + high * wide * CHUNK;
    const int lane = threadIdx.x, row = threadIdx.y / TILE, column = threadIdx.y % TILE;
    const int thread = threadIdx.y * LANES + lane, threads = TILE * TILE * LANES;

    Acc sum = 0;
    for (int c0 = 0; c0 < C; c0 += CHUNK) {
        __syncthreads();  // everybody is done with the chunk before
        load_image(image, x, C, H, W, dilation_h, dilation_w, n, oh0 * stride_h - offset_h, ow0 * stride_w - offset_w,
                   high, wide, c0, thread, threads);
        for (int first = 0; first < KH * KW; first += taps) {
            if (first > 0) __syncthreads();
            load_filters<LANES>(filters, w, C, O, KH * KW, first, taps, c0, o0, thread, threads);
            __syncthreads();
            for (int tap = first; tap < min(first + taps, KH * KW); tap++) {
                const int h = row * stride_h + tap / KW, v = column * stride_w + tap % KW;
                const T* pixel = image + (h * wide + v) * CHUNK;
                const T* filter = filters + (tap - first) * CHUNK * LANES + lane;
                for (int c = 0; c < CHUNK; c++) sum += Acc(pixel[c]) * Acc(filter[c * LANES]);
            }
        }
    }
    const int oh = oh0 + row, ow = ow0 + column, o = o0 + lane;
    if (oh < OH && ow < OW && o < O) y[((static_cast<long long>(n) * OH + oh) * OW + ow) * O + o] = sum;
}

// ---- Blocked: 16×8 pixels × 64 outputs a block, 8 pixels × 8 outputs a thread ----
//
// What a thread has read from shared memory it uses 8 times: 16 reads of 16 bytes for the 256 products of 4 channels
// (float32), where the rung before takes 512 reads. Eight lanes that read at once want the same pixel, or filters side
// by side: no conflicts. A result is finished in registers: bias, ReLU, or the mask of a ReLU before.

constexpr int ROWS = 16, COLUMNS = 8, OUTPUTS = 64, THREADS = ROWS * 8, GROUPS = 8 / VECTOR;

extern "C" __global__ void __launch_bounds__(THREADS)
blocked(const T* x, const T* w, T* y, const T* bias, Acc floor, const T* mask, int masked, VIEW, int taps) {
    extern __shared__ __align__(16) T shared[];
    const int across = (OW + COLUMNS - 1) / COLUMNS, down = (OH + ROWS - 1) / ROWS;
    const int n = blockIdx.x / (across * down), tile = blockIdx.x % (across * down);
    const int oh0 = tile / across * ROWS, ow0 = tile % across * COLUMNS, o0 = blockIdx.y * OUTPUTS;
    const int high = (ROWS - 1) * stride_h + KH, wide = (COLUMNS - 1) * stride_w + KW;
    T *image = shared, *filters = shared + high * wide * CHUNK;
    const int thread = threadIdx.x, lane = thread % 8, row = thread / 8;

    Acc sums[COLUMNS][8] = {};
    for (int c0 = 0; c0 < C; c0 += CHUNK) {
        __syncthreads();  // everybody is done with the chunk before
        load_image(image, x, C, H, W, dilation_h, dilation_w, n, oh0 * stride_h - offset_h, ow0 * stride_w - offset_w,
                   high, wide, c0, thread, THREADS);
        for (int first = 0; first < KH * KW; first += taps) {
            if (first > 0) __syncthreads();
            load_filters<OUTPUTS>(filters, w, C, O, KH * KW, first, taps, c0, o0, thread, THREADS);
            __syncthreads();
            for (int tap = first; tap < min(first + taps, KH * KW); tap++) {
                const T* pixels = image + ((row * stride_h + tap / KW) * wide + tap % KW) * CHUNK;
                const T* filter = filters + (tap - first) * CHUNK * OUTPUTS + lane * VECTOR;
                for (int c = 0; c < CHUNK; c += VECTOR) {
                    Vector a[COLUMNS];
#pragma unroll
                    for (int p = 0; p < COLUMNS; p++)
                        a[p] = *reinterpret_cast<const Vector*>(pixels + p * stride_w * CHUNK + c);
#pragma unroll
                    for (int k = 0; k < VECTOR; k++) {
#pragma unroll
                        for (int q = 0; q < GROUPS; q++) {
                            const T* from = filter + (c + k) * OUTPUTS + q * 8 * VECTOR;
                            const Vector b = *reinterpret_cast<const Vector*>(from);
#pragma unroll
                            for (int p = 0; p < COLUMNS; p++)
#pragma unroll
                                for (int e = 0; e < VECTOR; e++)
                                    sums[p][q * VECTOR + e] += Acc(a[p].at[k]) * Acc(b.at[e]);
                        }
                    }
                }
            }
        }
    }
    const int oh = oh0 + row;
    if (oh >= OH) return;
#pragma unroll
    for (int p = 0; p < COLUMNS; p++) {
        const int ow = ow0 + p;
        if (ow >= OW) break;
        const long long at = ((static_cast<long long>(n) * OH + oh) * OW + ow) * O;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const int o = o0 + (i / VECTOR * 8 + lane) * VECTOR + i % VECTOR;
            if (o >= O) continue;
            const Acc result = sums[p][i] + Acc(bias[o]);
            y[at + o] = masked && !(mask[at + o] > T(0)) ? Acc(0) : result <= floor ? floor : result;  // a NaN passes
        }
    }
}

// ---- The gradient of the filters: dw (KH·KW·C, O) = columns of x, transposed (KH·KW·C, pixels) · dy (pixels, O) ----
//
// Block row `blockIdx.z` takes the pixels from z·share on, of N·OH·OW, and writes parts[z] (KH·KW·C, O), not rounded.

// A walk over output pixels in the order of memory.
struct Walk {
    int n, oh, ow;
    __device__ Walk(int pixel, int OH, int OW) : n(pixel / OW / OH), oh(pixel / OW % OH), ow(pixel % OW) {}
    __device__ void step(int OH, int OW) {
        if (++ow < OW) return;
        ow = 0;
        if (++oh < OH) return;
        oh = 0, n++;
    }
};

// What the window's place (kh, kw) sees of channel c at an output pixel.
#define SEEN(walk, kh, kw, c)                                                                                       \
    seen(x, C, H, W, walk.n, walk.oh * stride_h - offset_h + (kh), walk.ow * stride_w - offset_w + (kw), c)
__device__ __forceinline__ T seen(const T* x, int C, int H, int W, int n, int h, int v, int c) {
    const bool inside = 0 <= h && h < H && 0 <= v && v < W;
    return inside ? x[((static_cast<long long>(n) * H + h) * W + v) * C + c] : T(0);
}

// A thread an element of dw: 5 sectors for 32 products, as above.
extern "C" __global__ void coalesced_dw(const T* dy, const T* x, Acc* parts, VIEW, int share) {
    const long long i = global_thread(), size = static_cast<long long>(KH) * KW * C * O;
    if (i >= size) return;
    const int o = i % O, m = i / O, c = m % C, kw = m / C % KW, kh = m / C / KW;
    const int begin = blockIdx.z * share, end = min(begin + share, N * OH * OW);
    Walk walk(begin, OH, OW);
    Acc sum = 0;
    for (int pixel = begin; pixel < end; pixel++, walk.step(OH, OW))
        sum += Acc(SEEN(walk, kh, kw, c)) * Acc(dy[static_cast<long long>(pixel) * O + o]);
    parts[blockIdx.z * size + i] = sum;
}

constexpr int STEP = 16;  // pixels that are in shared memory at a time

// 16 rows of dw × 32 outputs a block, a thread for each: a number of dy is read once for 16 rows, of x for 32 outputs.
extern "C" __global__ void tiled_dw(const T* dy, const T* x, Acc* parts, VIEW, int share) {
    __shared__ T xs[STEP][STEP], dys[STEP][LANES];
    const int lane = threadIdx.x, row = threadIdx.y, m0 = blockIdx.x * STEP, o = blockIdx.y * LANES + lane;
    const int size = KH * KW * C, m = m0 + lane;  // of what this thread loads
    const int begin = blockIdx.z * share, end = min(begin + share, N * OH * OW);
    Acc sum = 0;
    for (int first = begin; first < end; first += STEP) {
        const int pixel = first + row;
        const Walk walk(pixel, OH, OW);
        if (lane < STEP) xs[row][lane] = pixel < end && m < size ? SEEN(walk, m / C / KW, m / C % KW, m % C) : T(0);
        dys[row][lane] = pixel < end && o < O ? dy[static_cast<long long>(pixel) * O + o] : T(0);
        __syncthreads();
        for (int p = 0; p < STEP; p++) sum += Acc(xs[p][row]) * Acc(dys[p][lane]);
        __syncthreads();
    }
    if (m0 + row < size && o < O) parts[(static_cast<long long>(blockIdx.z) * size + m0 + row) * O + o] = sum;
}

// 128 rows × 64 outputs a block, 8 × 8 a thread: 4 reads of 16 bytes from shared memory for 64 products (float32).
extern "C" __global__ void __launch_bounds__(THREADS)
blocked_dw(const T* dy, const T* x, Acc* parts, VIEW, int share) {
    __shared__ __align__(16) T xs[STEP][THREADS], dys[STEP][OUTPUTS];
    const int thread = threadIdx.x, lane = thread % 8, row = thread / 8, size = KH * KW * C;
    const int m0 = blockIdx.x * THREADS, o0 = blockIdx.y * OUTPUTS;
    const int m = m0 + thread, c = m % C, kw = m / C % KW, kh = m / C / KW;  // each thread loads one row's numbers
    const int begin = blockIdx.z * share, end = min(begin + share, N * OH * OW);
    Walk walk(begin, OH, OW);
    Acc sums[8][8] = {};
    for (int first = begin; first < end; first += STEP) {
#pragma unroll
        for (int p = 0; p < STEP; p++, walk.step(OH, OW))
            xs[p][thread] = first + p < end && m < size ? SEEN(walk, kh, kw, c) : T(0);
#pragma unroll
        for (int i = thread; i < STEP * OUTPUTS; i += THREADS) {
            const int pixel = first + i / OUTPUTS, o = o0 + i % OUTPUTS;
            dys[i / OUTPUTS][i % OUTPUTS] = pixel < end && o < O ? dy[static_cast<long long>(pixel) * O + o] : T(0);
        }
        __syncthreads();
#pragma unroll
        for (int p = 0; p < STEP; p++) {
            Vector a[GROUPS], b[GROUPS];
#pragma unroll
            for (int q = 0; q < GROUPS; q++) {
                a[q] = *reinterpret_cast<const Vector*>(&xs[p][(q * 16 + row) * VECTOR]);
                b[q] = *reinterpret_cast<const Vector*>(&dys[p][(q * 8 + lane) * VECTOR]);
            }
#pragma unroll
            for (int i = 0; i < 8; i++)
#pragma unroll
                for (int j = 0; j < 8; j++)
                    sums[i][j] += Acc(a[i / VECTOR].at[i % VECTOR]) * Acc(b[j / VECTOR].at[j % VECTOR]);
        }
        __syncthreads();
    }
    Acc* part = parts + static_cast<long long>(blockIdx.z) * size * O;
#pragma unroll
    for (int i = 0; i < 8; i++)
#pragma unroll
        for (int j = 0; j < 8; j++) {
            const int r = m0 + (i / VECTOR * 16 + row) * VECTOR + i % VECTOR;
            const int o = o0 + (j / VECTOR * 8 + lane) * VECTOR + j % VECTOR;
            if (r < size && o < O) part[r * O + o] = sums[i][j];
        }
}

// dw = parts[0] + parts[1] + …, in this order. Reads each part once, whole sectors a warp.
extern "C" __global__ void sum_parts(const Acc* parts, T* dw, int splits, long long count) {
    const long long i = global_thread();
    if (i >= count) return;
    Acc sum = 0;
    for (int z = 0; z < splits; z++) sum += parts[z * count + i];
    dw[i] = sum;
}
