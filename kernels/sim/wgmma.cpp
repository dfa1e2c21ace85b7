// Hopper's wgmma: asynchronous products of a warpgroup over operands in shared memory.
//
// A product reads its operands at the first wait that demands it, the latest moment it may; until
// then they are marked, so that overwriting them is a fault. The accumulators belong to the
// products from issue to wait: their registers hold NaN and every access of them is a fault.
#include <string.h>

#include <algorithm>

#include "models_nvidia.h"
#include "state.h"

namespace sim {

namespace {

struct WgmmaThread {
    Fiber* fiber;
    float* acc;
    uint32_t n;
    uint64_t a, b;
    bool b_mn_major, accumulate;
    Format format;
};

Warpgroup& group_of(const Fiber* fiber, const char* what) {
    uint32_t group = fiber->thread / WARPGROUP;
    if (group >= fiber->block->warpgroups.size()) {
        fault("%s of %s, whose warpgroup is not whole", what, who(fiber));
    }
    return fiber->block->warpgroups[group];
}

template <class Visit>
void chunks(const Multiply& multiply, const Block& block, Visit visit) {
    auto at = [&](uint32_t address) { visit(block.shared + address); };
    nvidia::operand_chunks(nvidia::decode_descriptor(multiply.a), false, 64, at);
    nvidia::operand_chunks(nvidia::decode_descriptor(multiply.b), multiply.b_mn_major,
                           multiply.acc->n, at);
}

void check_descriptor(const char* which, uint64_t bits, bool mn_major, uint32_t extent) {
    nvidia::Descriptor descriptor = nvidia::decode_descriptor(bits);
    const char* why = nvidia::descriptor_fault(descriptor, mn_major, extent);
    if (why != nullptr) {
        fault(
            "bad descriptor: operand %s of wgmma (%s): %s [%#lx: start %#x, leading %u, stride "
            "%u, "
            "swizzle %u]",
            which, who(current), why, bits, descriptor.start, descriptor.leading,
            descriptor.stride, descriptor.swizzle);
    }
    uint32_t most = 0;
    nvidia::operand_chunks(descriptor, mn_major, extent,
                           [&](uint32_t address) { most = std::max(most, address + 16); });
    if (most > launch.shared_bytes) {
        fault(
            "out of bounds: operand %s of wgmma (%s) reads shared memory up to +%#x; the block "
            "has %#x "
            "bytes",
            which, who(current), most, launch.shared_bytes);
    }
}

// The operands as the asynchronous proxy sees them: landed, fenced, not overwritten until the
// wait.
void begin_reading(const Multiply& multiply, Fiber* fiber) {
    Block& block = *fiber->block;
    chunks(multiply, block, [&](unsigned char* chunk) {
        check_access({fiber, multiply.actor, multiply.stamp, false, true, false}, chunk, 16);
        require_valid(chunk, 16, "multiplies");
        mark_reading(block.multiplying, chunk, 16, 1);
    });
}

Accumulators* find_accumulators(Warpgroup& group, const WgmmaThread* const* threads) {
    for (const auto& acc : group.in_flight) {
        if (acc->registers[0] != threads[0]->acc) continue;
        for (uint32_t t = 0; t < WARPGROUP; t++) {
            if (acc->back[t] || acc->registers[t] != threads[t]->acc || acc->n != threads[t]->n) {
                fault(
                    "bad wgmma: the accumulators of a product in flight, but not in all threads "
                    "(%s)",
                    who(threads[t]->fiber));
            }
        }
        return acc.get();
    }
    return nullptr;
}

// Takes the registers of all threads away.
Accumulators* take_accumulators(Warpgroup& group, const WgmmaThread* const* threads) {
    group.in_flight.push_back(std::make_unique<Accumulators>());
    Accumulators* acc = group.in_flight.back().get();
    acc->n = threads[0]->n;
    acc->values.resize(static_cast<size_t>(WARPGROUP) * acc->n / 2);
    size_t bytes = acc->n / 2 * sizeof(float);
    for (uint32_t t = 0; t < WARPGROUP; t++) {
        Fiber* fiber = threads[t]->fiber;
        if (!fiber->wgmma_fenced) {
            fault(
                "missing fence: %s begins a wgmma on registers without wgmma_fence after their "
                "last use",
                who(fiber));
        }
        acc->registers[t] = threads[t]->acc;
        memcpy(&acc->values[t * acc->n / 2], threads[t]->acc, bytes);
        memset(threads[t]->acc, POISON, bytes);
        uintptr_t start = reinterpret_cast<uintptr_t>(threads[t]->acc);
        fiber->flights.push_back({start, start + bytes});
    }
    return acc;
}

void require_equal(const WgmmaThread& first, const WgmmaThread& other) {
    if (first.n != other.n || first.a != other.a || first.b != other.b ||
        first.accumulate != other.accumulate) {
        fault("divergence: the descriptors of a wgmma differ between %s and %s", who(first.fiber),
              who(other.fiber));
    }
    if (first.fiber->multiply_group != other.fiber->multiply_group) {
        fault("divergence: %s and %s have committed different numbers of wgmma groups",
              who(first.fiber), who(other.fiber));
    }
}

void issue(void* const* payloads, uint32_t) {
    const WgmmaThread* threads[WARPGROUP];
    for (uint32_t t = 0; t < WARPGROUP; t++) {
        threads[t] = static_cast<const WgmmaThread*>(payloads[t]);
        require_equal(*threads[0], *threads[t]);
    }
    const WgmmaThread& first = *threads[0];
    Fiber* fiber = first.fiber;
    current = fiber;
    check_descriptor("A", first.a, false, 64);
    check_descriptor("B", first.b, first.b_mn_major, first.n);
    Warpgroup& group = group_of(fiber, "wgmma");
    Accumulators* acc = find_accumulators(group, threads);
    if (acc == nullptr) acc = take_accumulators(group, threads);
    Multiply multiply{acc,
                      first.a,
                      first.b,
                      first.b_mn_major,
                      first.accumulate,
                      false,
                      first.format,
                      fiber->multiply_group,
                      async_actor(fiber),
                      ++stamp_counter};
    begin_reading(multiply, fiber);
    group.queue.push_back(multiply);
    current = nullptr;
}

template <class Values, uint32_t N>
void run(const Multiply& multiply, const Block& block) {
    float* registers[WARPGROUP];
    for (uint32_t t = 0; t < WARPGROUP; t++) registers[t] = &multiply.acc->values[t * N / 2];
    nvidia::wgmma<Values, N>(registers, block.shared, nvidia::decode_descriptor(multiply.a),
                             nvidia::decode_descriptor(multiply.b), multiply.b_mn_major,
                             multiply.accumulate);
}

template <class Values>
void run_width(const Multiply& multiply, const Block& block) {
    switch (multiply.acc->n) {
        case 64: return run<Values, 64>(multiply, block);
        case 128: return run<Values, 128>(multiply, block);
        case 192: return run<Values, 192>(multiply, block);
        case 256: return run<Values, 256>(multiply, block);
        default: fault("bad wgmma: N = %u; 64, 128, 192 and 256 are modelled", multiply.acc->n);
    }
}

// The read that others must not overtake becomes the waiting thread's own.
void finish(Multiply& multiply, Fiber* fiber) {
    Block& block = *fiber->block;
    if (!multiply.done) {
        if (multiply.format == Format::Bf16)
            run_width<Bf16Format>(multiply, block);
        else
            run_width<F16Format>(multiply, block);
        multiply.done = true;
        chunks(multiply, block, [&](unsigned char* chunk) {
            mark_reading(block.multiplying, chunk, 16, -1);
            check_access({fiber, multiply.actor, multiply.stamp, false, true, true}, chunk, 16);
        });
    }
    acquire(fiber, multiply.actor, multiply.stamp);
}

void give_back(Accumulators& acc, Fiber* fiber) {
    uint32_t t = fiber->thread % WARPGROUP;
    if (acc.back[t]) return;
    memcpy(acc.registers[t], &acc.values[t * acc.n / 2], acc.n / 2 * sizeof(float));
    uintptr_t start = reinterpret_cast<uintptr_t>(acc.registers[t]);
    for (size_t i = 0; i < fiber->flights.size(); i++) {
        if (fiber->flights[i].start != start) continue;
        fiber->flights.erase(fiber->flights.begin() + static_cast<long>(i));
        break;
    }
    acc.back[t] = true;
    acc.returned++;
    fiber->wgmma_fenced = false;
}

// Products whose registers all threads have again are forgotten.
void forget_returned(Warpgroup& group) {
    for (size_t i = 0; i < group.in_flight.size();) {
        const Accumulators* acc = group.in_flight[i].get();
        if (acc->returned < WARPGROUP) {
            i++;
            continue;
        }
        auto& queue = group.queue;
        queue.erase(std::remove_if(queue.begin(), queue.end(),
                                   [&](const Multiply& multiply) { return multiply.acc == acc; }),
                    queue.end());
        group.in_flight.erase(group.in_flight.begin() + static_cast<long>(i));
    }
}

}  // namespace

void wgmma(float* acc, uint32_t n, uint64_t a, uint64_t b, bool b_mn_major, bool accumulate,
           Format format) {
    Fiber* fiber = current;
    Warpgroup& group = group_of(fiber, "wgmma");
    WgmmaThread payload{fiber, acc, n, a, b, b_mn_major, accumulate, format};
    uint64_t tag = static_cast<uint64_t>(format) << 1 | b_mn_major;
    meet(group.meeting, fiber->thread % WARPGROUP, "wgmma", tag, &payload, issue);
}

void wgmma_fence() { current->wgmma_fenced = true; }

void wgmma_commit() { current->multiply_group++; }

void wgmma_wait(uint32_t groups_left) {
    Fiber* fiber = current;
    Warpgroup& group = group_of(fiber, "wgmma_wait");
    for (Multiply& multiply : group.queue) {
        if (multiply.group + groups_left < fiber->multiply_group) finish(multiply, fiber);
    }
    for (const auto& acc : group.in_flight) {
        bool over = true;
        for (const Multiply& multiply : group.queue) {
            over &=
                multiply.acc != acc.get() || multiply.group + groups_left < fiber->multiply_group;
        }
        if (over) give_back(*acc, fiber);
    }
    forget_returned(group);
    perhaps_yield();
}

// As the hardware reads it (PTX ISA, "Matrix-descriptor"), with the 128-byte swizzle.
uint64_t wgmma_descriptor(const void* shared, uint32_t leading_bytes, uint32_t stride_bytes) {
    const unsigned char* address = static_cast<const unsigned char*>(shared);
    if (address < current->block->shared ||
        address >= current->block->shared + launch.shared_bytes) {
        fault("bad descriptor: %s, not in the block's shared memory", place(shared));
    }
    if (reinterpret_cast<uintptr_t>(address) % 16 != 0 || leading_bytes % 16 != 0 ||
        stride_bytes % 16 != 0) {
        fault("bad descriptor: start, leading and stride are multiples of 16 bytes");
    }
    uint32_t start = static_cast<uint32_t>(address - current->block->shared);
    return nvidia::encode_descriptor(start, leading_bytes, stride_bytes, nvidia::SWIZZLE_128);
}

}  // namespace sim
