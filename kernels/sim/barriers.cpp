// Barriers, named barriers, and instructions that a wave or a warpgroup executes together.
#include <algorithm>
#include <string.h>

#include "state.h"

namespace sim {

namespace {

// Arrives, and where it `waits` goes on when `expected` threads have arrived. Who waits leaves
// with the clocks of all.
void arrive(Barrier& barrier, uint32_t expected, bool waits, const char* what, uint32_t id) {
    Fiber* fiber = current;
    if (barrier.arrived == 0) {
        barrier.expected = expected;
    } else if (barrier.expected != expected) {
        fault("bad barrier: %s arrives at %s %u with %u threads, others with %u", who(fiber), what,
              id, expected, barrier.expected);
    }
    if (launch.races) join(barrier.clock, fiber->clock);
    bump(fiber);
    if (waits) barrier.waiting.push_back(fiber);
    if (++barrier.arrived < expected) {
        if (waits) block({what, "%ld of %ld threads", {id, expected}});
        return;
    }
    barrier.arrived = 0;
    for (Fiber* other : barrier.waiting) {
        if (launch.races) join(other->clock, barrier.clock);
        if (other != fiber) wake(other);
    }
    barrier.waiting.clear();
    std::fill(barrier.clock.begin(), barrier.clock.end(), 0);
    perhaps_yield();
}

Meeting& wave_of(Fiber* fiber) { return fiber->block->waves[fiber->wave]; }

void join_all(Meeting& meeting) {
    if (!launch.races) return;
    Fiber* first = meeting.fibers[0];
    for (uint32_t i = 1; i < meeting.expected; i++) join(first->clock, meeting.fibers[i]->clock);
    for (uint32_t i = 1; i < meeting.expected; i++) meeting.fibers[i]->clock = first->clock;
    for (uint32_t i = 0; i < meeting.expected; i++) bump(meeting.fibers[i]);
}

}  // namespace

void block_sync() {
    if (target.late_shared) settle(current);
    arrive(current->block->barriers[0], launch.threads, true, "sync, barrier", 0);
}

void execution_barrier() {
    arrive(current->block->barriers[0], launch.threads, true, "block_barrier", 0);
}

namespace {

void arrive_named(uint32_t id, uint32_t threads, bool waits, const char* what) {
    if (id >= 16) fault("bad barrier: %s %u; there are 16", what, id);
    if (threads == 0 || threads % target.wave != 0 || threads > launch.threads) {
        fault("bad barrier: %s %u with %u threads; a block of %u has whole waves of %u", what, id,
              threads, launch.threads, target.wave);
    }
    arrive(current->block->barriers[id], threads, waits, what, id);
}

}  // namespace

void named_sync(uint32_t id, uint32_t threads) {
    arrive_named(id, threads, true, "named_sync, barrier");
}

void named_arrive(uint32_t id, uint32_t threads) {
    arrive_named(id, threads, false, "named_arrive, barrier");
}

void cluster_sync() {
    uint32_t threads = launch.threads * launch.cluster;
    arrive(launch.cluster_barrier, threads, true, "cluster_sync, cluster of", launch.cluster);
}

// Fibers of a meeting have stacks of their own, so payloads may point into them while all are
// here.
void meet(Meeting& meeting, uint32_t slot, const char* what, uint64_t tag, void* payload,
          Work work) {
    Fiber* fiber = current;
    if (meeting.arrived == 0) {
        meeting.what = what;
        meeting.tag = tag;
    } else if (strcmp(meeting.what, what) != 0 || meeting.tag != tag) {
        fault("divergence: %s executes %s (%#lx) together with others at %s (%#lx)", who(fiber),
              what, tag, meeting.what, meeting.tag);
    }
    meeting.payloads[slot] = payload;
    meeting.fibers[slot] = fiber;
    if (++meeting.arrived < meeting.expected) {
        block({what, "for all %ld lanes", {meeting.expected}});
        return;
    }
    meeting.arrived = 0;
    current = nullptr;
    if (work != nullptr) work(meeting.payloads, meeting.expected);
    current = fiber;
    for (uint32_t i = 0; i < meeting.expected; i++) {
        if (meeting.fibers[i] != fiber) wake(meeting.fibers[i]);
    }
    perhaps_yield();
}

void wave_meet(const char* what, uint64_t tag, void* payload, Work work) {
    Fiber* fiber = current;
    meet(wave_of(fiber), fiber->lane, what, tag, payload, work);
}

void wave_sync() {
    Fiber* fiber = current;
    Meeting& wave = wave_of(fiber);
    if (target.late_shared) settle(fiber);
    // The payload leads to the meeting, whose fibers' clocks are joined.
    meet(wave, fiber->lane, "wave_sync", 0, &wave,
         [](void* const* payloads, uint32_t) { join_all(*static_cast<Meeting*>(payloads[0])); });
}

namespace {

struct Shuffle {
    unsigned char* value;
    uint32_t bytes, source;
    unsigned char given[8];
};

}  // namespace

void shuffle(void* value, uint32_t bytes, uint32_t operand, bool exchange) {
    Fiber* fiber = current;
    uint32_t source = exchange ? fiber->lane ^ operand : operand;
    uint32_t lanes = wave_of(fiber).expected;
    if (source >= lanes) {
        fault("bad shfl: %s reads lane %u of a wave of %u", who(fiber), source, lanes);
    }
    Shuffle payload{static_cast<unsigned char*>(value), bytes, source, {}};
    memcpy(payload.given, value, bytes);
    uint64_t tag = bytes + (exchange ? 16 + (static_cast<uint64_t>(operand) << 8) : 0);
    wave_meet(exchange ? "shfl_xor" : "shfl", tag, &payload,
              [](void* const* payloads, uint32_t count) {
                  for (uint32_t lane = 0; lane < count; lane++) {
                      auto* mine = static_cast<Shuffle*>(payloads[lane]);
                      memcpy(mine->value, static_cast<Shuffle*>(payloads[mine->source])->given,
                             mine->bytes);
                  }
              });
}

uint32_t uniform(uint32_t value) {
    uint32_t payload = value;
    wave_meet("uniform", 0, &payload, [](void* const* payloads, uint32_t count) {
        uint32_t first = *static_cast<uint32_t*>(payloads[0]);
        for (uint32_t lane = 1; lane < count; lane++) {
            uint32_t other = *static_cast<uint32_t*>(payloads[lane]);
            if (other != first) {
                fault("divergence: lanes disagree in uniform: %u in lane 0, %u in lane %u", first,
                      other, lane);
            }
        }
    });
    return value;
}

bool elect() {
    wave_meet("elect", 0, nullptr, nullptr);
    return current->lane == 0;
}

}  // namespace sim
