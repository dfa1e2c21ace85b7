// How operand tiles reach the registers of CDNA's matrix instructions: global memory → LDS →
// registers.
//
// A block computes a square of SIDE × SIDE elements with 2·SIDE/64 waves, so the operands of one
// step in k (64 columns of A, 64 of B: one tile per 64 rows and one per 64 columns) are exactly one
// tile a wave. Each wave feeds its own tile through the whole launch; only a pointer and a step
// tell the waves apart.
//
// A tile travels in two halves of 32 k's and 4096 bytes. LDS holds halves in stages of one half per
// wave: waves 0…TILES hold A, the rest B. Within a half, 16-byte chunks lie in this order:
//
//   K-major (A, and B of nt)  chunk (row, k/8) at line 4·(row/8) + row%4, position (k/8) ^ (row%8),
//                             lines of 128 bytes: rows r and r+4 share one, each with its 4 chunks
//   MN-major (B of nn)        as in the tile: line k, position (n/8) ^ (k%8)
//
// A wave's load instruction fills 1024 consecutive bytes, lane after lane, whatever the form (so it
// may as well be a load that goes to LDS directly). The order is made by choosing each lane's
// source: always 64 or more consecutive bytes for neighbouring lanes, and the two halves of a line
// of the cache are loaded one right after the other.
//
// Matrix instructions read 16 rows × 32 k's: lane l takes row l%16 and chunk l/16, one
// ds_read_b128. The LDS serves such a read in eight cycles, lanes 0–3 with 20–23, 4–7 with 16–19,
// and so on (ROCm's Composable Kernel documents it, "LDS bank conflicts"); each such group meets
// eight different positions, thus no bank twice.
//
// Columns are divided so that lane c holds columns 4c…4c+3 in its four accumulators of a row tile:
// a patch of 4 × 4 elements, contiguous down and across, which is what makes the epilogue simple.
// For nt the rows of B are sorted to this end on their way into LDS (row 4c+t becomes row 16t+c);
// for nn a lane reads 8 k's × 4 n's and transposes them with v_perm_b32.
#pragma once

#include "../abi.h"
#include "../dev/dev.h"
#include "../schedule.h"
#include "../tile.h"

namespace cdna {

using namespace dev;

constexpr u32 HALF_BYTES = tile::BYTES / 2;
constexpr u32 LOADS = HALF_BYTES / (WAVE * tile::CHUNK_BYTES);  // instructions of a wave for a half
constexpr u32 LOAD_BYTES = WAVE * tile::CHUNK_BYTES;
constexpr u32 COLUMN_TILES = 4;  // matrix-instruction tiles across a wave: 64 columns
constexpr u32 MMA = 16;          // their side

template <u32 SIDE_>
struct Block {
    static constexpr u32 SIDE = SIDE_;
    static constexpr u32 TILES = SIDE / tile::SIDE;
    static constexpr u32 WAVES = 2 * TILES;
    static constexpr u32 THREADS = WAVES * WAVE;
    static constexpr u32 ROW_TILES = SIDE / 2 / MMA;  // matrix-instruction tiles down a wave
    static constexpr u32 STAGE_BYTES = WAVES * HALF_BYTES;
};

// The units of work of this block, in their order.
struct Units {
    const MusterGemmProblem* problems;
    u32 problem_count;
    u32 unit_count;
    u32 group_rows;
    u32 index;
    schedule::Unit unit;

    DEV_FN explicit Units(const MusterGemmArgs& args)
        : problems(constant<MusterGemmProblem>(args.problems)),
          problem_count(args.problem_count),
          unit_count(args.block_count),
          group_rows(args.group_rows),
          index(schedule::chiplet_order(block(), grid(), args.xcds)),
          unit{0, {0, 0}} {
        locate();
    }

