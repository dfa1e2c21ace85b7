// The speed of memory: 16-byte accesses in a grid-stride loop, several in flight in each thread.
#pragma once

#include "../abi.h"
#include "../dev/dev.h"

namespace memory {

constexpr uint32_t THREADS = 256;
constexpr uint32_t AHEAD = 8;

DEV_FN dev::u32x4 load(uint64_t base, uint64_t chunk) {
    return dev::load16(dev::pointer<const void>(base + chunk * 16));
}

DEV_FN void store(uint64_t base, uint64_t chunk, dev::u32x4 value) {
    dev::store16(dev::pointer<void>(base + chunk * 16), value);
}

DEV_FN void copy(const MusterMemoryArgs& args) {
    const uint64_t stride = static_cast<uint64_t>(dev::grid()) * THREADS;
    uint64_t chunk = static_cast<uint64_t>(dev::block()) * THREADS + dev::thread();
    for (; chunk + (AHEAD - 1) * stride < args.chunks; chunk += AHEAD * stride) {
        dev::u32x4 values[AHEAD];
        for (uint32_t i = 0; i < AHEAD; i++) values[i] = load(args.source, chunk + i * stride);
        for (uint32_t i = 0; i < AHEAD; i++) store(args.target, chunk + i * stride, values[i]);
    }
    for (; chunk < args.chunks; chunk += stride) {
        store(args.target, chunk, load(args.source, chunk));
    }
}

DEV_FN uint32_t fold(dev::u32x4 value) { return value[0] ^ value[1] ^ value[2] ^ value[3]; }

// A thread whose words' exclusive or is `value` says so at its place in `target`: without a use of
// what was read there would be no reads.
DEV_FN void read(const MusterMemoryArgs& args) {
    const uint64_t stride = static_cast<uint64_t>(dev::grid()) * THREADS;
    const uint64_t first = static_cast<uint64_t>(dev::block()) * THREADS + dev::thread();
    uint64_t chunk = first;
    uint32_t folded = 0;
    for (; chunk + (AHEAD - 1) * stride < args.chunks; chunk += AHEAD * stride) {
        dev::u32x4 values[AHEAD];
        for (uint32_t i = 0; i < AHEAD; i++) values[i] = load(args.source, chunk + i * stride);
        for (uint32_t i = 0; i < AHEAD; i++) folded ^= fold(values[i]);
    }
    for (; chunk < args.chunks; chunk += stride) folded ^= fold(load(args.source, chunk));
    if (folded == args.value) dev::pointer<uint32_t>(args.target)[first] = folded;
}

DEV_FN void write(const MusterMemoryArgs& args) {
    const uint64_t stride = static_cast<uint64_t>(dev::grid()) * THREADS;
    const dev::u32x4 value = {args.value, args.value, args.value, args.value};
    uint64_t chunk = static_cast<uint64_t>(dev::block()) * THREADS + dev::thread();
    for (; chunk < args.chunks; chunk += stride) store(args.target, chunk, value);
}

}  // namespace memory
