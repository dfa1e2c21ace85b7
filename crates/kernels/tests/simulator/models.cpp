// Checks of the vendor models: published sample entries, layouts that cover their matrix once, and
// products of random fragments against plain matrix products. A program of its own, which
// crates/kernels/tests/sim_models.rs compiles and runs; it prints what fails and returns its
// count.

#include <stdio.h>

#include <vector>

#include "sim/models_amd.h"
#include "sim/models_nvidia.h"
#include "tile.h"

using namespace sim;

static int failures = 0;

#define CHECK(condition)                                           \
    do {                                                           \
        if (!(condition)) {                                        \
            failures++;                                            \
            printf("%s:%d: %s\n", __FILE__, __LINE__, #condition); \
        }                                                          \
    } while (0)

static bool is(Cell cell, uint32_t row, uint32_t col) {
    return cell.row == row && cell.col == col;
}

static uint32_t random_state = 1;
static uint32_t random_bits() {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 17;
    random_state ^= random_state << 5;
    return random_state;
}

// Small integers: exact in both formats, and so are their sums of products.
static float small_integer() {
    return static_cast<float>(static_cast<int>(random_bits() % 17) - 8);
}

struct Matrix {
    uint32_t rows, cols;
    std::vector<float> values;
    Matrix(uint32_t rows, uint32_t cols) : rows(rows), cols(cols), values(rows * cols) {
        for (float& value : values) value = small_integer();
    }
    float& at(Cell cell) { return values[cell.row * cols + cell.col]; }
    float& at(uint32_t row, uint32_t col) { return values[row * cols + col]; }
};

static float dot(Matrix& a, Matrix& b, Cell cell) {
    float sum = 0;
    for (uint32_t k = 0; k < a.cols; k++) sum += a.at(cell.row, k) * b.at(k, cell.col);
    return sum;
}

template <class Format>
static void put(uint32_t& reg, uint32_t half, float value) {
    reg = (reg & (half ? 0xffffu : 0xffff0000u)) | static_cast<uint32_t>(Format::encode(value))
                                                       << (16 * half);
}

// Every cell of rows × cols belongs to exactly one (lane, element).
template <class Layout>
static bool covers(uint32_t rows, uint32_t cols, uint32_t lanes, uint32_t elements,
                   Layout layout) {
    std::vector<int> count(rows * cols);
    for (uint32_t lane = 0; lane < lanes; lane++) {
        for (uint32_t i = 0; i < elements; i++) {
            Cell cell = layout(lane, i);
            if (cell.row >= rows || cell.col >= cols) return false;
            count[cell.row * cols + cell.col]++;
        }
    }
    for (int seen : count) {
        if (seen != 1) return false;
    }
    return true;
}

// == formats ==

template <class Format>
static void nearest_even(float value) {
    uint16_t bits = Format::encode(value);
    float chosen = Format::decode(bits), away = chosen - value;
    double error = away < 0 ? -static_cast<double>(away) : away;
    for (int step = -1; step <= 1; step += 2) {
        float other = Format::decode(static_cast<uint16_t>(bits + step));
        if (other != other || other - other != 0 || ((bits ^ (bits + step)) & 0x8000)) continue;
        double distance = static_cast<double>(other) - value;
        distance = distance < 0 ? -distance : distance;
        CHECK(error < distance || (error == distance && bits % 2 == 0));
    }
}

static void formats() {
    for (uint32_t bits = 0; bits < 0x10000; bits++) {
        uint16_t half = static_cast<uint16_t>(bits);
        float f16 = f16_to_f32(half), bf16 = bf16_to_f32(half);
        if (f16 == f16) CHECK(f32_to_f16(f16) == half);
        else CHECK(f16_to_f32(f32_to_f16(f16)) != f16_to_f32(f32_to_f16(f16)));
        if (bf16 == bf16) CHECK(f32_to_bf16(bf16) == half);
        else CHECK(bf16_to_f32(f32_to_bf16(bf16)) != bf16_to_f32(f32_to_bf16(bf16)));
    }
    CHECK(f16_to_f32(0x3c00) == 1.0f && f16_to_f32(0xc500) == -5.0f &&
          f16_to_f32(0x7bff) == 65504.0f);
    CHECK(f16_to_f32(0x0001) == 5.9604644775390625e-8f && f16_to_f32(0x0400) == 6.103515625e-5f);
    CHECK(f32_to_f16(65519.996f) == 0x7bff && f32_to_f16(65520.0f) == 0x7c00 &&
          f32_to_f16(-1e30f) == 0xfc00);
    CHECK(f32_to_f16(2.9802322e-8f) == 0 && f32_to_f16(2.9802326e-8f) == 1 &&
          f32_to_f16(-0.0f) == 0x8000);
    CHECK(f32_to_bf16(1.00390625f) == 0x3f80 && f32_to_bf16(1.01171875f) == 0x3f82);
    CHECK(f32_to_bf16(3.4e38f) == 0x7f80 && f32_to_bf16(float_of(0x7f800001u)) == 0x7fc0);
    for (int i = 0; i < 20000; i++) {
        float value = float_of(random_bits());
        if (value != value || value - value != 0) continue;
        float scaled = float_of((bits_of(value) & 0x8fffffffu) | 0x30000000u);  // 2^-31 … 1
        if (value > -3e38f && value < 3e38f) nearest_even<Bf16Format>(value);
        nearest_even<F16Format>(scaled);
        nearest_even<F16Format>(scaled * 32768.0f);
    }
}

// == NVIDIA ==

static void mma_layouts() {
    using namespace nvidia;
    // PTX ISA, the figures of the fragments: T5 is groupID 1, threadID_in_group 1; T30 is 7, 2.
    CHECK(is(mma_a(5, 0), 1, 2) && is(mma_a(5, 1), 1, 3) && is(mma_a(5, 2), 9, 2) &&
          is(mma_a(5, 3), 9, 3));
    CHECK(is(mma_a(5, 4), 1, 10) && is(mma_a(5, 6), 9, 10) && is(mma_a(30, 7), 15, 13));
    CHECK(is(mma_b(5, 0), 2, 1) && is(mma_b(5, 1), 3, 1) && is(mma_b(5, 2), 10, 1) &&
          is(mma_b(30, 3), 13, 7));
    CHECK(is(mma_d(5, 0), 1, 2) && is(mma_d(5, 1), 1, 3) && is(mma_d(5, 2), 9, 2) &&
          is(mma_d(30, 3), 15, 5));
    CHECK(covers(16, 16, 32, 8, mma_a) && covers(16, 8, 32, 4, mma_b) &&
          covers(16, 8, 32, 4, mma_d));
    // wgmma D: thread 37 is in warp 1, row 16 + 1; registers 4–7 are eight columns on.
    CHECK(is(wgmma_d(37, 0), 17, 2) && is(wgmma_d(37, 1), 17, 3) && is(wgmma_d(37, 2), 25, 2));
    CHECK(is(wgmma_d(37, 5), 17, 11) && is(wgmma_d(127, 127), 63, 255));
    CHECK(covers(64, 256, 128, 128, wgmma_d) && covers(64, 128, 128, 64, wgmma_d));
}

template <class Format>
static void mma_product() {
    Matrix a(16, 16), b(16, 8), c(16, 8);
    uint32_t a_regs[32][4], b_regs[32][2];
    float d[32][4];
    for (uint32_t lane = 0; lane < 32; lane++) {
        for (uint32_t i = 0; i < 8; i++)
            put<Format>(a_regs[lane][i / 2], i % 2, a.at(nvidia::mma_a(lane, i)));
        for (uint32_t i = 0; i < 4; i++)
            put<Format>(b_regs[lane][i / 2], i % 2, b.at(nvidia::mma_b(lane, i)));
        for (uint32_t i = 0; i < 4; i++) d[lane][i] = c.at(nvidia::mma_d(lane, i));
    }
    nvidia::mma_16816<Format>(d, a_regs, b_regs);
    for (uint32_t lane = 0; lane < 32; lane++) {
        for (uint32_t i = 0; i < 4; i++) {
            Cell cell = nvidia::mma_d(lane, i);
            CHECK(d[lane][i] == c.at(cell) + dot(a, b, cell));
        }
    }
}

// ldmatrix fills the fragments of mma from a row-major matrix: A plainly, B (k × n, rows k) by
// .trans.
static void ldmatrix_feeds_mma() {
    uint16_t a[16][16], b[16][8], back[16][16];
    for (auto& row : a)
        for (uint16_t& value : row) value = static_cast<uint16_t>(random_bits());
    for (auto& row : b)
        for (uint16_t& value : row) value = static_cast<uint16_t>(random_bits());
    const unsigned char *a_rows[32], *b_rows[32];
    unsigned char* back_rows[32];
    for (uint32_t lane = 0; lane < 32; lane++) {
        uint32_t row = lane % 8 + (lane / 8 % 2) * 8, col = lane / 16 * 8;
        a_rows[lane] = reinterpret_cast<unsigned char*>(&a[row][col]);
        back_rows[lane] = reinterpret_cast<unsigned char*>(&back[row][col]);
        b_rows[lane] = reinterpret_cast<unsigned char*>(&b[lane % 16][0]);
    }
    uint32_t regs[32][4];
    nvidia::ldmatrix_x4(regs, a_rows, false);
    for (uint32_t lane = 0; lane < 32; lane++) {
        for (uint32_t i = 0; i < 8; i++) {
            Cell cell = nvidia::mma_a(lane, i);
            CHECK(half_of(regs[lane][i / 2], i % 2) == a[cell.row][cell.col]);
        }
    }
    nvidia::stmatrix_x4(back_rows, regs, false);
    CHECK(memcmp(a, back, sizeof a) == 0);
    nvidia::ldmatrix_x4(regs, b_rows, true);
    for (uint32_t lane = 0; lane < 32; lane++) {
        for (uint32_t i = 0; i < 4; i++) {
            Cell cell = nvidia::mma_b(lane, i);
            CHECK(half_of(regs[lane][i / 2], i % 2) == b[cell.row][cell.col]);
        }
    }
    nvidia::ldmatrix_x4(regs, a_rows, true);
    nvidia::stmatrix_x4(back_rows, regs, true);
    CHECK(memcmp(a, back, sizeof a) == 0);
}

static void descriptors() {
    using namespace nvidia;
    Descriptor d =
        decode_descriptor(0x4000004000010040ull);  // start 0x400, leading 16, stride 1024, 128 B
    CHECK(d.start == 0x400 && d.leading == 16 && d.stride == 1024 && d.base_offset == 0 &&
          d.swizzle == 1);
    CHECK(encode_descriptor(0x400, 16, 1024, 1) == 0x4000004000010040ull);
    CHECK(decode_descriptor(encode_descriptor(0x3fff0, 0x2000, 0x1000, 1)).start == 0x3fff0);
    CHECK(decode_descriptor(5ull << 49).base_offset == 5 &&
          decode_descriptor(1ull << 30).reserved != 0);
    auto fault = [](uint32_t start, uint32_t leading, uint32_t stride, uint32_t swizzle, bool mn,
                    uint32_t extent) {
        return descriptor_fault(
            decode_descriptor(encode_descriptor(start, leading, stride, swizzle)), mn, extent);
    };
    CHECK(!fault(0x2000, 0, 1024, 1, false, 64) && !fault(0x2060, 16, 1024, 1, false, 256));
    CHECK(fault(0x2000, 0, 1024, 0, false, 64) && fault(0x2080, 0, 1024, 1, false, 64));
    CHECK(fault(0x2070, 0, 1024, 1, false, 64) && fault(0x2000, 0, 512, 1, false, 64));
    CHECK(fault(0x2000, 0, 0, 1, false, 64) && !fault(0x2000, 0, 0, 1, false, 8));
    CHECK(!fault(0x2000, 0x2000, 1024, 1, true, 256) && fault(0x2000, 0, 1024, 1, true, 128));
    CHECK(fault(0x2020, 0x2000, 1024, 1, true, 64) && fault(0x2000, 0x2000, 0, 1, true, 64));
    // Rows 1 and 7 of the pattern: chunk c lies at c XOR row.
    Descriptor k_major = decode_descriptor(encode_descriptor(0x2000, 0, 1024, 1));
    CHECK(operand_address(k_major, false, 0, 9) == 0x2012 &&
          operand_address(k_major, false, 1, 0) == 0x2090);
    CHECK(operand_address(k_major, false, 7, 8) == 0x23e0 &&
          operand_address(k_major, false, 8, 0) == 0x2400);
    Descriptor mn_major = decode_descriptor(encode_descriptor(0x2000, 0x2000, 1024, 1));
    CHECK(operand_address(mn_major, true, 9, 0) == 0x2012 &&
          operand_address(mn_major, true, 0, 1) == 0x2090);
    CHECK(operand_address(mn_major, true, 65, 8) == 0x4402);
}

// The image of a matrix in 64×64 tiles, which is the 128-byte swizzle of wgmma.
static void store_tiles(std::vector<unsigned char>& window, uint32_t base, Matrix& matrix,
                        uint16_t (*encode)(float)) {
    uint32_t across = matrix.cols / tile::SIDE;
    for (uint32_t row = 0; row < matrix.rows; row++) {
        for (uint32_t col = 0; col < matrix.cols; col++) {
            uint16_t bits = encode(matrix.at(row, col));
            uint64_t at = base + tile::tile_offset(row / 64, col / 64, across) +
                          tile::element_offset(row % 64, col % 64);
            memcpy(&window[at], &bits, sizeof bits);
        }
    }
}

template <class Format, uint32_t N>
static void wgmma_product(bool b_mn_major) {
    using namespace nvidia;
    Matrix a(64, 64), b(64, N), b_transposed(N, 64), c(64, N);
    for (uint32_t k = 0; k < 64; k++) {
        for (uint32_t n = 0; n < N; n++) b_transposed.at(n, k) = b.at(k, n);
    }
    std::vector<unsigned char> window(0x2000 + 8192 + N * 128);
    uint32_t a_at = 0x2000, b_at = 0x4000;
    store_tiles(window, a_at, a, Format::encode);
    store_tiles(window, b_at, b_mn_major ? b : b_transposed, Format::encode);
    static float registers[128][N / 2];
    float* d[128];
    for (uint32_t t = 0; t < 128; t++) {
        d[t] = registers[t];
        for (uint32_t i = 0; i < N / 2; i++) d[t][i] = c.at(wgmma_d(t, i));
    }
    for (uint32_t step = 0; step < 4; step++) {
        uint64_t left = encode_descriptor(a_at + step * 32, 0, 1024, SWIZZLE_128);
        uint64_t right = b_mn_major
                             ? encode_descriptor(b_at + step * 2048, 8192, 1024, SWIZZLE_128)
                             : encode_descriptor(b_at + step * 32, 0, 1024, SWIZZLE_128);
        CHECK(!descriptor_fault(decode_descriptor(right), b_mn_major, N));
        wgmma<Format, N>(d, window.data(), decode_descriptor(left), decode_descriptor(right),
                         b_mn_major, true);
    }
    for (uint32_t t = 0; t < 128; t++) {
        for (uint32_t i = 0; i < N / 2; i++)
            CHECK(d[t][i] == c.at(wgmma_d(t, i)) + dot(a, b, wgmma_d(t, i)));
    }
    uint32_t chunks = 0;
    Descriptor operand = decode_descriptor(encode_descriptor(b_at, 8192, 1024, SWIZZLE_128));
    operand_chunks(operand, b_mn_major, N, [&](uint32_t address) {
        CHECK(address % 16 == 0 && address >= b_at && address < window.size());
        chunks++;
    });
    CHECK(chunks == N * 2);
}

// == AMD ==

static void mfma_layouts() {
    using namespace amd;
    // Printed by AMD's calculator for V_MFMA_F32_32X32X8_BF16 and _16X16X16_BF16: v6{37} =
    // D[14][5] ….
    CHECK((is(Mfma<32, 8>::d(37, 6), 14, 5) && is(Mfma<32, 8>::d(63, 15), 31, 31)));
    CHECK((is(Mfma<32, 8>::d(0, 4), 8, 0) && is(Mfma<32, 8>::d(32, 0), 4, 0)));
    CHECK((is(Mfma<32, 8>::a(40, 2), 8, 6) && is(Mfma<32, 8>::a(40, 3), 8, 7) &&
           is(Mfma<32, 8>::b(40, 3), 7, 8)));
    CHECK((is(Mfma<16, 16>::d(37, 2), 10, 5) && is(Mfma<16, 16>::d(63, 3), 15, 15)));
    CHECK((is(Mfma<16, 16>::a(50, 2), 2, 14) && is(Mfma<16, 16>::b(50, 3), 15, 2)));
    // IREE: 16x16x32 gives a lane eight consecutive k's, 8·(lane / 16) on; 32x32x16 8·(lane / 32)
    // on.
    CHECK((is(Mfma<16, 32>::a(50, 3), 2, 27) && is(Mfma<16, 32>::b(17, 0), 8, 1)));
    CHECK((is(Mfma<32, 16>::a(40, 3), 8, 11) && is(Mfma<32, 16>::b(31, 7), 7, 31)));
    CHECK((covers(16, 16, 64, 4, Mfma<16, 16>::a) && covers(16, 16, 64, 4, Mfma<16, 16>::d)));
    CHECK((covers(32, 8, 64, 4, Mfma<32, 8>::a) && covers(32, 32, 64, 16, Mfma<32, 8>::d)));
    CHECK((covers(16, 32, 64, 8, Mfma<16, 32>::a) && covers(32, 16, 64, 8, Mfma<32, 16>::a)));
    CHECK((covers(32, 16, 64, 8, Mfma<16, 32>::b) && covers(16, 32, 64, 8, Mfma<32, 16>::b)));
}

template <class Format, uint32_t M, uint32_t K>
static void mfma_product() {
    using Shape = amd::Mfma<M, K>;
    Matrix a(M, K), b(K, M), c(M, M);
    uint32_t a_regs[64][Shape::REGISTERS], b_regs[64][Shape::REGISTERS];
    float d[64][Shape::RESULTS];
    for (uint32_t lane = 0; lane < 64; lane++) {
        for (uint32_t i = 0; i < Shape::VALUES; i++) {
            put<Format>(a_regs[lane][i / 2], i % 2, a.at(Shape::a(lane, i)));
            put<Format>(b_regs[lane][i / 2], i % 2, b.at(Shape::b(lane, i)));
        }
        for (uint32_t i = 0; i < Shape::RESULTS; i++) d[lane][i] = c.at(Shape::d(lane, i));
    }
    amd::mfma<Format, M, K>(d, a_regs, b_regs, d, amd::Subnormals::Flushed);
    for (uint32_t lane = 0; lane < 64; lane++) {
        for (uint32_t i = 0; i < Shape::RESULTS; i++) {
            Cell cell = Shape::d(lane, i);
            CHECK(d[lane][i] == c.at(cell) + dot(a, b, cell));
        }
    }
}

static void mfma_subnormals() {
    using namespace amd;
    CHECK(mfma_input<F16Format>(0x83ff, Subnormals::Kept) == -1023 * 5.9604644775390625e-8f);
    CHECK(bits_of(mfma_input<F16Format>(0x83ff, Subnormals::Flushed)) == 0x80000000u);
    CHECK(mfma_input<F16Format>(0x0400, Subnormals::Flushed) == 6.103515625e-5f);
    CHECK(mfma_input<Bf16Format>(0x007f, Subnormals::Kept) != 0 &&
          mfma_input<Bf16Format>(0x0080, Subnormals::Flushed) != 0);
    CHECK(mfma_input<Bf16Format>(0x007f, Subnormals::Flushed) == 0);
    CHECK(flush_f32(float_of(1), Subnormals::Kept) != 0 &&
          flush_f32(float_of(1), Subnormals::Flushed) == 0);
}

static void permutes() {
    using amd::perm;
    uint32_t s0 = 0x77665544u, s1 = 0x33221100u;
    CHECK(perm(s0, s1, 0x07060504u) == s0 && perm(s0, s1, 0x03020100u) == s1);
    CHECK(perm(s0, s1, 0x05040100u) == 0x55441100u && perm(s0, s1, 0x07060302u) == 0x77663322u);
    CHECK(perm(0x80000000u, 0x00008000u, 0x0b0a0908u) == 0xff0000ffu);
    CHECK(perm(0x00008000u, 0x80000000u, 0x0b0a0908u) == 0x00ffff00u);
    CHECK(perm(s0, s1, 0xff0d0c00u) == 0xffff0000u);
}

// Two reads of 4 × 16 tiles, K = 0–3 | 8–11 and K = 4–7 | 12–15, load a row-major B of 32x32x16's
// shape.
static void transposed_reads() {
    uint16_t b[16][32];
    for (auto& row : b)
        for (uint16_t& value : row) value = static_cast<uint16_t>(random_bits());
    for (uint32_t read = 0; read < 2; read++) {
        const unsigned char* addresses[64];
        for (uint32_t lane = 0; lane < 64; lane++) {
            uint32_t k = 8 * (lane / 32) + 4 * read + (lane % 16) / 4,
                     n = (lane / 16 % 2) * 16 + (lane % 4) * 4;
            addresses[lane] = reinterpret_cast<unsigned char*>(&b[k][n]);
        }
        uint32_t regs[64][2];
        amd::ds_read_b64_tr_b16(regs, addresses);
        for (uint32_t lane = 0; lane < 64; lane++) {
            for (uint32_t j = 0; j < 4; j++) {
                Cell cell = amd::Mfma<32, 16>::b(lane, 4 * read + j);
                CHECK(half_of(regs[lane][j / 2], j % 2) == b[cell.row][cell.col]);
            }
        }
    }
    CHECK(is(amd::transpose_source(21, 2), 25, 1) && amd::lds_load_offset(5, 16) == 80);
    CHECK(amd::lds_load_offset(5, 4) == 20);
}

template <class Format>
static void products() {
    mma_product<Format>();
    for (bool b_mn_major : {false, true}) {
        wgmma_product<Format, 64>(b_mn_major);
        wgmma_product<Format, 128>(b_mn_major);
        wgmma_product<Format, 256>(b_mn_major);
    }
    mfma_product<Format, 16, 16>();
    mfma_product<Format, 32, 8>();
    mfma_product<Format, 16, 32>();
    mfma_product<Format, 32, 16>();
}

int main() {
    formats();
    mma_layouts();
    ldmatrix_feeds_mma();
    descriptors();
    mfma_layouts();
    mfma_subnormals();
    permutes();
    transposed_reads();
    products<Bf16Format>();
    products<F16Format>();
    printf("%d failures\n", failures);
    return failures == 0 ? 0 : 1;
}
