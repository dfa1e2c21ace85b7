#!/usr/bin/env bash
# Variables of NCCL and RCCL for networks between GPUs, to be sourced: FABRIC=ib . environment.sh
#
# Muster's own transports (shared memory, TCP) read none of them. They are for the vendors'
# libraries: for `nccl-tests` and `rccl-tests` beside Muster, and for `muster bench collectives
# --transport nccl` or `rccl`. What is set already stays as it is. The values are starting points
# from vendors' documents; measure with `muster bench compare` before and after each.

# put NAME VALUE: exports NAME, unless it is set.
put() { export "$1=${!1-$2}"; }

# For any network.
put NCCL_DEBUG WARN                  # says what failed; INFO also says which devices were chosen

case ${FABRIC:-none} in
none) ;;                             # one machine, or plain Ethernet without RDMA

ib | roce)                           # InfiniBand, or RDMA over Ethernet, with mlx5 adapters
    put NCCL_IB_HCA mlx5             # adapters by prefix; leave out where all are for GPUs
    put NCCL_IB_QPS_PER_CONNECTION 1 # more than 1 where one flow does not fill several paths
    put NCCL_IB_TIMEOUT 22           # 4.2 s per try; leave out on one switch
    put NCCL_IB_RETRY_CNT 7          # the most; leave out with the timeout
    if [[ $FABRIC == roce ]]; then
        put NCCL_IB_GID_INDEX 3      # the RoCE v2 address; `show_gids` tells; never on InfiniBand
        put NCCL_IB_TC 106           # class of traffic with flow control; as the switches have it
    fi
    ;;

pollara)                             # AMD Pensando Pollara 400 beside MI300X or MI355X, RCCL
    put NCCL_NET_PLUGIN librccl-anp.so # AMD's network plugin; `none` where RCCL has it built in
    put NCCL_IB_GID_INDEX 1          # the address of RoCE v2 on these adapters
    put NCCL_IB_HCA ionic            # adapters by prefix; leave out where all are for GPUs
    put NCCL_IB_TC 41                # class of data; as the switches have it (104 elsewhere)
    put NCCL_IB_FIFO_TC 185          # class of control messages; as the switches (192 elsewhere)
    put NCCL_IB_QPS_PER_CONNECTION 1 # the adapter spreads one flow over its paths by itself
    put NCCL_IB_USE_INLINE 1         # small control messages inside their work request
    put NCCL_MAX_P2P_CHANNELS 56     # as many as an MI300X has channels; leave out on others
    put NCCL_DMABUF_ENABLE 0         # registers GPU memory by the peer module; 1 without the module
    put NCCL_GDR_FLUSH_DISABLE 1     # no read-back after a write; leave out without this adapter
    put RCCL_GDR_FLUSH_GPU_MEM_NO_RELAXED_ORDERING 0 # allows relaxed order of that memory
    put NET_OPTIONAL_RECV_COMPLETION 1 # fewer completions of receives; leave out without the plugin
    ;;

*)
    echo "environment.sh: FABRIC=$FABRIC; use none, ib, roce or pollara" >&2
    return 2 2>/dev/null || exit 2
    ;;
esac

# For AMD GPUs on one machine or several.
if [[ -e /dev/kfd ]]; then
    put HIP_FORCE_DEV_KERNARG 1      # arguments of kernels in GPU memory: faster small launches
    put HSA_NO_SCRATCH_RECLAIM 1     # keeps scratch memory: faster small messages; costs memory
    put NCCL_IGNORE_CPU_AFFINITY 1   # threads by RCCL's own choice; leave out where tasks are bound
fi
