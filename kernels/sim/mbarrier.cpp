// Hopper's mbarriers, proxy fences, and what must be settled when a block ends.
#include <algorithm>

#include "state.h"

namespace sim {

namespace {

uint32_t offset_of(const uint64_t* bar, const char* what) {
    const unsigned char* address = reinterpret_cast<const unsigned char*>(bar);
    if (!is_shared(bar) || reinterpret_cast<uintptr_t>(bar) % 8 != 0) {
        fault("bad mbarrier: %s of %s at %s", what, who(current), place(bar));
    }
    check_bounds(bar, 8, true, what);
    return static_cast<uint32_t>(address - current->block->shared);
}

// The current phase is over when all have arrived and all expected bytes are there.
void turn_phase(Mbar& bar) {
    if (bar.pending != 0 || bar.bytes != 0) return;
    bar.phase++;
    bar.pending = bar.count;
    join(bar.done, bar.arriving);
    std::fill(bar.arriving.begin(), bar.arriving.end(), 0);
    for (Fiber* fiber : bar.waiting) wake(fiber);
    bar.waiting.clear();
}

void arrive(Block& block, uint32_t offset, const char* what, int64_t bytes) {
    Fiber* fiber = current;
    Mbar& bar = mbar_at(block, offset, what);
    if (bar.pending == 0) {
        fault(
            "over-arrival: %s of %s at mbarrier +%#x of block %u, where all %u of phase %u have "
            "arrived "
            "(%ld bytes missing)",
            what, who(fiber), offset, block.index, bar.count, bar.phase,
            static_cast<long>(bar.bytes));
    }
    if (launch.races) join(bar.arriving, fiber->clock);
    bump(fiber);
    bar.bytes += bytes;
    bar.pending--;
    turn_phase(bar);
    perhaps_yield();
}

}  // namespace

// An mbarrier is used by who is ordered after its initialisation.
Mbar& mbar_at(Block& block, uint32_t offset, const char* what) {
    for (Mbar& bar : block.mbars) {
        if (bar.offset != offset) continue;
        if (launch.races && current != nullptr) {
            check_access({current, current->index, current->stamp, false, false, false},
                         block.shared + offset, 8);
        }
        return bar;
    }
    fault("bad mbarrier: %s at +%#x of block %u, where none was initialised", what, offset,
          block.index);
}

void mbar_init(uint64_t* bar, uint32_t count) {
    uint32_t offset = offset_of(bar, "mbar_init");
    if (count == 0 || count >= 1u << 20) fault("bad mbarrier: mbar_init with count %u", count);
    Block& block = *current->block;
    check(bar, 8, true);
    for (Mbar& other : block.mbars) {
        if (other.offset == offset) fault("bad mbarrier: +%#x is initialised twice", offset);
    }
    block.mbars.push_back({offset, count, count, 0, 0, false, {}, {}, {}});
}

void mbar_init_fence() {
    for (Mbar& bar : current->block->mbars) bar.fenced = true;
}

void mbar_arrive(uint64_t* bar) {
    arrive(*current->block, offset_of(bar, "mbar_arrive"), "mbar_arrive", 0);
}

void mbar_expect(uint64_t* bar, uint32_t bytes) {
    if (bytes >= 1u << 20)
        fault("bad mbarrier: mbar_expect of %u bytes; the count has 20 bits", bytes);
    arrive(*current->block, offset_of(bar, "mbar_expect"), "mbar_expect", bytes);
}

void mbar_arrive_cluster(uint64_t* bar, uint32_t rank) {
    uint32_t offset = offset_of(bar, "mbar_arrive_cluster");
    if (rank >= launch.cluster) {
        fault("bad mbarrier: mbar_arrive_cluster at block %u of a cluster of %u", rank,
              launch.cluster);
    }
    Block& block = launch.blocks[rank];
    if (block.live == 0)
        fault("exited: mbar_arrive_cluster at block %u of the cluster, which has ended",
              block.index);
    if (&block != current->block) block.touched[current->index] = current->stamp;
    arrive(block, offset, "mbar_arrive_cluster", 0);
}

// The wait looks again when its thread runs: phases that pass meanwhile are missed, as they may be
// on the chip.
void mbar_wait(uint64_t* pointer, uint32_t parity) {
    uint32_t offset = offset_of(pointer, "mbar_wait");
    Fiber* fiber = current;
    Block& own = *fiber->block;
    if (parity > 1) fault("bad mbarrier: mbar_wait for parity %u", parity);
    perhaps_yield();
    for (;;) {
        Mbar& bar = mbar_at(own, offset, "mbar_wait");
        if ((bar.phase & 1) != parity) {
            if (launch.races) join(fiber->clock, bar.done);
            return;
        }
        bar.waiting.push_back(fiber);
        block({"mbar_wait",
               "+%#lx parity %ld: phase %ld lacks %ld arrivals, %ld bytes",
               {offset, parity, bar.phase, bar.pending, static_cast<long>(bar.bytes)}});
    }
}

void complete_bytes(Block& block, uint32_t offset, const Bulk& load) {
    Mbar& bar = mbar_at(block, offset, "bulk_load");
    bar.bytes -= load.bytes;
    if (launch.races) {
        if (bar.arriving.empty()) bar.arriving.resize(launch.clock_words);
        bar.arriving[load.actor] = std::max(bar.arriving[load.actor], load.stamp);
    }
    turn_phase(bar);
}

namespace {

// Accesses of counters are atomic: they race with no other of the same kind.
Counter& counter_at(uint32_t* counter, bool write, const char* what) {
    if (is_shared(counter) || reinterpret_cast<uintptr_t>(counter) % 4 != 0) {
        fault("bad counter: %s of %s at %s", what, who(current), place(counter));
    }
    check_bounds(counter, 4, write, what);
    for (Counter& found : launch.counters) {
        if (found.at == counter) return found;
    }
    launch.counters.push_back({counter, {}, {}});
    return launch.counters.back();
}

}  // namespace

void count_add(uint32_t* pointer, uint32_t amount) {
    Counter& counter = counter_at(pointer, true, "count_add");
    Fiber* fiber = current;
    if (launch.races) join(counter.clock, fiber->clock);
    bump(fiber);
    *pointer += amount;
    for (Fiber* waiting : counter.waiting) wake(waiting);
    counter.waiting.clear();
    perhaps_yield();
}

void count_await(uint32_t* pointer, uint32_t amount) {
    Fiber* fiber = current;
    perhaps_yield();
    for (;;) {
        Counter& counter = counter_at(pointer, false, "count_await");
        if (*pointer >= amount) {
            if (launch.races) join(fiber->clock, counter.clock);
            return;
        }
        counter.waiting.push_back(fiber);
        block({"count_await", "for %ld: the count is %ld", {amount, *pointer}});
    }
}

// Makes the writes that the thread knows of visible to the asynchronous proxy.
void fence_async_shared() {
    Fiber* fiber = current;
    if (!launch.races) return;
    for (uint32_t actor = 0; actor < launch.actors; actor++) {
        uint32_t& fenced = fiber->clock[launch.actors + actor];
        fenced = std::max(fenced, fiber->clock[actor]);
    }
    bump(fiber);
}

void check_block_end(Block& block) {
    for (const Bulk& load : launch.loads) {
        if (load.block == &block) {
            fault("in flight: block %u ends while a bulk_load to %s is in flight", block.index,
                  place(load.to));
        }
    }
    for (const Mbar& bar : block.mbars) {
        if (bar.bytes < 0) {
            fault(
                "expected bytes: block %u ends with %ld bytes of a bulk_load that mbarrier %#x "
                "did not expect",
                block.index, -static_cast<long>(bar.bytes), bar.offset);
        }
    }
    if (!launch.races) return;
    for (uint32_t actor = 0; actor < block.touched.size(); actor++) {
        if (block.touched[actor] > block.exited[actor]) {
            fault(
                "exited: block %u ends without knowing that %s of its cluster is done with its "
                "shared "
                "memory",
                block.index, actor_name(actor));
        }
    }
}

}  // namespace sim
