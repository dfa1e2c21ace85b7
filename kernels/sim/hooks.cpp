// The functions that the compiler's instrumentation (-fsanitize=thread) calls at every load and
// store of a kernel. The hooks are ours and bind inside the module, so that a sanitizer of the host
// process is not called.
#include "state.h"

#define HOOK extern "C" __attribute__((visibility("hidden")))

extern "C" const char __ehdr_start __attribute__((visibility("hidden")));

namespace {

inline void checked(const void* address, unsigned long bytes, bool write, bool aligned,
                    void* code) {
    sim::Fiber* fiber = sim::current;
    if (fiber == nullptr) return;
    uintptr_t value = reinterpret_cast<uintptr_t>(address);
    bool own = value - reinterpret_cast<uintptr_t>(fiber->stack) < sim::STACK_BYTES;
    if (own && fiber->flights.empty()) return;
    sim::launch.code = static_cast<char*>(code) - &__ehdr_start;
    if (aligned && !own && value % bytes != 0) {
        sim::fault("misaligned: %s accesses %lu bytes at %s [code +%#lx]", sim::who(fiber), bytes,
                   sim::place(address), sim::launch.code);
    }
    sim::check(address, static_cast<uint32_t>(bytes), write);
}

}  // namespace

#define SIZED_HOOKS(bytes)                                                                        \
    HOOK void __tsan_read##bytes(void* address) {                                                 \
        checked(address, bytes, false, true, __builtin_return_address(0));                        \
    }                                                                                             \
    HOOK void __tsan_write##bytes(void* address) {                                                \
        checked(address, bytes, true, true, __builtin_return_address(0));                         \
    }                                                                                             \
    HOOK void __tsan_unaligned_read##bytes(void* address) {                                       \
        checked(address, bytes, false, false, __builtin_return_address(0));                       \
    }                                                                                             \
    HOOK void __tsan_unaligned_write##bytes(void* address) {                                      \
        checked(address, bytes, true, false, __builtin_return_address(0));                        \
    }                                                                                             \
    HOOK void __tsan_volatile_read##bytes(void* address) {                                        \
        checked(address, bytes, false, true, __builtin_return_address(0));                        \
    }                                                                                             \
    HOOK void __tsan_volatile_write##bytes(void* address) {                                       \
        checked(address, bytes, true, true, __builtin_return_address(0));                         \
    }

SIZED_HOOKS(1)
SIZED_HOOKS(2)
SIZED_HOOKS(4)
SIZED_HOOKS(8)
SIZED_HOOKS(16)

HOOK void __tsan_read_range(void* address, unsigned long bytes) {
    checked(address, bytes, false, false, __builtin_return_address(0));
}
HOOK void __tsan_write_range(void* address, unsigned long bytes) {
    checked(address, bytes, true, false, __builtin_return_address(0));
}
HOOK void __tsan_vptr_update(void**, void*) {}
HOOK void __tsan_init() {}

// A guard page ends each stack; this turns most overflows into a report before it is met.
HOOK void __tsan_func_entry(void*) {
    sim::Fiber* fiber = sim::current;
    if (fiber == nullptr) return;
    char here;
    if (reinterpret_cast<uintptr_t>(&here) - reinterpret_cast<uintptr_t>(fiber->stack) <
        (16 << 10)) {
        sim::fault("stack overflow: %s has used its %u bytes", sim::who(fiber), sim::STACK_BYTES);
    }
}
HOOK void __tsan_func_exit() {}
