#!/usr/bin/env python3
"""The check finds what it is for: kernels doctored in one way each, compiled and looked at.

    scripts/test_check_kernels.py          needs what scripts/toolchain.sh installs
"""

import pathlib
import subprocess
import tempfile
import unittest

import check_kernels as check

CUDA_HEAD = '#include <stdint.h>\nextern "C" __global__ void __launch_bounds__(256) '
HIP_HEAD = 'typedef float f4 __attribute__((ext_vector_type(4)));\n' \
           'typedef short s4 __attribute__((ext_vector_type(4)));\n' \
           'extern "C" __attribute__((global)) void '
# A plain product of one tile: what a sound gemm kernel has at its heart.
CUDA_MMA = """gemm_x(float* p, const uint64_t* q) {
    float a = p[0], b = p[1], c = p[2], d = p[3];
    uint64_t k = q[0];
#if __CUDA_ARCH__ == 900
    FENCE
    asm volatile("wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0,%1,%2,%3},"
                 " %4, %4, 1, 1, 1, 0, 0;" : "+f"(a), "+f"(b), "+f"(c), "+f"(d) : "l"(k));
    asm volatile("wgmma.commit_group.sync.aligned;");
    asm volatile("wgmma.wait_group.sync.aligned 0;" : "+f"(a), "+f"(b), "+f"(c), "+f"(d));
#else
    uint32_t r = k;
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},"
                 "{%4,%4,%4,%4},{%4,%4},{%0,%1,%2,%3};"
                 : "+f"(a), "+f"(b), "+f"(c), "+f"(d) : "r"(r));
#endif
    p[0] = a, p[1] = b, p[2] = c, p[3] = d;
}"""
FENCE = 'asm volatile("wgmma.fence.sync.aligned;" ::: "memory");'
CUDA_PLAIN = "gemm_x(float* p, const uint32_t* q) { p[0] = q[0]; }"
# An array that is indexed by data lives in local memory.
CUDA_LOCAL = """norm_x(float* p, const uint32_t* q) {
    float a[64];
    for (int i = 0; i < 64; i++) a[q[i] % 64] = p[i];
    for (int i = 0; i < 64; i++) p[i] = a[q[i + 64] % 64];
}"""
HIP_MFMA = """gemm_x(f4* p, s4* q) {
    *p = __builtin_amdgcn_mfma_f32_16x16x16bf16_1k(q[0], q[1], *p, 0, 0, 0);
}"""
HIP_PLAIN = "gemm_x(float* p) { p[0] += 1; }"
HIP_SPILL = """__attribute__((amdgpu_num_vgpr(16))) norm_x(float* p) {
    float a[48];
    for (int i = 0; i < 48; i++) a[i] = p[i * 64];
    for (int i = 0; i < 48; i++) for (int j = 0; j < 48; j++) a[i] += a[j] * a[47 - j];
    for (int i = 0; i < 48; i++) p[i * 64] = a[i];
}"""
HIP_SHARED = """norm_x(float* p, int i) {
    static __attribute__((shared)) float s[24 * 1024];
    s[i] = p[0]; p[1] = s[i + 1];
}"""

# What a compiler makes one instruction of, unless it is told not to.
CUDA_FUSED = "optimizer_apply(float* p, const uint32_t*) { p[0] = p[1] * p[2] + p[3]; }"
HIP_FUSED = "ordered_sum_f32(float* p) { p[0] = __builtin_fmaf(p[1], p[2], p[3]); }"


