// What a kernel would write PTX for: cp.async, ldmatrix and mma.sync, behind functions that hold both branches.
//
// NVRTC and the simulator both read this file; only the bodies differ. Fragment layouts are those of the PTX manual,
// "Warp-level matrix instructions", §9.7.14: lane = 4·group + member, group 0…7, member 0…3.
#pragma once

// ---- Copies from global to shared memory that land only when they are waited for (sm_80 and later) ----

// Zeros come instead where nothing is `there`, and `global` is not read.
template <int bytes>
__device__ __forceinline__ void cp_async(void* shared, const void* global, bool there = true) {
    static_assert(bytes == 4 || bytes == 8 || bytes == 16, "cp.async moves 4, 8 or 16 bytes");
#ifdef CUDASIM
    cudasim::cudasim_copy_later(shared, there ? global : nullptr, bytes);
#else
    const unsigned at = static_cast<unsigned>(__cvta_generic_to_shared(shared)), read = there ? bytes : 0;
    if (bytes == 16) {
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(global), "r"(read) : "memory");
    } else {
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;"
                     ::"r"(at), "l"(global), "n"(bytes), "r"(read) : "memory");
    }
#endif
}

// What was asked for since the last commit becomes one group.
__device__ __forceinline__ void cp_async_commit() {
#ifdef CUDASIM
    cudasim::cudasim_copies_commit();
#else
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most `groups` of this thread's groups are still on their way. A barrier must follow before other
// threads read what has landed.
template <int groups>
__device__ __forceinline__ void cp_async_wait() {
#ifdef CUDASIM
    cudasim::cudasim_copies_wait(groups);
#else
    asm volatile("cp.async.wait_group %0;" ::"n"(groups) : "memory");
#endif
}

// ---- Matrices of 8×8 float16 from shared memory into registers, by a whole warp ----

#ifdef CUDASIM
namespace cudasim {

struct Matrices { uint16_t row[8]; unsigned* registers; };

template <int count, bool turned>
void load_together(void** lanes, unsigned mask) {
    auto record = [&](int lane) -> Matrices& { return *static_cast<Matrices*>(lanes[lane]); };
    if (mask != ~0u) cudasim_trap("ldmatrix takes all 32 lanes of a warp", {"tensor_cores.h", 0});
    for (int lane = 0; lane < 32; lane++) {
        const int group = lane / 4, member = lane % 4;
        for (int i = 0; i < count; i++) {
            auto at = [&](int r, int c) -> unsigned { return record(8 * i + (turned ? c : r)).row[turned ? r : c]; };
            record(lane).registers[i] = at(group, 2 * member + 1) << 16 | at(group, 2 * member);
        }
    }
}

}  // namespace cudasim
#endif

// Lane 8·i + r says where row r of matrix i is, 16 bytes that begin at a multiple of 16; of two matrices, lanes 0 to 15
// do. Register i of lane 4·group + member gets elements 2·member and 2·member + 1 of row `group` of matrix i; of its
// column `group` if the matrices are to be `turned`.
template <bool turned, int count>
__device__ __forceinline__ void ldmatrix(unsigned (&registers)[count], const void* row) {
    static_assert(count == 2 || count == 4, "two matrices, or four");
#ifdef CUDASIM
    const CudasimSixteen at_once = *static_cast<const CudasimSixteen*>(row);
    cudasim::Matrices mine{{}, registers};
    memcpy(mine.row, &at_once, 16);
    cudasim::meet(~0u, "ldmatrix", {"tensor_cores.h", __LINE__}, mine, cudasim::load_together<count, turned>);
#else
    const unsigned at = static_cast<unsigned>(__cvta_generic_to_shared(row));
    if constexpr (count == 2 && turned) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                     : "=r"(registers[0]), "=r"(registers[1]) : "r"(at) : "memory");
    } else if constexpr (count == 2) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
                     : "=r"(registers[0]), "=r"(registers[1]) : "r"(at) : "memory");
    } else if constexpr (turned) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
                     : "r"(at) : "memory");
    } else {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
                     : "r"(at) : "memory");
    }
#endif
}

