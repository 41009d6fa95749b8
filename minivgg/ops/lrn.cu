// Local response normalisation of (pixels, C), a thread for each number. Its neighbours across channels are its
// neighbours in memory: another thread of the warp has just read them, so they come from a cache.
//
// Backward takes two kernels, because each number asks its neighbours for something that they have to work out first.
// It reads and writes eight numbers for each in all, where three would do if the threads of a block told one another.
// variants: T=float|double

__device__ __forceinline__ Acc window_sum(const T* row, int C, int first, int size, bool squared) {
    Acc sum = 0;
    for (int c = max(0, first); c < min(C, first + size); c++) sum += squared ? Acc(row[c]) * Acc(row[c]) : Acc(row[c]);
    return sum;
}

__device__ __forceinline__ Acc to_minus(Acc s, Acc beta) {
    if (beta != Acc(0.75)) return pow(s, -beta);
    const Acc root = sqrt(s);  // everybody's beta, and by square roots much faster
    return 1 / (root * sqrt(root));
}

extern "C" __global__ void forward(const T* x, T* y, int size, T alpha, T beta, T k, int pixels, int C) {
    const int c = this_channel(C), p = this_pixel(C);
    if (c >= C || p >= pixels) return;
    const T* row = x + static_cast<long long>(p) * C;
    const Acc s = k + alpha / size * window_sum(row, C, c - size / 2, size, true);
    y[static_cast<long long>(p) * C + c] = row[c] * to_minus(s, beta);
}

// dx = dy · s^−beta, and in shares what each dy hands to all of its window.
extern "C" __global__ void hand_out(
    const T* dy, const T* x, T* dx, T* shares, int size, T alpha, T beta, T k, int pixels, int C) {
    const int c = this_channel(C), p = this_pixel(C);
    if (c >= C || p >= pixels) return;
    const T* row = x + static_cast<long long>(p) * C;
    const Acc s = k + alpha / size * window_sum(row, C, c - size / 2, size, true);
    const long long i = static_cast<long long>(p) * C + c;
    const Acc own = dy[i] * to_minus(s, beta);
    dx[i] = own;
    shares[i] = own * row[c] / s;
}

extern "C" __global__ void take_in(
    const T* shares, const T* x, T* dx, int size, T alpha, T beta, int pixels, int C) {
    const int c = this_channel(C), p = this_pixel(C);
    if (c >= C || p >= pixels) return;
    const T* row = shares + static_cast<long long>(p) * C;
    const long long i = static_cast<long long>(p) * C + c;
    dx[i] -= 2 * alpha * beta / size * x[i] * window_sum(row, C, c - (size - 1 - size / 2), size, false);
}
