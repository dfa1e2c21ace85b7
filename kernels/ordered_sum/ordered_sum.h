// Reductions of many inputs, element by element, in the order that a program says: a stage of it
// per launch. The stack of each group of elements lies in shared memory, but for its top:
//
//   inputs  a b c d ──┐  push a, add b     top  a+b
//                     ├─ push c, add d     top  c+d        shared  a+b
//                     └─ fold              top  (a+b)+(c+d)
//
// A thread reads all it needs of every input before it writes, so the result may go where an input
// is. What `+` stands for is an argument, the same for all threads; what that means for each type,
// NaN and overflow is said in crates/kernels/src/ordered_sum/redop.rs.
#pragma once

#include "../dev/dev.h"
#include "args.h"

namespace ordered_sum {

constexpr uint32_t THREADS = 256;
// Of a group: what one access moves. Dynamic shared memory: this for each thread and each sum below
// the top.
constexpr uint32_t GROUP_BYTES = 16;

DEV_FN float plus(float a, float b) { return dev::add(a, b); }
DEV_FN double plus(double a, double b) { return dev::add(a, b); }
DEV_FN float times(float a, float b) { return dev::mul(a, b); }
// Nothing is added to what is multiplied, so there is nothing to make one operation of.
DEV_FN double times(double a, double b) { return a * b; }
// Numbers that are equal differ in the sign of a zero at most, and -0 is the lesser.
template <class T, class Bits>
DEV_FN T lesser_of(T a, T b) {
    if (a == b) {
        return __builtin_bit_cast(T, __builtin_bit_cast(Bits, a) | __builtin_bit_cast(Bits, b));
    }
    return a < b || a != a ? a : b;
}
template <class T, class Bits>
DEV_FN T greater_of(T a, T b) {
    if (a == b) {
        return __builtin_bit_cast(T, __builtin_bit_cast(Bits, a) & __builtin_bit_cast(Bits, b));
    }
    return a > b || a != a ? a : b;
}
DEV_FN float lesser(float a, float b) { return lesser_of<float, uint32_t>(a, b); }
DEV_FN double lesser(double a, double b) { return lesser_of<double, uint64_t>(a, b); }
DEV_FN float greater(float a, float b) { return greater_of<float, uint32_t>(a, b); }
DEV_FN double greater(double a, double b) { return greater_of<double, uint64_t>(a, b); }
DEV_FN float average(float sum, const MusterReduceArgs& args) {
    return times(sum, static_cast<float>(args.factor));
}
DEV_FN double average(double sum, const MusterReduceArgs& args) { return times(sum, args.factor); }

// Integers wrap, which signed ones do by way of unsigned ones.
template <class T>
DEV_FN T plus(T a, T b) {
    return static_cast<T>(static_cast<uint64_t>(a) + static_cast<uint64_t>(b));
}
template <class T>
DEV_FN T times(T a, T b) {
    return static_cast<T>(static_cast<uint64_t>(a) * static_cast<uint64_t>(b));
}
template <class T>
DEV_FN T lesser(T a, T b) {
    return a < b ? a : b;
}
template <class T>
DEV_FN T greater(T a, T b) {
    return a > b ? a : b;
}
template <class T>
DEV_FN T average(T sum, const MusterReduceArgs& args) {
    return static_cast<T>(static_cast<int64_t>(sum) / static_cast<int64_t>(args.inputs));
}

// Neighbouring elements of the type that is computed in.
template <class T>
struct Group {
    static constexpr uint32_t COUNT = GROUP_BYTES / sizeof(T);
    T v[COUNT];

