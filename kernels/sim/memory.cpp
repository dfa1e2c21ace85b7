// Which memory a thread may touch, and which accesses conflict.
#include <stdio.h>
#include <string.h>

#include <algorithm>
#include <unordered_map>

#include "state.h"

extern "C" const char __ehdr_start __attribute__((visibility("hidden")));
extern "C" const char _end __attribute__((visibility("hidden")));

namespace sim {

namespace {

constexpr uint64_t PAGE = 4096;
constexpr size_t CELLS = PAGE / GRANULE;
constexpr size_t SHADOW_PAGES_KEPT = 1024;

struct ShadowPage {
    ShadowCell cells[CELLS];
};

// Of device memory by page number, of shared memory by its place in the window.
std::unordered_map<uint64_t, ShadowPage*> shadows;
uint64_t last_page = 0;
ShadowPage* last_shadow = nullptr;
uint64_t last_range = 0;  // index of the live range that was met last

ShadowCell& cell_of(uintptr_t address) {
    uint64_t page = address / PAGE;
    if (page != last_page || last_shadow == nullptr) {
        ShadowPage*& shadow = shadows[page];
        if (shadow == nullptr) shadow = new ShadowPage();
        last_page = page;
        last_shadow = shadow;
    }
    return last_shadow->cells[address % PAGE / GRANULE];
}

const MusterSimRange* range_of(uintptr_t address) {
    const MusterSimRange* ranges = launch.request->ranges;
    uint64_t count = launch.request->range_count;
    if (last_range < count && address - ranges[last_range].start < ranges[last_range].bytes) {
        return &ranges[last_range];
    }
    const MusterSimRange* after = std::upper_bound(
        ranges, ranges + count, address,
        [](uintptr_t value, const MusterSimRange& range) { return value < range.start; });
    if (after == ranges || address - after[-1].start >= after[-1].bytes) return nullptr;
    last_range = static_cast<uint64_t>(after - ranges) - 1;
    return &ranges[last_range];
}

bool in_arguments(uintptr_t address, uint32_t bytes) {
    uintptr_t start = reinterpret_cast<uintptr_t>(launch.request->args);
    return address >= start && address + bytes <= start + launch.request->args_bytes;
}

bool in_module(uintptr_t address) {
    return address >= reinterpret_cast<uintptr_t>(&__ehdr_start) &&
           address < reinterpret_cast<uintptr_t>(&_end);
}

const char* const PENDING_NAMES[] = {"", "cp.async", "load to LDS", "bulk_load"};

const char* verb(bool write) { return write ? "writes" : "reads"; }

[[noreturn]] void fault_bounds(const Fiber* fiber, uintptr_t address, uint32_t bytes, bool write,
                               const char* what) {
    fault("out of bounds: %s %s %u bytes (%s) at %s [code +%#lx]", who(fiber), verb(write), bytes,
          what, place(reinterpret_cast<const void*>(address)), launch.code);
}

// The worker of a thread's asynchronous access is known by what it touches.
const char* worker(bool async, bool write, bool shared) {
    if (!async) return "";
    if (shared) return write ? "bulk_load of " : "wgmma or bulk_store of ";
    return write ? "bulk_store of " : "bulk_load of ";
}

[[noreturn]] void fault_race(const Access& access, const Shadow& shadow, uintptr_t address,
                             bool proxy) {
    bool shared = is_shared(reinterpret_cast<const void*>(address));
    const char* mine = worker(access.async, access.write, shared);
    const char* other =
        worker((shadow.flags & SHADOW_ASYNC) != 0, (shadow.flags & SHADOW_WRITE) != 0, shared);
    const char* done = shadow.flags & SHADOW_WRITE ? "wrote" : "read";
    const char* where = place(reinterpret_cast<const void*>(address));
    if (proxy) {
        fault("missing fence: %s%s %s %s, which %s wrote without fence_async_shared between", mine,
              who(access.fiber), verb(access.write), where, actor_name(shadow.actor));
    }
    if (shadow.stamp <= launch.cluster_floor) {
        fault("race: %s%s %s %s, which another block %s in this launch [code +%#lx]", mine,
              who(access.fiber), verb(access.write), where, done, launch.code);
    }
    fault("race: %s%s %s %s, which %s%s %s with no synchronisation between [code +%#lx]", mine,
          who(access.fiber), verb(access.write), where, other, actor_name(shadow.actor), done,
          launch.code);
}

// Compares with what is recorded, drops what this access covers, and records it.
void visit(ShadowCell& cell, uint8_t mask, const Access& access, uintptr_t address, bool shared) {
    uint8_t flags = (access.write ? SHADOW_WRITE : 0) | (access.async ? SHADOW_ASYNC : 0);
    uint32_t floor = shared ? launch.cluster_floor : launch.launch_floor;
    uint32_t kept = 0;
    for (uint32_t i = 0; i < 8 && cell.shadows[i].stamp != 0; i++) {
        Shadow shadow = cell.shadows[i];
        if (shadow.stamp <= floor) continue;
        bool elsewhere = shadow.stamp <= launch.cluster_floor;
        bool own = shadow.actor == access.actor && !access.async && !elsewhere;
        bool same = own && shadow.stamp == access.stamp && shadow.flags == flags;
        if (same && (mask & ~shadow.mask) == 0) {
            if (kept == i) return;
        }
        bool before = own || (!elsewhere && (shadow.actor == access.fiber->shared_actor ||
                                             ordered(access.fiber, shadow.actor, shadow.stamp)));
        if ((shadow.mask & mask) != 0 && (access.write || (shadow.flags & SHADOW_WRITE) != 0)) {
            if (!before) fault_race(access, shadow, address, false);
            bool other_proxy = access.async && shadow.flags == SHADOW_WRITE && shared;
            if (other_proxy && !fenced(access.fiber, shadow.actor, shadow.stamp)) {
                fault_race(access, shadow, address, true);
            }
        }
        bool covered = access.record && before && (shadow.mask & ~mask) == 0 &&
                       (access.write || (shadow.flags & SHADOW_WRITE) == 0);
        if (!covered) cell.shadows[kept++] = shadow;
    }
    if (access.record) {
        if (kept == 8)
            kept = (access.stamp ^ (address / GRANULE)) % 8;
        else if (kept < 7)
            cell.shadows[kept + 1].stamp = 0;
        cell.shadows[kept] = {access.stamp, static_cast<uint16_t>(access.actor), mask, flags};
    } else if (kept < 8) {
        cell.shadows[kept].stamp = 0;
    }
}

void visit_all(const Access& access, uintptr_t address, uint32_t bytes, bool shared) {
    uintptr_t end = address + bytes;
    while (address < end) {
        uintptr_t first = address % GRANULE;
        uintptr_t last = std::min<uintptr_t>(GRANULE, end - (address - first));
        uint8_t mask = static_cast<uint8_t>((0xffu << first) & (0xffu >> (GRANULE - last)));
        visit(cell_of(address), mask, access, address, shared);
        address += last - first;
    }
}

// Marks of shared memory that stand for operations in flight.
void check_marks(const Access& access, uintptr_t address, uint32_t bytes) {
    Block& block = block_of_shared(reinterpret_cast<const void*>(address));
    uint32_t offset = static_cast<uint32_t>(address - reinterpret_cast<uintptr_t>(block.shared));
    for (uint32_t granule = offset / GRANULE; granule * GRANULE < offset + bytes; granule++) {
        const unsigned char* at = block.shared + granule * GRANULE;
        if (block.pending[granule] != LANDED) {
            fault("in flight: %s%s %s %s while a %s to it is in flight [code +%#lx]",
                  worker(access.async, access.write, true), who(access.fiber), verb(access.write),
                  place(at), PENDING_NAMES[block.pending[granule]], launch.code);
        }
        bool storing = block.storing[granule] != 0;
        if (access.write && (storing || block.multiplying[granule] != 0)) {
            fault(
                "in flight: %s%s overwrites %s, which a %s in flight has still to read [code "
                "+%#lx]",
                worker(access.async, true, true), who(access.fiber), place(at),
                storing ? "bulk_store" : "wgmma", launch.code);
        }
    }
}

// Not a fault at once: where a barrier is missing, the write that comes late tells more. See
// fault().
void check_valid(const Block& block, uint32_t offset, uint32_t bytes, const char* what) {
    if (launch.suspicion[0] != 0) return;
    for (uint32_t byte = offset; byte < offset + bytes; byte++) {
        if ((block.valid[byte / GRANULE] >> (byte % GRANULE) & 1) == 0) {
            snprintf(launch.suspicion, sizeof launch.suspicion,
                     "uninitialised: %s %s %s, which nothing has written [code +%#lx]",
                     who(current), what, place(block.shared + byte), launch.code);
            return;
        }
    }
}

void set_valid(Block& block, uint32_t offset, uint32_t bytes) {
    for (uint32_t byte = offset; byte < offset + bytes;) {
        if (byte % GRANULE == 0 && offset + bytes - byte >= GRANULE) {
            block.valid[byte / GRANULE] = 0xff;
            byte += GRANULE;
        } else {
            block.valid[byte / GRANULE] |= static_cast<uint8_t>(1 << byte % GRANULE);
            byte++;
        }
    }
}

}  // namespace

bool is_shared(const void* address) {
    uintptr_t offset =
        reinterpret_cast<uintptr_t>(address) - reinterpret_cast<uintptr_t>(shared_window);
    return offset < CLUSTER_LIMIT * SHARED_STRIDE;
}

Block& block_of_shared(const void* address) {
    uintptr_t offset =
        reinterpret_cast<uintptr_t>(address) - reinterpret_cast<uintptr_t>(shared_window);
    return launch.blocks[offset / SHARED_STRIDE];
}

const char* who(const Fiber* fiber) {
    static char texts[4][64];
    static uint32_t next = 0;
    char* text = texts[next++ % 4];
    snprintf(text, sizeof texts[0], "block %u thread %u", fiber->block->index, fiber->thread);
    return text;
}

const char* actor_name(uint32_t actor) {
    uint32_t threads = static_cast<uint32_t>(launch.fibers.size());
    bool thread = actor < threads || target.late_shared;
    return who(thread ? &launch.fibers[actor % threads] : launch.async_owner[actor - threads]);
}

const char* place(const void* address) {
    static char text[160];
    uintptr_t value = reinterpret_cast<uintptr_t>(address);
    if (is_shared(address)) {
        uintptr_t offset = value - reinterpret_cast<uintptr_t>(shared_window);
        snprintf(text, sizeof text, "shared memory +%#lx (a block has %#x bytes)",
                 offset % SHARED_STRIDE, launch.shared_bytes);
        return text;
    }
    const MusterSimRange* ranges = launch.request->ranges;
    uint64_t count = launch.request->range_count, at = 0;
    while (at + 1 < count && ranges[at + 1].start <= value) at++;
    if (count == 0 || value < ranges[at].start) {
        snprintf(text, sizeof text, "%#lx, below all allocations", value);
    } else {
        snprintf(text, sizeof text, "allocation %lu +%#lx (of %#lx bytes)", at,
                 value - ranges[at].start, ranges[at].bytes);
    }
    return text;
}

void check_bounds(const void* pointer, uint32_t bytes, bool write, const char* what) {
    uintptr_t address = reinterpret_cast<uintptr_t>(pointer);
    const Fiber* fiber = current;
    if (is_shared(pointer)) {
        uintptr_t offset = address - reinterpret_cast<uintptr_t>(fiber->block->shared);
        if (offset >= SHARED_STRIDE || offset + bytes > launch.shared_bytes) {
            fault_bounds(fiber, address, bytes, write, what);
        }
        return;
    }
    const MusterSimRange* range = range_of(address);
    if (range != nullptr && address - range->start + bytes <= range->bytes) return;
    if (!write && (in_arguments(address, bytes) || in_module(address))) return;
    fault_bounds(fiber, address, bytes, write, what);
}

// The races and the marks of an access within bounds.
void check_access(const Access& access, const void* pointer, uint32_t bytes) {
    uintptr_t address = reinterpret_cast<uintptr_t>(pointer);
    bool shared = is_shared(pointer);
    if (shared) check_marks(access, address, bytes);
    if (launch.races) visit_all(access, address, bytes, shared);
}

void check(const void* pointer, uint32_t bytes, bool write) {
    Fiber* fiber = current;
    if (fiber == nullptr) return;
    uintptr_t address = reinterpret_cast<uintptr_t>(pointer);
    if (address - reinterpret_cast<uintptr_t>(fiber->stack) < STACK_BYTES) {
        for (const Flight& flight : fiber->flights) {
            if (address < flight.end && address + bytes > flight.start) {
                fault(
                    "in flight: %s %s accumulators of a wgmma that it has not waited for [code "
                    "+%#lx]",
                    who(fiber), verb(write), launch.code);
            }
        }
        return;
    }
    check_bounds(pointer, bytes, write, "plain access");
    bool shared = is_shared(pointer);
    if (!shared && !write && (in_arguments(address, bytes) || in_module(address))) return;
    uint32_t actor = shared ? fiber->shared_actor : fiber->index;
    check_access({fiber, actor, fiber->stamp, write, false, true}, pointer, bytes);
    if (!shared) return;
    uint32_t offset =
        static_cast<uint32_t>(address - reinterpret_cast<uintptr_t>(fiber->block->shared));
    if (write)
        set_valid(*fiber->block, offset, bytes);
    else
        check_valid(*fiber->block, offset, bytes, "reads");
}

namespace {

void check_aligned(const void* address, uint32_t bytes) {
    uintptr_t value = reinterpret_cast<uintptr_t>(address);
    launch.code = 0;
    if (value - reinterpret_cast<uintptr_t>(current->stack) < STACK_BYTES || value % bytes == 0)
        return;
    fault("misaligned: %s accesses %u bytes at %s", who(current), bytes, place(address));
}

}  // namespace

void load(void* value, const void* from, uint32_t bytes) {
    check_aligned(from, bytes);
    check(from, bytes, false);
    memcpy(value, from, bytes);
}

void store(void* to, const void* value, uint32_t bytes) {
    check_aligned(to, bytes);
    check(to, bytes, true);
    memcpy(to, value, bytes);
}

void require_valid(const void* shared, uint32_t bytes, const char* what) {
    const Block& block = *current->block;
    check_valid(block,
                static_cast<uint32_t>(static_cast<const unsigned char*>(shared) - block.shared),
                bytes, what);
}

void mark_pending(unsigned char* shared, uint32_t bytes, Pending by) {
    Block& block = block_of_shared(shared);
    size_t granule = static_cast<size_t>(shared - block.shared) / GRANULE;
    memset(&block.pending[granule], by, bytes / GRANULE);
    memset(shared, POISON, bytes);
}

void land(unsigned char* shared, uint32_t bytes) {
    Block& block = block_of_shared(shared);
    size_t granule = static_cast<size_t>(shared - block.shared) / GRANULE;
    memset(&block.pending[granule], LANDED, bytes / GRANULE);
    memset(&block.valid[granule], 0xff, bytes / GRANULE);
}

void mark_reading(std::vector<uint16_t>& marks, const void* pointer, uint32_t bytes, int change) {
    const unsigned char* shared = static_cast<const unsigned char*>(pointer);
    Block& block = block_of_shared(shared);
    size_t granule = static_cast<size_t>(shared - block.shared) / GRANULE;
    for (size_t i = 0; i < bytes / GRANULE; i++) {
        marks[granule + i] = static_cast<uint16_t>(marks[granule + i] + change);
    }
}

void reset_shared(Block& block) {
    size_t granules = (launch.shared_bytes + GRANULE - 1) / GRANULE;
    block.valid.assign(granules, 0);
    block.pending.assign(granules, LANDED);
    block.storing.assign(granules, 0);
    block.multiplying.assign(granules, 0);
    memset(block.shared, POISON, launch.shared_bytes);
}

// Records of earlier launches mean nothing, and are kept only to be overwritten.
void forget_old_shadows(bool all) {
    if (!all && shadows.size() <= SHADOW_PAGES_KEPT) return;
    for (auto& entry : shadows) delete entry.second;
    shadows.clear();
    last_shadow = nullptr;
}

}  // namespace sim
