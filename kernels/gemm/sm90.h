// The Hopper core: persistent, warp-specialized, fed by bulk copies.
//
//   warpgroup 0    scheduler: a warp finds the units of this block, and reads their problems
//                  producer: a thread fills a ring of stages in shared memory, ahead through units
//   warpgroup 1–2  consumers: multiply from the ring (wgmma), finish in f32, store tiles
//
// Scheduling takes as long as the products of a small unit: a search in memory, and divisions. So
// it has a warp of its own, whose lanes find a unit each, and a ring of its own, of work items, to
// run ahead in. Three barriers of an item say how far it is:
//
//   work_full   scheduler → all                  the item is written
//   work_done   consumers → reporter             its results are stored
//   work_taken  producer, reporter → scheduler   nobody reads it any more
//
// A launch may chain products: units of one wait until all of another are stored, told by a counter
// in device memory. The scheduler waits, so units that need nothing go on; a third warp reports
// what is stored. Units come in an order in which each needs only earlier ones, and all blocks run
// at once: so some block can always go on.
//
// Class 256: a cluster of two blocks computes a unit of 256×256, each its 128 rows. They share the
// right operand: each loads half of it for both (multicast). A warpgroup takes 64 rows. The last
// round may have half units (schedule.h): then a block has 64 rows, for its first warpgroup. That
// costs more bandwidth a product, but not half a round; and the instructions stay the same, so the
// bits do.
//
// Class 128: a block computes a unit of 128×128, and its warpgroups take turns, so that one's
// epilogue runs under the other's products.
//
// A stage is 64 k's: A's two tiles, then B's, unchanged from device memory (tile.h). The addend C
// comes through the same ring as further stages behind the last k, so its latency hides as theirs
// does. The sum over k has one order, whatever else is in the launch.
#pragma once

#include "../schedule.h"
#include "outbox.h"

namespace gemm {

// The part of a piece that is this block's: from tile (m_tile, n_tile) on, m_tiles rows of tiles.
struct Share {
    u32 problem;
    u32 m_tile;
    u32 n_tile;
    u32 m_tiles;
};

// The work of a block at a time: a problem and a share of it.
struct WorkItem {
    MusterGemmProblem problem;
    Share share;
};
constexpr u32 WORK_ITEM_BYTES = sizeof(WorkItem);
static_assert(WORK_ITEM_BYTES % 16 == 0, "work items are aligned");

template <u32 CLASS>
struct Sm90 {
    static_assert(CLASS == 256 || CLASS == 128, "two block classes");
    static constexpr bool WIDE = CLASS == 256;
    static constexpr u32 CLUSTER = WIDE ? 2 : 1;
    static constexpr u32 UNIT_TILES = CLASS / tile::SIDE;
    static constexpr u32 M_TILES = 2;  // of a block
    static constexpr u32 N_TILES = UNIT_TILES;
    static constexpr u32 N = N_TILES * tile::SIDE;
    static constexpr u32 STAGES = WIDE ? 4 : 6;
    static constexpr u32 STAGE_BYTES = (M_TILES + N_TILES) * tile::BYTES;
    static constexpr u32 ADDEND_STAGES = N_TILES / 2;  // two columns of tiles each

    static constexpr u32 GROUP = 128;             // threads of a warpgroup
    static constexpr u32 THREADS = 3 * GROUP;
    static constexpr u32 STRIPS = WIDE ? 1 : 2;   // of 64 rows, in a consumer warpgroup
    static constexpr u32 STRIP_F32 = N / 2;       // accumulators of a thread
    // Warps that must leave a stage before it is filled again, in all blocks that get its bytes.
    static constexpr u32 READERS = WIDE ? 8 * CLUSTER : 4;

    static constexpr u32 TURN = 3;                // named barrier, and 4: whose turn it is

