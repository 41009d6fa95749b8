// What implicit_gemm.cu and tensor_core.cu share: panels gathered from an image into shared memory, stage by stage,
// while `Products`, which is theirs, multiplies the stage before; and what happens to a result in the store.
//
// Images lie channels last, (N, H, W, C); filters as (K, O), with K = KH·KW·C rows in the order kh, kw, c. The K·O
// filters and what lies within a tile or a part are int: 2³¹ filters would take 8 GB. What grows with N is long long.
//
// `Products` says how numbers lie in the panels (constants, below), and has
//     multiply_pixels(panel, filters)   sums += panel (BM, BK) · filters (BK, BN)
//     multiply_windows(panel, windows)  sums += panelᵀ (BM, BK) · windows (BK, BN), for a panel (BK, BM)
//     each_pixel(take)                  take(row, column, sums) for all that a thread has, some neighbours at a time,
//     each_filter(take)                 after the one, and after the other

constexpr int THREADS = BM / TM * (BN / TN);  // of a block: one for each TM × TN of its BM × BN results
constexpr int RUN = 16 / sizeof(T);           // numbers that one copy can take

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
// image is the sum over the taps of x (n, i·stride_h + offset_h + direction·kh, …), and goes to
// y (n, i·step_h + first_h, …).
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

// Rows that are copied in turn, 0, `apart`, 1, `apart` + 1, …: so far apart that their banks are different ones.
template <int apart>
__device__ __forceinline__ unsigned spread(unsigned row) {
    return row / (2 * apart) * (2 * apart) + row % 2 * apart + row / 2 % apart;
}

// VEC numbers from global to shared memory, or zeros: past the registers, but for a single float16, which is too short.
__device__ __forceinline__ void copy(T* shared, const T* global, bool there) {
    if constexpr (VEC * sizeof(T) < 4) *shared = there ? *global : T(0);
    else cp_async<VEC * sizeof(T)>(shared, global, there);
}

constexpr int at_once(int bytes) { return bytes < 16 ? bytes : 16; }  // of a store

// `count` neighbours among the results: in one store where they are aligned, and as many as there are if not.
template <int count, class Number>
__device__ __forceinline__ void store(Number* to, const Number (&values)[count], int room) {
    struct alignas(at_once(count * sizeof(Number))) Together { Number of[count]; };
    if (VEC >= count) {
        if (room > 0) *reinterpret_cast<Together*>(to) = *reinterpret_cast<const Together*>(values);
    } else {
#pragma unroll
        for (int i = 0; i < count; i++) if (i < room) to[i] = values[i];
    }
}

// A tile of the result: BM pixels, BN filters.
template <class Products>
__device__ __forceinline__ void convolve_tile(
    const T* x, const T* filters, T* y, const T* bias, const T* mask, int biased, int relu, int masked, WALK,
    Products products) {
    extern __shared__ float4 memory[];
    auto panels = reinterpret_cast<T(*)[BM][Products::PIXEL_PITCH]>(memory);
    auto filter_panels = reinterpret_cast<T(*)[BK][Products::PITCH_OF_BN]>(panels + STAGES);
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
            const int row = spread<Products::APART>(threadIdx.x / A_LANES + i);
            const Pixel pixel = pixels[row];
            const int h = pixel.h + down, v = pixel.w + right;
            const bool inside = 0 <= h && h < H && 0 <= v && v < W && tap.kh < KH;
            const T* from = x + (pixel.image + (static_cast<long long>(h) * W + v) * C + tap.c);
            copy(&panels[stage][row][my_k], from, inside);
        }
#pragma unroll
        for (int i = 0; i < BK; i += B_ROWS) {
            const int row = threadIdx.x / B_LANES + i, k = step * BK + row, o = first_o + my_o;
            copy(&filter_panels[stage][row][my_o], filters + (k * O + o), k < K && o < O);
        }
        tap.advance(BK, C, KW);
    };

    const int steps = (K + BK - 1) / BK;
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
        products.multiply_pixels(panels[step % STAGES], filter_panels[step % STAGES]);
    }

    products.each_pixel([&](int row, int column, const Acc (&sums)[Products::NEIGHBOURS]) {
        constexpr int count = Products::NEIGHBOURS;
        const long long p = first_p + row;
        const int o = first_o + column, room = p < static_cast<long long>(N) * PH * PW ? O - o : 0;
        const long long at = place_of(p, THE_WALK) + o;
        alignas(at_once(count * sizeof(T))) T values[count];
#pragma unroll
        for (int i = 0; i < count; i++) {
            const bool kept = i < room && (!masked || mask[at + i] > T(0));
            values[i] = finished(sums[i], biased && i < room ? Acc(bias[o + i]) : Acc(0), relu, kept);
        }
        store(y + at, values, room);
    });
}

#define GEOMETRY                                                                                                   \
    int N, int C, int H, int W, int O, int KH, int KW, int OH, int OW, int stride_h, int stride_w, int padding_h, \
        int padding_w
#define THE_GEOMETRY N, C, H, W, O, KH, KW, OH, OW, stride_h, stride_w, padding_h, padding_w

// A tile of the gradient of the filters, (filters × pixels) · (pixels × K): here it is the pixels that are summed over,
// and there are many of them for few results. So blockIdx.y cuts them into parts, each of which writes its own (O, K),
// not rounded yet.
// Rows of both panels lie in memory as they are read; a thread copies the same tap of every pixel that it comes to.
template <class Products>
__device__ __forceinline__ void grad_weight_tile(
    const T* dy, const T* x, Acc* parts, GEOMETRY, long long part, Products products) {
    extern __shared__ float4 memory[];
    auto panels = reinterpret_cast<T(*)[BK][Products::PITCH_OF_BM]>(memory);
    auto window_panels = reinterpret_cast<T(*)[BK][Products::PITCH_OF_BN]>(panels + STAGES);
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
        const int h = there ? i * stride_h - padding_h : -(1 << 30);  // past the last: beyond every border
        pixels[step % 2][threadIdx.x] = {image, h, j * stride_w - padding_w};
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
            copy(&panels[stage][row][my_o], my_dy + static_cast<long long>(p) * O, inside);
        }
#pragma unroll
        for (int i = 0; i < BK; i += B_ROWS) {
            const int row = threadIdx.x / B_LANES + i;
            const Pixel pixel = pixels[step % 2][row];
            const int h = pixel.h + tap.kh, v = pixel.w + tap.kw;
            const bool inside = 0 <= h && h < H && 0 <= v && v < W && tap.kh < KH;
            const T* from = x + (pixel.image + (static_cast<long long>(h) * W + v) * C + tap.c);
            copy(&window_panels[stage][row][my_column], from, inside);
        }
        announce(step + 1);  // to be read behind the next barrier
    };

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
        products.multiply_windows(panels[step % STAGES], window_panels[step % STAGES]);
    }

    Acc* const my_part = parts + static_cast<long long>(blockIdx.y) * O * K;
    products.each_filter([&](int row, int column, const Acc (&sums)[Products::NEIGHBOURS]) {
        const int o = first_o + row, k = first_k + column;
        store(my_part + (o * K + k), sums, o < O ? K - k : 0);
    });
}

// dw = Σ parts, in their order: the same bits each time.
extern "C" __global__ void add_parts(const Acc* parts, T* dw, int number, long long count) {
    const long long i = global_thread();
    if (i >= count) return;
    Acc sum = 0;
    for (int part = 0; part < number; part++) sum += parts[part * count + i];
    dw[i] = sum;
}
