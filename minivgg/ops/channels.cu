// Sums over everything but the channel, and their adjoint, for arrays (pixels, C).
// variants: T=float|double|__half

// sums (blocks, C): each block adds up its own pixels in float64, so that no digit of a long sum is lost. Reading a
// float is meant to be what takes the time. By the data sheets it does: a GPU made for computing could do some 17
// additions in float64 meanwhile; one made for games, which converts and adds two a clock and multiprocessor, is about
// as fast.
extern "C" __global__ void sum_blocks(const T* rows, int block, double* sums, int pixels, int C) {
    __shared__ double scratch[256];
    const int c = this_channel(C), b = blocks_above(C), end = min(pixels, (b + 1) * block);
    double sum = 0;
    if (c < C) {
        for (int p = b * block + threadIdx.y; p < end; p += blockDim.y) {
            sum += Acc(rows[static_cast<long long>(p) * C + c]);
        }
    }
    sum = column_sum(sum, scratch);
    if (c < C && threadIdx.y == 0) sums[static_cast<long long>(b) * C + c] = sum;
}

extern "C" __global__ void add(T* rows, const T* b, int pixels, int C) {
    const int c = this_channel(C), p = this_pixel(C);
    if (c >= C || p >= pixels) return;
    const long long i = static_cast<long long>(p) * C + c;
    rows[i] = Acc(rows[i]) + Acc(b[c]);
}
