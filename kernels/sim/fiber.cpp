// Fibers: a stack each, switched by hand, and the scheduler that picks the next one.
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include <utility>

#include "state.h"

#if !defined(__x86_64__) || !defined(__linux__)
#error "the simulator switches stacks with code for x86-64 and Linux"
#endif

// Saves the callee-saved registers and the stack pointer in *from, and goes on where `to` was
// saved.
extern "C" void muster_sim_switch(void** from, void* to) __attribute__((visibility("hidden")));
asm(R"(
.text
.hidden muster_sim_switch
.globl muster_sim_switch
.type muster_sim_switch, @function
muster_sim_switch:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    ret
.size muster_sim_switch, . - muster_sim_switch
)");

namespace sim {

Launch launch;
Fiber* current = nullptr;

namespace {

constexpr size_t GUARD_BYTES = 4096;
std::vector<unsigned char*> stacks;  // kept between launches; the first is the scheduler's

void* prepare_stack(unsigned char* stack, void (*entry)()) {
    // As after a call: a return address, which `entry` does not use, 8 bytes below a multiple
    // of 16.
    void** sp = reinterpret_cast<void**>(stack + STACK_BYTES) - 3;
    *sp = nullptr;
    *--sp = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; i++) *--sp = nullptr;
    return sp;
}

void switch_to_scheduler() {
    Fiber* fiber = current;
    current = nullptr;
    muster_sim_switch(&fiber->sp, launch.scheduler_sp);
}

void fiber_main() {
    Fiber* fiber = current;
    launch.kernel->run(launch.request->args);
    current = nullptr;
    check_exit(fiber);
    fiber->done = true;
    launch.alive--;
    Block& block = *fiber->block;
    if (--block.live == 0) check_block_end(block);
    current = fiber;
    switch_to_scheduler();
    __builtin_trap();
}

// Neighbours that wait for the same thing, told in one line.
void report_deadlock() {
    char text[1400];
    size_t used = 0;
    uint32_t told = 0;
    for (size_t first = 0, end; first < launch.fibers.size() && told < 10; first = end) {
        const Fiber& leader = launch.fibers[first];
        auto alike = [&](const Fiber& other) {
            return other.block == leader.block && other.done == leader.done &&
                   other.wait == leader.wait;
        };
        for (end = first; end < launch.fibers.size() && alike(launch.fibers[end]);) end++;
        if (leader.done) continue;
        char numbers[128];
        const long* n = leader.wait.numbers;
        snprintf(numbers, sizeof numbers, leader.wait.format, n[0], n[1], n[2], n[3], n[4]);
        const Fiber& last = launch.fibers[end - 1];
        used += static_cast<size_t>(snprintf(
            text + used, sizeof text - used,
            "\n  block %u threads %u-%u (waves %u-%u) wait at %s %s", leader.block->index,
            leader.thread, last.thread, leader.wave, last.wave, leader.wait.what, numbers));
        told++;
        if (used >= sizeof text) break;
    }
    fault("deadlock: %u of %zu threads wait for what cannot happen%s", launch.alive,
          launch.fibers.size(), text);
}

Fiber* pick() {
    if (launch.ready_count == 0) return nullptr;
    size_t size = launch.ready.size();
    if (launch.request->seed != 0) {
        size_t other = (launch.ready_head + random_below(launch.ready_count)) % size;
        std::swap(launch.ready[launch.ready_head], launch.ready[other]);
    }
    Fiber* fiber = launch.ready[launch.ready_head];
    launch.ready_head = static_cast<uint32_t>((launch.ready_head + 1) % size);
    launch.ready_count--;
    return fiber;
}

// Asynchronous work completes when nothing else can run, and under a seed now and then before.
void schedule() {
    while (launch.alive != 0) {
        if (launch.request->seed != 0 && random_below(16) == 0) finish_one_load();
        Fiber* fiber = pick();
        if (fiber == nullptr) {
            if (finish_one_load()) continue;
            report_deadlock();
        }
        fiber->wait.what = nullptr;
        current = fiber;
        muster_sim_switch(&launch.scheduler_sp, fiber->sp);
    }
}

void scheduler_main() {
    run_clusters();
    muster_sim_switch(&launch.scheduler_sp, launch.caller_sp);
    __builtin_trap();
}

}  // namespace

// When the module is unloaded. Its other memory has owners that free it.
__attribute__((destructor)) static void release_stacks() {
    for (unsigned char* stack : stacks) munmap(stack - GUARD_BYTES, GUARD_BYTES + STACK_BYTES);
}

static unsigned char* fiber_stack(uint32_t index) {
    while (stacks.size() <= index) {
        void* area = mmap(nullptr, GUARD_BYTES + STACK_BYTES, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (area == MAP_FAILED) return nullptr;
        mprotect(area, GUARD_BYTES, PROT_NONE);
        stacks.push_back(static_cast<unsigned char*>(area) + GUARD_BYTES);
    }
    return stacks[index];
}

uint64_t random_below(uint64_t bound) {
    launch.random ^= launch.random << 13;
    launch.random ^= launch.random >> 7;
    launch.random ^= launch.random << 17;
    return launch.random % bound;
}

void wake(Fiber* fiber) {
    size_t at = (launch.ready_head + launch.ready_count) % launch.ready.size();
    launch.ready[at] = fiber;
    launch.ready_count++;
}

bool Wait::operator==(const Wait& other) const {
    return what == other.what && format == other.format &&
           memcmp(numbers, other.numbers, sizeof numbers) == 0;
}

void block(const Wait& wait) {
    current->wait = wait;
    switch_to_scheduler();
}

void perhaps_yield() {
    if (launch.request->seed == 0 || random_below(4) != 0) return;
    wake(current);
    switch_to_scheduler();
}

// Runs one cluster whose fibers and blocks are set up.
void run_cluster() {
    for (Fiber& fiber : launch.fibers) {
        fiber.stack = fiber_stack(fiber.index + 1);
        if (fiber.stack == nullptr)
            fault("no memory for the stacks of %zu threads", launch.fibers.size());
        fiber.sp = prepare_stack(fiber.stack, fiber_main);
        wake(&fiber);
    }
    schedule();
    if (launch.suspicion[0] != 0) {
        char text[sizeof launch.suspicion];
        memcpy(text, launch.suspicion, sizeof text);
        launch.suspicion[0] = 0;
        fault("%s", text);
    }
}

bool run_guarded() {
    unsigned char* stack = fiber_stack(0);
    if (stack == nullptr) return false;
    launch.scheduler_sp = prepare_stack(stack, scheduler_main);
    muster_sim_switch(&launch.caller_sp, launch.scheduler_sp);
    current = nullptr;
    return !launch.failed;
}

// Ends the launch. An earlier suspicion is told too.
void fault(const char* format, ...) {
    current = nullptr;
    launch.failed = true;
    char text[2048];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    const char* also = launch.suspicion[0] != 0 ? "\n  before that: " : "";
    snprintf(launch.message, launch.message_bytes, "kernel `%s`: %s%s%s", launch.kernel->name,
             text, also, launch.suspicion);
    void* abandoned;
    muster_sim_switch(&abandoned, launch.caller_sp);
    __builtin_unreachable();
}

}  // namespace sim
