"""Makes the fixtures of PyTorch's kinds with the libraries themselves.

    python tests/interop/make_dcp.py dcp|hf|megatron|deepspeed OUT

Each element of a tensor is its row-major number n in the whole: n in f32 and int64, n % 256 in
bf16, n % 16 in 8 bits, so that a reader can be checked without this script.
"""

import os
import shutil
import sys
from argparse import Namespace
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp

DTYPES = {
    "f32": (torch.float32, 1 << 24),
    "bf16": (torch.bfloat16, 256),
    "f8_e4m3": (torch.float8_e4m3fn, 16),
    "i64": (torch.int64, 1 << 62),
}


def numbered(shape, kind="f32"):
    dtype, modulus = DTYPES[kind]
    count = torch.Size(shape).numel()
    return (torch.arange(count, dtype=torch.int64) % modulus).to(dtype).reshape(shape)


def in_ranks(world, function, out):
    mp.spawn(rank_main, args=(world, function, str(out)), nprocs=world)


def rank_main(rank, world, function, out):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29877", RANK=str(rank))
    os.environ.update(WORLD_SIZE=str(world), LOCAL_RANK=str(rank), LOCAL_SIZE=str(world))
    dist.init_process_group("gloo", rank=rank, world_size=world)
    function(rank, world, Path(out))
    dist.barrier()
    dist.destroy_process_group()