// ---- d (16×8) = a (16×k) · b (k×8) + d, by a whole warp ----

#ifdef CUDASIM
namespace cudasim {

inline float tf32(unsigned bits) { return cudasim_bits<float>(bits & 0xffffe000u); }  // 10 bits of fraction are read
inline float low_half(unsigned bits) { return __half::widened(bits & 0xffff); }
inline float high_half(unsigned bits) { return __half::widened(bits >> 16); }

struct Mma { float* d; const unsigned *a, *b; };

template <int K, bool halves>
void mma_together(void** lanes, unsigned mask) {
    float a[16][K], b[K][8];
    auto record = [&](int lane) -> Mma& { return *static_cast<Mma*>(lanes[lane]); };
    if (mask != ~0u) cudasim_trap("mma.sync takes all 32 lanes of a warp", {"tensor_cores.h", 0});
    for (int lane = 0; lane < 32; lane++) {
        const int group = lane / 4, member = lane % 4;
        for (int i = 0; i < 4; i++) {  // a: registers 0 and 2 hold row `group`, 1 and 3 row `group` + 8
            const int row = group + 8 * (i % 2);
            const unsigned bits = record(lane).a[i];
            if (halves) {
                const int k = 2 * member + 8 * (i / 2);
                a[row][k] = low_half(bits), a[row][k + 1] = high_half(bits);
            } else a[row][member + 4 * (i / 2)] = tf32(bits);
        }
        for (int i = 0; i < 2; i++) {
            const unsigned bits = record(lane).b[i];
            if (halves) {
                const int k = 2 * member + 8 * i;
                b[k][group] = low_half(bits), b[k + 1][group] = high_half(bits);
            } else b[member + 4 * i][group] = tf32(bits);
        }
    }
    for (int lane = 0; lane < 32; lane++) {
        const int group = lane / 4, member = lane % 4;
        for (int i = 0; i < 4; i++) {
            double sum = record(lane).d[i];
            const int row = group + 8 * (i / 2), column = 2 * member + i % 2;
            for (int k = 0; k < K; k++) sum += static_cast<double>(a[row][k]) * b[k][column];
            record(lane).d[i] = static_cast<float>(sum);
        }
    }
}

}  // namespace cudasim
#endif

// a and b in TF32 (float32 bits, of which the last 13 are not read), k = 8.
__device__ __forceinline__ void mma_tf32(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#ifdef CUDASIM
    cudasim::Mma mine{d, a, b};
    cudasim::meet(~0u, "mma_tf32", {"tensor_cores.h", __LINE__}, mine, cudasim::mma_together<8, false>);
#else
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// a and b in float16, two numbers a register, k = 16; d in float32.
__device__ __forceinline__ void mma_f16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#ifdef CUDASIM
    cudasim::Mma mine{d, a, b};
    cudasim::meet(~0u, "mma_f16", {"tensor_cores.h", __LINE__}, mine, cudasim::mma_together<16, true>);
#else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// float32 → TF32, rounded to nearest (ties away from zero), as cvt.rna does.
__device__ __forceinline__ unsigned to_tf32(float x) {
#ifdef CUDASIM
    return (__float_as_uint(x) + 0x1000u) & 0xffffe000u;
#else
    unsigned y;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
    return y;
#endif
}

// Two float32 → two float16 in a register, the first in its low half, rounded to nearest even; and back.
__device__ __forceinline__ unsigned to_f16x2(float first, float second) {
#ifdef CUDASIM
    return static_cast<unsigned>(__half::rounded(second)) << 16 | __half::rounded(first);
#else
    unsigned both;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(second), "f"(first));
    return both;
#endif
}

__device__ __forceinline__ float2 from_f16x2(unsigned both) {
#ifdef CUDASIM
    return {cudasim::low_half(both), cudasim::high_half(both)};
#else
    float2 two;
    asm("{ .reg .f16 first, second; mov.b32 {first, second}, %2; cvt.f32.f16 %0, first; cvt.f32.f16 %1, second; }"
        : "=f"(two.x), "=f"(two.y) : "r"(both));
    return two;
#endif
}
