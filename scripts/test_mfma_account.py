#!/usr/bin/env python3
"""The account finds the right loop, counts what is in it, and its check finds what it is for."""

import unittest

import mfma_account as mfma

MFMA = "v_mfma_f32_16x16x16_bf16"


def program(*lines):
    """Instructions at addresses 0, 4, …, as "mnemonic" or "mnemonic label"; "label:" names the
    next."""
    labels, code = {}, []
    for line in lines:
        if line.endswith(":"):
            labels[line[:-1]] = 4 * len(code)
        else:
            code.append(line.split())
    return [(4 * i, words[0], "", labels[words[1]] if len(words) > 1 else None)
            for i, words in enumerate(code)]


# A main loop whose rare part (the next unit) lies behind it, in a loop over units.
KERNEL = program(
    "s_load_dword", "unit:", "v_mov_b32_e32",
    "loop:", "ds_read_b128", "ds_read_b64", MFMA, MFMA,
    "s_cbranch_scc1 rare", "back:", "global_load_dwordx4", "v_add_u32_e32",
    "s_waitcnt", "s_barrier", MFMA, "ds_write_b128", "s_cbranch_scc0 loop",
    "global_store_dwordx2", "s_cbranch_scc1 unit", "s_endpgm",
    "rare:", "s_load_dword", "s_mul_i32", "s_branch back")
FACTS = {
    "vgpr_count": "128", "max_flat_workgroup_size": "256", "group_segment_fixed_size": "0",
    "private_segment_fixed_size": "0", "vgpr_spill_count": "0", "sgpr_spill_count": "0",
}


class Account(unittest.TestCase):
    def test_the_loop_leaves_out_what_is_rare_and_what_is_around_it(self):
        names = [instruction[1] for instruction in mfma.steady_loop(KERNEL)]
        self.assertEqual(names, [
            "ds_read_b128", "ds_read_b64", MFMA, MFMA, "s_cbranch_scc1", "global_load_dwordx4",
            "v_add_u32_e32", "s_waitcnt", "s_barrier", MFMA, "ds_write_b128", "s_cbranch_scc0"])

    def test_code_without_a_loop_has_none(self):
        self.assertIsNone(mfma.steady_loop(program(MFMA, "s_endpgm")))
        self.assertIsNone(mfma.steady_loop(program("s_nop", "s_endpgm")))

    def test_cycles_follow_from_what_the_chip_does_in_one(self):
        account = mfma.account("gemm_nt_bf16_128", KERNEL, FACTS, "gfx942")
        self.assertEqual(account["matrix_cycles_per_wave"], 3 * 16)
        self.assertEqual(account["other_issue_cycles_per_wave"], 9 * 4)
        self.assertEqual(account["flop_per_wave"], 3 * 2 * 16 ** 3)
        # 32 KiB of LDS a block: two blocks of four waves.
        self.assertEqual(account["waves_per_simd"], 2)
        cycles = account["cycles_per_compute_unit"]
        self.assertEqual(cycles["matrix"], 2 * 48)
        self.assertEqual(cycles["vector issue"], 2 * 4 * 4)
        self.assertEqual(cycles["lds"], 8 * (1024 + 512 + 1024) / 128)
        self.assertEqual(cycles["memory"], 8 * 1024 / 64)
        self.assertEqual(account["bound"], 96 / 160)
        # 2048 floating-point operations a cycle and compute unit, as the vendor says.
        self.assertEqual(account["flop_per_wave"] * 4 / account["matrix_cycles_per_wave"], 2048)

    def test_registers_limit_the_waves(self):
        many = dict(FACTS, vgpr_count="260")
        account = mfma.account("gemm_nt_bf16_128", KERNEL, many, "gfx942")
        self.assertEqual(account["waves_per_simd"], 1)


class Check(unittest.TestCase):
    def findings(self, code=KERNEL, arch="gfx942", name="gemm_nt_bf16_256", **facts):
        return mfma.findings(name, dict(FACTS, **facts), code, arch)

    def test_a_sound_kernel_passes(self):
        self.assertEqual(self.findings(), [])

    def test_spills_and_scratch_memory(self):
        for fact in ("vgpr_spill_count", "sgpr_spill_count", "private_segment_fixed_size"):
            self.assertEqual(self.findings(**{fact: "8"}), [f"{fact} is 8"])

    def test_too_much_lds(self):
        found = self.findings(group_segment_fixed_size="65540")
        self.assertEqual(found, ["65540 bytes of LDS, the limit is 65536"])
        self.assertEqual(self.findings(arch="gfx950", group_segment_fixed_size="65540"), [])

    def test_a_product_without_matrix_instructions(self):
        plain = program("loop:", "v_fma_f32", "s_cbranch_scc0 loop", "s_endpgm")
        self.assertEqual(self.findings(code=plain), ["no v_mfma"])
        self.assertEqual(self.findings(code=plain, name="ns_norm"), [])

    def test_flat_instructions_in_the_loop(self):
        flat = program("loop:", "flat_load_dwordx4", MFMA, "s_cbranch_scc0 loop", "s_endpgm")
        self.assertEqual(self.findings(code=flat), ["flat memory instructions in the main loop"])


if __name__ == "__main__":
    unittest.main()