    static constexpr u32 OUTBOX = STAGES * STAGE_BYTES;  // two tiles for each consumer warpgroup
    static constexpr u32 WORK_ITEMS = OUTBOX + 4 * tile::BYTES;
    static constexpr u32 WORK_STAGES = 4;
    static constexpr u32 MMA_WARPS = 8;     // of the consumers
    static constexpr u32 WORK_READERS = 2;  // the producer and the reporter
    static constexpr u32 BARRIERS = WORK_ITEMS + WORK_STAGES * WORK_ITEM_BYTES;
    static constexpr u32 SHARED_BYTES = BARRIERS + (2 * STAGES + 3 * WORK_STAGES) * sizeof(u64);
    static_assert(SHARED_BYTES <= 227 * 1024, "a block's shared memory on Hopper");
};

template <u32 CLASS>
DEV_FN unsigned char* stage_at(u32 stage) {
    return shared() + stage * Sm90<CLASS>::STAGE_BYTES;
}
template <u32 CLASS>
DEV_FN u64* full_barrier(u32 stage) {
    return reinterpret_cast<u64*>(shared() + Sm90<CLASS>::BARRIERS) + stage;
}
template <u32 CLASS>
DEV_FN u64* empty_barrier(u32 stage) {
    return full_barrier<CLASS>(Sm90<CLASS>::STAGES + stage);
}

// A place in the ring, and the parity of its round.
template <u32 STAGES>
struct Ring {
    u32 stage = 0;
    u32 parity = 0;

    DEV_FN void advance(u32 steps) {
        stage += steps;
        parity ^= stage / STAGES & 1;
        stage %= STAGES;
    }
    DEV_FN void next() {
        if (++stage == STAGES) {
            stage = 0;
            parity ^= 1;
        }
    }
};

// ---- the scheduler warp -------------------------------------------------------------------------

template <u32 CLASS>
DEV_FN WorkItem* work_item_at(u32 place) {
    return reinterpret_cast<WorkItem*>(shared() + Sm90<CLASS>::WORK_ITEMS) + place;
}
template <u32 CLASS>
DEV_FN u64* work_full_barrier(u32 place) {
    return full_barrier<CLASS>(2 * Sm90<CLASS>::STAGES + place);
}
template <u32 CLASS>
DEV_FN u64* work_taken_barrier(u32 place) {
    return work_full_barrier<CLASS>(Sm90<CLASS>::WORK_STAGES + place);
}
template <u32 CLASS>
DEV_FN u64* work_done_barrier(u32 place) {
    return work_taken_barrier<CLASS>(Sm90<CLASS>::WORK_STAGES + place);
}

// The pieces of this block's cluster: every `clusters`-th.
template <u32 CLASS>
struct Pieces {
    u32 clusters;
    u32 count;  // of all clusters
    u32 first;

    DEV_FN explicit Pieces(const MusterGemmArgs& args) {
        using S = Sm90<CLASS>;
        clusters = grid() / S::CLUSTER;
        count = S::WIDE ? schedule::pieces(args.block_count, clusters) : args.block_count;
        first = block() / S::CLUSTER;
    }
    DEV_FN u32 own() const { return first < count ? (count - first - 1) / clusters + 1 : 0; }
};

template <u32 CLASS>
DEV_FN Share share_of(const MusterGemmArgs& args, u32 index, u32 clusters, u32 rank) {
    using S = Sm90<CLASS>;
    const schedule::Piece piece = S::WIDE ? schedule::piece(index, args.block_count, clusters)
                                          : schedule::Piece{index, 0, true};
    // Right where all problems are as large.
    const u32 guess =
        static_cast<u32>(static_cast<u64>(piece.unit) * args.problem_count / args.block_count);
    const schedule::Unit at =
        schedule::locate(constant<MusterGemmProblem>(args.problems), args.problem_count,
                         piece.unit, args.group_rows, guess);
    const u32 m_tiles = piece.whole ? S::M_TILES : S::M_TILES / 2;
    return {at.problem, at.at.row * S::UNIT_TILES + piece.half * S::M_TILES + rank * m_tiles,
            at.at.col * S::UNIT_TILES, m_tiles};
}

// Until the problem whose words the lanes hold may begin.
DEV_FN void await_others(u32 word) {
    constexpr u32 AFTER = offsetof(MusterGemmProblem, after) / sizeof(u32);
    constexpr u32 COUNT = offsetof(MusterGemmProblem, after_count) / sizeof(u32);
    const u64 after = static_cast<u64>(shfl(word, AFTER + 1)) << 32 | shfl(word, AFTER);
    const u32 count = shfl(word, COUNT);
    if (after != 0) {
        count_await(after, count);
    }
}

template <u32 CLASS>
DEV_FN void schedule_work(const MusterGemmArgs& args, u32 rank) {
    using S = Sm90<CLASS>;
    constexpr u32 WORDS = sizeof(MusterGemmProblem) / sizeof(u32);
    static_assert(WORDS == WAVE, "a lane copies a word of a problem");
    const Pieces<CLASS> pieces(args);
    const u32 own = pieces.own();
    Ring<S::WORK_STAGES> ring;
    for (u32 done = 0; done < own; done += WAVE) {
        const u32 ahead = schedule::smaller(WAVE, own - done);
        Share mine = {};
        if (lane() < ahead) {
            const u32 index = pieces.first + (done + lane()) * pieces.clusters;
            mine = share_of<CLASS>(args, index, pieces.clusters, rank);
        }
        for (u32 i = 0; i < ahead; ++i) {
            const Share share = {shfl(mine.problem, i), shfl(mine.m_tile, i), shfl(mine.n_tile, i),
                                 shfl(mine.m_tiles, i)};
            const u32 word = constant<u32>(args.problems)[share.problem * WORDS + lane()];
            await_others(word);
            WorkItem* const item = work_item_at<CLASS>(ring.stage);
            mbar_wait(work_taken_barrier<CLASS>(ring.stage), ring.parity ^ 1);
            reinterpret_cast<u32*>(&item->problem)[lane()] = word;
            if (lane() == 0) {
                item->share = share;
            }
            wave_sync();
            if (lane() == 0) {
                mbar_arrive(work_full_barrier<CLASS>(ring.stage));
            }
            ring.next();
        }
    }
}

// The work items of this block, one after the other, for those who read them.
template <u32 CLASS>
struct WorkItems {
    u32 left;
    Ring<Sm90<CLASS>::WORK_STAGES> ring;

