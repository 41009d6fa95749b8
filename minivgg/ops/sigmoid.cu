// The logistic function and its gradient: a thread an element, one read and one write instead of one for each step.
// variants: T=float|double

extern "C" __global__ void sigmoid_forward(const T* x, T* y, long long count) {
    const long long i = global_thread();
    if (i >= count) return;
    const Acc e = exp(x[i] < T(0) ? Acc(x[i]) : -Acc(x[i]));  // of nothing positive, so that nothing overflows
    y[i] = (x[i] >= T(0) ? Acc(1) : e) / (1 + e);
}

extern "C" __global__ void sigmoid_backward(const T* dy, const T* y, T* dx, long long count) {
    const long long i = global_thread();
    if (i < count) dx[i] = Acc(dy[i]) * Acc(y[i]) * (1 - Acc(y[i]));
}
