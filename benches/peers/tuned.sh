#!/usr/bin/env bash
# Runs a peer at its best: threads pinned, and an allocator that keeps what it has, in huge pages.
#
#   benches/peers/tuned.sh glibc|jemalloc|tcmalloc|list THREADS COMMAND…
#
# `list` prints the allocators that are here (apt-get install libjemalloc2 libtcmalloc-minimal4).
# Tensors of a step are freed and allocated again at every step: where the allocator gives them
# back to the kernel in between, each step pays for new pages. Huge pages are asked for, which
# needs `madvise` or `always` in /sys/kernel/mm/transparent_hugepage/enabled; tcmalloc has them
# with `always` only.
set -euo pipefail

library() {
  find /usr/lib /usr/local/lib -name "$1" 2>/dev/null | sort | head -1
}
jemalloc=$(library 'libjemalloc.so.2')
tcmalloc=$(library 'libtcmalloc_minimal.so.4')

allocator=$1
if [ "$allocator" = list ]; then
  echo glibc
  [ -z "$jemalloc" ] || echo jemalloc
  [ -z "$tcmalloc" ] || echo tcmalloc
  exit
fi
threads=$2
shift 2

case $allocator in
  glibc)
    # Never mmap, which large blocks would be given back by; never trim.
    tunables=(mmap_max=0 trim_threshold=68719476736 top_pad=268435456 hugetlb=1)
    GLIBC_TUNABLES=$(printf ':glibc.malloc.%s' "${tunables[@]}")
    export GLIBC_TUNABLES=${GLIBC_TUNABLES:1}
    ;;
  jemalloc)
    export LD_PRELOAD=$jemalloc
    export MALLOC_CONF=thp:always,metadata_thp:always,dirty_decay_ms:-1,muzzy_decay_ms:-1
    ;;
  tcmalloc)
    export LD_PRELOAD=$tcmalloc
    export TCMALLOC_RELEASE_RATE=0 TCMALLOC_MAX_TOTAL_THREAD_CACHE_BYTES=1073741824
    ;;
  *)
    echo "no allocator $allocator: glibc, jemalloc or tcmalloc" >&2
    exit 2
    ;;
esac

# OpenMP of GNU and of Intel; rayon.
export OMP_NUM_THREADS=$threads MKL_NUM_THREADS=$threads RAYON_NUM_THREADS=$threads
export OMP_PROC_BIND=close OMP_PLACES=cores OMP_DYNAMIC=false
export KMP_AFFINITY=granularity=fine,compact,1,0 KMP_BLOCKTIME=1
exec "$@"
