// Softmax and cross-entropy, a block of threads for each row of scores (N, K): largest, sum, and what is made of them.
//
// A row is read three times, the second and third time from a cache. Sums are over a thread's share, then over the
// block, in an order that never changes.
// variants: T=float|double

// The largest of `value` over a block, in every thread. A NaN may be passed over: it makes the sum that follows a NaN.
__device__ __forceinline__ Acc block_max(Acc value, Acc* scratch) {
    for (int distance = 16; distance > 0; distance /= 2) {
        value = max(value, __shfl_xor_sync(0xffffffffu, value, distance));
    }
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
    __syncthreads();
    for (int warp = 0; warp < static_cast<int>(blockDim.x) / 32; warp++) value = max(value, scratch[warp]);
    __syncthreads();  // before anybody writes there again
    return value;
}

struct Row { Acc largest, total; };

// The largest of a row, and Σ exp(score − largest).
__device__ __forceinline__ Row survey(const T* scores, int K, Acc* scratch) {
    Acc largest = scores[0], total = 0;
    for (int k = threadIdx.x; k < K; k += blockDim.x) largest = max(largest, Acc(scores[k]));
    largest = block_max(largest, scratch);
    for (int k = threadIdx.x; k < K; k += blockDim.x) total += exp(Acc(scores[k]) - largest);
    return {largest, block_sum(total, scratch)};
}

extern "C" __global__ void softmax_forward(const T* scores, T* y, int K) {
    __shared__ Acc scratch[32];
    const long long first = static_cast<long long>(blockIdx.x) * K;
    const Row row = survey(scores + first, K, scratch);
    for (int k = threadIdx.x; k < K; k += blockDim.x) {
        y[first + k] = exp(Acc(scores[first + k]) - row.largest) / row.total;
    }
}

extern "C" __global__ void softmax_backward(const T* dy, const T* y, T* dx, int K) {
    __shared__ Acc scratch[32];
    const long long first = static_cast<long long>(blockIdx.x) * K;
    Acc dot = 0;
    for (int k = threadIdx.x; k < K; k += blockDim.x) dot += Acc(dy[first + k]) * Acc(y[first + k]);
    dot = block_sum(dot, scratch);
    for (int k = threadIdx.x; k < K; k += blockDim.x) dx[first + k] = Acc(y[first + k]) * (Acc(dy[first + k]) - dot);
}

// losses (N,) and what backward needs. A label out of range, which the host does not look for, makes a NaN of the loss.
extern "C" __global__ void cross_entropy(
    const T* scores, const long long* labels, T* probabilities, T* targets, T* losses, T at_label, T everywhere,
    int K) {
    __shared__ Acc scratch[32];
    const long long first = static_cast<long long>(blockIdx.x) * K, label = labels[blockIdx.x];
    const Row row = survey(scores + first, K, scratch);
    const Acc log_total = log(row.total);
    Acc loss = 0;
    for (int k = threadIdx.x; k < K; k += blockDim.x) {
        const Acc shifted = Acc(scores[first + k]) - row.largest;
        const T target = k == label ? everywhere + at_label : everywhere;
        probabilities[first + k] = exp(shifted) / row.total;
        targets[first + k] = target;
        if (target > T(0)) loss += Acc(target) * (log_total - shifted);  // what is ruled out by −∞ costs nothing
    }
    loss = block_sum(loss, scratch);
    if (threadIdx.x == 0) losses[blockIdx.x] = label < 0 || label >= K ? Acc(__int_as_float(0x7fffffff)) : loss;
}

// By a single block: the mean of N losses.
extern "C" __global__ void mean(const T* losses, T* loss, int N) {
    __shared__ Acc scratch[32];
    Acc sum = 0;
    for (int n = threadIdx.x; n < N; n += blockDim.x) sum += Acc(losses[n]);
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) *loss = sum / Acc(N);
}

extern "C" __global__ void cross_entropy_backward(
    const T* probabilities, const T* targets, const T* dloss, T* dscores, int N, long long count) {
    const long long i = global_thread();
    if (i < count) dscores[i] = (probabilities[i] - targets[i]) * (*dloss / N);
}
