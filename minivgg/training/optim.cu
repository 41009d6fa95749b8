// Optimisers, a thread for each number of a parameter: everything that is known of it is read once and written once.
//
// What is another number in each step is read from memory, not given with the launch: so the launches of all steps are
// the same, and can be recorded.
// variants: T=float|double

extern "C" __global__ void sgd(T* w, const T* g, T* v, const T* lr, T momentum, T decay, long long count) {
    const long long i = global_thread();
    if (i >= count) return;
    v[i] = momentum * v[i] + (g[i] + decay * w[i]);
    w[i] -= *lr * v[i];
}

extern "C" __global__ void adam(
    T* w, const T* g, T* m, T* v, const T* lr, const T* correction1, const T* correction2, T beta1, T beta2, T rest1,
    T rest2, T eps, T decay, long long count) {
    const long long i = global_thread();
    if (i >= count) return;
    const T gradient = g[i] + decay * w[i];
    m[i] = beta1 * m[i] + rest1 * gradient;
    v[i] = beta2 * v[i] + rest2 * gradient * gradient;
    w[i] -= *lr * (m[i] / *correction1) / (sqrt(v[i] / *correction2) + eps);
}

// sums (blocks,): each block's part of Σ (g / unit)², in float64.
extern "C" __global__ void square_sums(const T* g, double* sums, const double* unit, long long count) {
    __shared__ double scratch[32];
    double sum = 0;
    for (long long i = global_thread(); i < count; i += static_cast<long long>(gridDim.x) * blockDim.x) {
        const double value = g[i] / *unit;
        sum += value * value;
    }
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// g scaled so that what has the norm `*norm` has at most `largest`, unless the norm is infinite or NaN. The host need
// not know the norm, nor wait for it. In float64: of a large norm, float32 would make the factor 0.
extern "C" __global__ void clip(T* g, const double* norm, double largest, long long count) {
    const long long i = global_thread();
    if (i >= count || !(*norm > largest) || *norm > 1.7976931348623157e308) return;
    g[i] = static_cast<T>(g[i] * (largest / *norm));
}
