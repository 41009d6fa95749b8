// __half: 16 bits to store a number in, rounded to nearest even; arithmetic goes through float, as float16 storage with
// float32 accumulation does.
#pragma once

struct alignas(2) __half {
    uint16_t bits;

    __half() = default;
    __half(float x) : bits(rounded(x)) {}
    operator float() const { return widened(bits); }

    static uint16_t rounded(float x) {
        const uint32_t u = cudasim_bits<uint32_t>(x), sign = u >> 16 & 0x8000, magnitude = u & 0x7fffffff;
        if (magnitude >= 0x7f800000) return sign | 0x7c00 | (magnitude > 0x7f800000 ? 0x200 : 0);  // infinite, or none
        if (magnitude >= 0x477ff000) return sign | 0x7c00;                                         // 65520 and more
        if (magnitude < 0x38800000) {  // below 2⁻¹⁴ they are multiples of 2⁻²⁴, and adding ½ lines them up to be
            return sign | (cudasim_bits<uint32_t>(cudasim_bits<float>(magnitude) + 0.5f) - 0x3f000000);  // rounded so
        }
        return sign | (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13;
    }
    static float widened(uint16_t h) {
        const uint32_t sign = uint32_t(h & 0x8000) << 16, magnitude = h & 0x7fff;
        if (magnitude >= 0x7c00) return cudasim_bits<float>(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
        const float scaled = cudasim_bits<float>(magnitude << 13) * 0x1p112f;  // a float's exponent is biased by more
        return cudasim_bits<float>(sign | cudasim_bits<uint32_t>(scaled));
    }
};
using half = __half;
struct alignas(4) __half2 { __half x, y; };
using half2 = __half2;

inline __half __float2half(float x) { return x; }
inline __half __float2half_rn(float x) { return x; }
inline float __half2float(__half x) { return x; }
inline __half2 __floats2half2_rn(float x, float y) { return {x, y}; }
inline __half2 __halves2half2(__half x, __half y) { return {x, y}; }
inline float2 __half22float2(__half2 v) { return {v.x, v.y}; }
