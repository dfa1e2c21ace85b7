// Vector clocks. See state.h for what a component says.
#include <algorithm>

#include "state.h"

namespace sim {

uint32_t stamp_counter = 0;

void join(std::vector<uint32_t>& into, const std::vector<uint32_t>& from) {
    if (from.empty()) return;
    if (into.empty()) into.resize(from.size());
    uint32_t* out = into.data();
    const uint32_t* in = from.data();
    for (size_t i = 0; i < from.size(); i++) out[i] = std::max(out[i], in[i]);
}

void bump(Fiber* fiber) {
    fiber->stamp = ++stamp_counter;
    if (launch.races) fiber->clock[fiber->index] = fiber->stamp;
}

// Ends the thread's work in shared memory so far, so that its next release covers it.
void settle(Fiber* fiber) {
    if (launch.races) fiber->clock[fiber->shared_actor] = fiber->stamp;
}

// Threads beyond ASYNC_ACTORS share an actor, which may hide a race and cannot invent one.
uint32_t async_actor(Fiber* fiber) {
    if (fiber->async_actor == 0) {
        uint32_t slot = launch.async_used++ % ASYNC_ACTORS;
        fiber->async_actor = static_cast<uint32_t>(launch.fibers.size()) + slot;
        if (launch.async_owner.size() <= slot) launch.async_owner.push_back(fiber);
    }
    return fiber->async_actor;
}

bool ordered(const Fiber* fiber, uint32_t actor, uint32_t stamp) {
    return fiber->clock[actor] >= stamp;
}

bool fenced(const Fiber* fiber, uint32_t actor, uint32_t stamp) {
    return !target.async_proxy || fiber->clock[launch.actors + actor] >= stamp;
}

void acquire(Fiber* fiber, uint32_t actor, uint32_t stamp) {
    if (launch.races) fiber->clock[actor] = std::max(fiber->clock[actor], stamp);
}

// Everything before this cluster is known to all its threads, and nothing after.
void begin_clocks() {
    launch.cluster_floor = ++stamp_counter;
    launch.async_used = 0;
    launch.async_owner.clear();
    for (Fiber& fiber : launch.fibers) {
        fiber.clock.assign(launch.clock_words, launch.cluster_floor);
        fiber.async_actor = 0;
        fiber.shared_actor = target.late_shared
                                 ? static_cast<uint32_t>(launch.fibers.size()) + fiber.index
                                 : fiber.index;
        bump(&fiber);
    }
}

}  // namespace sim
