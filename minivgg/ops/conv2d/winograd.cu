// Winograd on a GPU: y = Aᵀ [(G·g·Gᵀ) ⊙ (Bᵀ·d·B)] A, tile by tile. winograd.py says why; toom_cook.py has the matrices.
//
// A tile is TILE × TILE outputs and the SIDE × SIDE inputs that they look at. Each of the PLANES places of a
// transformed one is a matrix product of its own, (tiles, C) · (C, O). There are two ways to go about it:
//
//   phased   x → V, M = V · U by cuBLAS, M → y: three launches. V and M cross global memory twice each, 2 · PLANES ·
//            (C + O) numbers a tile. Where C and O are large, the products take longer than that.
//   fused    one launch (at the end of this file): V and M live in shared memory and registers, and never leave.
//
//   V (PLANES, tiles, C)    U (PLANES, C, O)    M (PLANES, tiles, O)    images channels last: (N, H, W, C)
//
// In the transforms a thread takes one channel of one tile, and its neighbours the neighbouring channels: so whatever a
// warp loads or stores at once lies side by side. All loops over a tile are unrolled, and it stays in registers.
//
// INPUTS, FILTERS, … are text that `toom_cook.in_c` writes from the exact matrices: "y[0] = …; y[1] = …;", in terms of
// d[0], d[1], …, the numbers that the matrix is multiplied by.
// variants: winograd_on_gpu.py

constexpr int SIDE = TILE + 2, PLANES = SIDE * SIDE;

#define MATRIX(name, columns, rows, LINE)                                                       \
    struct name {                                                                               \
        enum { from = columns, to = rows };                                                     \
        static __device__ __forceinline__ void times(const T (&d)[columns], T (&y)[rows]) { LINE } \
    };
MATRIX(Inputs, SIDE, SIDE, INPUTS)      // Bᵀ
MATRIX(Filters, 3, SIDE, FILTERS)       // G
MATRIX(Outputs, SIDE, TILE, OUTPUTS)    // Aᵀ
MATRIX(Upstream, TILE, SIDE, UPSTREAM)  // G, and
MATRIX(Gradient, SIDE, 3, GRADIENT)     // Aᵀ of F(3×3, TILE×TILE): tiles of dy are its filters

// y = matrix · tile · matrixᵀ: along the columns, then along the rows.
template <class Matrix>
__device__ __forceinline__ void sandwich(const T (&tile)[Matrix::from][Matrix::from], T (&y)[Matrix::to][Matrix::to]) {
    T half[Matrix::to][Matrix::from];
#pragma unroll
    for (int j = 0; j < Matrix::from; j++) {
        T column[Matrix::from], made[Matrix::to];
#pragma unroll
        for (int i = 0; i < Matrix::from; i++) column[i] = tile[i][j];
        Matrix::times(column, made);
#pragma unroll
        for (int i = 0; i < Matrix::to; i++) half[i][j] = made[i];
    }
#pragma unroll
    for (int i = 0; i < Matrix::to; i++) Matrix::times(half[i], y[i]);
}

// ---- Where a tile is, and its way in and out ----

struct Place { int n, h, w; };

// The image and the first output of a tile, of rows × columns of them an image. Past the last tile, n is N or more.
__device__ __forceinline__ Place place(int tile, int rows, int columns) {
    const int inside = tile % (rows * columns);
    return {tile / (rows * columns), inside / columns * TILE, inside % columns * TILE};
}

#define IMAGE int N, int H, int W, int C

__device__ __forceinline__ bool is_inside(Place at, int N, int H, int W) {
    return at.n < N && 0 <= at.h && at.h < H && 0 <= at.w && at.w < W;
}

__device__ __forceinline__ long long index(Place at, int c, int H, int W, int C) {
    return ((static_cast<long long>(at.n) * H + at.h) * W + at.w) * C + c;
}

