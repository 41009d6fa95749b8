// What a GPU can do at best: multiply-adds that never leave the registers, and memory that is only read or copied.
// variants:
//
// Eight independent chains in each of 2048 threads a multiprocessor: an instruction takes about four cycles, and no
// chain waits for another. The numbers come from memory and the sums go there, so that no compiler can leave any out.

constexpr int CHAINS = 8;

// v ← v·a + b, `rounds` times, in each chain: 2 · CHAINS · rounds FLOP a thread. numbers: a, b, then a sum a thread.
extern "C" __global__ void fma_chains(float* numbers, int rounds) {
    const float a = numbers[0], b = numbers[1];
    float v[CHAINS];
    for (int i = 0; i < CHAINS; i++) v[i] = b * i;
    for (int round = 0; round < rounds; round++) {
#pragma unroll
        for (int i = 0; i < CHAINS; i++) v[i] = v[i] * a + b;
    }
    float sum = 0;
    for (int i = 0; i < CHAINS; i++) sum += v[i];
    numbers[2 + global_thread()] = sum;
}

// The same with 16×8 products of matrices, k = 8 or 16: 2 · 16 · 8 · k · CHAINS · rounds FLOP a warp.
template <bool halves>
__device__ __forceinline__ void mma_chains(float* numbers, int rounds) {
    const unsigned bits = __float_as_uint(numbers[0]);
    const unsigned a[4] = {bits, bits, bits, bits}, b[2] = {bits, bits};
    float d[CHAINS][4] = {};
    for (int round = 0; round < rounds; round++) {
#pragma unroll
        for (int i = 0; i < CHAINS; i++) {
            if (halves) mma_f16(d[i], a, b);
            else mma_tf32(d[i], a, b);
        }
    }
    float sum = 0;
    for (int i = 0; i < CHAINS; i++) sum += d[i][0] + d[i][1] + d[i][2] + d[i][3];
    numbers[2 + global_thread()] = sum;
}

extern "C" __global__ void mma_tf32_chains(float* numbers, int rounds) { mma_chains<false>(numbers, rounds); }

extern "C" __global__ void mma_f16_chains(float* numbers, int rounds) { mma_chains<true>(numbers, rounds); }

// b ← a, `count` times 16 bytes; neighbouring threads take neighbouring ones, and all of them stride on together.
extern "C" __global__ void copy_all(const float4* a, float4* b, long long count) {
    const long long step = static_cast<long long>(gridDim.x) * blockDim.x;
    for (long long i = global_thread(); i < count; i += step) b[i] = a[i];
}

// The sum of each thread's share of a.
extern "C" __global__ void read_all(const float4* a, float* sums, long long count) {
    const long long step = static_cast<long long>(gridDim.x) * blockDim.x;
    float sum = 0;
    for (long long i = global_thread(); i < count; i += step) {
        const float4 four = a[i];
        sum += four.x + four.y + four.z + four.w;
    }
    sums[global_thread()] = sum;
}
