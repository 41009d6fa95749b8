// Dropout by Philox4x32-10, a thread an element: whoever knows an element's number knows its random word.
//
// Four elements share a counter, and each makes all four words anew, some eighty instructions: for 8 bytes of traffic
// that is about what a large GPU has time for. Where channels lie last, memory is (images, P, C), and the number of an
// element is the one that it has in (images, C, P); elsewhere C = 1, and its number is its place.
// The number of the mask is read from memory, not given with the launch: so a step of training launches the same each
// time, and can be recorded.
// variants: T=float|double

extern "C" __global__ void apply(
    const T* x, T* y, int C, int P, unsigned long long seed, const unsigned long long* call,
    unsigned long long threshold, T scale, long long count) {
    const long long i = global_thread();
    if (i >= count) return;
    long long element = i;
    if (C > 1) {
        const long long pixel = i / C, n = pixel / P;
        element = (n * C + i - pixel * C) * P + pixel - n * P;
    }
    unsigned w0 = element >> 2, w1 = element >> 34, w2 = *call, w3 = *call >> 32, k0 = seed, k1 = seed >> 32;
    for (int round = 0; round < 10; round++) {
        const unsigned low0 = 0xD2511F53u * w0, low1 = 0xCD9E8D57u * w2;
        const unsigned high0 = __umulhi(0xD2511F53u, w0), high1 = __umulhi(0xCD9E8D57u, w2);
        w0 = high1 ^ w1 ^ k0;
        w1 = low1;
        w2 = high0 ^ w3 ^ k1;
        w3 = low0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    const int which = element & 3;
    const unsigned random = which == 0 ? w0 : which == 1 ? w1 : which == 2 ? w2 : w3;
    y[i] = random >= threshold ? x[i] * scale : T(0);
}