// The size × size pixels from a place on, of one channel; zero where there are none.
template <int size>
__device__ __forceinline__ void load(const T* x, IMAGE, Place at, int c, T (&tile)[size][size]) {
#pragma unroll
    for (int i = 0; i < size; i++) {
#pragma unroll
        for (int j = 0; j < size; j++) {
            const Place pixel = {at.n, at.h + i, at.w + j};
            tile[i][j] = is_inside(pixel, N, H, W) ? x[index(pixel, c, H, W, C)] : T(0);
        }
    }
}

// What is done to results before they are stored: + bias, max(…, 0), the largest of each 2×2; or 0 where mask ≤ 0.
#define EPILOGUE const T* bias, const T* mask, int biased, int relu, int masked, int pooled

__device__ __forceinline__ T larger(T a, T b) { return b > a || b != b ? b : a; }  // a NaN is not hidden

// A tile's results for output c → y (N, H, W, C), which is half as high and wide as they are if pooled.
__device__ __forceinline__ void store(const T (&tile)[TILE][TILE], T* y, IMAGE, Place at, int c, EPILOGUE) {
    const T b = biased ? bias[c] : T(0);
#pragma unroll
    for (int i = 0; i < TILE; i++) {
#pragma unroll
        for (int j = 0; j < TILE; j++) {
            const Place pixel = {at.n, (at.h + i) >> pooled, (at.w + j) >> pooled};
            if ((pooled && (i | j) % 2 == 1) || !is_inside(pixel, N, H, W)) continue;
            T value = tile[i][j];
            if (pooled) value = larger(larger(value, tile[i][j | 1]), larger(tile[i | 1][j], tile[i | 1][j | 1]));
            if (biased) value += b;
            if (relu && value <= T(0)) value = 0;  // written so that a NaN passes
            const long long to = index(pixel, c, H, W, C);
            if (masked && !(mask[to] > T(0))) value = 0;
            y[to] = value;
        }
    }
}

// ---- Phased: the launches around the products ----
//
// The places of one plane are counted by an int: 2³¹ of them in each of 16 planes would be 137 GB of V alone.

// `tiles` tiles of x, from number `first` on → V (PLANES, tiles, C). They begin `up` and `left` of their outputs.
extern "C" __global__ void transform_inputs(
    const T* x, T* V, IMAGE, int rows, int columns, int first, int up, int left, long long count) {
    const int i = static_cast<int>(global_thread());  // of the tiles · C places of a plane
    if (i >= count) return;
    Place at = place(first + i / C, rows, columns);
    at.h -= up, at.w -= left;
    T tile[SIDE][SIDE], v[SIDE][SIDE];
    load(x, N, H, W, C, at, i % C, tile);
    sandwich<Inputs>(tile, v);
#pragma unroll
    for (int p = 0; p < PLANES; p++) V[p * count + i] = v[p / SIDE][p % SIDE];
}

// w (O, 3, 3, C) → U (PLANES, depth, width): C × O, or, if `rotated` by 180° for grad_input, O × C; zeros beyond. For
// C × O a warp's loads lie far apart; but all of w stays in the second-level cache, and U is up to four times as large.
extern "C" __global__ void transform_filters(
    const T* w, T* U, int O, int C, int width, int rotated, long long count) {
    const int i = static_cast<int>(global_thread());  // of the depth · width places of a plane
    if (i >= count) return;
    const int row = i / width, column = i % width, o = rotated ? row : column, c = rotated ? column : row;
    T tile[3][3], u[SIDE][SIDE];
#pragma unroll
    for (int tap = 0; tap < 9; tap++) {
        const long long at = (static_cast<long long>(o) * 9 + (rotated ? 8 - tap : tap)) * C + c;
        tile[tap / 3][tap % 3] = o < O && c < C ? w[at] : T(0);
    }
    sandwich<Filters>(tile, u);
#pragma unroll
    for (int p = 0; p < PLANES; p++) U[p * count + i] = u[p / SIDE][p % SIDE];
}

