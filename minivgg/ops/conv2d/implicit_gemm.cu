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
// Global traffic of a block: (BM + BN)·K numbers read for BM·BN·K multiply-adds, and one store of BM·BN results. 128 × 128
// tiles of float32 make that 32 FMA a byte, of which an H100 does about 10 in the time that memory takes for one.
//
// Images lie channels last, (N, H, W, C); filters as (K, O), rows in the order kh, kw, c. Offsets within one image's row
// of taps, and the K·O filters, are int: filters of 2³¹ numbers would take 8 GB. All that grows with N is long long.
//
// Source: Chetlur et al., cuDNN: Efficient Primitives for Deep Learning (2014), §3; the tiles of a warp and a thread are
// CUTLASS's (Kerr et al., CUTLASS: Fast Linear Algebra in CUDA C++, 2017).
// variants: tiling.py

constexpr int ACROSS = BN / TN, DOWN = BM / TM, THREADS = ACROSS * DOWN;  // a thread for each TM × TN of BM × BN results
constexpr int RUN = 16 / sizeof(T);                                       // numbers that one load can take
constexpr int PITCH = BK + RUN;  // a panel's rows: any 8 neighbouring ones begin in different groups of 4 banks

struct alignas(16) Run { T of[RUN]; };

// A warp is 8 threads down and 4 across: what its lanes read at once from a panel is 8, or 4, different runs side by side.
__device__ __forceinline__ int my_place_down() { return threadIdx.x / 32 % (DOWN / 8) * 8 + threadIdx.x % 32 / 4; }
__device__ __forceinline__ int my_place_across() { return threadIdx.x / 32 / (DOWN / 8) * 4 + threadIdx.x % 4; }

// Of 8 rows the 0th, 4th, 1st, 5th, …: two of these in turn, half a PITCH of banks apart, are written without conflict.
__device__ __forceinline__ unsigned spread(unsigned row) { return row / 8 * 8 + row % 2 * 4 + row / 2 % 4; }

// A thread's `count` numbers of a row of shared memory: runs of 16 bytes, `threads` of which lie side by side.
template <int count, int threads>
__device__ __forceinline__ void read_runs(const T* row, int place, Acc (&numbers)[count]) {
#pragma unroll
    for (int i = 0; i < count; i += RUN) {
        const Run run = *reinterpret_cast<const Run*>(row + i * threads + place * RUN);
#pragma unroll
        for (int j = 0; j < RUN; j++) numbers[i + j] = run.of[j];
    }
}

template <int rows, int columns>
__device__ __forceinline__ void add_products(Acc (&sums)[rows][columns], const Acc (&a)[rows], const Acc (&b)[columns]) {
#pragma unroll
    for (int i = 0; i < rows; i++) {
#pragma unroll
        for (int j = 0; j < columns; j++) sums[i][j] += a[i] * b[j];
    }
}

// The taps of the window, one after another with all their channels, from the k-th number on.
struct Tap {
    int kh, kw, c;

    __device__ __forceinline__ Tap(int k, int C, int KW) : kh(k / C / KW), kw(k / C % KW), c(k % C) {}
    __device__ __forceinline__ void advance(int by, int C, int KW) {
        for (c += by; c >= C; c -= C) {
            if (++kw == KW) kw = 0, kh++;
        }
    }
};

// A pixel of the result, as the gathering sees it: where its image begins, and the corner of what it looks at.
struct Pixel { long long image; int h, w; };

// Both images, forward's x and y or grad_input's dy and dx, and which pixels look where: result (n, i, j) of PH × PW an
// image is the sum over the taps of x (n, i·stride_h + offset_h + direction·kh, …), and goes to y (n, i·step_h + first_h, …).
#define WALK                                                                                                           \
    int N, int C, int H, int W, int O, int OH, int OW, int KH, int KW, int PH, int PW, int stride_h, int stride_w,     \
        int offset_h, int offset_w, int direction, int step_h, int step_w, int first_h, int first_w

