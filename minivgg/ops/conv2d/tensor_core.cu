// Implicit GEMM on tensor cores: the tiles of implicit_gemm.cu, multiplied 16 × 8 results at a time by a whole warp.
//
// A tensor core's factors are short: TF32 keeps 10 bits of fraction of a float32, float16 keeps 10 of a narrower range.
// Sums are kept in float32 all the same. HALVES, the number of products of float16 for one, chooses between
//
//   0   a · b in TF32: one product, each factor off by up to 2⁻¹¹ of itself.
//   1   one product, of arrays that are float16: it is exact in float32. `ldmatrix` takes factors out of shared memory,
//       turned where need be: 8 of these for the 16 products of a warp's 64 × 32 results, in place of 32 reads of a
//       register or, turned, of half a register.
//   3   three products of float16. A factor is a = high + low/2¹¹, two numbers of 11 bits; then a · b =
//       high·high′ + (high·low′ + low·high′)/2¹¹, up to low·low′/2²², which is left out. Each factor is off by 2⁻²²,
//       and what is left out is 2⁻²² of the product at most: 3·2⁻²² in all, three quarters of a millionth, and far less
//       on average. The low half is scaled by 2¹¹ so that it has the range of the high one, and has sums of
//       its own. A power of two for each array makes its largest number 2¹⁴ to 2¹⁵: nothing overflows, and what is
//       below 2⁻²⁸ of the largest, where the high half runs out of digits, is still off by 2⁻⁵⁰ of the largest only.
//
// Source: PTX ISA, "Warp-level matrix instructions"; Markidis et al., NVIDIA Tensor Core Programmability, Performance &
// Precision (2018), §V; Ootomo & Yokota, Recovering single precision accuracy from Tensor Cores while surpassing the
// FP32 theoretical peak performance (2022), whose 2¹¹ it is.
// variants: tensor_core.py

#include "tiles.cuh"

constexpr int WARP_ROWS = 8 * TM, WARPS_DOWN = BM / WARP_ROWS;  // a warp makes 8·TM × 4·TN results,
constexpr int DOWN = WARP_ROWS / 16, ACROSS = 4 * TN / 8;       // which is so many of a tensor core's
constexpr int DEEP = HALVES ? 16 : 8;                           // terms of a sum that these take at once
constexpr int ROW_PAD = HALVES == 1 ? 8 : 4;                    // by which rows of panels are longer: see `Products`

// The largest absolute value, as the bits of a float32, whose order is that of the numbers; `most` holds 0 at first.
// The maximum does not depend on who comes first.
extern "C" __global__ void largest(const T* x, unsigned* most, long long count) {
    unsigned mine = 0;
    for (long long i = global_thread(); i < count; i += static_cast<long long>(gridDim.x) * blockDim.x) {
        mine = max(mine, __float_as_uint(x[i]) & 0x7fffffffu);
    }
    for (int distance = 16; distance > 0; distance /= 2) {
        mine = max(mine, __shfl_xor_sync(0xffffffffu, mine, distance));
    }
    if (threadIdx.x % 32 == 0) atomicMax(most, mine);
}

// The power of two that brings a largest value into 2¹⁴ … 2¹⁵, and its inverse; 1 where there are infinities anyway.
__device__ __forceinline__ int exponent_of(unsigned most) { return max(static_cast<int>(most >> 23), 15); }
__device__ __forceinline__ float scale_of(unsigned most) {
    return exponent_of(most) == 255 ? 1.f : __uint_as_float((268u - exponent_of(most)) << 23);
}
__device__ __forceinline__ float inverse_of(unsigned most) {
    return exponent_of(most) == 255 ? 1.f : __uint_as_float((exponent_of(most) - 14u) << 23);
}

#if HALVES != 1
struct alignas(8) Pair { float of[2]; };
#endif

// One lane's part of a left factor of 16 rows (four registers), or of a right one of 8 columns (two): of each 8 × 8
// numbers of it, two neighbouring terms of one row or column.
//
// TF32's instruction, whose registers hold one number, would have them 4 terms apart, and not neighbours; but terms may
// be numbered as one likes, as long as both factors agree.
template <int registers>
struct Factor {
    static constexpr int PARTS = HALVES ? registers : registers / 2, HIGH = registers / 2;  // of 8 × 8, HIGH of them
    unsigned high[registers], low[registers];                                              // above one another

    // Rows (or columns) from `at` on, terms from k on, of a panel whose rows they are; and of one whose rows are terms.
    template <class Panel>
    __device__ __forceinline__ void take(const Panel& panel, int at, int k, float scale) {
        const int lane = threadIdx.x % 32;
#if HALVES == 1
        const int part = lane / 8 % PARTS;  // whose row this lane tells the others
        ldmatrix<false>(high, &panel[at + part % HIGH * 8 + lane % 8][k + part / HIGH * 8]);
#else
#pragma unroll
        for (int p = 0; p < PARTS; p++) {
            const int row = at + p % HIGH * 8 + lane / 4, term = k + p / HIGH * 8 + 2 * (lane % 4);
            set(p, *reinterpret_cast<const Pair*>(&panel[row][term]), scale);
        }
#endif
    }
    template <class Panel>
    __device__ __forceinline__ void take_turned(const Panel& panel, int at, int k, float scale) {
        const int lane = threadIdx.x % 32;
#if HALVES == 1
        const int part = lane / 8 % PARTS;
        ldmatrix<true>(high, &panel[k + part / HIGH * 8 + lane % 8][at + part % HIGH * 8]);
#else
#pragma unroll
        for (int p = 0; p < PARTS; p++) {
            const int row = at + p % HIGH * 8 + lane / 4, term = k + p / HIGH * 8 + 2 * (lane % 4);
            set(p, {panel[term][row], panel[term + 1][row]}, scale);
        }
#endif
    }

#if HALVES == 3
    __device__ __forceinline__ void set(int i, Pair p, float scale) {
        const float x = p.of[0] * scale, y = p.of[1] * scale;
        high[i] = to_f16x2(x, y);
        const float2 rounded = from_f16x2(high[i]);
        low[i] = to_f16x2((x - rounded.x) * 2048, (y - rounded.y) * 2048);
    }
#elif HALVES == 0
    __device__ __forceinline__ void set(int i, Pair p, float) {
        high[i] = to_tf32(p.of[0]), high[i + registers / 2] = to_tf32(p.of[1]);
    }
#endif
};