// M (PLANES, tiles, C) → what belongs to these tiles, from number `first` on, in y (N, H, W, C).
extern "C" __global__ void transform_outputs(
    const T* M, T* y, IMAGE, int rows, int columns, int first, EPILOGUE, long long count) {
    const int i = static_cast<int>(global_thread());
    if (i >= count) return;
    T tile[SIDE][SIDE], results[TILE][TILE];
#pragma unroll
    for (int p = 0; p < PLANES; p++) tile[p / SIDE][p % SIDE] = M[p * count + i];
    sandwich<Outputs>(tile, results);
    const Place at = place(first + i / C, rows, columns);
    store(results, y, N, H, W, C, at, i % C, bias, mask, biased, relu, masked, pooled);
}

// The tiles of dy (N, H, W, C) → D (PLANES, parts, C, tiles of a part): transposed, as Σ over tiles of D · V wants it.
// A warp takes 32 tiles of one channel, and so stores side by side. It reads 4 bytes of each sector of 32; the 8 warps
// of a block take neighbouring channels, and find the rest of it in the first-level cache.
extern "C" __global__ void transform_upstream(
    const T* dy, T* D, IMAGE, int rows, int columns, int first, int parts, int part_tiles) {
    const int t = blockIdx.x * 32 + threadIdx.x % 32, c = blockIdx.y * (blockDim.x / 32) + threadIdx.x / 32;
    if (t >= parts * part_tiles || c >= C) return;
    T tile[TILE][TILE], d[SIDE][SIDE];
    load(dy, N, H, W, C, place(first + t, rows, columns), c, tile);
    sandwich<Upstream>(tile, d);
    const long long plane = static_cast<long long>(parts) * C * part_tiles;
    const long long to = (static_cast<long long>(t / part_tiles) * C + c) * part_tiles + t % part_tiles;
#pragma unroll
    for (int p = 0; p < PLANES; p++) D[p * plane + to] = d[p / SIDE][p % SIDE];
}

// G (PLANES, parts, O, C), added up over the parts in their order → dw (O, 3, 3, C).
extern "C" __global__ void transform_gradient(const T* G, T* dw, int C, int parts, long long count) {
    const int i = static_cast<int>(global_thread());  // o · C + c
    if (i >= count) return;
    T tile[SIDE][SIDE], results[3][3];
#pragma unroll
    for (int p = 0; p < PLANES; p++) {
        T sum = 0;
        for (int part = 0; part < parts; part++) sum += G[(static_cast<long long>(p) * parts + part) * count + i];
        tile[p / SIDE][p % SIDE] = sum;
    }
    sandwich<Gradient>(tile, results);
#pragma unroll
    for (int tap = 0; tap < 9; tap++) {
        dw[(static_cast<long long>(i / C) * 9 + tap) * C + i % C] = results[tap / 3][tap % 3];
    }
}

// ---- Fused: tiles in, products and tiles out in one block ----
//
// A block makes BLOCK_OUTPUTS outputs of BLOCK_TILES tiles, STEP channels at a time:
//
//     X  the pixels of a step        each thread copies (cp.async) those that it will transform itself: no barrier
//     V  their transform             PLANES · STEP rows of BLOCK_TILES
//     U  the filters of a step       PLANES · STEP rows of BLOCK_OUTPUTS; two of them, one on its way
//
// While a step's products are added up, the pixels and filters of the next are on their way already. A warp has AT_ONCE
// planes to itself, and a thread in each the sums of 8 tiles × 4 outputs, in registers: 12 numbers read for 32
// multiply-adds. In the end the sums, M, take the place of all of the above: a tile's planes lie in many warps.
//
// Traffic: the pixels are read for each block of outputs (by F(4×4) 2.25 times, with the rims that tiles share) and the
// filters for each block of tiles, mostly from the second-level cache; y is written. What it costs is arithmetic: the
// transform of a tile is done again for each block of outputs.
//
// U (PLANES, depth, width) is padded by zeros to whole steps and blocks of outputs.
#ifdef FUSED
constexpr int THREADS = PLANES / AT_ONCE * 32, PAIRS = BLOCK_TILES * STEP;  // pairs: of a tile and a channel
constexpr int V_STRIDE = BLOCK_TILES + 4;  // 8 channels of 4 tiles, as a warp stores them, lie in 32 different banks
constexpr int QUADS = BLOCK_OUTPUTS / 4;  // of a row of filters: 16 bytes, as much as is copied at once
constexpr int X_SIZE = PLANES * PAIRS, V_SIZE = PLANES * STEP * V_STRIDE, U_SIZE = PLANES * STEP * BLOCK_OUTPUTS;
static_assert(sizeof(T) == 4 && BLOCK_TILES == 32 && BLOCK_OUTPUTS == 32 && STEP == 8, "8 × 4 sums for each lane");
static_assert(PLANES % AT_ONCE == 0 && THREADS >= PAIRS, "each warp has planes, each pair a thread");
static_assert(THREADS % (QUADS * STEP) == 0 && U_SIZE % (4 * THREADS) == 0, "a thread's filters are in one row");
static_assert(SHARED == sizeof(T) * (X_SIZE + V_SIZE + 2 * U_SIZE), "what the launch asks for");
static_assert(PLANES * BLOCK_TILES * BLOCK_OUTPUTS <= X_SIZE + V_SIZE + 2 * U_SIZE, "M takes their place");

