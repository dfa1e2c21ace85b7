// The runtime's state: a launch, its clusters of blocks that live at once, their threads as
// fibers.
//
// Happens-before is kept as vector clocks. A component belongs to an actor: a thread, or what a
// thread has started and not yet waited for. `seen[a] >= s` in a thread's clock says that
// everything actor `a` did up to stamp `s` is ordered before what the thread does now. Stamps come
// from one counter per module, so that what an earlier cluster or launch left in a table is
// recognised by its age. Where the target has an asynchronous proxy, a second half of the clock
// says the same for what a proxy fence has made visible to it.
#pragma once

#include <memory>
#include <vector>

#include "runtime.h"
#include "sim_abi.h"

namespace sim {

constexpr uint32_t STACK_BYTES = 128 << 10;
constexpr uint64_t SHARED_STRIDE = 256
                                   << 10;  // a block's window: the 18 address bits of a descriptor
constexpr uint32_t CLUSTER_LIMIT = 16;
constexpr uint32_t GRANULE = 8;  // bytes with one set of marks
constexpr uint32_t WARPGROUP = 128;
constexpr uint32_t ASYNC_ACTORS = 64;
constexpr uint8_t POISON = 0xff;  // NaN in every format, and an index out of bounds

struct Block;
struct Fiber;

// The writer of a granule of shared memory that has not landed.
enum Pending : uint8_t { LANDED, CP_ASYNC, LOAD_TO_LDS, BULK_LOAD };

struct Barrier {
    uint32_t expected = 0, arrived = 0;
    std::vector<uint32_t> clock;
    std::vector<Fiber*> waiting;
};

// A fixed set of fibers at an instruction that they execute together.
struct Meeting {
    uint32_t expected = 0, arrived = 0;
    const char* what = nullptr;
    uint64_t tag = 0;
    void* payloads[WARPGROUP] = {};
    Fiber* fibers[WARPGROUP] = {};
};

struct Mbar {
    uint32_t offset;  // in the block's shared memory
    uint32_t count, pending, phase;
    int64_t bytes;  // expected and not yet arrived
    bool fenced;
    std::vector<uint32_t> arriving, done;
    std::vector<Fiber*> waiting;
};

// A word of device memory by which threads tell each other what is done.
struct Counter {
    const uint32_t* at;
    std::vector<uint32_t> clock;
    std::vector<Fiber*> waiting;
};

// A copy in a thread's own queue.
struct Copy {
    unsigned char* shared;
    const unsigned char* global;
    uint32_t bytes;
    uint64_t group;
};

// A bulk load on its way to one block, or a bulk store of one thread.
struct Bulk {
    Fiber* issuer;
    uint32_t actor, stamp;
    unsigned char* to;
    const unsigned char* from;
    uint32_t bytes;
    Block* block;    // load: of the destination
    uint32_t bar;    // load: offset of its mbarrier
    uint64_t group;  // store
    bool read;       // store: the source has been read
};

// Accumulators in flight: what the registers of a warpgroup will hold.
struct Accumulators {
    uint32_t n;
    float* registers[WARPGROUP];
    uint32_t returned;  // threads that have their values
    bool back[WARPGROUP];
    std::vector<float> values;  // [WARPGROUP][n / 2]
};

struct Multiply {
    Accumulators* acc;
    uint64_t a, b;
    bool b_mn_major, accumulate, done;
    Format format;
    uint64_t group;
    uint32_t actor, stamp;
};

struct Warpgroup {
    Meeting meeting;
    std::vector<std::unique_ptr<Accumulators>> in_flight;
    std::vector<Multiply> queue;  // in order of issue
};

struct Flight {  // registers of one thread that asynchronous work owns
    uintptr_t start, end;
};

// The event that a thread waits for, told only when it is asked for. The format takes the numbers.
struct Wait {
    const char* what = nullptr;  // null: nothing
    const char* format = "";
    long numbers[5] = {};