__device__ __forceinline__ void multiply(float (&sums)[4], float (&small)[4], const Factor<4>& a, const Factor<2>& b) {
#if HALVES
    mma_f16(sums, a.high, b.high);
#else
    mma_tf32(sums, a.high, b.high);
#endif
#if HALVES == 3
    mma_f16(small, a.high, b.low);
    mma_f16(small, a.low, b.high);
#endif
}

// A warp's 8·TM × 4·TN sums, TM·TN of them in this lane's registers; and a second time those of the small products.
//
// No bank conflicts: 4 rows of pairs, or 4 pairs of rows, are each 8 banks from the next. Of float16, the 8 rows of 16
// bytes that `ldmatrix` takes at once begin in different groups of 4 banks.
struct Products {
    static constexpr int PIXEL_PITCH = BK + 8;
    static constexpr int PITCH_OF_BM = BM + ROW_PAD, PITCH_OF_BN = BN + ROW_PAD;
    static constexpr int APART = HALVES == 1 ? 4 : 2, NEIGHBOURS = 2;

    const unsigned left_most, right_most;  // the largest of each factor
    float sums[DOWN][ACROSS][4] = {}, small[HALVES == 3 ? DOWN : 1][HALVES == 3 ? ACROSS : 1][4] = {};
    const int row = threadIdx.x / 32 % WARPS_DOWN * WARP_ROWS;  // of the warp's results, the first
    const int column = threadIdx.x / 32 / WARPS_DOWN * 4 * TN;

    // `left` and `right` fill a factor from the given row or column, and term, on.
    template <class Left, class Right>
    __device__ __forceinline__ void add(Left left, Right right) {
#pragma unroll
        for (int first = 0; first < BK; first += DEEP) {
            Factor<4> a[DOWN];
            Factor<2> b;
#pragma unroll
            for (int i = 0; i < DOWN; i++) left(a[i], row + 16 * i, first);
#pragma unroll
            for (int j = 0; j < ACROSS; j++) {
                right(b, column + 8 * j, first);
#pragma unroll
                for (int i = 0; i < DOWN; i++) {
                    multiply(sums[i][j], small[HALVES == 3 ? i : 0][HALVES == 3 ? j : 0], a[i], b);
                }
            }
        }
    }

    __device__ __forceinline__ void multiply_pixels(
        const T (&panel)[BM][PIXEL_PITCH], const T (&filters)[BK][PITCH_OF_BN]) {
        const float left = scale_of(left_most), right = scale_of(right_most);
        add([&](Factor<4>& a, int i, int k) { a.take(panel, i, k, left); },
            [&](Factor<2>& b, int j, int k) { b.take_turned(filters, j, k, right); });
    }

    __device__ __forceinline__ void multiply_windows(
        const T (&panel)[BK][PITCH_OF_BM], const T (&windows)[BK][PITCH_OF_BN]) {
        const float left = scale_of(left_most), right = scale_of(right_most);
        add([&](Factor<4>& a, int i, int k) { a.take_turned(panel, i, k, left); },
            [&](Factor<2>& b, int j, int k) { b.take_turned(windows, j, k, right); });
    }

    template <class Take>
    __device__ __forceinline__ void each_pixel(Take take) {
        const int group = threadIdx.x % 32 / 4, member = threadIdx.x % 4;
#pragma unroll
        for (int i = 0; i < DOWN; i++) {
#pragma unroll
            for (int j = 0; j < ACROSS; j++) {
#pragma unroll
                for (int half = 0; half < 2; half++) {  // 8 rows further down
                    alignas(8) Acc two[2];
#pragma unroll
                    for (int e = 0; e < 2; e++) {
                        two[e] = sums[i][j][2 * half + e];
#if HALVES == 3
                        two[e] += small[i][j][2 * half + e] / 2048;
                        two[e] = two[e] * inverse_of(left_most) * inverse_of(right_most);
#endif
                    }
                    take(row + 16 * i + 8 * half + group, column + 8 * j + 2 * member, two);
                }
            }
        }
    }

    template <class Take>
    __device__ __forceinline__ void each_filter(Take take) { each_pixel(take); }
};

// `most` has the largest numbers of the two arrays, in their order; it is read for three products alone.
__device__ __forceinline__ Products products_of(const unsigned* most) {
    return {HALVES == 3 ? most[0] : 0, HALVES == 3 ? most[1] : 0};
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
convolve(const T* x, const T* filters, T* y, const T* bias, const T* mask, int biased, int relu, int masked, WALK,
         const unsigned* most) {
    convolve_tile(x, filters, y, bias, mask, biased, relu, masked, THE_WALK, products_of(most));
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
grad_weight(const T* dy, const T* x, Acc* parts, GEOMETRY, long long part, const unsigned* most) {
    grad_weight_tile(dy, x, parts, THE_GEOMETRY, part, products_of(most));
}
