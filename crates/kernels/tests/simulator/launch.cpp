// Kernels by which sim_launch.rs looks at the runtime itself.
#include "../../../../kernels/dev/dev.h"

struct LaunchArgs {
    uint64_t out;
};

// Each block appends its index. A race between blocks, so the launch does not check for them.
DEV_KERNEL(order_of_blocks, 32, 1, LaunchArgs) {
    if (dev::thread() == 0) {
        uint32_t* out = dev::pointer<uint32_t>(args.out);
        out[++out[0]] = dev::block();
    }
}

// Every thread adds what the thread before it has, round after round.
DEV_KERNEL(ring_of_threads, 256, 1, LaunchArgs) {
    uint32_t* words = reinterpret_cast<uint32_t*>(dev::shared());
    const uint32_t thread = dev::thread();
    words[thread] = thread;
    for (uint32_t round = 0; round < 8; round++) {
        dev::sync();
        const uint32_t before = words[(thread + 255) % 256];
        dev::sync();
        words[thread] += before;
    }
    dev::pointer<uint32_t>(args.out)[thread] = words[thread];
}

static uint32_t descend(uint32_t depth) {
    volatile uint32_t frame[64];
    for (uint32_t i = 0; i < 64; i++) frame[i] = depth;
    return depth == 0 ? 0 : descend(depth - 1) + frame[depth % 64];
}

DEV_KERNEL(deep_recursion, 32, 1, LaunchArgs) {
    dev::pointer<uint32_t>(args.out)[dev::thread()] = descend(100000);
}

// Two pairs of warps take turns; who ends its turn does not wait, as bar.arrive allows.
DEV_KERNEL(turns, 128, 1, LaunchArgs) {
    uint32_t* words = reinterpret_cast<uint32_t*>(dev::shared());
    const uint32_t group = dev::thread() / 64, member = dev::thread() % 64;
    for (uint32_t turn = 0; turn < 6; turn++) {
        if (turn % 2 != group) continue;
        if (turn != 0) dev::named_sync(1 + group, 128);
        words[member] = (turn == 0 ? 0 : words[member]) + turn;
        if (turn != 5) dev::named_arrive(2 - group, 128);
    }
    if (group == 1) dev::pointer<uint32_t>(args.out)[member] = words[member];
}
