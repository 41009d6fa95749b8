// CUDA C as plain C++: what a .cu file sees when it is compiled for the simulator (see runtime.cpp for what runs it).
//
// One CUDA block runs at a time, and of its threads one at a time, each on a stack of its own. So `threadIdx` is a
// field of the thread that is running, `__shared__` memory is memory that all of them see, and a thread that waits at a
// barrier steps aside for the others.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

#define CUDASIM 1

// ---- Words of the language ----

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __grid_constant__
#define __constant__ static const
#define __restrict__ __restrict

// Shared arrays lie in a section of their own, so that it is known where they are, each behind a gap that nobody owns.
// `used` tells the compiler that somebody else may look at them, or change them.
#define CUDASIM_JOIN_(a, b) a##b
#define CUDASIM_JOIN(a, b) CUDASIM_JOIN_(a, b)
#define __shared__                                                                                                  \
    static char CUDASIM_JOIN(cudasim_gap_, __COUNTER__)[256]                                                         \
        __attribute__((used, aligned(16), section("cudasim_shared")));                                               \
    static __attribute__((used, aligned(16), section("cudasim_shared")))


// Sixteen bytes move as one access, as on a GPU: left to itself, clang makes a copy of such a struct a call of memcpy.
typedef float CudasimSixteen __attribute__((vector_size(16), may_alias));
#define CUDASIM_MOVES_AT_ONCE(name)                                                               \
    name() = default;                                                                             \
    name(const name& o) { *this = o; }                                                            \
    name& operator=(const name& o) {                                                              \
        *reinterpret_cast<CudasimSixteen*>(this) = *reinterpret_cast<const CudasimSixteen*>(&o); \
        return *this;                                                                             \
    }

#define CUDASIM_VECTOR(T, name)                                                    \
    struct alignas(8) name##2 { T x, y; };                                         \
    struct name##3 { T x, y, z; };                                                 \
    struct alignas(16) name##4 {                                                   \
        T x, y, z, w;                                                              \
        name##4(T x, T y, T z, T w) : x(x), y(y), z(z), w(w) {}                    \
        CUDASIM_MOVES_AT_ONCE(name##4)                                             \
    };                                                                             \
    inline name##2 make_##name##2(T x, T y) { return {x, y}; }                     \
    inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }             \
    inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
CUDASIM_VECTOR(float, float)
CUDASIM_VECTOR(int, int)
CUDASIM_VECTOR(unsigned, uint)
struct alignas(16) double2 {
    double x, y;
    double2(double x, double y) : x(x), y(y) {}
    CUDASIM_MOVES_AT_ONCE(double2)
};
inline double2 make_double2(double x, double y) { return {x, y}; }

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// ---- The runtime, which is compiled apart (runtime.cpp) ----

namespace cudasim {

struct Where { const char* file; int line; };

struct Thread {
    uint3 thread, block;
    unsigned lane, warp;
};

extern "C" {
extern Thread* cudasim_thread;  // the one that is running
extern dim3 cudasim_block_size, cudasim_grid_size;
void* cudasim_dynamic_shared();
void cudasim_barrier(int kind, int predicate, Where, int* result);
void cudasim_meet(unsigned mask, const char* what, Where, void* mine, void (*together)(void**, unsigned));
void cudasim_atomic(void* address, int size, Where);
void cudasim_copy_later(void* to, const void* from, int size);
void cudasim_copies_commit();
void cudasim_copies_wait(int groups_left);
[[noreturn]] void cudasim_trap(const char* why, Where);
}

}  // namespace cudasim

#define threadIdx (cudasim::cudasim_thread->thread)
#define blockIdx (cudasim::cudasim_thread->block)
#define blockDim (cudasim::cudasim_block_size)
#define gridDim (cudasim::cudasim_grid_size)
constexpr int warpSize = 32;

#define CUDASIM_HERE (cudasim::Where{__FILE__, __LINE__})
// In the functions below, which are no macros, a default argument says where the caller is.
#define CUDASIM_CALLER const char* file = __builtin_FILE(), int line = __builtin_LINE()
#define CUDASIM_UNWATCHED __attribute__((no_sanitize("thread")))  // see watch.cpp
#define CUDASIM_CALL (cudasim::Where{file, line})

// ---- Barriers ----

enum { CUDASIM_PLAIN, CUDASIM_COUNT, CUDASIM_AND, CUDASIM_OR };

