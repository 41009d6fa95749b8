// The matrix product on a GPU, rung by rung: naive, coalesced, tiled, register_blocked.
//
// a (M, K) · b (K, N) → c (M, N), each of a and b with the distance in memory from one row, and from one column, to the
// next: so a transposed matrix is one whose distances are swapped. c is in C order.
//
// What makes them ever faster is how often a number that was fetched is used. A product of two numbers of 4 bytes would
// need 8 bytes from memory each time; an H100's arithmetic is worth it only from about 20 uses on.
// variants: T=float|double

#define SIZES int M, int N, int K, int a_row, int a_column, int b_row, int b_column
#define A(m, k) a[static_cast<long long>(m) * a_row + static_cast<long long>(k) * a_column]
#define B(k, n) b[static_cast<long long>(k) * b_row + static_cast<long long>(n) * b_column]
#define C(m, n) c[static_cast<long long>(m) * N + (n)]

// ---- Naive: a thread an element of c, neighbours in a column ----
//
// 32 threads of a warp want 32 numbers of a that are a row apart, so 32 sectors for 128 bytes; and one of b.

extern "C" __global__ void naive(const T* a, const T* b, T* c, SIZES) {
    const int m = blockIdx.x * blockDim.x + threadIdx.x, n = blockIdx.y * blockDim.y + threadIdx.y;
    if (m >= M || n >= N) return;
    Acc sum = 0;
    for (int k = 0; k < K; k++) sum += Acc(A(m, k)) * Acc(B(k, n));
    C(m, n) = sum;
}

// ---- Coalesced: the same, neighbours in a row ----
//
// A warp wants one number of a, and 32 of b side by side: 1 + 4 sectors in place of 33. One line differs.

extern "C" __global__ void coalesced(const T* a, const T* b, T* c, SIZES) {
    const int m = blockIdx.x * blockDim.y + threadIdx.y, n = blockIdx.y * blockDim.x + threadIdx.x;
    if (m >= M || n >= N) return;
    Acc sum = 0;
    for (int k = 0; k < K; k++) sum += Acc(A(m, k)) * Acc(B(k, n));
    C(m, n) = sum;
}

// ---- Tiled: a block loads 32×32 of a and of b, and uses each number 32 times ----

constexpr int TILE = 32;

extern "C" __global__ void tiled(const T* a, const T* b, T* c, SIZES) {
    __shared__ T as[TILE][TILE], bs[TILE][TILE];
    const int column = threadIdx.x, row = threadIdx.y;
    const int m = blockIdx.x * TILE + row, n = blockIdx.y * TILE + column;
    Acc sum = 0;
    for (int k0 = 0; k0 < K; k0 += TILE) {
        as[row][column] = m < M && k0 + column < K ? A(m, k0 + column) : T(0);
        bs[row][column] = k0 + row < K && n < N ? B(k0 + row, n) : T(0);
        __syncthreads();  // the tiles are there
        for (int k = 0; k < TILE; k++) sum += Acc(as[row][k]) * Acc(bs[k][column]);
        __syncthreads();  // and are not needed any more
    }
    if (m < M && n < N) C(m, n) = sum;
}

// ---- Register-blocked: 128×128 of c a block, 8×8 a thread; the next tiles are fetched while these are multiplied ----
//
// Shared memory, too, gives 128 bytes a cycle and no more. A thread that reads 8 numbers of a and 8 of b makes 64
// products of them: 4 reads of 16 bytes in place of 128 of 4. They are in its registers, which cost nothing to read.
//
// Without conflicts: the eight lanes that take 16 bytes at once read all the same of a, or 128 neighbouring bytes of b.
// What cp.async fetches goes past the registers, and while it is on its way the threads multiply.

constexpr int VECTOR = 16 / sizeof(T);  // numbers that a thread reads at once
constexpr int SIDE = 128, THREADS = 256, BLOCKS = 8 / sizeof(T);  // at least so many at a time on each processor
constexpr int DEPTH = 64 / sizeof(T), GROUPS = 8 / VECTOR;

struct alignas(16) Vector { T at[VECTOR]; };

