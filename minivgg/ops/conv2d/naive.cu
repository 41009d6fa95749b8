// The seven loops on a GPU: four of them are the grid, a thread for each element of the result; three are left to it.
//
// Arrays lie in memory as (N, C, H, W), (O, C, KH, KW) and (N, O, OH, OW). No two threads write to one place: a
// gradient is gathered, each element of it looking for the products that it had a part in.
// variants: T=float|double|__half

__device__ __forceinline__ long long place(int a, int b, int c, int d, int B, int C, int D) {
    return ((static_cast<long long>(a) * B + b) * C + c) * D + d;  // of element [a, b, c, d] of an array (A, B, C, D)
}

#define GEOMETRY                                                                                                   \
    int N, int C, int H, int W, int O, int KH, int KW, int OH, int OW, int stride_h, int stride_w, int padding_h, \
        int padding_w

extern "C" __global__ void forward(const T* x, const T* w, T* y, GEOMETRY, long long count) {
    const long long i = global_thread();
    if (i >= count) return;
    const int ow = i % OW, oh = i / OW % OH, o = i / (OW * OH) % O, n = i / (static_cast<long long>(OW) * OH * O);
    Acc sum = 0;
    for (int c = 0; c < C; c++) {
        for (int kh = 0; kh < KH; kh++) {
            for (int kw = 0; kw < KW; kw++) {
                const int h = oh * stride_h - padding_h + kh, v = ow * stride_w - padding_w + kw;
                if (0 <= h && h < H && 0 <= v && v < W) {  // beyond the border x counts as zero
                    sum += Acc(x[place(n, c, h, v, C, H, W)]) * Acc(w[place(o, c, kh, kw, C, KH, KW)]);
                }
            }
        }
    }
    y[i] = sum;
}

extern "C" __global__ void grad_input(const T* dy, const T* w, T* dx, GEOMETRY, long long count) {
    const long long i = global_thread();
    if (i >= count) return;
    const int v = i % W, h = i / W % H, c = i / (W * H) % C, n = i / (static_cast<long long>(W) * H * C);
    Acc sum = 0;
    for (int o = 0; o < O; o++) {
        for (int kh = 0; kh < KH; kh++) {
            for (int kw = 0; kw < KW; kw++) {
                const int down = h + padding_h - kh, right = v + padding_w - kw;
                const int oh = down / stride_h, ow = right / stride_w;
                if (down >= 0 && right >= 0 && down % stride_h == 0 && right % stride_w == 0 && oh < OH && ow < OW) {
                    sum += Acc(dy[place(n, o, oh, ow, O, OH, OW)]) * Acc(w[place(o, c, kh, kw, C, KH, KW)]);
                }
            }
        }
    }
    dx[i] = sum;
}

extern "C" __global__ void grad_weight(const T* dy, const T* x, T* dw, GEOMETRY, long long count) {
    const long long i = global_thread();
    if (i >= count) return;
    const int kw = i % KW, kh = i / KW % KH, c = i / (KW * KH) % C, o = i / (KW * KH * C);
    Acc sum = 0;
    for (int n = 0; n < N; n++) {
        for (int oh = 0; oh < OH; oh++) {
            for (int ow = 0; ow < OW; ow++) {
                const int h = oh * stride_h - padding_h + kh, v = ow * stride_w - padding_w + kw;
                if (0 <= h && h < H && 0 <= v && v < W) {
                    sum += Acc(dy[place(n, o, oh, ow, O, OH, OW)]) * Acc(x[place(n, c, h, v, C, H, W)]);
                }
            }
        }
    }
    dw[i] = sum;
}