    DEV_FN bool left() const { return index < unit_count; }
    DEV_FN const MusterGemmProblem& problem() const { return problems[unit.problem]; }
    DEV_FN void locate() {
        if (left()) {
            unit = schedule::locate(problems, problem_count, index, group_rows, unit.problem);
        }
    }
    DEV_FN void advance() {
        index += grid();
        locate();
    }
};

// The stream of tiles that this wave feeds, over all units of the block. Units are fed in whole
// groups of GROUP tiles: where k_tiles is no multiple, the last tile is repeated and its product is
// left out. Behind the last unit the last tile is repeated without end; nobody uses it.
template <class B, bool NN, u32 GROUP>
struct Feed {
    Units units;
    u64 at;    // of the current tile
    u64 step;  // to the next one of the unit
    u32 tile_index;
    u32 k_tiles;
    u32 tiles;  // with repetitions
    u32 lane_offset;
    u32 load_mask;
    u32 half_mask;
    u32 wave_offset;  // of this wave's half in a stage

    DEV_FN explicit Feed(const MusterGemmArgs& args) : units(args) {
        const bool is_a = wave() < B::TILES;
        const u32 l = lane();
        // In LDS, of half 0 and the first load.
        const u32 row = l / 32 * 8 + l / 8 % 4 + l % 8 / 4 * 4;
        const u32 position = l % 8;
        wave_offset = wave() * HALF_BYTES;
        if (is_a) {
            lane_offset = row * tile::ROW_BYTES + position * tile::CHUNK_BYTES;
            load_mask = MMA * tile::ROW_BYTES;
            half_mask = 4 * tile::ROW_BYTES;
        } else if (NN) {
            lane_offset = l * tile::CHUNK_BYTES;
            load_mask = LOAD_BYTES;
            half_mask = HALF_BYTES;
        } else {
            // Row 16t + c of LDS is row 4c + t of the tile; its chunks move between the two
            // swizzles.
            const u32 chunk = position ^ row % 8;
            lane_offset = tile::chunk_offset(4 * row, chunk);
            load_mask = tile::ROW_BYTES + tile::CHUNK_BYTES;
            half_mask = 16 * tile::ROW_BYTES + 4 * tile::CHUNK_BYTES;
        }
        open();
    }

    // The first tile of the current unit.
    DEV_FN void open() {
        const MusterGemmProblem& p = units.problem();
        const u32 w = wave();
        const schedule::Square square = units.unit.at;
        const bool is_a = w < B::TILES;
        const u64 base = is_a ? p.a : p.b;
        const u32 pitch = is_a ? p.a_tiles_per_row : p.b_tiles_per_row;
        const u32 row = is_a ? square.row * B::TILES + w : square.col * B::TILES + (w - B::TILES);
        const bool down = NN && !is_a;  // this operand's k runs down its grid
        at = base + (down ? tile::tile_offset(0, row, pitch) : tile::tile_offset(row, 0, pitch));
        step = down ? tile::tile_offset(1, 0, pitch) : tile::BYTES;
        tile_index = 0;
        k_tiles = p.k_tiles;
        tiles = (k_tiles + GROUP - 1) / GROUP * GROUP;
    }

    // The lane's offset is made opaque for each tile, so that the address stays a pointer of the
    // wave plus 32 bits of the lane, as the instruction takes it, and not eight 64-bit numbers kept
    // in registers.
    DEV_FN void next() {
        lane_offset = opaque(lane_offset);
        ++tile_index;
        if (tile_index < k_tiles) {
            at += step;
        } else if (tile_index == tiles) {
            units.advance();
            if (units.left()) {
                open();
            }
        }
    }