__device__ __forceinline__ Pixel pixel_of(long long p, WALK) {
    if (p >= static_cast<long long>(N) * PH * PW) return {0, -(1 << 30), 0};  // past the last: beyond every border
    const int j = p % PW, i = p / PW % PH;
    return {p / PW / PH * H * W * C, i * stride_h + offset_h, j * stride_w + offset_w};
}

// Where the results of a pixel are stored.
__device__ __forceinline__ long long place_of(long long p, WALK) {
    const int j = p % PW, i = p / PW % PH;
    return ((p / PW / PH * OH + i * step_h + first_h) * OW + j * step_w + first_w) * O;
}

#define THE_WALK                                                                                                      \
    N, C, H, W, O, OH, OW, KH, KW, PH, PW, stride_h, stride_w, offset_h, offset_w, direction, step_h, step_w, first_h, \
        first_w

// What happens to a sum on its way to memory. A NaN passes the ReLU.
__device__ __forceinline__ T finished(Acc sum, Acc bias, int relu, bool kept) {
    const Acc y = sum + bias;
    return !kept || (relu && y <= Acc(0)) ? T(0) : T(y);
}

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

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
convolve(const T* x, const T* filters, T* y, const T* bias, const T* mask, int biased, int relu, int masked, WALK) {
    extern __shared__ float4 memory[];
    auto panels = reinterpret_cast<T(*)[BM][PITCH]>(memory);
    auto filter_panels = reinterpret_cast<T(*)[BK][BN]>(panels + STAGES);
    auto pixels = reinterpret_cast<Pixel*>(filter_panels + STAGES);

    const int across = (O + BN - 1) / BN, first_o = blockIdx.x % across * BN;  // neighbours share their pixels, in L2
    const long long first_p = static_cast<long long>(blockIdx.x / across) * BM;
    for (int i = threadIdx.x; i < BM; i += THREADS) pixels[i] = pixel_of(first_p + i, THE_WALK);
    __syncthreads();

    // To copy: threads side by side take numbers side by side, of BM pixels and of BK rows of filters.
    constexpr int A_LANES = BK / VEC, B_LANES = BN / VEC, A_ROWS = THREADS / A_LANES, B_ROWS = THREADS / B_LANES;
    static_assert(THREADS % A_LANES == 0 && BM % A_ROWS == 0, "a thread copies the same taps of several pixels");
    static_assert(THREADS % B_LANES == 0 && BK % B_ROWS == 0, "and the same filters of several taps");
    const int K = KH * KW * C, my_k = threadIdx.x % A_LANES * VEC, my_o = threadIdx.x % B_LANES * VEC;
    Tap tap(my_k, C, KW);
    auto fetch = [&](int step) {  // the panels of one step of BK, called for 0, 1, 2, … in turn
        const int stage = step % STAGES;
        const int down = direction * tap.kh, right = direction * tap.kw;
#pragma unroll
        for (int i = 0; i < BM; i += A_ROWS) {
            const int row = spread(threadIdx.x / A_LANES + i);
            const Pixel pixel = pixels[row];
            const int h = pixel.h + down, v = pixel.w + right;
            const bool inside = 0 <= h && h < H && 0 <= v && v < W && tap.kh < KH;
            const T* from = x + (pixel.image + (static_cast<long long>(h) * W + v) * C + tap.c);
            cp_async<VEC * sizeof(T)>(&panels[stage][row][my_k], from, inside);
        }
#pragma unroll
        for (int i = 0; i < BK; i += B_ROWS) {
            const int row = threadIdx.x / B_LANES + i, k = step * BK + row, o = first_o + my_o;
            cp_async<VEC * sizeof(T)>(&filter_panels[stage][row][my_o], filters + (k * O + o), k < K && o < O);
        }
        tap.advance(BK, C, KW);
    };

    const int down = my_place_down(), right = my_place_across();
    const int steps = (K + BK - 1) / BK;
    Acc sums[TM][TN] = {};
    for (int step = 0; step < STAGES - 1; step++) {
        if (step < steps) fetch(step);
        cp_async_commit();
    }
    for (int step = 0; step < steps; step++) {
        if (STAGES == 1) {
            __syncthreads();  // all have multiplied what was there
            fetch(step);
            cp_async_commit();
        }
        cp_async_wait<(STAGES > 2 ? STAGES - 2 : 0)>();
        __syncthreads();  // this step's panels have landed, for all; and the stage of the step before is free again
        if (STAGES > 1) {
            if (step + STAGES - 1 < steps) fetch(step + STAGES - 1);
            cp_async_commit();  // an empty group at the end, so that the count of groups stays right
        }
        const auto& panel = panels[step % STAGES];
        const auto& filter_panel = filter_panels[step % STAGES];
#pragma unroll
        for (int k = 0; k < BK; k += RUN) {
            Run a[TM];  // RUN numbers of each of its rows at once: as many reads as if k varied slowest in memory
#pragma unroll
            for (int i = 0; i < TM; i++) a[i] = *reinterpret_cast<const Run*>(&panel[down + i * DOWN][k]);
#pragma unroll
            for (int j = 0; j < RUN; j++) {
                Acc column[TM], row[TN];
#pragma unroll
                for (int i = 0; i < TM; i++) column[i] = a[i].of[j];
                read_runs<TN, ACROSS>(filter_panel[k + j], right, row);
                add_products(sums, column, row);
            }
        }
    }

#pragma unroll
    for (int i = 0; i < TM; i++) {
        const long long p = first_p + down + i * DOWN;
        if (p >= static_cast<long long>(N) * PH * PW) continue;
        const long long at = place_of(p, THE_WALK);
#pragma unroll
        for (int j = 0; j < TN; j += RUN) {
            const int o = first_o + j * ACROSS + right * RUN;
            Run run;
            const int count = min(RUN, O - o);
#pragma unroll
            for (int e = 0; e < RUN; e++) {
                if (e >= count) continue;
                const bool kept = !masked || mask[at + o + e] > T(0);
                run.of[e] = finished(sums[i][j + e], biased ? Acc(bias[o + e]) : Acc(0), relu, kept);
                if (VEC != RUN) y[at + o + e] = run.of[e];
            }
            if (VEC == RUN && count == RUN) *reinterpret_cast<Run*>(y + (at + o)) = run;
        }
    }
}

