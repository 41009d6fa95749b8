// Convolution as one matrix product, (pixels × K) · (K × filters) with K = KH·KW·C, whose first matrix is never stored:
// a block gathers the BM × BK piece of it that it needs next straight from the image into shared memory.
//
// The ladder, from simple to fast, is one launch with three choices of kernel and defines (see `tiling.py`):
//
//   tiled      a thread a result, 16 × 16 to a block: a number is read from global memory a sixteenth as often as by
//              naive.cu, but each multiply-add still takes two reads from shared memory, and those are the limit.
//   blocked    a thread has TM × TN results in registers, and TM + TN reads serve TM·TN multiply-adds: 8 × 8 makes it 4
//              for a read. Each step of BK waits for its numbers to come from global memory.
//   pipelined  the same kernel with VEC = 16 bytes a copy and STAGES = 2: while one stage of the panels is multiplied,
//              the next is on its way (cp.async), past the registers, with zeros for what is beyond the border.
//
// Global traffic of a block: (BM + BN)·K numbers read for BM·BN·K multiply-adds, and one store of BM·BN results. Tiles
// of 128 × 128 float32 make that 16 FMA a byte; an H100 does about 10 in the time that its memory takes for one.
//
// Source: Chetlur et al., cuDNN: Efficient Primitives for Deep Learning (2014), §3; the tiles of a warp and a thread
// are CUTLASS's (Kerr et al., CUTLASS: Fast Linear Algebra in CUDA C++, 2017).
// variants: tiling.py

#include "tiles.cuh"

constexpr int TILE = 16;

extern "C" __global__ void tiled(const T* x, const T* filters, T* y, const T* bias, const T* mask, int biased, int relu,
                                 int masked, WALK) {
    __shared__ T panel[TILE][TILE + 1], filter_panel[TILE][TILE];
    const int across = (O + TILE - 1) / TILE, K = KH * KW * C;
    const int i = threadIdx.x / TILE, j = threadIdx.x % TILE, o = blockIdx.x % across * TILE + j;
    const long long p = static_cast<long long>(blockIdx.x / across) * TILE + i;
    const Pixel pixel = pixel_of(p, THE_WALK);
    Acc sum = 0;
    for (int first = 0; first < K; first += TILE) {
        const Tap tap(first + j, C, KW);
        const int h = pixel.h + direction * tap.kh, v = pixel.w + direction * tap.kw;
        const bool inside = 0 <= h && h < H && 0 <= v && v < W && tap.kh < KH;  // beyond the border x counts as zero
        panel[i][j] = inside ? x[pixel.image + (static_cast<long long>(h) * W + v) * C + tap.c] : T(0);
        filter_panel[i][j] = first + i < K && o < O ? filters[(first + i) * O + o] : T(0);
        __syncthreads();
        for (int k = 0; k < TILE; k++) sum += Acc(panel[i][k]) * Acc(filter_panel[k][j]);
        __syncthreads();  // before the panels are filled again
    }
    if (p < static_cast<long long>(N) * PH * PW && o < O) {
        const long long at = place_of(p, THE_WALK) + o;
        y[at] = finished(sum, biased ? Acc(bias[o]) : Acc(0), relu, !masked || mask[at] > T(0));
    }
}

constexpr int ACROSS = BN / TN, DOWN = BM / TM;  // threads of a block

struct alignas(16) Run { T of[RUN]; };

// A thread's TM × TN sums, in registers. A warp is 8 threads down and 4 across: what its lanes read at once from a
// panel is 8, or 4, different runs of 16 bytes, in different banks.
struct Products {
    static constexpr int PIXEL_PITCH = BK + RUN;  // any 8 neighbouring rows begin in different groups of 4 banks
    static constexpr int APART = 4;               // and rows 4 apart, half of all banks from one another
    static constexpr int PITCH_OF_BM = BM, PITCH_OF_BN = BN;
    static constexpr int NEIGHBOURS = RUN;  // sums of one row that lie side by side

    Acc sums[TM][TN] = {};
    const int down = threadIdx.x / 32 % (DOWN / 8) * 8 + threadIdx.x % 32 / 4;
    const int right = threadIdx.x / 32 / (DOWN / 8) * 4 + threadIdx.x % 4;

    // `count` numbers of a row of shared memory: runs of 16 bytes, `threads` of which lie side by side.
    template <int count, int threads>
    static __device__ __forceinline__ void read(const T* row, int place, Acc (&numbers)[count]) {
#pragma unroll
        for (int i = 0; i < count; i += RUN) {
            const Run run = *reinterpret_cast<const Run*>(row + i * threads + place * RUN);
#pragma unroll
            for (int j = 0; j < RUN; j++) numbers[i + j] = run.of[j];
        }
    }

    __device__ __forceinline__ void add(const Acc (&a)[TM], const Acc (&b)[TN]) {
#pragma unroll
        for (int i = 0; i < TM; i++) {
#pragma unroll
            for (int j = 0; j < TN; j++) sums[i][j] += a[i] * b[j];
        }
    }

    __device__ __forceinline__ void multiply_pixels(const T (&panel)[BM][PIXEL_PITCH], const T (&filters)[BK][BN]) {
#pragma unroll
        for (int k = 0; k < BK; k += RUN) {
            Run a[TM];  // RUN numbers of each of its rows at once: as many reads as if pixels lay side by side
#pragma unroll
            for (int i = 0; i < TM; i++) a[i] = *reinterpret_cast<const Run*>(&panel[down + i * DOWN][k]);
#pragma unroll
            for (int j = 0; j < RUN; j++) {
                Acc column[TM], row[TN];
#pragma unroll
                for (int i = 0; i < TM; i++) column[i] = a[i].of[j];
                read<TN, ACROSS>(filters[k + j], right, row);
                add(column, row);
            }
        }
    }

    __device__ __forceinline__ void multiply_windows(const T (&panel)[BK][BM], const T (&windows)[BK][BN]) {
#pragma unroll
        for (int k = 0; k < BK; k++) {
            Acc column[TM], row[TN];
            read<TM, DOWN>(panel[k], down, column);
            read<TN, ACROSS>(windows[k], right, row);
            add(column, row);
        }
    }

    template <class Take>
    __device__ __forceinline__ void each_pixel(Take take) {
        each(take, [&](int i) { return down + i * DOWN; });
    }

    template <class Take>
    __device__ __forceinline__ void each_filter(Take take) {
        each(take, [&](int i) { return (i / RUN * DOWN + down) * RUN + i % RUN; });
    }

    template <class Take, class RowOf>
    __device__ __forceinline__ void each(Take take, RowOf row_of) {
#pragma unroll
        for (int i = 0; i < TM; i++) {
#pragma unroll
            for (int j = 0; j < TN; j += RUN) {
                alignas(at_once(RUN * sizeof(Acc))) Acc run[RUN];
#pragma unroll
                for (int e = 0; e < RUN; e++) run[e] = sums[i][j + e];
                take(row_of(i), j * ACROSS + right * RUN, run);
            }
        }
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
convolve(const T* x, const T* filters, T* y, const T* bias, const T* mask, int biased, int relu, int masked, WALK) {
    convolve_tile(x, filters, y, bias, mask, biased, relu, masked, THE_WALK, Products());
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
grad_weight(const T* dy, const T* x, Acc* parts, GEOMETRY, long long part) {
    grad_weight_tile(dy, x, parts, THE_GEOMETRY, part, Products());
}