def sharded_state(world):
    """Rows, columns, uneven ones, both at once; and what needs no shards."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (world,), mesh_dim_names=("dp",))
    shard = lambda tensor, axis: distribute_tensor(tensor, mesh, [Shard(axis)])
    state = {
        "model": {
            "rows": shard(numbered((6, 4)), 0),
            "columns": shard(numbered((4, 9)), 1),
            "uneven": shard(numbered((7, 3)), 0),
            # The last rank has no element of it.
            "short": shard(numbered((2, 3)), 0),
            "replicated": distribute_tensor(numbered((3, 2)), mesh, [Replicate()]),
            "half": shard(numbered((4, 8), "bf16"), 0),
            # Gloo scatters no 8-bit floats.
            "eighth": DTensor.from_local(
                numbered((6, 4), "f8_e4m3").chunk(world)[mesh.get_rank()], mesh, [Shard(0)]
            ),
            "whole": numbered((2, 2), "i64"),
            "scalar": torch.tensor(3.0),
            "empty": torch.zeros(0, 4),
            "part": numbered((4, 6))[1:3],
        },
        "optimizer": {
            "state": {"rows": {"exp_avg": shard(numbered((6, 4)), 0), "step": torch.tensor(7.0)}},
            "param_groups": [{"lr": 0.25, "betas": (0.9, 0.95), "params": ["rows"]}],
        },
        "step": 7,
        "name": "fixture",
        "big": 1 << 70,
        "device": torch.device("cpu"),
    }
    if world == 4:
        grid = init_device_mesh("cpu", (2, 2), mesh_dim_names=("a", "b"))
        state["model"]["grid"] = distribute_tensor(numbered((5, 6)), grid, [Shard(0), Shard(1)])
    return state


def make_dcp(rank, world, out):
    dcp.save(sharded_state(world), checkpoint_id=out)


def make_hf(rank, world, out):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (world,))
    shard = lambda tensor, axis: distribute_tensor(tensor, mesh, [Shard(axis)])
    state = {
        "rows": shard(numbered((6, 4)), 0),
        "columns": shard(numbered((4, 9), "bf16"), 1),
        "uneven": shard(numbered((7, 3)), 0),
        "whole": numbered((2, 2), "i64"),
    }
    writer = dcp.HuggingFaceStorageWriter(str(out), save_distributed=True)
    dcp.save(state, storage_writer=writer)


def make_megatron(rank, world, out):
    """Two tensor-parallel ranks by two expert-parallel ones, of one process each."""
    from megatron.core import dist_checkpointing as mcore
    from megatron.core.dist_checkpointing import ShardedObject, ShardedTensor

    # Its writer waits for a device, whether there is one or not.
    torch.cuda.synchronize = lambda: None
    torch.cuda.current_device = lambda: "cpu"
    tp, ep = rank % 2, rank // 2
    of = ShardedTensor.from_rank_offsets
    whole = numbered((8, 4), "bf16")
    columns = numbered((4, 6))
    # Experts are a leading axis of the whole that no rank's part has.
    experts = numbered((4, 3, 2))
    state = {
        "decoder.layers.self_attention.linear_qkv.weight": of(
            "decoder.layers.self_attention.linear_qkv.weight",
            whole[tp * 4 : tp * 4 + 4].clone(), (0, tp, 2), replica_id=ep,
        ),
        "decoder.layers.self_attention.linear_proj.weight": of(
            "decoder.layers.self_attention.linear_proj.weight",
            columns[:, tp * 3 : tp * 3 + 3].clone(), (1, tp, 2), replica_id=ep,
        ),
        "final_layernorm.weight": of(
            "decoder.final_layernorm.weight", numbered((5,)), replica_id=rank,
        ),
        "_extra_state": ShardedObject(
            "decoder.layers.mlp._extra_state", {"amax": [1.0, 2.0]}, (2,), (tp,), replica_id=ep,
        ),
        "iteration": 7,
        "checkpoint_version": 3.0,
        "args": Namespace(num_layers=2, params_dtype=torch.bfloat16, lr=0.25, shape=Path("/x")),
        "opt_param_scheduler": {"max_lr": 0.25, "num_steps": 7},
    }
    for local in range(2):
        expert = ep * 2 + local
        state[f"expert{local}"] = of(
            "decoder.layers.mlp.experts.linear_fc1.weight", experts[expert].clone(),
            (0, expert, 4), replica_id=tp, prepend_axis_num=1,
        )
    if rank == 0:
        out.mkdir(parents=True, exist_ok=True)
    dist.barrier()
    mcore.save(state, str(out), validate_access_integrity=False)


def make_deepspeed(rank, world, out):
    """ZeRO stage 1: moments are 0.5 n and 0.5 n^2 after a step with gradient n.

    The last row of `first` is padding of a vocabulary, which the conversion takes away.
    """
    import deepspeed

    # An extension for messages within a host, which it would compile.
    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None
    model = torch.nn.Module()
    model.first = torch.nn.Parameter(numbered((5, 3)))
    model.second = torch.nn.Parameter(numbered((7,)))
    model.forward = lambda: sum((p * numbered(p.shape)).sum() for p in model.parameters())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.0, betas=(0.5, 0.5))
    config = {"train_batch_size": world, "zero_optimization": {"stage": 1}}
    config["gradient_clipping"] = 0.0
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    engine.backward(engine())
    engine.step()
    info = {"universal_checkpoint_version": 0.4, "vocabulary_parameter_patterns": ["first"]}
    info["original_vocab_size"] = 4
    state = {"universal_checkpoint_info": info}
    engine.save_checkpoint(str(out), tag="trained", client_state=state)


def to_universal(out):
    """DeepSpeed's own conversion."""
    from deepspeed.checkpoint import ds_to_universal

    ds_to_universal.main(
        Namespace(
            input_folder=str(out / "trained"), output_folder=str(out / "universal"),
            num_extract_workers=1, num_merge_workers=1, keep_temp_folder=False, strict=True,
            inject_missing_state=False,
        )
    )
    for path in (out / "universal").iterdir():
        shutil.move(path, out)
    shutil.rmtree(out / "universal")
    shutil.rmtree(out / "trained")
    for path in out.glob("*.py"):
        path.unlink()


def main():
    kind, out = sys.argv[1], Path(sys.argv[2])
    shutil.rmtree(out, ignore_errors=True)
    if kind == "dcp":
        in_ranks(3, make_dcp, out)
    elif kind == "dcp4":
        in_ranks(4, make_dcp, out)
    elif kind == "hf":
        in_ranks(3, make_hf, out)
    elif kind == "megatron":
        in_ranks(4, make_megatron, out)
    elif kind == "deepspeed":
        os.environ.update(DS_ACCELERATOR="cpu")
        in_ranks(2, make_deepspeed, out)
        to_universal(out)
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
