#!/usr/bin/env bash
# Builds simulated modules: build.sh OUT_DIR [FAMILY|SOURCE] [ARCH]. Without family or arch, all of
# them. A SOURCE is the path of a file that defines kernels; its module is called after it.
set -euo pipefail
out=$1
families=${2:-gemm newton_schulz ordered_sum optimizer memory}
archs=${3:-sm_90a sm_80 gfx90a gfx942 gfx950}
sim=$(cd "$(dirname "$0")" && pwd)
cxx=${MUSTER_CXX:-g++}
common=(-std=c++17 -O2 -g1 -fPIC -fvisibility=hidden -fno-exceptions -fno-rtti -ffp-contract=off
    -Wall -Wextra)
# The kernels alone are instrumented; the hooks that this calls are in hooks.cpp.
kernel=(-fsanitize=thread -Wno-unknown-pragmas -Wno-psabi -Wno-unused-function
    -Wno-maybe-uninitialized -x c++)
link=(-shared -Wl,-Bsymbolic,--no-undefined,--version-script="$sim/exports.map" -static-libstdc++
    -static-libgcc)
# Objects of the runtime, kept while compiler, flags and sources stay the same.
runtime=${MUSTER_SIM_RUNTIME:-$out/runtime}
mkdir -p "$out" "$runtime"
exec 9>"$runtime/lock"
flock 9
stamp=$("$cxx" --version; echo "${common[@]}"; cat "$sim"/*.cpp "$sim"/*.h)
stamp=$(sha256sum <<<"$stamp")
if [[ $(cat "$runtime/stamp" 2>/dev/null) != "$stamp" ]]; then
    rm -f "$runtime"/*.o
    for source in "$sim"/*.cpp; do
        "$cxx" "${common[@]}" -c "$source" -o "$runtime/$(basename "$source" .cpp).o"
    done
    echo "$stamp" >"$runtime/stamp"
fi
flock -u 9

define() {
    case $1 in
        sm_90a) echo -DDEV_SM90 ;;
        sm_80) echo -DDEV_SM80 ;;
        gfx*) echo "-DDEV_${1^^}" ;;
        *) echo "unknown architecture $1" >&2; exit 2 ;;
    esac
}

for family in $families; do
    for arch in $archs; do
        case $arch in
            sm_*) source=$sim/../$family/$family.cu ;;
            *) source=$sim/../$family/$family.hip ;;
        esac
        if [[ -f $family ]]; then source=$family; fi
        name=$(basename "${family%.*}").sim-$arch
        "$cxx" "${common[@]}" "${kernel[@]}" -DDEV_SIM "$(define "$arch")" \
            -c "$source" -o "$out/$name.o"
        "$cxx" "${link[@]}" "$out/$name.o" "$runtime"/*.o -o "$out/$name.so"
        rm "$out/$name.o"
    done
done
