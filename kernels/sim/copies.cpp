// Asynchronous copies: those in a thread's own queue (cp.async, loads to LDS) and Hopper's bulk
// copies.
//
// A copy completes as late as its rules allow: at the wait that demands it, or, for a bulk load,
// which others may wait for, when no thread can run. Until then its destination is poisoned and
// marked.
#include <string.h>

#include <algorithm>

#include "state.h"

namespace sim {

namespace {

void require_aligned(const char* what, const void* address, uint32_t bytes) {
    if (reinterpret_cast<uintptr_t>(address) % bytes != 0) {
        fault("misaligned: %s of %s with address %s, not a multiple of %u", what, who(current),
              place(address), bytes);
    }
}

void require_places(const char* what, const void* shared, const void* global) {
    if (!is_shared(shared)) fault("bad copy: %s of %s: not in shared memory", what, who(current));
    if (is_shared(global)) fault("bad copy: %s of %s: not in device memory", what, who(current));
}

// The checks of an asynchronous write at its issue; races are recorded when it lands.
void begin_write(const Access& access, unsigned char* shared, uint32_t bytes, Pending by) {
    check_access(access, shared, bytes);
    mark_pending(shared, bytes, by);
}

void perform(const Copy& copy) {
    memcpy(copy.shared, copy.global, copy.bytes);
    land(copy.shared, copy.bytes);
    Fiber* fiber = current;
    check_access({fiber, fiber->index, fiber->stamp, true, false, true}, copy.shared, copy.bytes);
}

}  // namespace

void queue_copy(const char* what, void* to, const void* global, uint32_t bytes) {
    Fiber* fiber = current;
    unsigned char* shared = static_cast<unsigned char*>(to);
    require_places(what, shared, global);
    require_aligned(what, shared, bytes);
    require_aligned(what, global, bytes);
    check_bounds(shared, bytes, true, what);
    check_bounds(global, bytes, false, what);
    check_access({fiber, fiber->index, fiber->stamp, false, false, true}, global, bytes);
    begin_write({fiber, fiber->index, fiber->stamp, true, false, false}, shared, bytes,
                target.late_shared ? LOAD_TO_LDS : CP_ASYNC);
    const unsigned char* from = static_cast<const unsigned char*>(global);
    fiber->copies.push_back({shared, from, bytes, fiber->copy_group});
}

void queue_commit() { current->copy_group++; }

void queue_wait(uint32_t groups_left) {
    Fiber* fiber = current;
    size_t done = 0;
    while (done < fiber->copies.size() &&
           fiber->copies[done].group + groups_left < fiber->copy_group) {
        perform(fiber->copies[done++]);
    }
    fiber->copies.erase(fiber->copies.begin(), fiber->copies.begin() + static_cast<long>(done));
}

void settle_shared() { settle(current); }

void bulk_load(void* to, const void* global, uint32_t bytes, uint64_t* bar, uint32_t mask,
               bool multicast) {
    const char* what = multicast ? "bulk_load_multicast" : "bulk_load";
    Fiber* fiber = current;
    unsigned char* shared = static_cast<unsigned char*>(to);
    require_places(what, shared, global);
    require_aligned(what, shared, 16);
    require_aligned(what, global, 16);
    if (bytes == 0 || bytes % 16 != 0)
        fault("misaligned: %s of %u bytes, not a multiple of 16", what, bytes);
    check_bounds(shared, bytes, true, what);
    check_bounds(global, bytes, false, what);
    if (!multicast) mask = 1u << fiber->block->rank;
    if (mask == 0 || mask >> launch.cluster != 0) {
        fault("bad copy: %s to the blocks %#x of a cluster of %u", what, mask, launch.cluster);
    }
    uint32_t actor = async_actor(fiber), stamp = ++stamp_counter;
    check_access({fiber, actor, stamp, false, true, true}, global, bytes);
    uint64_t place_in_block = static_cast<uint64_t>(shared - fiber->block->shared);
    uint64_t bar_offset =
        static_cast<uint64_t>(reinterpret_cast<unsigned char*>(bar) - fiber->block->shared);
    for (uint32_t rank = 0; rank < launch.cluster; rank++) {
        if ((mask >> rank & 1) == 0) continue;
        Block& block = launch.blocks[rank];
        if (block.live == 0)
            fault("exited: %s writes to block %u of the cluster, which has ended", what,
                  block.index);
        unsigned char* there = block.shared + place_in_block;
        Mbar& there_bar = mbar_at(block, static_cast<uint32_t>(bar_offset), what);
        if (!there_bar.fenced) {
            fault(
                "missing fence: %s completes at an mbarrier that was initialised without "
                "mbar_init_fence",
                what);
        }
        begin_write({fiber, actor, stamp, true, true, false}, there, bytes, BULK_LOAD);
        launch.loads.push_back({fiber, actor, stamp, there,
                                static_cast<const unsigned char*>(global), bytes, &block,
                                static_cast<uint32_t>(bar_offset), 0, false});
        if (rank != fiber->block->rank) block.touched[actor] = stamp;
    }
    perhaps_yield();
}

// In order of issue, or in any order under a seed.
bool finish_one_load() {
    if (launch.loads.empty()) return false;
    size_t at = launch.request->seed == 0 ? 0 : random_below(launch.loads.size());
    Bulk load = launch.loads[at];
    launch.loads.erase(launch.loads.begin() + static_cast<long>(at));
    memcpy(load.to, load.from, load.bytes);
    land(load.to, load.bytes);
    // Conflicts were looked for at issue; since then the marks kept everyone away.
    if (launch.races) {
        Fiber* fiber = load.issuer;
        uint32_t known = fiber->clock[load.actor];
        fiber->clock[load.actor] = std::max(known, load.stamp);
        check_access({fiber, load.actor, load.stamp, true, true, true}, load.to, load.bytes);
        fiber->clock[load.actor] = known;
    }
    complete_bytes(*load.block, load.bar, load);
    return true;
}

void bulk_store(void* global, const void* from, uint32_t bytes) {
    Fiber* fiber = current;
    const unsigned char* shared = static_cast<const unsigned char*>(from);
    require_places("bulk_store", shared, global);
    require_aligned("bulk_store", shared, 16);
    require_aligned("bulk_store", global, 16);
    if (bytes == 0 || bytes % 16 != 0)
        fault("misaligned: bulk_store of %u bytes, not a multiple of 16", bytes);
    check_bounds(shared, bytes, false, "bulk_store");
    check_bounds(global, bytes, true, "bulk_store");
    uint32_t actor = async_actor(fiber), stamp = ++stamp_counter;
    check_access({fiber, actor, stamp, false, true, false}, shared, bytes);
    require_valid(shared, bytes, "stores");
    check_access({fiber, actor, stamp, true, true, true}, global, bytes);
    mark_reading(fiber->block->storing, shared, bytes, 1);
    fiber->stores.push_back({fiber, actor, stamp, static_cast<unsigned char*>(global), shared,
                             bytes, fiber->block, 0, fiber->store_group, false});
}

void bulk_commit() { current->store_group++; }

// Reading and writing happen together, at the first wait that demands either. But only the full
// wait orders the write before what the thread does next.
void bulk_wait(uint32_t groups_left, bool read_only) {
    Fiber* fiber = current;
    for (Bulk& store : fiber->stores) {
        if (store.group + groups_left >= fiber->store_group) break;
        if (!store.read) {
            memcpy(store.to, store.from, store.bytes);
            mark_reading(fiber->block->storing, store.from, store.bytes, -1);
            store.read = true;
            // From here on the source may be written by whoever is ordered after this thread.
            if (launch.races) {
                check_access({fiber, fiber->index, fiber->stamp, false, false, true}, store.from,
                             store.bytes);
            }
        }
        if (!read_only) acquire(fiber, store.actor, store.stamp);
    }
    auto finished = [&](const Bulk& store) {
        return store.read && !read_only && store.group + groups_left < fiber->store_group;
    };
    fiber->stores.erase(std::remove_if(fiber->stores.begin(), fiber->stores.end(), finished),
                        fiber->stores.end());
}

void check_exit(Fiber* fiber) {
    for (const Bulk& store : fiber->stores) {
        if (!store.read) {
            fault("in flight: %s ends while a bulk_store has still to read %s", who(fiber),
                  place(store.from));
        }
    }
    if (!fiber->copies.empty()) {
        fault(
            "in flight: %s ends with %zu copies to shared memory not waited for (cp.async, or "
            "loads to "
            "LDS)",
            who(fiber), fiber->copies.size());
    }
    if (!fiber->flights.empty()) {
        fault("in flight: %s ends with accumulators of a wgmma not waited for", who(fiber));
    }
    if (launch.races) join(fiber->block->exited, fiber->clock);
    fiber->stores.clear();
}

}  // namespace sim