inline int cudasim_barrier_of(int kind, int predicate, cudasim::Where here) {
    int result;
    cudasim::cudasim_barrier(kind, predicate, here, &result);
    return result;
}
inline void __syncthreads(CUDASIM_CALLER) { cudasim_barrier_of(CUDASIM_PLAIN, 0, CUDASIM_CALL); }
inline int __syncthreads_count(int p, CUDASIM_CALLER) { return cudasim_barrier_of(CUDASIM_COUNT, p, CUDASIM_CALL); }
inline int __syncthreads_and(int p, CUDASIM_CALLER) { return cudasim_barrier_of(CUDASIM_AND, p, CUDASIM_CALL); }
inline int __syncthreads_or(int p, CUDASIM_CALLER) { return cudasim_barrier_of(CUDASIM_OR, p, CUDASIM_CALL); }

// ---- What the lanes of a warp do together ----
//
// Each lane of the mask brings a record on its own stack; the last one to come does the work for all of them.

namespace cudasim {

template <class Record>
void meet(unsigned mask, const char* what, Where here, Record& mine, void (*together)(void**, unsigned)) {
    cudasim_meet(mask, what, here, &mine, together);
}

template <class T>
struct Shuffle { T value, result; int source; Where here; };

template <class T>
void shuffle_together(void** lanes, unsigned mask) {
    for (int i = 0; i < 32; i++) {
        if (!(mask >> i & 1)) continue;
        auto& mine = *static_cast<Shuffle<T>*>(lanes[i]);
        if (!(mask >> mine.source & 1)) cudasim_trap("a shuffle reads a lane that its mask leaves out", mine.here);
        mine.result = static_cast<Shuffle<T>*>(lanes[mine.source])->value;
    }
}

template <class T>
T shuffle(const char* what, unsigned mask, T value, int source, Where here) {
    Shuffle<T> mine{value, value, source, here};
    meet(mask, what, here, mine, shuffle_together<T>);
    return mine.result;
}

struct Vote { unsigned predicate, ballot; };

inline void vote_together(void** lanes, unsigned mask) {
    unsigned ballot = 0;
    for (int i = 0; i < 32; i++)
        if (mask >> i & 1 && static_cast<Vote*>(lanes[i])->predicate) ballot |= 1u << i;
    for (int i = 0; i < 32; i++)
        if (mask >> i & 1) static_cast<Vote*>(lanes[i])->ballot = ballot;
}

inline unsigned vote(const char* what, unsigned mask, int predicate, Where here) {
    Vote mine{predicate != 0, 0};
    meet(mask, what, here, mine, vote_together);
    return mine.ballot;
}

inline int lane() { return cudasim_thread->lane; }

}  // namespace cudasim

template <class T>
T __shfl_sync(unsigned mask, T v, int source, int width = 32, CUDASIM_CALLER) {
    int lane = cudasim::lane();
    return cudasim::shuffle("__shfl_sync", mask, v, (lane & ~(width - 1)) + (source & (width - 1)), CUDASIM_CALL);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T v, int distance, int width = 32, CUDASIM_CALLER) {
    int lane = cudasim::lane(), source = lane ^ distance;
    return cudasim::shuffle("__shfl_xor_sync", mask, v, source / width > lane / width ? lane : source, CUDASIM_CALL);
}
template <class T>
T __shfl_down_sync(unsigned mask, T v, int distance, int width = 32, CUDASIM_CALLER) {
    int lane = cudasim::lane(), source = lane % width + distance < width ? lane + distance : lane;
    return cudasim::shuffle("__shfl_down_sync", mask, v, source, CUDASIM_CALL);
}
template <class T>
T __shfl_up_sync(unsigned mask, T v, int distance, int width = 32, CUDASIM_CALLER) {
    int lane = cudasim::lane();
    return cudasim::shuffle("__shfl_up_sync", mask, v, lane % width >= distance ? lane - distance : lane, CUDASIM_CALL);
}
inline unsigned __ballot_sync(unsigned mask, int p, CUDASIM_CALLER) {
    return cudasim::vote("__ballot_sync", mask, p, CUDASIM_CALL);
}
inline int __any_sync(unsigned mask, int p, CUDASIM_CALLER) {
    return cudasim::vote("__any_sync", mask, p, CUDASIM_CALL) != 0;
}
inline int __all_sync(unsigned mask, int p, CUDASIM_CALLER) {
    return cudasim::vote("__all_sync", mask, p, CUDASIM_CALL) == mask;
}
inline void __syncwarp(unsigned mask = ~0u, CUDASIM_CALLER) { cudasim::vote("__syncwarp", mask, 0, CUDASIM_CALL); }

// ---- Atomics: one thread runs at a time, so reading and writing is all there is to it ----

