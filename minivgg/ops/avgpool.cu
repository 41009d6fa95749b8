// Average pooling of (N, H, W, C) into (N, OH, OW, C), a thread for each output; and back, a thread for each input.
//
// Which rows a window covers, and which windows cover a row, is known to the host: arrays (2, …) of begin and end.
// variants: T=float|double|__half

extern "C" __global__ void forward(
    const T* x, T* y, const int* rows, const int* cols, const T* area, int H, int W, int OH, int OW, int pixels,
    int C) {
    const int c = this_channel(C), p = this_pixel(C);
    if (c >= C || p >= pixels) return;
    const int ow = p % OW, oh = p / OW % OH, n = p / (OW * OH);
    const T* image = x + static_cast<long long>(n) * H * W * C + c;
    Acc sum = 0;
    for (int h = rows[oh]; h < rows[OH + oh]; h++) {
        for (int w = cols[ow]; w < cols[OW + ow]; w++) sum += Acc(image[(static_cast<long long>(h) * W + w) * C]);
    }
    y[static_cast<long long>(p) * C + c] = sum / Acc(area[oh * OW + ow]);
}

// Here rows (2, H) and cols (2, W) say which windows cover each of the input's.
extern "C" __global__ void backward(
    const T* dy, T* dx, const int* rows, const int* cols, const T* area, int H, int W, int OH, int OW, int pixels,
    int C) {
    const int c = this_channel(C), p = this_pixel(C);
    if (c >= C || p >= pixels) return;
    const int w = p % W, h = p / W % H, n = p / (W * H);
    const T* image = dy + static_cast<long long>(n) * OH * OW * C + c;
    Acc sum = 0;
    for (int oh = rows[h]; oh < rows[H + h]; oh++) {
        for (int ow = cols[w]; ow < cols[W + w]; ow++) {
            sum += Acc(image[(static_cast<long long>(oh) * OW + ow) * C]) / Acc(area[oh * OW + ow]);
        }
    }
    dx[static_cast<long long>(p) * C + c] = sum;
}