// The pixels of this thread's pair, the first of which is at `from`, if their row and their column have their bit set.
__device__ __forceinline__ void fetch_pixels(const T* from, unsigned inside, int W, int C, T* X) {
    T* to = X + threadIdx.x;
#pragma unroll 1  // the addresses of all rows at once would take registers that the sums need
    for (int i = 0; i < SIDE; i++) {
#pragma unroll
        for (int j = 0; j < SIDE; j++) {
            if (inside >> i & inside >> (SIDE + j) & 1) cp_async<4>(to + j * PAIRS, from + j * C);
        }
        from += static_cast<long long>(W) * C, to += SIDE * PAIRS;
    }
}

// This thread's 16 bytes of the filters in a plane, and in each that is `planes_apart` further.
__device__ __forceinline__ void fetch_filters(const T* from, long long planes_apart, T* U) {
#pragma unroll 1  // as above
    for (int i = threadIdx.x * 4; i < U_SIZE; i += THREADS * 4) {
        cp_async<16>(U + i, from);
        from += planes_apart;
    }
}

// What this thread has fetched itself → V.
__device__ __forceinline__ void transform_pixels(const T* X, T* V) {
    const int pair = threadIdx.x;
    T tile[SIDE][SIDE], v[SIDE][SIDE];
#pragma unroll
    for (int p = 0; p < PLANES; p++) tile[p / SIDE][p % SIDE] = X[p * PAIRS + pair];
    sandwich<Inputs>(tile, v);
#pragma unroll
    for (int p = 0; p < PLANES; p++) V[(p * STEP + pair % STEP) * V_STRIDE + pair / STEP] = v[p / SIDE][p % SIDE];
}

__device__ __forceinline__ void read4(const T* from, T* to) {
    const float4 four = *reinterpret_cast<const float4*>(from);
    to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
}

// sums[q][i][j] += Σ over a step's channels of V · U in plane `plane` + q, for tiles tile + i (i < 4) and
// tile + 16 + i − 4, and outputs o + j.
__device__ __forceinline__ void multiply(const T* V, const T* U, int plane, int tile, int o, T (&sums)[AT_ONCE][8][4]) {
#pragma unroll 2
    for (int k = 0; k < STEP; k++) {
#pragma unroll
        for (int q = 0; q < AT_ONCE; q++) {
            const int row = (plane + q) * STEP + k;
            T v[8], u[4];
            read4(V + row * V_STRIDE + tile, v);
            read4(V + row * V_STRIDE + tile + 16, v + 4);
            read4(U + row * BLOCK_OUTPUTS + o, u);
#pragma unroll
            for (int i = 0; i < 8; i++) {
#pragma unroll
                for (int j = 0; j < 4; j++) sums[q][i][j] += v[i] * u[j];
            }
        }
    }
}