    // Where this lane's 16 bytes of load `i` come from.
    DEV_FN const unsigned char* source(u32 half, u32 i) const {
        return pointer<const unsigned char>(at) + (lane_offset ^ i * load_mask ^ half * half_mask);
    }
};

// --- Two ways of a tile into LDS
// ----------------------------------------------------------------------
//
// Both count the halves of the stream; r is the half that is being read from LDS, `odd` is r % 2.
//
//   start()        before r = 0, which is in LDS once all waves have met
//   from(odd)      the stage of half r
//   part(odd, i)   a quarter of the feeding that belongs to r
//   behind(odd)    the rest of it; when all waves have met after that, half r+1 is in LDS

// By registers, for chips whose loads to LDS are of 4 bytes: two stages. While half r is read, half
// r+1 takes the stage of r-1. SETS tiles are on their way in registers, and the feeding of half r
// takes set `set`, that of the tile of half r+1.
template <class B, bool NN, u32 SETS>
struct ByRegisters {
    static constexpr u32 GROUP = SETS;
    static constexpr u32 SHARED_BYTES = 2 * B::STAGE_BYTES;

    struct Staged {
        u32x4 half[2][LOADS];
    };
    Feed<B, NN, GROUP> feed;
    Staged staged[SETS];
    u32 lane_to;  // this lane's first 16 bytes in a stage

    DEV_FN explicit ByRegisters(const MusterGemmArgs& args)
        : feed(args), lane_to(feed.wave_offset + lane() * tile::CHUNK_BYTES) {}

    DEV_FN unsigned char* from(bool odd) const { return shared() + odd * B::STAGE_BYTES; }

    DEV_FN void load(u32 set) {
#pragma unroll
        for (u32 i = 0; i < LOADS; ++i) {
            staged[set].half[0][i] = load16(feed.source(0, i));
            staged[set].half[1][i] = load16(feed.source(1, i));
        }
    }

    DEV_FN void start() {
        load(0);
        if (SETS == 2) {
            feed.next();
            load(1);
        }
#pragma unroll
        for (u32 i = 0; i < LOADS; ++i) {
            part(true, i, 0);
        }
    }

    DEV_FN void part(bool odd, u32 i, u32 set) {
        store16(from(!odd) + lane_to + i * LOAD_BYTES, staged[set].half[!odd][i]);
    }

    DEV_FN void behind(bool odd, u32 set) {
        if (!odd) {
            feed.next();
            load(set);
        }
    }

    DEV_FN void stop() {}
};

#if defined(DEV_GFX950)
// By direct loads of 16 bytes a lane: a ring of five stages. While half r = 2t+1 is read, tile t+2
// takes the stages of halves r-2 and r-1, which all waves have read. The waits leave in flight what
// is not needed yet: of the loads, which go in pairs of halves, the next tile's eight, and the last
// one of the current tile where only its first half is needed. (Stores of an epilogue in between
// only lengthen the wait.)
template <class B, bool NN>
struct ByRing {
    static constexpr u32 GROUP = 1;
    static constexpr u32 STAGES = 5;
    static constexpr u32 SHARED_BYTES = STAGES * B::STAGE_BYTES;

    Feed<B, NN, GROUP> feed;
    u32 at;  // bytes of the stage of half r

    DEV_FN explicit ByRing(const MusterGemmArgs& args) : feed(args), at(0) {}

    DEV_FN u32 ahead(u32 halves) const {
        const u32 there = at + halves * B::STAGE_BYTES;
        return there >= SHARED_BYTES ? there - SHARED_BYTES : there;
    }
    DEV_FN unsigned char* from(bool) const { return shared() + at; }

    DEV_FN void send(u32 first_half, u32 i) {
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
            unsigned char* const to = shared() + ahead(first_half + half);
            lds_load16(to + feed.wave_offset + i * LOAD_BYTES, feed.source(half, i));
        }
    }

    DEV_FN void start() {
#pragma unroll
        for (u32 i = 0; i < LOADS; ++i) {
            send(0, i);
        }
        feed.next();
#pragma unroll
        for (u32 i = 0; i < LOADS; ++i) {
            send(2, i);
        }
        wait_memory<2 * LOADS + 1>();
    }

    DEV_FN void part(bool odd, u32 i, u32) {
        if (odd) {
            if (i == 0) {
                feed.next();
            }
            send(3, i);
        }
    }