    static DEV_FN Group of(dev::u32x4 words) { return __builtin_bit_cast(Group, words); }
    DEV_FN dev::u32x4 words() const { return __builtin_bit_cast(dev::u32x4, *this); }
    DEV_FN void combine(uint32_t reduce, const Group& other) {
        switch (reduce) {
            case MUSTER_REDUCE_PROD:
                for (uint32_t j = 0; j < COUNT; j++) v[j] = times(v[j], other.v[j]);
                break;
            case MUSTER_REDUCE_MIN:
                for (uint32_t j = 0; j < COUNT; j++) v[j] = lesser(v[j], other.v[j]);
                break;
            case MUSTER_REDUCE_MAX:
                for (uint32_t j = 0; j < COUNT; j++) v[j] = greater(v[j], other.v[j]);
                break;
            default:
                for (uint32_t j = 0; j < COUNT; j++) v[j] = plus(v[j], other.v[j]);
        }
    }
};
using F32 = Group<float>;

// Inputs of the type that is computed in.
template <class T>
struct Plain {
    using Sum = Group<T>;
    static constexpr uint32_t BYTES = sizeof(T);
    static DEV_FN Sum whole(uint64_t at) { return Sum::of(dev::load16(dev::pointer<void>(at))); }
    static DEV_FN T one(uint64_t at) { return *dev::pointer<const T>(at); }
    // Results are of the type of inputs in any case.
    static DEV_FN void store_rounded(const MusterReduceArgs&, uint64_t, uint32_t, const Sum&) {}
};

DEV_FN float widened(dev::Bf16, uint16_t bits) { return dev::from_bf16(bits); }
DEV_FN float widened(dev::F16, uint16_t bits) { return dev::from_f16(bits); }
DEV_FN uint16_t rounded(dev::Bf16, float value) { return dev::to_bf16(value); }
DEV_FN uint16_t rounded(dev::F16, float value) { return dev::to_f16(value); }

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
    static DEV_FN void store_rounded(const MusterReduceArgs& args, uint64_t element, uint32_t count,
                                     const Sum& sum) {
        const uint64_t at = args.stage.out + element * BYTES;
        if (count == Sum::COUNT && at % (Sum::COUNT * BYTES) == 0) {
            dev::u32x2 words;
            words[0] = dev::pack<T>(sum.v[0], sum.v[1]);
            words[1] = dev::pack<T>(sum.v[2], sum.v[3]);
            return dev::store8(dev::pointer<void>(at), words);
        }
        for (uint32_t j = 0; j < Sum::COUNT; j++) {
            if (j < count) dev::pointer<uint16_t>(at)[j] = rounded(T(), sum.v[j]);
        }
    }
};

// f32 inputs that are themselves combined from 16-bit ones, whose type the results have.
template <class T>
struct Narrow : Plain<float> {
    static DEV_FN void store_rounded(const MusterReduceArgs& args, uint64_t element, uint32_t count,
                                     const F32& sum) {
        Half<T>::store_rounded(args, element, count, sum);
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

// Puts a result where it belongs.
template <class Input, class Plain>
DEV_FN void finish(const MusterReduceArgs& args, uint64_t element, uint32_t count,
                   typename Plain::Sum& top) {
    if (args.inputs != 0) {
        for (uint32_t j = 0; j < Plain::Sum::COUNT; j++) top.v[j] = average(top.v[j], args);
    }
    if (args.is_rounded) return Input::store_rounded(args, element, count, top);
    store<Plain>(args.stage.out, element, count, top);
}

// Runs the stage on elements element … element + count. `Plain` is how the stack lies in memory.
template <class Input, class Plain>
DEV_FN void group(const MusterReduceArgs& args, uint64_t element, uint32_t count) {
    using Sum = typename Plain::Sum;
    const MusterSumArgs& stage = args.stage;
    const uint64_t carried = stage.len * Plain::BYTES;
    uint32_t height = stage.height;
    Sum top = {};
    for (uint32_t i = 0; i < height; i++) {
        if (i > 0) dev::store16(level(i - 1), top.words());
        top = load<Plain>(stage.carry + i * carried, element, count);
    }
    for (uint32_t op = 0, next = 0; op < stage.op_count; op++) {
        const uint32_t kind = (stage.ops[op / 32] >> (op % 32 * 2)) & 3;
        if (kind == MUSTER_SUM_FOLD) {
            height--;
            Sum below = Sum::of(dev::load16(level(height - 1)));
            below.combine(args.reduce, top);
            top = below;
            continue;
        }
        const Sum input = load<Input>(stage.inputs[next++], element, count);
        if (kind == MUSTER_SUM_ADD) {
            top.combine(args.reduce, input);
            continue;
        }
        if (height > 0) dev::store16(level(height - 1), top.words());
        top = input;
        height++;
    }
    if (stage.out != 0) return finish<Input, Plain>(args, element, count, top);
    for (uint32_t i = 0; i + 1 < height; i++) {
        const Sum sum = Sum::of(dev::load16(level(i)));
        store<Plain>(stage.carry + i * carried, element, count, sum);
    }
    store<Plain>(stage.carry + (height - 1) * carried, element, count, top);
}

template <class Input, class Plain>
DEV_FN void reduce(const MusterReduceArgs& args) {
    constexpr uint32_t COUNT = Plain::Sum::COUNT;
    const uint64_t len = args.stage.len;
    const uint64_t stride = static_cast<uint64_t>(dev::grid()) * THREADS * COUNT;
    uint64_t element = (static_cast<uint64_t>(dev::block()) * THREADS + dev::thread()) * COUNT;
    for (; element < len; element += stride) {
        const uint64_t left = len - element;
        group<Input, Plain>(args, element, left < COUNT ? static_cast<uint32_t>(left) : COUNT);
    }
}

}  // namespace ordered_sum