class Check(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.dir = pathlib.Path(directory.name)

    def cuda(self, body, archs=("80", "90a", "100a")):
        source, image = self.dir / "k.cu", self.dir / "k.fatbin"
        source.write_text(CUDA_HEAD + body)
        flags = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
        flags += ["-gencode=arch=compute_80,code=compute_80"]
        done = subprocess.run([check.tool("MUSTER_NVCC", "nvcc"), "-std=c++17", "-fatbin", *flags,
                               "-o", image, source], check=True, capture_output=True, text=True)
        image.with_name("k.fatbin.log").write_text(done.stdout + done.stderr)
        return check.check_image(image)

    def hip(self, body, arch="gfx942", name=None):
        source, image = self.dir / "k.hip", self.dir / f"k.{name or arch}.hsaco"
        source.write_text(HIP_HEAD + body)
        clang = check.tool("MUSTER_HIP_CLANG", "clang++-22")
        subprocess.run([clang, "-x", "hip", "--offload-device-only", "--no-gpu-bundle-output",
                        f"--offload-arch={arch}", "-nogpuinc", "-nogpulib", "-O3", "-o", image,
                        source], check=True, capture_output=True, text=True)
        return check.check_image(image)

    def assert_finds(self, wrong, name, *texts):
        for text in texts:
            self.assertTrue(any(name in of and text in said for of, said in wrong), (text, wrong))

    def test_sound_kernels_pass(self):
        kernels, wrong = self.cuda(CUDA_MMA.replace("FENCE", FENCE))
        self.assertEqual(wrong, [])
        self.assertEqual({kernel.arch: kernel.matrix > 0 for kernel in kernels},
                         {"sm_80": True, "sm_90a": True, "sm_100a": True, "ptx_80": True})
        for arch in "gfx90a", "gfx942", "gfx950":
            kernels, wrong = self.hip(HIP_MFMA, arch)
            self.assertEqual((wrong, kernels[0].name, kernels[0].matrix), ([], "gemm_x", 1))

    def test_a_product_without_matrix_instructions(self):
        _, wrong = self.cuda(CUDA_PLAIN)
        self.assert_finds(wrong, "sm_90a gemm_x", "no HGMMA")
        self.assert_finds(wrong, "sm_80 gemm_x", "no HMMA")
        self.assert_finds(wrong, "ptx_80 gemm_x", "no mma.sync")
        _, wrong = self.hip(HIP_PLAIN)
        self.assert_finds(wrong, "gfx942 gemm_x", "no v_mfma")

    def test_fused_multiply_adds_where_each_is_to_be_rounded(self):
        _, wrong = self.cuda(CUDA_FUSED)
        for arch in "sm_80", "sm_90a", "sm_100a", "ptx_80":
            self.assert_finds(wrong, f"{arch} optimizer_apply", "1 fused multiply-adds")
        _, wrong = self.hip(HIP_FUSED)
        self.assert_finds(wrong, "gfx942 ordered_sum_f32", "1 fused multiply-adds")

    def test_local_memory_and_spills(self):
        _, wrong = self.cuda(CUDA_LOCAL)
        self.assert_finds(wrong, "sm_90a norm_x", "local memory: 256 B")
        _, wrong = self.hip(HIP_SPILL)
        self.assert_finds(wrong, "gfx942 norm_x", "VGPRs")

    def test_more_shared_memory_than_there_is(self):
        _, wrong = self.hip(HIP_SHARED, "gfx950")
        self.assertEqual(wrong, [], "96 KiB fit here")
        kernel = check.Kernel("k", "gfx942", "norm_x", 32, 96 * 1024, "", 0, 0)
        self.assertEqual(list(check.findings(kernel)),
                         ["98304 B of shared memory, a block of gfx942 has 65536"])

    def test_code_for_another_architecture(self):
        _, wrong = self.hip(HIP_MFMA, "gfx90a", name="gfx942")
        self.assert_finds(wrong, "k.gfx942.hsaco", "gfx90a, not for gfx942")
        _, wrong = self.cuda(CUDA_MMA.replace("FENCE", FENCE), archs=("80", "90a"))
        self.assert_finds(wrong, "k.fatbin", "sm_100a")

    def test_remarks_of_ptxas(self):
        """Here ptxas has to put the fence that the source lacks, and says so."""
        _, wrong = self.cuda(CUDA_MMA.replace("FENCE", ""))
        self.assert_finds(wrong, "k.fatbin", "(C75")


if __name__ == "__main__":
    unittest.main()
