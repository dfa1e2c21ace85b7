// The elementwise updates of Muon and AdamW. Every operation is rounded by itself (dev::mul and the
// like), in the order of the host's code: the bits are the host's, but for the payload of a NaN.
#pragma once

#include "elements.h"

namespace optimizer {

// g ← factor·g    m ← keep·m + add·g    u = nesterov ? keep·m + add·g : m
DEV_FN void momentum(const MusterMomentumArgs& args) {
    each_span(args, [&](const MusterSpan& span) {
        const uint64_t grads = args.grads + 4 * span.flat;
        const uint64_t kept = args.momentum + 4 * span.local;
        const uint64_t update = args.update + 4 * span.local;
        const float factor = dev::constant<float>(args.factors)[span.unit];
        each_quad(grads | kept | update, span.len, [&](auto access, uint32_t i, uint32_t count) {
            const Quad g = access.load(grads + 4 * i, count);
            Quad m = access.load(kept + 4 * i, count);
            Quad u;
            for (uint32_t j = 0; j < 4; j++) {
                const float added = dev::mul(args.add, dev::mul(g.v[j], factor));
                const float now = dev::add(dev::mul(args.keep, m.v[j]), added);
                m.v[j] = now;
                u.v[j] = args.nesterov ? dev::add(dev::mul(args.keep, now), added) : now;
            }
            access.store(kept + 4 * i, m, count);
            access.store(update + 4 * i, u, count);
        });
    });
}

// w ← keep·w - rate·o
DEV_FN void apply(const MusterApplyArgs& args) {
    each_span(args, [&](const MusterSpan& span) {
        const Weights weights = Weights::of(args, span);
        const uint64_t direction = args.direction + 4 * span.local;
        const uint64_t places = weights.places() | direction;
        each_quad(places, span.len, [&](auto access, uint32_t i, uint32_t count) {
            using Access = decltype(access);
            const Quad o = Access::load(direction + 4 * i, count);
            Quad w = weights.template load<Access>(i, count);
            for (uint32_t j = 0; j < 4; j++) {
                w.v[j] = dev::add(dev::mul(args.keep, w.v[j]), -dev::mul(args.rate, o.v[j]));
            }
            weights.template store<Access>(w, i, count);
        });
    });
}

DEV_FN void adamw_element(const MusterAdamWArgs& args, float g, float& w, float& m, float& v) {
    m = dev::add(dev::mul(args.beta1, m), dev::mul(args.one_minus_beta1, g));
    v = dev::add(dev::mul(args.beta2, v), dev::mul(args.one_minus_beta2, dev::mul(g, g)));
    const float root = dev::add(dev::mul(dev::sqrt(v), args.root_correction), args.eps);
    w = dev::add(dev::mul(w, args.keep), -dev::mul(args.rate, dev::div(m, root)));
}

// g ← factor·g    m ← β1·m + (1-β1)·g    v ← β2·v + (1-β2)·g²    w ← keep·w - rate·m/(√v·c + eps)
DEV_FN void adamw(const MusterAdamWArgs& args) {
    each_span(args, [&](const MusterSpan& span) {
        const Weights weights = Weights::of(args, span);
        const uint64_t grads = args.grads + 4 * span.flat;
        const uint64_t first = args.first + 4 * span.local;
        const uint64_t second = args.second + 4 * span.local;
        const float factor = dev::constant<float>(args.factors)[span.unit];
        const uint64_t places = weights.places() | grads | first | second;
        each_quad(places, span.len, [&](auto access, uint32_t i, uint32_t count) {
            using Access = decltype(access);
            const Quad g = Access::load(grads + 4 * i, count);
            Quad w = weights.template load<Access>(i, count);
            Quad m = Access::load(first + 4 * i, count);
            Quad v = Access::load(second + 4 * i, count);
            for (uint32_t j = 0; j < 4; j++) {
                adamw_element(args, dev::mul(g.v[j], factor), w.v[j], m.v[j], v.v[j]);
            }
            weights.template store<Access>(w, i, count);
            Access::store(first + 4 * i, m, count);
            Access::store(second + 4 * i, v, count);
        });
    });
}

// Masters from f32 or bf16 weights.
DEV_FN void adopt(const MusterMastersArgs& args) {
    each_span(args, [&](const MusterSpan& span) {
        const uint64_t masters = args.masters + 4 * span.local;
        const uint64_t flat = args.weights + (args.is_f32 ? 4 : 2) * span.flat;
        const uint64_t places = masters | (args.is_f32 ? 1 : 2) * flat;
        each_quad(places, span.len, [&](auto access, uint32_t i, uint32_t count) {
            const Quad w = args.is_f32 ? access.load(flat + 4 * i, count)
                                       : access.load_bf16(flat + 2 * i, count);
            access.store(masters + 4 * i, w, count);
        });
    });
}

// f32 elements rounded to 16 bits, in runs that the blocks share.
template <class T>
DEV_FN void cast_to(T type, const MusterCastArgs& args) {
    const uint64_t stride = static_cast<uint64_t>(dev::grid()) * MUSTER_SPAN_LEN;
    uint64_t start = static_cast<uint64_t>(dev::block()) * MUSTER_SPAN_LEN;
    for (; start < args.len; start += stride) {
        const uint64_t from = args.source + 4 * start, to = args.target + 2 * start;
        const uint64_t left = args.len - start;
        const uint32_t len = left < MUSTER_SPAN_LEN ? static_cast<uint32_t>(left) : MUSTER_SPAN_LEN;
        each_quad(from | 2 * to, len, [&](auto access, uint32_t i, uint32_t count) {
            access.store_half(type, to + 2 * i, access.load(from + 4 * i, count), count);
        });
    }
}

DEV_FN void cast(const MusterCastArgs& args) {
    if (args.is_f16) return cast_to(dev::F16(), args);
    cast_to(dev::Bf16(), args);
}

// bf16 weights from masters.
DEV_FN void publish(const MusterMastersArgs& args) {
    each_span(args, [&](const MusterSpan& span) {
        const uint64_t masters = args.masters + 4 * span.local;
        const uint64_t flat = args.weights + 2 * span.flat;
        each_quad(masters | 2 * flat, span.len, [&](auto access, uint32_t i, uint32_t count) {
            const Quad w = access.load(masters + 4 * i, count);
            access.store_half(dev::Bf16(), flat + 2 * i, w, count);
        });
    });
}

}  // namespace optimizer
