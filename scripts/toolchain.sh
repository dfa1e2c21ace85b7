#!/usr/bin/env bash
# Installs the compilers of the device kernels on a Debian machine without a GPU: nvcc from PyPI
# wheels into DIR (default target/toolchain), clang-22, lld-22, llvm-22 and g++ by apt. What is
# there already is left alone, so a second run takes a second. Writes DIR/env, which
# crates/kernels/build.rs reads (MUSTER_TOOLCHAIN names another DIR) and a shell may source.
#
#     scripts/toolchain.sh [DIR]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

dir=${1:-${MUSTER_TOOLCHAIN:-target/toolchain}}
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
start=$SECONDS

# The five that nvcc consists of, then the two that read its output; these have no 13.0 of their
# own.
readonly WHEELS=(
    nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88
    nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85
    nvidia-cuda-cuobjdump==13.2.86 nvidia-cuda-nvdisasm==13.2.86
)

say() { printf 'toolchain: %s\n' "$*"; }

apt_install() {
    local missing=() package
    for package; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' ||
            missing+=("$package")
    done
    ((${#missing[@]})) || return 0
    say "installing ${missing[*]} (apt)"
    local as=()
    ((EUID)) && as=(sudo)
    {
        "${as[@]}" apt-get update -qq
        "${as[@]}" env DEBIAN_FRONTEND=noninteractive \
            apt-get install -y -qq --no-install-recommends "${missing[@]}"
    } >"$dir/apt.log" 2>&1 || { tail -n 20 "$dir/apt.log" >&2; return 1; }
}

# CUDA's directory inside the virtual environment, wherever its Python puts it.
cuda_home() { find "$dir/venv/lib" -type d -path '*/nvidia/cu13' 2>/dev/null | head -n 1; }

install_nvcc() {
    local stamp=$dir/wheels.txt
    if [[ ! -x $(cuda_home)/bin/nvcc || $(cat "$stamp" 2>/dev/null) != "${WHEELS[*]}" ]]; then
        python3 -c 'import venv, ensurepip' 2>/dev/null || apt_install python3-venv
        say "installing nvcc 13.0 (PyPI, 109 MB)"
        rm -rf "$dir/venv"
        python3 -m venv "$dir/venv"
        "$dir/venv/bin/pip" install --quiet --no-deps --disable-pip-version-check "${WHEELS[@]}"
        ln -s lib "$(cuda_home)/lib64"
        echo "${WHEELS[*]}" >"$stamp"
    fi
}

# A compiler is there when it compiles.
check() {
    local scratch status=0
    scratch=$(mktemp -d)
    echo 'extern "C" __global__ void k(float* p) { p[0] = 1; }' >"$scratch/k.cu"
    echo 'extern "C" __attribute__((global)) void k(float* p) { p[0] = 1; }' >"$scratch/k.hip"
    "$MUSTER_NVCC" -arch=sm_90a -cubin -o "$scratch/k.cubin" "$scratch/k.cu" &&
        "$MUSTER_HIP_CLANG" -x hip --offload-device-only --no-gpu-bundle-output \
            --offload-arch=gfx942 -nogpuinc -nogpulib -o "$scratch/k.hsaco" "$scratch/k.hip" &&
        "$MUSTER_CXX" -x c++ -fsyntax-only - <<<'int main() {}' || status=$?
    rm -rf "$scratch"
    return $status
}

apt_install g++ clang-22 lld-22 llvm-22
install_nvcc

home=$(cuda_home)
cat >"$dir/env.part" <<END
MUSTER_NVCC=$home/bin/nvcc
MUSTER_HIP_CLANG=$(command -v clang++-22)
MUSTER_CXX=$(command -v g++)
MUSTER_CUOBJDUMP=$home/bin/cuobjdump
MUSTER_LLVM_OBJDUMP=$(command -v llvm-objdump-22)
MUSTER_LLVM_READELF=$(command -v llvm-readelf-22)
END
# shellcheck disable=SC1091
source "$dir/env.part"
check
if ! cmp -s "$dir/env.part" "$dir/env"; then
    mv "$dir/env.part" "$dir/env"
    # Cargo cannot watch a file that was not there; this makes it look again.
    touch crates/kernels/build.rs
fi
rm -f "$dir/env.part"

say "$("$MUSTER_NVCC" --version | grep release)"
say "$("$MUSTER_HIP_CLANG" --version | head -n 1)"
say "$("$MUSTER_CXX" --version | head -n 1)"
say "$dir/env names them; $((SECONDS - start)) s"
