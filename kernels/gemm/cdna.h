// The product's main loops on CDNA: gfx90a, gfx942 and gfx950. cdna_feed.h says how operands travel,
// cdna.md what the loops cost by count.
//
// A step is 32 k's. Per step a wave multiplies ROW_TILES × 4 tiles of 16 × 16, and the LDS is written
// and read once per element, so barriers are few and the matrix unit's time per step is long: 1024 cycles
// of class 256 on gfx942.
#pragma once

#include "cdna_epilogue.h"
#include "cdna_feed.h"

namespace cdna {

template <class B>
struct Accumulators {
    f32x4 of[B::ROW_TILES][COLUMN_TILES];

    DEV_FN void clear() {
#pragma unroll
        for (u32 i = 0; i < B::ROW_TILES; ++i) {
#pragma unroll
            for (u32 t = 0; t < COLUMN_TILES; ++t) {
                of[i][t] = f32x4{0.0f, 0.0f, 0.0f, 0.0f};
            }
        }
    }
};

// One row of tiles times 32 k's. Where an instruction takes 16 k's, those are the first four of each
// lane's eight, then the last four: A and B agree on that, and the order is the same everywhere.
template <class T, class B>
DEV_FN void multiply_row(Accumulators<B>& acc, const Fragments<B>& f, u32 i) {
#if defined(DEV_GFX950)
#pragma unroll
    for (u32 t = 0; t < COLUMN_TILES; ++t) {
        acc.of[i][t] = mfma_16x16x32<T>(f.a[i], f.b[t], acc.of[i][t]);
    }
#else
#pragma unroll
    for (u32 part = 0; part < 4; part += 2) {
#pragma unroll
        for (u32 t = 0; t < COLUMN_TILES; ++t) {
            acc.of[i][t] = mfma_16x16x16<T>(u32x2{f.a[i][part], f.a[i][part + 1]},
                                            u32x2{f.b[t][part], f.b[t][part + 1]}, acc.of[i][t]);
        }
    }
#endif
}

template <class T, class B>
DEV_FN void finish_unit(const Units& units, Accumulators<B>& acc) {
    const u32 w = wave();
    const schedule::Square square = units.unit.at;
    finish<T, B::ROW_TILES>(units.problem(), square.row * B::TILES + w / B::TILES * (B::TILES / 2),
                            square.col * B::TILES + w % B::TILES, acc.of);
}

// This wave's LDS accesses are done, and all waves' are when it comes back.
DEV_FN void meet() {
    schedule_fence();
    wait_lds<0>();
    block_barrier();
    schedule_fence();
}

// --- Class 256: two groups of waves in turn -----------------------------------------------------------
//
// Each SIMD holds one wave of either group. While one multiplies, the other reads its operands for the
// next step, writes the coming half into LDS and asks memory for the tile after it; then they change
// places at a barrier. Phases of a tile (R: read a half from LDS, W: write a half of this or the next tile):
//
//   phase     0             1             2             3
//   group 0   R 0, W 1      multiply 0    R 1, W 0'     multiply 1
//   group 1   multiply 1    R 0, W 1      multiply 0    R 1, W 0'
//
// A slot is written two phases after its last read, and read two phases after its first write.
template <class T, class B, bool NN>
struct PingPong {
    static constexpr u32 SHARED_BYTES = 2 * B::SLOT_BYTES;

    Feed<B, NN, 1> feed;
    Reader<B> reader;
    Staged staged;
    Fragments<B> fragments;
    Accumulators<B> acc;

    DEV_FN explicit PingPong(const MusterGemmArgs& args) : feed(args) {}

    DEV_FN unsigned char* slot(u32 half) const { return shared() + half * B::SLOT_BYTES; }

    DEV_FN void read(u32 half) {
        if (NN) {
            Untransposed b;
#pragma unroll
            for (u32 k = 0; k < 8; ++k) {
                b.k[k] = reader.b_row(slot(half), k);
            }
#pragma unroll
            for (u32 t = 0; t < COLUMN_TILES; ++t) {
                fragments.b[t] = transposed(b, t);
            }
        } else {
#pragma unroll
            for (u32 t = 0; t < COLUMN_TILES; ++t) {
                fragments.b[t] = reader.b(slot(half), half, t);
            }
        }
#pragma unroll
        for (u32 i = 0; i < B::ROW_TILES; ++i) {
            fragments.a[i] = reader.a(slot(half), half, i);
        }
    }

    DEV_FN void multiply() {
        priority<1>();
#pragma unroll
        for (u32 i = 0; i < B::ROW_TILES; ++i) {
            multiply_row<T>(acc, fragments, i);
        }
        priority<0>();
        schedule_fence();
        block_barrier();
        schedule_fence();
    }

