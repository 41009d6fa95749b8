// Max-pooling of (N, H, W, C) into (N, OH, OW, C), a thread for each output; and back, a thread for each input.
//
// Traffic: forward reads x once (what windows share comes from a cache) and writes y and a byte, the winner's place,
// for each output. Backward gathers: a thread looks through the windows that its pixel lies in, only one where they
// stand side by side, and takes the gradients of those that it won. No two threads write to one place, so nothing is
// atomic.
// variants: T=float|double|__half A=uint8|uint16 RELU=0|1

#define WINDOWS int H, int W, int OH, int OW, int KH, int KW, int stride_h, int stride_w, int padding_h, int padding_w

extern "C" __global__ void forward(const T* x, T* y, A* argmax, WINDOWS, int pixels, int C) {
    const int c = this_channel(C), p = this_pixel(C);
    if (c >= C || p >= pixels) return;
    const int ow = p % OW, oh = p / OW % OH, n = p / (OW * OH);
    const T* image = x + static_cast<long long>(n) * H * W * C + c;
    bool first = true;
    T best = 0;
    int winner = 0;
    for (int kh = 0; kh < KH; kh++) {
        const int h = oh * stride_h - padding_h + kh;
        for (int kw = 0; kw < KW; kw++) {
            const int v = ow * stride_w - padding_w + kw;
            if (h < 0 || h >= H || v < 0 || v >= W) continue;  // the padding is −∞: it never wins
            const T value = image[(static_cast<long long>(h) * W + v) * C];
            // strictly greater: a tie goes to the first; unequal to itself: a NaN must not be hidden
            if (first || value > best || value != value) {
                best = value;
                winner = kh * KW + kw;
            }
            first = false;
        }
    }
    if (RELU) {
        if (!(best > T(0))) winner = KH * KW;
        if (best <= T(0)) best = T(0);  // a NaN passes, but as in ReLU its gradient does not
    }
    const long long i = static_cast<long long>(p) * C + c;
    y[i] = best;
    argmax[i] = winner;
}

extern "C" __global__ void backward(const T* dy, const A* argmax, T* dx, WINDOWS, int pixels, int C) {
    const int c = this_channel(C), p = this_pixel(C);
    if (c >= C || p >= pixels) return;
    const int v = p % W, h = p / W % H, n = p / (W * H), down = h + padding_h, right = v + padding_w;
    const int lowest = min(OH - 1, down / stride_h), first = right < KW ? 0 : (right - KW) / stride_w + 1;
    Acc sum = 0;
    for (int oh = lowest; oh >= 0 && down - oh * stride_h < KH; oh--) {  // upwards: the order of the CPU's additions
        for (int ow = first; ow < OW && ow * stride_w <= right; ow++) {
            const long long i = ((static_cast<long long>(n) * OH + oh) * OW + ow) * C + c;
            if (argmax[i] == (down - oh * stride_h) * KW + right - ow * stride_w) sum += Acc(dy[i]);
        }
    }
    dx[static_cast<long long>(p) * C + c] = sum;
}
