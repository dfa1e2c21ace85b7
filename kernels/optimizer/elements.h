// How the optimizer's kernels touch memory: runs of elements by quads, one access for each where
// its address allows, element by element at the ends and where rows have odd lengths.
//
// The bits of an element depend on that element alone, so neither way of access changes any.
#pragma once

#include "../abi.h"
#include "../dev/dev.h"

namespace optimizer {

constexpr uint32_t THREADS = 256;

// Up to four neighbouring elements.
struct Quad {
    float v[4];
};

DEV_FN float as_f32(uint32_t bits) { return __builtin_bit_cast(float, bits); }
DEV_FN uint32_t as_bits(float value) { return __builtin_bit_cast(uint32_t, value); }

DEV_FN uint16_t rounded(dev::Bf16, float value) { return dev::to_bf16(value); }
DEV_FN uint16_t rounded(dev::F16, float value) { return dev::to_f16(value); }

// Four elements at an address that is a multiple of their size.
struct Whole {
    static DEV_FN Quad load(uint64_t at, uint32_t) {
        const auto words = dev::load16(dev::pointer<const void>(at));
        return {{as_f32(words[0]), as_f32(words[1]), as_f32(words[2]), as_f32(words[3])}};
    }
    static DEV_FN void store(uint64_t at, const Quad& quad, uint32_t) {
        const dev::u32x4 words = {as_bits(quad.v[0]), as_bits(quad.v[1]), as_bits(quad.v[2]),
                                  as_bits(quad.v[3])};
        dev::store16(dev::pointer<void>(at), words);
    }
    static DEV_FN Quad load_bf16(uint64_t at, uint32_t) {
        const auto words = dev::load8(dev::pointer<const void>(at));
        Quad quad;
        dev::unpack<dev::Bf16>(words[0], quad.v[0], quad.v[1]);
        dev::unpack<dev::Bf16>(words[1], quad.v[2], quad.v[3]);
        return quad;
    }
    template <class T>
    static DEV_FN void store_half(T, uint64_t at, const Quad& quad, uint32_t) {
        const dev::u32x2 words = {dev::pack<T>(quad.v[0], quad.v[1]),
                                  dev::pack<T>(quad.v[2], quad.v[3])};
        dev::store8(dev::pointer<void>(at), words);
    }
};

// The first `count` of four elements, wherever they lie; the others are zero.
struct Guarded {
    static DEV_FN Quad load(uint64_t at, uint32_t count) {
        Quad quad = {{0, 0, 0, 0}};
        for (uint32_t j = 0; j < 4; j++) {
            if (j < count) quad.v[j] = dev::pointer<const float>(at)[j];
        }
        return quad;
    }
    static DEV_FN void store(uint64_t at, const Quad& quad, uint32_t count) {
        for (uint32_t j = 0; j < 4; j++) {
            if (j < count) dev::pointer<float>(at)[j] = quad.v[j];
        }
    }
    static DEV_FN Quad load_bf16(uint64_t at, uint32_t count) {
        Quad quad = {{0, 0, 0, 0}};
        for (uint32_t j = 0; j < 4; j++) {
            if (j < count) quad.v[j] = dev::from_bf16(dev::pointer<const uint16_t>(at)[j]);
        }
        return quad;
    }
    template <class T>
    static DEV_FN void store_half(T type, uint64_t at, const Quad& quad, uint32_t count) {
        for (uint32_t j = 0; j < 4; j++) {
            if (j < count) dev::pointer<uint16_t>(at)[j] = rounded(type, quad.v[j]);
        }
    }
};

// Calls `body(Access(), i, count)` for the quads of a run that are this thread's: elements
// i … i + count. `places` are all addresses of the run's first elements, or'ed.
template <class Body>
DEV_FN void each_quad(uint64_t places, uint32_t len, const Body& body) {
    for (uint32_t i = dev::thread() * 4; i < len; i += THREADS * 4) {
        if (places % 16 == 0 && len - i >= 4) {
            body(Whole(), i, 4u);
        } else {
            body(Guarded(), i, len - i < 4 ? len - i : 4);
        }
    }
}

// The blocks of a launch share its spans.
template <class Args, class Body>
DEV_FN void each_span(const Args& args, const Body& body) {
    const auto* spans = dev::constant<MusterSpan>(args.spans);
    for (uint32_t index = dev::block(); index < args.span_count; index += dev::grid()) {
        body(spans[index]);
    }
}

// The weights of a span: f32 that are updated in place, or f32 masters and their bf16 copies.
struct Weights {
    uint64_t masters;
    uint64_t flat;

    template <class Args>
    static DEV_FN Weights of(const Args& args, const MusterSpan& span) {
        if (args.masters == 0) return {0, args.weights + 4 * span.flat};
        return {args.masters + 4 * span.local, args.weights + 2 * span.flat};
    }
    // For each_quad; a quad of bf16 has half the size.
    DEV_FN uint64_t places() const { return masters == 0 ? flat : masters | 2 * flat; }

    template <class Access>
    DEV_FN Quad load(uint32_t i, uint32_t count) const {
        return Access::load((masters == 0 ? flat : masters) + 4 * i, count);
    }
    template <class Access>
    DEV_FN void store(const Quad& quad, uint32_t i, uint32_t count) const {
        if (masters == 0) return Access::store(flat + 4 * i, quad, count);
        Access::store(masters + 4 * i, quad, count);
        Access::store_half(dev::Bf16(), flat + 2 * i, quad, count);
    }
};

}  // namespace optimizer
