// The product's main loops on CDNA: gfx90a, gfx942 and gfx950. cdna_feed.h says how operands
// travel, cdna.md what the loops cost by count.
//
// A step is 32 k's. Per step a wave multiplies ROW_TILES × 4 tiles of 16 × 16, and the LDS is
// written and read once per element, so barriers are few and the matrix unit's time per step is
// long: 1024 cycles of class 256 on gfx942.
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

// One row of tiles times 32 k's. Where an instruction takes 16 k's, those are the first four of
// each lane's eight, then the last four: A and B agree on that, and the order is the same
// everywhere. `between` is called in the middle and at the end, with 0 and 1.
template <class T, class B, class Between>
DEV_FN void multiply_row(Accumulators<B>& acc, const Fragments<B>& f, u32 i,
                         const Between& between) {
#if defined(DEV_GFX950)
#pragma unroll
    for (u32 t = 0; t < COLUMN_TILES; ++t) {
        acc.of[i][t] = mfma_16x16x32<T>(f.a[i], f.b[t], acc.of[i][t]);
        if (t % 2 == 1) {
            between(t / 2);
        }
    }
#else
#pragma unroll
    for (u32 part = 0; part < 4; part += 2) {
#pragma unroll
        for (u32 t = 0; t < COLUMN_TILES; ++t) {
            acc.of[i][t] = mfma_16x16x16<T>(u32x2{f.a[i][part], f.a[i][part + 1]},
                                            u32x2{f.b[t][part], f.b[t][part + 1]}, acc.of[i][t]);
        }
        between(part / 2);
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

// --- Class 256: two groups of waves in turn
// -----------------------------------------------------------
//
// Each SIMD holds one wave of either group. While one multiplies, the other reads its operands for
// the next step and feeds the LDS; then they change places at a barrier. Phases of a tile where
// halves go through registers (R: read a half from LDS, W: write a half of this or the next tile):
//
//   phase     0             1             2             3
//   group 0   R 0, W 1      multiply 0    R 1, W 0'     multiply 1
//   group 1   multiply 1    R 0, W 1      multiply 0    R 1, W 0'
//
// A stage is written a phase or more after its last read, and read a phase or more after its last
// write.
template <class T, class B, bool NN>
struct PingPong {
    Feeding<B, NN, 1> feeding;
    Reader<B> reader;
    Fragments<B> fragments;
    Accumulators<B> acc;

    DEV_FN explicit PingPong(const MusterGemmArgs& args) : feeding(args) {}

    DEV_FN void step(bool odd) {
        reader.template all<NN>(feeding.from(odd), odd, fragments);
#pragma unroll
        for (u32 i = 0; i < LOADS; ++i) {
            feeding.part(odd, i, 0);
        }
        feeding.behind(odd, 0);
        meet();
        priority<1>();
#pragma unroll
        for (u32 i = 0; i < B::ROW_TILES; ++i) {
            multiply_row<T>(acc, fragments, i, [](u32) {});
        }
        priority<0>();
        schedule_fence();
        block_barrier();
        schedule_fence();
    }

    DEV_FN void run(Units units) {
        const bool second_group = wave() >= B::WAVES / 2;
        feeding.start();
        meet();
        if (second_group) {
            block_barrier();
        }
        for (; units.left(); units.advance()) {
            acc.clear();
            for (u32 k = units.problem().k_tiles; k != 0; --k) {
                step(false);
                step(true);
            }
            finish_unit<T>(units, acc);
        }
        feeding.stop();
        if (!second_group) {
            block_barrier();
        }
    }
};

// --- Class 128: one wave on each SIMD, its reads under its own products
// -------------------------------
//
// Fragments are kept twice. In its step of half s a wave multiplies what it read in the step
// before, reads half s+1 and does the feeding that belongs to that: one barrier a step. Two blocks
// fit on a compute unit and fill each other's gaps. Where tiles are on their way in registers there
// are two of them, so memory has three steps' time to answer; since registers cannot be indexed,
// the loop then goes by two tiles.
template <class T, class B, bool NN>
struct Interleaved {
    Feeding<B, NN, 2> feeding;
    Reader<B> reader;
    Fragments<B> fragments[2];
    Accumulators<B> acc;

    DEV_FN explicit Interleaved(const MusterGemmArgs& args) : feeding(args) {}

    // The step of half `odd`; `set` is the one of the next tile.
    DEV_FN void step(bool odd, u32 set, bool wanted) {
        Fragments<B>& next = fragments[!odd];
        const unsigned char* const from = feeding.from(!odd);
        Untransposed columns;
        static_assert(B::ROW_TILES == 4 && LOADS == 4, "the quarters below");
        priority<1>();
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            if (!NN) {
                next.b[i] = reader.b(from, !odd, i);
            } else if (i < 2) {
#pragma unroll
                for (u32 k = 4 * i; k < 4 * i + 4; ++k) {
                    columns.k[k] = reader.b_row(from, k);
                }
            }
            next.a[i] = reader.a(from, !odd, i);
            feeding.part(!odd, i, set);
            // Transposes come in fours after matrix instructions, in whose time they fit.
            const auto between = [&](u32 middle) {
                if (NN && i >= 2) {
                    schedule_fence();
                    next.b[2 * i - 4 + middle] = transposed(columns, 2 * i - 4 + middle);
                    schedule_fence();
                }
            };
            if (wanted) {
                multiply_row<T>(acc, fragments[odd], i, between);
            } else {
                between(0);
                between(1);
            }
            schedule_fence();
        }
        priority<0>();
        feeding.behind(!odd, set);
        meet();
    }

    DEV_FN void tile(u32 set, bool wanted) {
        step(false, set, wanted);
        step(true, set, wanted);
    }

    DEV_FN void start() {
        feeding.start();
        meet();
        reader.template all<NN>(feeding.from(false), false, fragments[0]);
#pragma unroll
        for (u32 i = 0; i < LOADS; ++i) {
            feeding.part(false, i, 0);
        }
        feeding.behind(false, 0);
        meet();
    }

    DEV_FN void run(Units units) {
        constexpr u32 GROUP = decltype(feeding)::GROUP;
        start();
        for (; units.left(); units.advance()) {
            acc.clear();
            const u32 k_tiles = units.problem().k_tiles;
            for (u32 k = 0; k < k_tiles; k += GROUP) {
                tile(GROUP - 1, true);
                if (GROUP == 2) {
                    tile(0, k + 1 < k_tiles);
                }
            }
            finish_unit<T>(units, acc);
        }
        feeding.stop();
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
