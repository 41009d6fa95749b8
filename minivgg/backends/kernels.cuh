// What our kernels share. T is the type that numbers are stored in, Acc the one that sums of them are kept in.
#pragma once

#ifdef T
template <int bytes> struct Sum { using type = float; };
template <> struct Sum<8> { using type = double; };
typedef Sum<sizeof(T)>::type Acc;
#endif

// The number of this thread in a launch `over` so many elements.
__device__ __forceinline__ long long global_thread() {
    return static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
}

// Arrays (pixels, C) are walked by blocks of 32 channels across and a few pixels down: a warp is 32 neighbours in
// memory, and nobody divides by C. Some blocks stand side by side, the next ones below them.
__device__ __forceinline__ int blocks_across(int C) { return (C + 31) / 32; }
__device__ __forceinline__ int this_channel(int C) { return blockIdx.x % blocks_across(C) * 32 + threadIdx.x; }
__device__ __forceinline__ int blocks_above(int C) { return blockIdx.x / blocks_across(C); }
__device__ __forceinline__ int this_pixel(int C) { return blocks_above(C) * blockDim.y + threadIdx.y; }

// The sum of `value` over a warp, in every lane: five exchanges, in an order that never changes.
template <class Number>
__device__ __forceinline__ Number warp_sum(Number value) {
    for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(0xffffffffu, value, distance);
    return value;
}

// The sum of `value` over all threads that stand below one another in a block 32 wide, from the top down, in every one
// of them. `scratch` holds a number for each thread.
template <class Number>
__device__ __forceinline__ Number column_sum(Number value, Number* scratch) {
    scratch[threadIdx.y * 32 + threadIdx.x] = value;
    __syncthreads();
    Number total = 0;
    for (int y = 0; y < static_cast<int>(blockDim.y); y++) total += scratch[y * 32 + threadIdx.x];
    __syncthreads();  // before anybody writes there again
    return total;
}

// The sum of `value` over a block of at most 1024 threads, a multiple of 32, in every thread. `scratch` holds 32.
template <class Number>
__device__ __forceinline__ Number block_sum(Number value, Number* scratch) {
    value = warp_sum(value);
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
    __syncthreads();
    Number total = 0;
    for (int warp = 0; warp < static_cast<int>(blockDim.x) / 32; warp++) total += scratch[warp];
    __syncthreads();  // before anybody writes there again
    return total;
}