    DEV_FN void tile() {
        read(0);
        feed.store(slot(1), staged.half[1]);
        feed.next();
        feed.load(staged);
        meet();
        multiply();

        read(1);
        feed.store(slot(0), staged.half[0]);
        meet();
        multiply();
    }

    DEV_FN void run(Units units) {
        const bool second_group = wave() >= B::WAVES / 2;
        feed.load(staged);
        feed.store(slot(0), staged.half[0]);
        meet();
        if (second_group) {
            block_barrier();
        }
        for (; units.left(); units.advance()) {
            acc.clear();
            for (u32 k = units.problem().k_tiles; k != 0; --k) {
                tile();
            }
            finish_unit<T>(units, acc);
        }
        if (!second_group) {
            block_barrier();
        }
    }
};

// --- Class 128: one wave on each SIMD, its reads under its own products -------------------------------
//
// Fragments are kept twice. In step s a wave multiplies the half it read in step s-1, reads half s+1,
// and writes half s+2 into the slot that step s-1 read from: one barrier a step. Two blocks fit on a
// compute unit and fill each other's gaps. Two tiles are on their way in registers, so memory has three
// steps' time to answer; steps go by twos of tiles, since registers cannot be indexed.
template <class T, class B, bool NN>
struct Interleaved {
    static constexpr u32 SHARED_BYTES = 2 * B::SLOT_BYTES;

    Feed<B, NN, 2> feed;
    Reader<B> reader;
    Staged staged[2];
    Fragments<B> fragments[2];
    Accumulators<B> acc;

    DEV_FN explicit Interleaved(const MusterGemmArgs& args) : feed(args) {}

    DEV_FN unsigned char* slot(u32 half) const { return shared() + half * B::SLOT_BYTES; }

    // Step of half `half`; the half after the next is one of `coming`.
    DEV_FN void step(u32 half, const u32x4 (&coming)[LOADS], bool wanted) {
        const Fragments<B>& now = fragments[half];
        Fragments<B>& next = fragments[1 - half];
        const unsigned char* const from = slot(1 - half);
        Untransposed b;
        static_assert(B::ROW_TILES == 4 && LOADS == 4, "the quarters below");
        priority<1>();
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            if (NN) {
                if (i < 2) {
#pragma unroll
                    for (u32 k = 4 * i; k < 4 * i + 4; ++k) {
                        b.k[k] = reader.b_row(from, k);
                    }
                }
            } else {
                next.b[i] = reader.b(from, 1 - half, i);
            }
            next.a[i] = reader.a(from, 1 - half, i);
            feed.store_part(slot(half), coming, i);
            if (wanted) {
                multiply_row<T>(acc, now, i);
            }
            schedule_fence();
        }
        priority<0>();
        if (NN) {
#pragma unroll
            for (u32 t = 0; t < COLUMN_TILES; ++t) {
                next.b[t] = transposed(b, t);
            }
        }
        meet();
    }

    // The steps of one tile; `coming` holds the next tile, and then receives the one two after it.
    DEV_FN void tile(Staged& coming, bool wanted) {
        step(0, coming.half[0], wanted);
        step(1, coming.half[1], wanted);
        feed.next();
        feed.load(coming);
    }

    DEV_FN void start() {
        feed.load(staged[0]);
        feed.next();
        feed.load(staged[1]);
        feed.store(slot(0), staged[0].half[0]);
        feed.store(slot(1), staged[0].half[1]);
        feed.next();
        feed.load(staged[0]);
        meet();
        if (NN) {
            Untransposed b;
#pragma unroll
            for (u32 k = 0; k < 8; ++k) {
                b.k[k] = reader.b_row(slot(0), k);
            }
#pragma unroll
            for (u32 t = 0; t < COLUMN_TILES; ++t) {
                fragments[0].b[t] = transposed(b, t);
            }
        }
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            if (!NN) {
                fragments[0].b[i] = reader.b(slot(0), 0, i);
            }
            fragments[0].a[i] = reader.a(slot(0), 0, i);
        }
        meet();
    }

    DEV_FN void run(Units units) {
        start();
        for (; units.left(); units.advance()) {
            acc.clear();
            const u32 k_tiles = units.problem().k_tiles;
            for (u32 k = 0; k < k_tiles; k += 2) {
                tile(staged[1], true);
                tile(staged[0], k + 1 < k_tiles);
            }
            finish_unit<T>(units, acc);
        }
    }
};

template <class T, u32 SIDE, bool NN, template <class, class, bool> class Loop>
DEV_FN void product(const MusterGemmArgs& args) {
    const Units units(args);
    if (!units.left()) {
        return;  // A grid larger than the launch has units.
    }
    Loop<T, Block<SIDE>, NN> loop(args);
    loop.run(units);
}

}  // namespace cdna