// tile (rows, columns) = matrix[row0 …, column0 …], zeros beyond its end. Neighbouring threads take what is contiguous
// in memory: 16 bytes each where they may (`vectors`), single numbers where not.
template <int rows, int columns>
__device__ __forceinline__ void fetch(T* tile, const T* matrix, int row0, int column0, int height, int width,
                                      int down, int right, bool vectors) {
    const auto from = [&](int r, int c) {
        return matrix + static_cast<long long>(row0 + r) * down + static_cast<long long>(column0 + c) * right;
    };
    const auto inside = [&](int r, int c) { return row0 + r < height && column0 + c < width; };
    if (vectors) {
#pragma unroll 1
        for (int i = threadIdx.x * VECTOR; i < rows * columns; i += THREADS * VECTOR) {
            const int r = i / columns, c = i % columns;
            if (inside(r, c)) cp_async<16>(tile + i, from(r, c));
            else *reinterpret_cast<Vector*>(tile + i) = Vector{};
        }
        return;
    }
    const bool turned = down == 1 && right != 1;
#pragma unroll 1
    for (int i = threadIdx.x; i < rows * columns; i += THREADS) {
        const int r = turned ? i % rows : i / columns, c = turned ? i / rows : i % columns;
        if (inside(r, c)) cp_async<sizeof(T)>(tile + r * columns + c, from(r, c));
        else tile[r * columns + c] = T(0);
    }
}

__device__ __forceinline__ bool aligned(const void* at) { return reinterpret_cast<size_t>(at) % 16 == 0; }

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
register_blocked(const T* a, const T* b, T* c, SIZES) {
    __shared__ __align__(16) T as[2][SIDE * DEPTH], bs[2][DEPTH * SIDE];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int row = warp / 2 * 4 + lane / 8, column = warp % 2 * 8 + lane % 8;  // of 16 × 16 threads: 4 × 8 a warp
    const int m0 = blockIdx.x * SIDE, n0 = blockIdx.y * SIDE;
    const bool a_vectors = a_column == 1 && a_row % VECTOR == 0 && K % VECTOR == 0 && aligned(a);
    const bool b_vectors = b_column == 1 && b_row % VECTOR == 0 && N % VECTOR == 0 && aligned(b);
    const auto fetch_both = [&](int stage, int k0) {
        fetch<SIDE, DEPTH>(as[stage], a, m0, k0, M, K, a_row, a_column, a_vectors);
        fetch<DEPTH, SIDE>(bs[stage], b, k0, n0, K, N, b_row, b_column, b_vectors);
        cp_async_commit();
    };
    T sums[8][8] = {};
    fetch_both(0, 0);
    for (int k0 = 0, stage = 0; k0 < K; k0 += DEPTH, stage ^= 1) {
        if (k0 + DEPTH < K) {
            fetch_both(stage ^ 1, k0 + DEPTH);
            cp_async_wait<1>();  // the tiles of this round are there, those of the next may still be on their way
        } else cp_async_wait<0>();
        __syncthreads();
#pragma unroll 1
        for (int k = 0; k < DEPTH; k += VECTOR) {
            Vector left[8];
#pragma unroll
            for (int i = 0; i < 8; i++) left[i] = *reinterpret_cast<Vector*>(&as[stage][(row + 16 * i) * DEPTH + k]);
#pragma unroll
            for (int v = 0; v < VECTOR; v++) {
#pragma unroll
                for (int q = 0; q < GROUPS; q++) {
                    const T* from = &bs[stage][(k + v) * SIDE + (q * 16 + column) * VECTOR];
                    const Vector right = *reinterpret_cast<const Vector*>(from);
#pragma unroll
                    for (int i = 0; i < 8; i++)
#pragma unroll
                        for (int e = 0; e < VECTOR; e++) sums[i][q * VECTOR + e] += left[i].at[v] * right.at[e];
                }
            }
        }
        __syncthreads();  // before anybody fetches into these tiles again
    }
    const bool c_vectors = N % VECTOR == 0 && aligned(c);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const int m = m0 + row + 16 * i;
        if (m >= M) break;
#pragma unroll
        for (int q = 0; q < GROUPS; q++) {
            const int n = n0 + (q * 16 + column) * VECTOR;
            if (c_vectors && n < N) {
                Vector result;
#pragma unroll
                for (int e = 0; e < VECTOR; e++) result.at[e] = sums[i][q * VECTOR + e];
                *reinterpret_cast<Vector*>(&C(m, n)) = result;
            } else {
#pragma unroll
                for (int e = 0; e < VECTOR; e++)
                    if (n + e < N) C(m, n + e) = sums[i][q * VECTOR + e];
            }
        }
    }
}