// The gradient of the filters, (filters × pixels) · (pixels × K): here it is the pixels that are summed over, and there
// are many of them for few results. So blockIdx.y cuts them into parts, each of which writes a (O, K) of its own.
// Rows of both panels lie in memory as they are read; a thread copies the same tap of every pixel that it comes to.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
grad_weight(const T* dy, const T* x, T* dw, int N, int C, int H, int W, int O, int KH, int KW, int OH, int OW,
            int stride_h, int stride_w, int padding_h, int padding_w, long long part) {
    extern __shared__ float4 memory[];
    auto panels = reinterpret_cast<T(*)[BK][BM]>(memory);
    auto window_panels = reinterpret_cast<T(*)[BK][BN]>(panels + STAGES);
    auto pixels = reinterpret_cast<Pixel(*)[BK]>(window_panels + STAGES);  // of this fetch, and of the next

    const int K = KH * KW * C, across = (K + BN - 1) / BN;
    const int first_k = blockIdx.x % across * BN, first_o = blockIdx.x / across * BM;
    const long long first_p = blockIdx.y * part, all = static_cast<long long>(N) * OH * OW;
    const int count = static_cast<int>(min(part, all - first_p)), steps = (count + BK - 1) / BK;

    // The first BK threads go along the pixels, BK at a time, and tell the others: no division on the way.
    const long long my_p = first_p + threadIdx.x;
    int j = my_p % OW, i = my_p / OW % OH;
    long long image = my_p / OW / OH * H * W * C;
    auto announce = [&](int step) {
        if (threadIdx.x >= BK) return;
        const bool there = step * BK + static_cast<int>(threadIdx.x) < count;
        pixels[step % 2][threadIdx.x] = {image, there ? i * stride_h - padding_h : -(1 << 30), j * stride_w - padding_w};
        for (j += BK; j >= OW; j -= OW) {
            if (++i == OH) i = 0, image += static_cast<long long>(H) * W * C;
        }
    };

    constexpr int A_LANES = BM / VEC, B_LANES = BN / VEC, A_ROWS = THREADS / A_LANES, B_ROWS = THREADS / B_LANES;
    static_assert(THREADS % A_LANES == 0 && BK % A_ROWS == 0, "a thread copies the same filter of several pixels");
    static_assert(THREADS % B_LANES == 0 && BK % B_ROWS == 0, "and the same tap");
    const int my_o = threadIdx.x % A_LANES * VEC, my_column = threadIdx.x % B_LANES * VEC;
    const Tap tap(first_k + my_column, C, KW);
    const T* const my_dy = dy + (first_p * O + first_o + my_o);
    auto fetch = [&](int step) {
        const int stage = step % STAGES;
#pragma unroll
        for (int i = 0; i < BK; i += A_ROWS) {
            const int row = threadIdx.x / A_LANES + i, p = step * BK + row;
            const bool inside = p < count && first_o + my_o < O;
            cp_async<VEC * sizeof(T)>(&panels[stage][row][my_o], my_dy + static_cast<long long>(p) * O, inside);
        }
#pragma unroll
        for (int i = 0; i < BK; i += B_ROWS) {
            const int row = threadIdx.x / B_LANES + i;
            const Pixel pixel = pixels[step % 2][row];
            const int h = pixel.h + tap.kh, v = pixel.w + tap.kw;
            const bool inside = 0 <= h && h < H && 0 <= v && v < W && tap.kh < KH;
            const T* from = x + (pixel.image + (static_cast<long long>(h) * W + v) * C + tap.c);
            cp_async<VEC * sizeof(T)>(&window_panels[stage][row][my_column], from, inside);
        }
        announce(step + 1);  // to be read behind the next barrier
    };

    const int down = my_place_down(), right = my_place_across();
    Acc sums[TM][TN] = {};
    announce(0);
    for (int step = 0; step < STAGES - 1; step++) {
        __syncthreads();
        fetch(step);
        cp_async_commit();
    }
    for (int step = 0; step < steps; step++) {
        if (STAGES == 1) {
            __syncthreads();
            fetch(step);
            cp_async_commit();
        }
        cp_async_wait<(STAGES > 2 ? STAGES - 2 : 0)>();
        __syncthreads();
        if (STAGES > 1) {
            fetch(step + STAGES - 1);  // zeros, past the end
            cp_async_commit();
        }
#pragma unroll
        for (int k = 0; k < BK; k++) {
            Acc column[TM], row[TN];
            read_runs<TM, DOWN>(panels[step % STAGES][k], down, column);
            read_runs<TN, ACROSS>(window_panels[step % STAGES][k], right, row);
            add_products(sums, column, row);
        }
    }

    T* const my_dw = dw + static_cast<long long>(blockIdx.y) * O * K;
#pragma unroll
    for (int i = 0; i < TM; i++) {
        const int o = first_o + i / RUN * RUN * DOWN + down * RUN + i % RUN;
        if (o >= O) continue;
#pragma unroll
        for (int j = 0; j < TN; j += RUN) {
            const int k = first_k + j * ACROSS + right * RUN;
            Run run;
#pragma unroll
            for (int e = 0; e < RUN; e++) {
                run.of[e] = sums[i][j + e];
                if (VEC != RUN && k + e < K) my_dw[o * K + k + e] = run.of[e];
            }
            if (VEC == RUN && k < K) *reinterpret_cast<Run*>(my_dw + (o * K + k)) = run;
        }
    }
}

// dw = Σ parts, in their order: the same bits each time.
extern "C" __global__ void add_parts(const T* parts, T* dw, int number, long long count) {
    const long long i = global_thread();
    if (i >= count) return;
    Acc sum = 0;
    for (int part = 0; part < number; part++) sum += Acc(parts[part * count + i]);
    dw[i] = sum;
}