    DEV_FN explicit WorkItems(const MusterGemmArgs& args) : left(Pieces<CLASS>(args).own()) {}

    DEV_FN bool more() const { return left != 0; }
    DEV_FN const WorkItem& current() const {
        mbar_wait(work_full_barrier<CLASS>(ring.stage), ring.parity);
        return *work_item_at<CLASS>(ring.stage);
    }
    DEV_FN void release() const { mbar_arrive(work_taken_barrier<CLASS>(ring.stage)); }
    DEV_FN void next() {
        --left;
        ring.next();
    }
};

// Tells the others of the launch what is stored: consumers do not wait until it is.
template <u32 CLASS>
DEV_FN void report(const MusterGemmArgs& args) {
    static_assert(Sm90<CLASS>::M_TILES == MUSTER_GEMM_DONE_PER_BLOCK, "halves count half");
    for (WorkItems<CLASS> items(args); items.more(); items.next()) {
        mbar_wait(work_done_barrier<CLASS>(items.ring.stage), items.ring.parity);
        const WorkItem& item = items.current();
        if (item.problem.done != 0) {
            count_add(item.problem.done, item.share.m_tiles);
        }
        items.release();
    }
}

// ---- the producer thread ------------------------------------------------------------------------

template <bool B_MN, u32 CLASS>
DEV_FN void load_product(Ring<Sm90<CLASS>::STAGES>& ring, const MusterGemmProblem& p,
                         Share share, u32 rank) {
    using S = Sm90<CLASS>;
    constexpr u32 LOADS = S::N_TILES / S::CLUSTER;  // of the right operand, by this block
    const u32 bytes = (share.m_tiles + S::N_TILES) * tile::BYTES;
    const u32 k_tiles = p.k_tiles;
    const u32 a_tiles_per_row = p.a_tiles_per_row;
    const u32 b_tiles_per_row = p.b_tiles_per_row;
    for (u32 k = 0; k < k_tiles; ++k) {
        u64* const full = full_barrier<CLASS>(ring.stage);
        unsigned char* const stage = stage_at<CLASS>(ring.stage);
        mbar_wait(empty_barrier<CLASS>(ring.stage), ring.parity ^ 1);
        mbar_expect(full, bytes);
#pragma unroll
        for (u32 i = 0; i < S::M_TILES; ++i) {
            const u64 at = p.a + tile::tile_offset(share.m_tile + i, k, a_tiles_per_row);
            if (i < share.m_tiles) {
                bulk_load(stage + i * tile::BYTES, pointer<const void>(at), tile::BYTES, full);
            }
        }
#pragma unroll
        for (u32 i = 0; i < LOADS; ++i) {
            const u32 n = rank * LOADS + i;
            const u32 n_tile = share.n_tile + n;
            const u64 at = p.b + (B_MN ? tile::tile_offset(k, n_tile, b_tiles_per_row)
                                       : tile::tile_offset(n_tile, k, b_tiles_per_row));
            unsigned char* const to = stage + (S::M_TILES + n) * tile::BYTES;
            if constexpr (S::CLUSTER == 1) {
                bulk_load(to, pointer<const void>(at), tile::BYTES, full);
            } else {
                bulk_load_multicast(to, pointer<const void>(at), tile::BYTES, full,
                                    (1u << S::CLUSTER) - 1);
            }
        }
        ring.next();
    }
}

// Two rows and two columns of C's tiles to a stage. Tiles that the result drops are not read: in a
// symmetric product in place another block may be writing them.
template <u32 CLASS>
DEV_FN void load_addend(Ring<Sm90<CLASS>::STAGES>& ring, const MusterGemmProblem& p,
                        Share share) {
    for (u32 step = 0; step < Sm90<CLASS>::ADDEND_STAGES; ++step) {
        u64* const full = full_barrier<CLASS>(ring.stage);
        mbar_wait(empty_barrier<CLASS>(ring.stage), ring.parity ^ 1);
        const u32 n_tile = share.n_tile + 2 * step;
        u32 bytes = 0;
        for (u32 i = 0; i < 2 * share.m_tiles; ++i) {
            bytes += kept(p, share.m_tile + i / 2, n_tile + i % 2) ? tile::BYTES : 0;
        }
        mbar_expect(full, bytes);
        for (u32 i = 0; i < 2 * share.m_tiles; ++i) {
            const u32 row = share.m_tile + i / 2;
            const u32 col = n_tile + i % 2;
            if (kept(p, row, col)) {
                const u64 at = p.c + tile::tile_offset(row, col, p.c_tiles_per_row);
                bulk_load(stage_at<CLASS>(ring.stage) + i * tile::BYTES, pointer<const void>(at),
                          tile::BYTES, full);
            }
        }
        ring.next();
    }
}

template <bool B_MN, u32 CLASS>
DEV_FN void produce(const MusterGemmArgs& args, u32 rank) {
    using S = Sm90<CLASS>;
    Ring<S::STAGES> ring;
    await_launch_before();
    for (WorkItems<CLASS> items(args); items.more(); items.next()) {
        const WorkItem& item = items.current();
        if (item.problem.after != 0) {
            fence_async_global();
        }
        load_product<B_MN, CLASS>(ring, item.problem, item.share, rank);
        if (has_addend(item.problem)) {
            load_addend<CLASS>(ring, item.problem, item.share);
        }
        items.release();
    }
    if constexpr (S::CLUSTER > 1) {
        // The partner's warps still arrive here: a block's barriers must outlive its last stages.
        for (u32 stage = 0; stage < S::STAGES; ++stage) {
            mbar_wait(empty_barrier<CLASS>(ring.stage), ring.parity ^ 1);
            ring.next();
        }
    }
}

// ---- the consumer warpgroups --------------------------------------------------------------------

// This warp has read the stage; told to all blocks that put bytes into it.
template <u32 CLASS>
DEV_FN void release(u32 stage) {
    u64* const empty = empty_barrier<CLASS>(stage);
    if (lane() < Sm90<CLASS>::CLUSTER) {
        if constexpr (Sm90<CLASS>::CLUSTER == 1) {
            mbar_arrive(empty);
        } else {
            mbar_arrive_cluster(empty, lane());
        }
    }
}

// acc = A·B over all k's. One stage's products are in flight while the next one's are issued; the
// last stage's are still in flight in the end, for `settle`.
template <class T, bool B_MN, u32 CLASS>
DEV_FN void multiply(Ring<Sm90<CLASS>::STAGES>& ring, u32 k_tiles, u32 first_strip,
                     f32 (&acc)[Sm90<CLASS>::STRIPS][Sm90<CLASS>::STRIP_F32]) {
    using S = Sm90<CLASS>;
    constexpr u32 K = 16;  // of an instruction
    u32 previous = 0;
    // Zeros, and not the instruction's "do not accumulate": with two strips ptxas then finds
    // registers that it must copy, and serializes the products.
#pragma unroll
    for (u32 i = 0; i < S::STRIPS * S::STRIP_F32; ++i) {
        acc[i / S::STRIP_F32][i % S::STRIP_F32] = 0.0f;
    }
    for (u32 k = 0; k < k_tiles; ++k) {
        mbar_wait(full_barrier<CLASS>(ring.stage), ring.parity);
        const unsigned char* const a = stage_at<CLASS>(ring.stage) + first_strip * tile::BYTES;
        const unsigned char* const b = stage_at<CLASS>(ring.stage) + S::M_TILES * tile::BYTES;
        wgmma_fence();
#pragma unroll
        for (u32 i = 0; i < tile::SIDE / K; ++i) {
            // K-major: 16 k's are 32 bytes of a row, 8 rows 1024 bytes. MN-major: 16 k's are 16
            // rows.
            const u64 right = B_MN ? wgmma_desc(b + i * K * tile::ROW_BYTES, tile::BYTES, 1024)
                                   : wgmma_desc(b + i * K * 2, 16, 1024);
#pragma unroll
            for (u32 strip = 0; strip < S::STRIPS; ++strip) {
                const u64 left = wgmma_desc(a + strip * tile::BYTES + i * K * 2, 16, 1024);
                wgmma<T, S::N, B_MN>(acc[strip], left, right, true);
            }
        }
        wgmma_commit();
        if (k != 0) {
            wgmma_wait<1>(acc[0]);
            release<CLASS>(previous);
        }
        previous = ring.stage;
        ring.next();
    }
}

// The products are done, and with them the last stage.
template <u32 CLASS>
DEV_FN void settle(const Ring<Sm90<CLASS>::STAGES>& ring,
                   f32 (&acc)[Sm90<CLASS>::STRIPS][Sm90<CLASS>::STRIP_F32]) {
#pragma unroll
    for (u32 strip = 0; strip < Sm90<CLASS>::STRIPS; ++strip) {
        wgmma_wait<0>(acc[strip]);
    }
    release<CLASS>(ring.stage == 0 ? Sm90<CLASS>::STAGES - 1 : ring.stage - 1);
}

// Class 128: a warpgroup may wait for its first stage once all stages of the turn before are full.
// A wait that began earlier could be a whole round behind, and parities do not tell rounds apart.
DEV_FN void begin_turn(u32 turn, u32 group) {
    if (turn != 0) {
        named_sync(Sm90<128>::TURN + group, 2 * Sm90<128>::GROUP);
    }
}
DEV_FN void end_turn(const Ring<Sm90<128>::STAGES>& ring, u32 group, bool addend, bool last) {
    if (addend) {
        static_assert(Sm90<128>::ADDEND_STAGES == 1, "the turn's last stage");
        mbar_wait(full_barrier<128>(ring.stage), ring.parity);
    }
    if (!last) {
        named_arrive(Sm90<128>::TURN + 1 - group, 2 * Sm90<128>::GROUP);
    }
}

// A warpgroup without rows in a piece only lets its stages go.
template <u32 CLASS>
DEV_FN void pass(Ring<Sm90<CLASS>::STAGES>& ring, u32 stages) {
    for (u32 i = 0; i < stages; ++i) {
        mbar_wait(full_barrier<CLASS>(ring.stage), ring.parity);
        release<CLASS>(ring.stage);
        ring.next();
    }
}

// Finishes the sub-tiles of acc. All of C is read before anything is stored: the stages that hold
// it are the ring's next, without which the next unit's products would have to wait for the stores.
template <class T, u32 CLASS>
DEV_FN void finish(Ring<Sm90<CLASS>::STAGES>& ring, const MusterGemmProblem& p,
                   const Outbox& outbox, f32 (&acc)[Sm90<CLASS>::STRIPS][Sm90<CLASS>::STRIP_F32],
                   u32 m_tile, u32 n_tile, u32 first_strip) {
    using S = Sm90<CLASS>;
    const bool addend = has_addend(p);
    const Part<4, 4> warp = {outbox.member / WAVE * FRAGMENT, 0};
#pragma unroll
    for (u32 i = 0; i < S::STRIPS * S::N_TILES; ++i) {
        const u32 strip = i / S::N_TILES;
        const u32 across = i % S::N_TILES;
        const u32 row = m_tile + first_strip + strip;
        const u32 col = n_tile + across;
        f32* const v = acc[strip] + across * (4 * FRAGMENT_F32);
        if (addend && i % (2 * S::STRIPS) == 0) {
            mbar_wait(full_barrier<CLASS>(ring.stage), ring.parity);
        }
        if (kept(p, row, col)) {
            const u32 place = (first_strip + strip) * 2 + across % 2;
            const unsigned char* const image = stage_at<CLASS>(ring.stage) + place * tile::BYTES;
            warp.template finish<T>(p, v, addend ? image : nullptr, row, col);
        }
        if (addend && i % (2 * S::STRIPS) == 2 * S::STRIPS - 1) {
            wave_sync();  // All lanes have read.
            release<CLASS>(ring.stage);
            ring.next();
        }
    }
#pragma unroll
    for (u32 i = 0; i < S::STRIPS * S::N_TILES; ++i) {
        const u32 row = m_tile + first_strip + i / S::N_TILES;
        const u32 col = n_tile + i % S::N_TILES;
        if (kept(p, row, col)) {
            const f32* const strip = acc[i / S::N_TILES];
            outbox.send<T>(p, warp, strip + i % S::N_TILES * (4 * FRAGMENT_F32), row, col);
        }
    }
}

// A warpgroup's part of a work item.
template <class T, bool B_MN, u32 CLASS>
DEV_FN void consume(Ring<Sm90<CLASS>::STAGES>& ring, const WorkItem& item, const Outbox& outbox,
                    u32 group, u32 turn, bool last) {
    using S = Sm90<CLASS>;
    const MusterGemmProblem p = item.problem;
    const Share share = item.share;
    const u32 k_tiles = p.k_tiles;
    const bool addend = has_addend(p);
    const u32 stages = k_tiles + (addend ? S::ADDEND_STAGES : 0);
    const u32 first_strip = S::WIDE ? group : 0;
    if (!S::WIDE && turn % 2 != group) {
        ring.advance(stages);
        return;
    }
    if (S::WIDE && first_strip >= share.m_tiles) {
        pass<CLASS>(ring, stages);
        return;
    }
    f32 acc[S::STRIPS][S::STRIP_F32];
    if constexpr (!S::WIDE) {
        begin_turn(turn, group);
    }
    multiply<T, B_MN, CLASS>(ring, k_tiles, first_strip, acc);
    if constexpr (!S::WIDE) {
        end_turn(ring, group, addend, last);
    }
    settle<CLASS>(ring, acc);
    finish<T, CLASS>(ring, p, outbox, acc, share.m_tile, share.n_tile, first_strip);
}

template <class T, bool B_MN, u32 CLASS>
DEV_FN void consume_all(const MusterGemmArgs& args, u32 group) {
    using S = Sm90<CLASS>;
    const Outbox outbox = {shared() + S::OUTBOX + group * 2 * tile::BYTES, 1 + group,
                           thread() % S::GROUP, S::GROUP};
    Ring<S::STAGES> ring;
    u32 turn = 0;
    for (WorkItems<CLASS> items(args); items.more(); items.next()) {
        consume<T, B_MN, CLASS>(ring, items.current(), outbox, group, turn, items.left == 1);
        wave_sync();  // All lanes have stored.
        if (lane() == 0) {
            mbar_arrive(work_done_barrier<CLASS>(items.ring.stage));
        }
        ++turn;
    }
}

template <class T, bool B_MN, u32 CLASS>
DEV_FN void run_sm90(const MusterGemmArgs& args) {
    using S = Sm90<CLASS>;
    const u32 rank = S::CLUSTER == 1 ? 0 : cluster_rank();
    // Only the producer waits for the launch before: all else that reads or writes what others
    // write does so after it. Tables are older than that launch.
    let_next_launch_begin();
    if (thread() == 0) {
        for (u32 stage = 0; stage < S::STAGES; ++stage) {
            mbar_init(full_barrier<CLASS>(stage), 1);
            mbar_init(empty_barrier<CLASS>(stage), S::READERS);
        }
        for (u32 place = 0; place < S::WORK_STAGES; ++place) {
            mbar_init(work_full_barrier<CLASS>(place), 1);
            mbar_init(work_taken_barrier<CLASS>(place), S::WORK_READERS);
            mbar_init(work_done_barrier<CLASS>(place), S::MMA_WARPS);
        }
        mbar_init_fence();
    }
    if constexpr (S::CLUSTER == 1) {
        sync();
    } else {
        cluster_sync();
    }
    const u32 group = uniform(thread() / S::GROUP);
    if (group == 0) {
        registers_down<56>();
        const u32 warp = uniform(wave());
        if (warp == 0 && elect()) {
            produce<B_MN, CLASS>(args, rank);
        }
        if (warp == 1) {
            schedule_work<CLASS>(args, rank);
        }
        if (warp == 2 && elect()) {
            report<CLASS>(args);
        }
    } else {
        registers_up<224>();
        consume_all<T, B_MN, CLASS>(args, group - 1);
    }
}

}  // namespace gemm
