// Sums of many inputs, element by element, in the order that a program says: a stage of it per
// launch. The stack of sums of each group of elements lies in shared memory, but for its top:
//
//   inputs  a b c d ──┐  push a, add b     top  a+b
//                     ├─ push c, add d     top  c+d        shared  a+b
//                     └─ fold              top  (a+b)+(c+d)
//
// A thread reads all it needs of every input before it writes, so the sum may go where an input is.
#pragma once

#include "../abi.h"
#include "../dev/dev.h"

namespace ordered_sum {

constexpr uint32_t THREADS = 256;
// Of a group: what one access moves. Dynamic shared memory: this for each thread and each sum below
// the top.
constexpr uint32_t GROUP_BYTES = 16;

// Four neighbouring f32 sums, of f32 or 16-bit inputs.
struct F32 {
    static constexpr uint32_t COUNT = 4;
    float v[COUNT];

    static DEV_FN F32 of(dev::u32x4 words) { return __builtin_bit_cast(F32, words); }
    DEV_FN dev::u32x4 words() const { return __builtin_bit_cast(dev::u32x4, *this); }
    DEV_FN void add(const F32& other) {
        for (uint32_t j = 0; j < COUNT; j++) v[j] = dev::add(v[j], other.v[j]);
    }
};

// Two neighbouring f64 sums.
struct F64 {
    static constexpr uint32_t COUNT = 2;
    double v[COUNT];

    static DEV_FN F64 of(dev::u32x4 words) { return __builtin_bit_cast(F64, words); }
    DEV_FN dev::u32x4 words() const { return __builtin_bit_cast(dev::u32x4, *this); }
    DEV_FN void add(const F64& other) {
        for (uint32_t j = 0; j < COUNT; j++) v[j] = dev::add(v[j], other.v[j]);
    }
};

// Inputs as they are summed.
template <class T, class S>
struct Plain {
    using Sum = S;
    static constexpr uint32_t BYTES = sizeof(T);
    static DEV_FN Sum whole(uint64_t at) { return Sum::of(dev::load16(dev::pointer<void>(at))); }
    static DEV_FN T one(uint64_t at) { return *dev::pointer<const T>(at); }
};

DEV_FN float widened(dev::Bf16, uint16_t bits) { return dev::from_bf16(bits); }
DEV_FN float widened(dev::F16, uint16_t bits) { return dev::from_f16(bits); }

// 16-bit inputs, widened.
template <class T>
struct Half {
    using Sum = F32;
    static constexpr uint32_t BYTES = 2;
    static DEV_FN Sum whole(uint64_t at) {
        const auto words = dev::load8(dev::pointer<void>(at));
        Sum sum;
        dev::unpack<T>(words[0], sum.v[0], sum.v[1]);
        dev::unpack<T>(words[1], sum.v[2], sum.v[3]);
        return sum;
    }
    static DEV_FN float one(uint64_t at) {
        return widened(T(), *dev::pointer<const uint16_t>(at));
    }
};

// Elements element … element + count of an array; those beyond are zero.
template <class Input>
DEV_FN typename Input::Sum load(uint64_t array, uint64_t element, uint32_t count) {
    using Sum = typename Input::Sum;
    const uint64_t at = array + element * Input::BYTES;
    if (count == Sum::COUNT && at % (Sum::COUNT * Input::BYTES) == 0) return Input::whole(at);
    Sum sum;
    for (uint32_t j = 0; j < Sum::COUNT; j++) {
        sum.v[j] = j < count ? Input::one(at + j * Input::BYTES) : 0;
    }
    return sum;
}

template <class Plain>
DEV_FN void store(uint64_t array, uint64_t element, uint32_t count,
                  const typename Plain::Sum& sum) {
    using Element = decltype(Plain::one(0));
    const uint64_t at = array + element * Plain::BYTES;
    if (count == Plain::Sum::COUNT && at % GROUP_BYTES == 0) {
        return dev::store16(dev::pointer<void>(at), sum.words());
    }
    for (uint32_t j = 0; j < Plain::Sum::COUNT; j++) {
        if (j < count) dev::pointer<Element>(at)[j] = sum.v[j];
    }
}

// This thread's part of shared memory for a sum below the top.
DEV_FN void* level(uint32_t index) {
    return dev::shared() + (index * THREADS + dev::thread()) * GROUP_BYTES;
}

// Runs the stage on elements element … element + count. `Plain` is how sums lie in memory.
template <class Input, class Plain>
DEV_FN void group(const MusterSumArgs& args, uint64_t element, uint32_t count) {
    using Sum = typename Plain::Sum;
    const uint64_t carried = args.len * Plain::BYTES;
    uint32_t height = args.height;
    Sum top = {};
    for (uint32_t i = 0; i < height; i++) {
        if (i > 0) dev::store16(level(i - 1), top.words());
        top = load<Plain>(args.carry + i * carried, element, count);
    }
    for (uint32_t op = 0, next = 0; op < args.op_count; op++) {
        const uint32_t kind = (args.ops[op / 32] >> (op % 32 * 2)) & 3;
        if (kind == MUSTER_SUM_FOLD) {
            height--;
            Sum below = Sum::of(dev::load16(level(height - 1)));
            below.add(top);
            top = below;
            continue;
        }
        const Sum input = load<Input>(args.inputs[next++], element, count);
        if (kind == MUSTER_SUM_ADD) {
            top.add(input);
            continue;
        }
        if (height > 0) dev::store16(level(height - 1), top.words());
        top = input;
        height++;
    }
    if (args.out != 0) return store<Plain>(args.out, element, count, top);
    for (uint32_t i = 0; i + 1 < height; i++) {
        const Sum sum = Sum::of(dev::load16(level(i)));
        store<Plain>(args.carry + i * carried, element, count, sum);
    }
    store<Plain>(args.carry + (height - 1) * carried, element, count, top);
}

template <class Input, class Plain>
DEV_FN void sum(const MusterSumArgs& args) {
    constexpr uint32_t COUNT = Plain::Sum::COUNT;
    const uint64_t stride = static_cast<uint64_t>(dev::grid()) * THREADS * COUNT;
    uint64_t element = (static_cast<uint64_t>(dev::block()) * THREADS + dev::thread()) * COUNT;
    for (; element < args.len; element += stride) {
        const uint64_t left = args.len - element;
        group<Input, Plain>(args, element, left < COUNT ? static_cast<uint32_t>(left) : COUNT);
    }
}

}  // namespace ordered_sum
