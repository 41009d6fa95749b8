// Batch normalisation of arrays (pixels, C): sums over blocks of pixels in float64, as on the CPU, and one pass to use
// them. x is read three times going forward (the second time a block reads its own pixels again, out of a cache), x and
// dy twice going back.
// variants: T=float|double

// The mean, and the sum of squared deviations from it, of every block of pixels: means and m2s (blocks, C).
extern "C" __global__ void block_moments(const T* x, int block, double* means, double* m2s, int pixels, int C) {
    __shared__ double scratch[256];
    const int c = this_channel(C), b = blocks_above(C), begin = b * block, end = min(pixels, begin + block);
    double sum = 0;
    if (c < C) {
        for (int p = begin + threadIdx.y; p < end; p += blockDim.y) sum += x[static_cast<long long>(p) * C + c];
    }
    const double mean = column_sum(sum, scratch) / (end - begin);
    double m2 = 0;
    if (c < C) {
        for (int p = begin + threadIdx.y; p < end; p += blockDim.y) {
            const double deviation = x[static_cast<long long>(p) * C + c] - mean;
            m2 += deviation * deviation;
        }
    }
    m2 = column_sum(m2, scratch);
    if (c < C && threadIdx.y == 0) {
        means[static_cast<long long>(b) * C + c] = mean;
        m2s[static_cast<long long>(b) * C + c] = m2;
    }
}

extern "C" __global__ void normalise(
    const T* x, T* y, const T* mean, const T* scale, const T* shift, int pixels, int C) {
    const int c = this_channel(C), p = this_pixel(C);
    if (c >= C || p >= pixels) return;
    const long long i = static_cast<long long>(p) * C + c;
    y[i] = (x[i] - mean[c]) * scale[c] + shift[c];
}

extern "C" __global__ void block_gradients(
    const T* dy, int block, const T* x, const T* mean, const T* istd, double* dy_sums, double* dy_xhat_sums,
    int pixels, int C) {
    __shared__ double scratch[256];
    const int c = this_channel(C), b = blocks_above(C), end = min(pixels, (b + 1) * block);
    double dy_sum = 0, dy_xhat_sum = 0;
    if (c < C) {
        for (int p = b * block + threadIdx.y; p < end; p += blockDim.y) {
            const long long i = static_cast<long long>(p) * C + c;
            dy_sum += dy[i];
            dy_xhat_sum += dy[i] * ((x[i] - mean[c]) * istd[c]);
        }
    }
    dy_sum = column_sum(dy_sum, scratch);
    dy_xhat_sum = column_sum(dy_xhat_sum, scratch);
    if (c < C && threadIdx.y == 0) {
        dy_sums[static_cast<long long>(b) * C + c] = dy_sum;
        dy_xhat_sums[static_cast<long long>(b) * C + c] = dy_xhat_sum;
    }
}

extern "C" __global__ void grad_input(
    const T* dy, const T* x, T* dx, const T* mean, const T* istd, const T* scale, const T* dy_mean,
    const T* dy_xhat_mean, int pixels, int C) {
    const int c = this_channel(C), p = this_pixel(C);
    if (c >= C || p >= pixels) return;
    const long long i = static_cast<long long>(p) * C + c;
    const T xhat = (x[i] - mean[c]) * istd[c];
    dx[i] = scale[c] * (dy[i] - dy_mean[c] - xhat * dy_xhat_mean[c]);
}