#define CUDASIM_ATOMIC(name, expression)                                                       \
    template <class T>                                                                         \
    CUDASIM_UNWATCHED T name(T* at, std::common_type_t<T> v, CUDASIM_CALLER) { \
        cudasim::cudasim_atomic(at, sizeof(T), CUDASIM_CALL);                                          \
        T old = *at;                                                                           \
        *at = expression;                                                                      \
        return old;                                                                            \
    }
CUDASIM_ATOMIC(atomicAdd, old + v)
CUDASIM_ATOMIC(atomicSub, old - v)
CUDASIM_ATOMIC(atomicExch, v)
CUDASIM_ATOMIC(atomicMax, old > v ? old : v)
CUDASIM_ATOMIC(atomicMin, old < v ? old : v)
CUDASIM_ATOMIC(atomicAnd, old & v)
CUDASIM_ATOMIC(atomicOr, old | v)
template <class T>
CUDASIM_UNWATCHED T atomicCAS(
    T* at, std::common_type_t<T> expected, std::common_type_t<T> v, CUDASIM_CALLER) {
    cudasim::cudasim_atomic(at, sizeof(T), CUDASIM_CALL);
    T old = *at;
    if (old == expected) *at = v;
    return old;
}
inline void __threadfence() {}
inline void __threadfence_block() {}

// ---- Arithmetic ----

using std::max;
using std::min;
using std::exp;  // of float as of double, as in CUDA: the C library's own take double alone
using std::log;
using std::pow;
using std::sqrt;
inline float rsqrtf(float x) { return 1 / sqrtf(x); }
inline double rsqrt(double x) { return 1 / sqrt(x); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __saturatef(float x) { return x < 0 ? 0 : x > 1 ? 1 : x; }
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<uint64_t>(a) * b >> 32; }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
template <class T>
T __ldg(const T* at) { return *at; }
template <class To, class From>
To cudasim_bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
inline int __float_as_int(float x) { return cudasim_bits<int>(x); }
inline unsigned __float_as_uint(float x) { return cudasim_bits<unsigned>(x); }
inline float __int_as_float(int x) { return cudasim_bits<float>(x); }
inline float __uint_as_float(unsigned x) { return cudasim_bits<float>(x); }
inline void __trap(CUDASIM_CALLER) { cudasim::cudasim_trap("the kernel called __trap", CUDASIM_CALL); }
#define assert(condition) \
    ((condition) ? (void)0 : cudasim::cudasim_trap("assertion failed: " #condition, CUDASIM_HERE))

#include "half.h"
#include "tensor_cores.h"

// ---- How the host calls a kernel ----

namespace cudasim {

template <class T>
struct TypeName {
    static const char* name() {
        if constexpr (std::is_same_v<T, float>) return "float32";
        else if constexpr (std::is_same_v<T, double>) return "float64";
        else if constexpr (std::is_same_v<T, __half>) return "float16";
        else if constexpr (std::is_same_v<T, bool>) return "bool";
        else if constexpr (std::is_integral_v<T>) {
            constexpr const char* names[2][4] = {
                {"uint8", "uint16", "uint32", "uint64"}, {"int8", "int16", "int32", "int64"}};
            return names[std::is_signed_v<T>][sizeof(T) == 1 ? 0 : sizeof(T) == 2 ? 1 : sizeof(T) == 4 ? 2 : 3];
        } else return "other";
    }
};

// "float32*,const float32*,int32": what the parameters of a kernel are.
template <class... A>
std::string signature(void (*)(A...)) {
    std::string all;
    auto add = [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        using Target = std::remove_pointer_t<T>;
        if (std::is_const_v<Target>) all += "const ";
        all += TypeName<std::remove_cv_t<Target>>::name();
        all += std::is_pointer_v<T> ? "*," : ",";
    };
    (add(static_cast<std::remove_cv_t<A>*>(nullptr)), ...);
    return all;
}

template <class... A, size_t... I>
CUDASIM_UNWATCHED void call(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_cv_t<A>*>(arguments[I])...);
}

template <class... A>
CUDASIM_UNWATCHED void call(void (*kernel)(A...), void** arguments) {
    call(kernel, arguments, std::index_sequence_for<A...>());
}

}  // namespace cudasim

#define CUDASIM_EXPORT(kernel)                                                                  \
    extern "C" void cudasim_call_##kernel(void** arguments) { cudasim::call(kernel, arguments); } \
    extern "C" const char* cudasim_signature_##kernel() {                                       \
        static const std::string text = cudasim::signature(kernel);                             \
        return text.c_str();                                                                    \
    }
