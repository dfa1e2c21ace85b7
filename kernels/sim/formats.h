// The 16-bit formats of the matrix units, as functions on bits. No compiler or CPU support is
// used, so that a result does not depend on the host.
//
// bf16: 1 sign, 8 exponent, 7 fraction bits: the upper half of an f32.
// f16:  1 sign, 5 exponent, 10 fraction bits (IEEE 754 binary16).
#pragma once

#include <stdint.h>
#include <string.h>

namespace sim {

inline uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

inline float bf16_to_f32(uint16_t bits) { return float_of(static_cast<uint32_t>(bits) << 16); }

// Round to nearest even; a NaN stays a NaN (its upper fraction bits, made quiet).
inline uint16_t f32_to_bf16(float value) {
    uint32_t bits = bits_of(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
    bits += 0x7fffu + ((bits >> 16) & 1u);
    return static_cast<uint16_t>(bits >> 16);
}

inline float f16_to_f32(uint16_t bits) {
    uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
    uint32_t exponent = (bits >> 10) & 0x1fu;
    uint32_t fraction = bits & 0x3ffu;
    if (exponent == 0x1fu) return float_of(sign | 0x7f800000u | (fraction << 13));
    if (exponent != 0) return float_of(sign | ((exponent + 112u) << 23) | (fraction << 13));
    // Zero or subnormal: fraction · 2^-24, exact in f32.
    float magnitude = static_cast<float>(fraction) * 5.9604644775390625e-8f;
    return float_of(sign | bits_of(magnitude));
}

// Round to nearest even; overflow gives infinity, a NaN stays a NaN.
inline uint16_t f32_to_f16(float value) {
    uint32_t bits = bits_of(value);
    uint32_t sign = (bits >> 16) & 0x8000u;
    uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u)
        return static_cast<uint16_t>(sign | 0x7e00u | ((magnitude >> 13) & 0x1ffu));
    if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // ≥ 65520
    if (magnitude < 0x38800000u) {  // < 2^-14: subnormal
        // Adding 0.5 leaves the value in units of 2^-24 in the low fraction bits, rounded to even.
        return static_cast<uint16_t>(sign | (bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u));
    }
    magnitude += 0xfffu + ((magnitude >> 13) & 1u);
    return static_cast<uint16_t>(sign | ((magnitude - 0x38000000u) >> 13));
}

// Tags of the formats, for the models' templates.
struct Bf16Format {
    static float smallest_normal() { return float_of(0x00800000u); }  // 2^-126
    static float decode(uint16_t bits) { return bf16_to_f32(bits); }
    static uint16_t encode(float value) { return f32_to_bf16(value); }
};
struct F16Format {
    static float smallest_normal() { return float_of(0x38800000u); }  // 2^-14
    static float decode(uint16_t bits) { return f16_to_f32(bits); }
    static uint16_t encode(float value) { return f32_to_f16(value); }
};

// Half `index` (0: low) of a register that holds two 16-bit values.
inline uint16_t half_of(uint32_t reg, uint32_t index) {
    return static_cast<uint16_t>(reg >> (16 * index));
}

// Where an element of a fragment lies in its matrix.
struct Cell {
    uint32_t row;
    uint32_t col;
};

}  // namespace sim
