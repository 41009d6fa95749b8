// ReLU and its gradient: a thread an element, neighbours side by side, so that a warp reads and writes whole sectors.
// variants: T=float|double|__half

extern "C" __global__ void relu_forward(const T* x, T* y, long long count) {
    const long long i = global_thread();
    if (i < count) y[i] = x[i] <= T(0) ? T(0) : x[i];  // written so that a NaN passes
}

extern "C" __global__ void relu_backward(const T* dy, const T* y, T* dx, long long count) {
    const long long i = global_thread();
    if (i < count) dx[i] = y[i] > T(0) ? dy[i] : T(0);
}
