// AMD's instructions of a wave in the simulator: matrix instructions, loads into LDS, transposing
// reads. An instruction takes the operands of all lanes at once, and faults where lanes are missing
// that the hardware would compute with.
#include "amd.h"

#include "models_amd.h"

namespace sim {

namespace {

struct MfmaLane {
    float* d;
    const uint32_t* a;
    const uint32_t* b;
};

struct TransposeLane {
    uint32_t* registers;
    const unsigned char* address;
};

// EXEC is no excuse: matrix instructions compute with the registers of all 64 lanes.
void need_whole_wave(const char* what, uint32_t lanes) {
    if (lanes != amd::LANES) fault("%s in a wave of %u lanes; it needs 64", what, lanes);
}

template <class Values, uint32_t M, uint32_t K, amd::Subnormals MODE>
void run_mfma(void* const* payloads, uint32_t lanes) {
    using Shape = amd::Mfma<M, K>;
    need_whole_wave("mfma", lanes);
    static float d[amd::LANES][Shape::RESULTS];
    static uint32_t a[amd::LANES][Shape::REGISTERS], b[amd::LANES][Shape::REGISTERS];
    for (uint32_t lane = 0; lane < lanes; lane++) {
        const MfmaLane& from = *static_cast<const MfmaLane*>(payloads[lane]);
        memcpy(d[lane], from.d, sizeof d[lane]);
        memcpy(a[lane], from.a, sizeof a[lane]);
        memcpy(b[lane], from.b, sizeof b[lane]);
    }
    amd::mfma<Values, M, K>(d, a, b, d, MODE);
    for (uint32_t lane = 0; lane < lanes; lane++) {
        memcpy(static_cast<MfmaLane*>(payloads[lane])->d, d[lane], sizeof d[lane]);
    }
}

template <class Values, amd::Subnormals MODE>
Work mfma_work(uint32_t m, uint32_t k) {
    if (m == 16 && k == 16) return run_mfma<Values, 16, 16, MODE>;
    if (m == 32 && k == 8) return run_mfma<Values, 32, 8, MODE>;
    if (m == 16 && k == 32) return run_mfma<Values, 16, 32, MODE>;
    if (m == 32 && k == 16) return run_mfma<Values, 32, 16, MODE>;
    fault("no mfma %ux%ux%u", m, m, k);
}

void run_transpose(void* const* payloads, uint32_t lanes) {
    need_whole_wave("ds_read_b64_tr_b16", lanes);
    const unsigned char* addresses[amd::LANES];
    uint32_t registers[amd::LANES][2];
    for (uint32_t lane = 0; lane < lanes; lane++) {
        addresses[lane] = static_cast<const TransposeLane*>(payloads[lane])->address;
    }
    amd::ds_read_b64_tr_b16(registers, addresses);
    for (uint32_t lane = 0; lane < lanes; lane++) {
        memcpy(static_cast<TransposeLane*>(payloads[lane])->registers, registers[lane],
               sizeof registers[lane]);
    }
}

}  // namespace

void mfma(float* d, const uint32_t* a, const uint32_t* b, uint32_t m, uint32_t k, Format format,
          bool flush_subnormals) {
    using amd::Subnormals;
    Work work = format == Format::Bf16 ? flush_subnormals
                                             ? mfma_work<Bf16Format, Subnormals::Flushed>(m, k)
                                             : mfma_work<Bf16Format, Subnormals::Kept>(m, k)
                : flush_subnormals     ? mfma_work<F16Format, Subnormals::Flushed>(m, k)
                                       : mfma_work<F16Format, Subnormals::Kept>(m, k);
    MfmaLane lane{d, a, b};
    wave_meet("mfma", (static_cast<uint64_t>(m) << 32 | k) * 2 + (format == Format::F16), &lane,
              work);
}

uint32_t perm(uint32_t s0, uint32_t s1, uint32_t selector) { return amd::perm(s0, s1, selector); }

void lds_read_transposed(uint32_t* registers, const void* address) {
    check(address, 8, false);
    TransposeLane lane{registers, static_cast<const unsigned char*>(address)};
    wave_meet("ds_read_b64_tr_b16", 0, &lane, run_transpose);
}

void lds_load16(void* wave_base, const void* global) {
    // M0 holds the base for the whole wave.
    uint64_t base = reinterpret_cast<uint64_t>(wave_base);
    uniform(static_cast<uint32_t>(base));
    uint32_t lane = thread_index() % amd::LANES;
    queue_copy("a load to LDS",
               static_cast<unsigned char*>(wave_base) + amd::lds_load_offset(lane, 16), global,
               16);
    queue_commit();
}

}  // namespace sim