// x (N, H, W, C) → y (N, OH, OW, O), by blocks: neighbouring ones share their tiles and take other outputs.
extern "C" __global__ void __launch_bounds__(THREADS) convolve(
    const T* x, const T* filters, T* y, IMAGE, int OH, int OW, int O, int rows, int columns, int up, int left,
    EPILOGUE) {
    extern __shared__ __align__(16) T memory[];
    T *const X = memory, *const V = X + X_SIZE, *const U = V + V_SIZE, *const M = memory;
    const int depth = (C + STEP - 1) / STEP * STEP, blocks = (O + BLOCK_OUTPUTS - 1) / BLOCK_OUTPUTS;
    const int width = blocks * BLOCK_OUTPUTS;
    const int first = blockIdx.x / blocks * BLOCK_TILES, o = blockIdx.x % blocks * BLOCK_OUTPUTS;
    // this thread's part of the products: its warp's planes, and of the lanes, 4 × 8 of them, tiles and outputs
    const int plane = threadIdx.x / 32 * AT_ONCE, tile = threadIdx.x % 32 / 8 * 4, output = threadIdx.x % 8 * 4;

    // and of the transforms, if there is one for it: a channel of each step of one tile
    const bool transforms = threadIdx.x < PAIRS;
    const int channel = threadIdx.x % STEP;
    Place at = place(first + threadIdx.x / STEP, rows, columns);
    at.h -= up, at.w -= left;
    const T* pixels = x + index(at, channel, H, W, C);
    unsigned inside = 0;  // bits of rows, and of columns from SIDE on
    for (int i = 0; i < SIDE; i++) {
        if (is_inside({at.n, at.h + i, 0}, N, H, W)) inside |= 1u << i;
        if (is_inside({at.n, 0, at.w + i}, N, H, W)) inside |= 1u << (SIDE + i);
    }
    // what lies outside stays 0, and what is past C meets filters of 0
    for (int i = threadIdx.x; i < X_SIZE; i += THREADS) X[i] = 0;
    __syncthreads();

    // and of the filters: four in a row of one plane, and the same ones in every so many planes after it
    const int row = threadIdx.x / QUADS;
    const long long plane_size = static_cast<long long>(depth) * width;
    filters += row / STEP * plane_size + row % STEP * width + o + threadIdx.x % QUADS * 4;
    const long long planes_apart = THREADS / QUADS / STEP * plane_size;

    if (transforms && channel < C) fetch_pixels(pixels, inside, W, C, X);
    fetch_filters(filters, planes_apart, U);
    cp_async_commit();

    T sums[AT_ONCE][8][4] = {};
    for (int c = 0; c < depth; c += STEP) {
        const int turn = c / STEP % 2;
        cp_async_wait<0>();
        if (transforms) transform_pixels(X, V);
        __syncthreads();  // V is whole, and so are the filters
        if (c + STEP < depth) {
            if (transforms && c + STEP + channel < C) fetch_pixels(pixels + c + STEP, inside, W, C, X);
            fetch_filters(filters + static_cast<long long>(c + STEP) * width, planes_apart, U + (1 - turn) * U_SIZE);
            cp_async_commit();
        }
        multiply(V, U + turn * U_SIZE, plane, tile, output, sums);
        __syncthreads();  // V and these filters may be written over
    }

#pragma unroll
    for (int q = 0; q < AT_ONCE; q++) {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            T* to = M + ((plane + q) * BLOCK_TILES + tile + i % 4 + i / 4 * 16) * BLOCK_OUTPUTS + output;
            const T* sum = sums[q][i];
            *reinterpret_cast<float4*>(to) = make_float4(sum[0], sum[1], sum[2], sum[3]);
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < BLOCK_TILES * BLOCK_OUTPUTS; i += THREADS) {
        const int result = o + i % BLOCK_OUTPUTS;
        T products[SIDE][SIDE], results[TILE][TILE];
#pragma unroll
        for (int p = 0; p < PLANES; p++) products[p / SIDE][p % SIDE] = M[p * BLOCK_TILES * BLOCK_OUTPUTS + i];
        sandwich<Outputs>(products, results);
        const Place to = place(first + i / BLOCK_OUTPUTS, rows, columns);
        if (result < O) store(results, y, N, OH, OW, O, to, result, bias, mask, biased, relu, masked, pooled);
    }
}
#endif