    bool operator==(const Wait& other) const;
};

struct Fiber {
    void* sp = nullptr;
    unsigned char* stack = nullptr;
    uint32_t index = 0;  // in the cluster
    uint32_t thread = 0, lane = 0, wave = 0;
    Block* block = nullptr;
    bool done = false;
    Wait wait;
    uint32_t stamp = 0;
    uint32_t shared_actor = 0;    // of its accesses of shared memory
    std::vector<uint32_t> clock;  // seen, then fenced
    std::vector<Copy> copies;
    uint64_t copy_group = 0;
    std::vector<Bulk> stores;
    uint64_t store_group = 0;
    uint64_t multiply_group = 0;
    bool wgmma_fenced = false;
    std::vector<Flight> flights;
    uint32_t async_actor = 0;  // 0: none yet
};

struct Block {
    uint32_t index = 0, rank = 0, live = 0;
    unsigned char* shared = nullptr;
    Barrier barriers[16];
    std::vector<Meeting> waves;
    std::vector<Warpgroup> warpgroups;
    std::vector<Mbar> mbars;
    std::vector<uint8_t> valid;         // per granule, a bit a byte: written since the block began
    std::vector<uint8_t> pending;       // per granule: Pending, an asynchronous write on its way
    std::vector<uint16_t> storing;      // per granule: bulk_stores that have still to read it
    std::vector<uint16_t> multiplying;  // per granule: wgmmas that have still to read it
    std::vector<uint32_t> exited;       // clock of the threads that have ended
    std::vector<uint32_t> touched;      // by actor: stamp of its last access from another block
};

// One access of a granule that may conflict with later ones.
struct Shadow {
    uint32_t stamp;  // 0: none
    uint16_t actor;
    uint8_t mask;   // bytes of the granule
    uint8_t flags;  // SHADOW_*
};
constexpr uint8_t SHADOW_WRITE = 1;
constexpr uint8_t SHADOW_ASYNC = 2;
struct ShadowCell {
    Shadow shadows[8];
};

struct Access {
    Fiber* fiber;  // whose clock decides
    uint32_t actor, stamp;
    bool write, async;
    bool record;  // false: check only
};

struct Launch {
    const MusterSimLaunch* request = nullptr;
    const Kernel* kernel = nullptr;
    char* message = nullptr;
    size_t message_bytes = 0;
    bool failed = false;
    char suspicion[256] = {};   // a fault that another may explain better
    uintptr_t code = 0;         // return address of the instruction that is checked
    void* caller_sp = nullptr;  // the stack of muster_sim_launch
    void* scheduler_sp = nullptr;
    uint32_t threads = 0;      // of a block
    uint32_t cluster = 0;      // blocks
    uint32_t first_block = 0;  // of the cluster that runs
    uint32_t shared_bytes = 0;
    uint64_t random = 0;
    bool races = false;

    uint32_t actors = 0;       // components of a clock
    uint32_t clock_words = 0;  // with the second half, 0 where races are not checked
    uint32_t launch_floor = 0, cluster_floor = 0;
    uint32_t async_used = 0;
    std::vector<Fiber*> async_owner;

    std::vector<Fiber> fibers;
    std::vector<Block> blocks;
    Barrier cluster_barrier;
    std::vector<Counter> counters;  // those that this launch has used
    std::vector<Bulk> loads;
    std::vector<Fiber*> ready;  // a ring
    uint32_t ready_head = 0, ready_count = 0;
    uint32_t alive = 0;
};

extern Launch launch;
extern Fiber* current;  // null: the runtime itself
extern uint32_t stamp_counter;
extern unsigned char* shared_window;  // CLUSTER_LIMIT × SHARED_STRIDE

// ---- fiber.cpp
void wake(Fiber* fiber);
void block(const Wait& wait);  // until woken
void perhaps_yield();          // at a seeded whim
uint64_t random_below(uint64_t bound);
void run_cluster();  // one, whose fibers and blocks are set up
bool run_guarded();  // run_clusters on a stack that a fault can abandon

// ---- launch.cpp
void run_clusters();

// ---- memory.cpp
void check_access(const Access& access, const void* address, uint32_t bytes);
void check_bounds(const void* address, uint32_t bytes, bool write, const char* what);
bool is_shared(const void* address);
Block& block_of_shared(const void* address);
void mark_pending(unsigned char* shared, uint32_t bytes, Pending by);
void land(unsigned char* shared, uint32_t bytes);  // pending no more, valid
void mark_reading(std::vector<uint16_t>& marks, const void* shared, uint32_t bytes, int change);
void require_valid(const void* shared, uint32_t bytes, const char* what);
void reset_shared(Block& block);
void forget_old_shadows(bool all);  // else only where they have become many
const char* place(const void* address);
const char* who(const Fiber* fiber);
const char* actor_name(uint32_t actor);

// ---- clocks.cpp
void join(std::vector<uint32_t>& into, const std::vector<uint32_t>& from);
void bump(Fiber* fiber);  // later work is not covered by what was released
void settle(Fiber* fiber);
uint32_t async_actor(Fiber* fiber);
void begin_clocks();
bool ordered(const Fiber* fiber, uint32_t actor, uint32_t stamp);
bool fenced(const Fiber* fiber, uint32_t actor, uint32_t stamp);
void acquire(Fiber* fiber, uint32_t actor, uint32_t stamp);

// ---- copies.cpp, mbarrier.cpp, wgmma.cpp
bool finish_one_load();  // false: none in flight
void complete_bytes(Block& block, uint32_t bar, const Bulk& load);
void meet(Meeting& meeting, uint32_t shadow, const char* what, uint64_t tag, void* payload,
          Work work);
void check_exit(Fiber* fiber);  // nothing of the thread's is in flight
void check_block_end(Block& block);
Mbar& mbar_at(Block& block, uint32_t offset, const char* what);

}  // namespace sim