    DEV_FN void behind(bool odd, u32) {
        if (odd) {
            wait_memory<2 * LOADS + 1>();
        } else {
            wait_memory<2 * LOADS>();
        }
        at = ahead(1);
    }

    // LDS may be another block's when this one has ended.
    DEV_FN void stop() { wait_memory<0>(); }
};

template <class B, bool NN, u32>
using Feeding = ByRing<B, NN>;
#else
template <class B, bool NN, u32 SETS>
using Feeding = ByRegisters<B, NN, SETS>;
#endif

// --- LDS to registers
// ---------------------------------------------------------------------------------

// The operands of a wave for 32 k's. Lane l holds k's 8·(l/16)…+8 of each row (of A) and column (of
// B).
template <class B>
struct Fragments {
    u32x4 a[B::ROW_TILES];
    u32x4 b[COLUMN_TILES];
};

// A wave's 8 k's × 4 n's a lane of an MN-major half: two registers for each k.
struct Untransposed {
    u32x2 k[8];
};

// Column t of the lane's four: its 8 k's side by side.
DEV_FN u32x4 transposed(const Untransposed& from, u32 t) {
    const u32 selector = t % 2 == 0 ? 0x05040100 : 0x07060302;  // both lower or both upper halves
    return u32x4{perm(from.k[1][t / 2], from.k[0][t / 2], selector),
                 perm(from.k[3][t / 2], from.k[2][t / 2], selector),
                 perm(from.k[5][t / 2], from.k[4][t / 2], selector),
                 perm(from.k[7][t / 2], from.k[6][t / 2], selector)};
}

// Reads of a wave's fragments from a stage.
template <class B>
struct Reader {
    u32 a_offset;
    u32 b_offset;
    u32 b_untransposed;

    DEV_FN Reader() {
        const u32 w = wave();
        const u32 c = lane() % MMA;
        const u32 g = lane() / MMA;
        const u32 line = 4 * (c / 8) + c % 4;
        const u32 in_tile = line * tile::ROW_BYTES + (g ^ c % 8) * tile::CHUNK_BYTES;
        const u32 b_tile = (B::TILES + w % B::TILES) * HALF_BYTES;
        a_offset = w / B::TILES * (B::TILES / 2) * HALF_BYTES + in_tile;
        b_offset = b_tile + in_tile;
        b_untransposed = b_tile + 8 * g * tile::ROW_BYTES + c / 2 * tile::CHUNK_BYTES + c % 2 * 8;
    }

    // The second half's chunks differ from the first's in one bit of their position.
    DEV_FN u32x4 a(const unsigned char* stage, bool odd, u32 i) const {
        return load16(stage + (a_offset ^ odd * 4 * tile::CHUNK_BYTES) + i * LOAD_BYTES);
    }
    DEV_FN u32x4 b(const unsigned char* stage, bool odd, u32 t) const {
        return load16(stage + (b_offset ^ odd * 4 * tile::CHUNK_BYTES) + t * LOAD_BYTES);
    }
    DEV_FN u32x2 b_row(const unsigned char* stage, u32 k) const {
        return load8(stage + (b_untransposed ^ k * (tile::ROW_BYTES + tile::CHUNK_BYTES)));
    }

    template <bool NN>
    DEV_FN void all(const unsigned char* stage, bool odd, Fragments<B>& to) const {
        if (NN) {
            Untransposed columns;
#pragma unroll
            for (u32 k = 0; k < 8; ++k) {
                columns.k[k] = b_row(stage, k);
            }
#pragma unroll
            for (u32 t = 0; t < COLUMN_TILES; ++t) {
                to.b[t] = transposed(columns, t);
            }
        } else {
#pragma unroll
            for (u32 t = 0; t < COLUMN_TILES; ++t) {
                to.b[t] = b(stage, odd, t);
            }
        }
#pragma unroll
        for (u32 i = 0; i < B::ROW_TILES; ++i) {
            to.a[i] = a(stage, odd, i);
        }
    }
};

}  // namespace cdna
