"""Loads what the example dcp_sample wrote, with PyTorch, and compares each byte.

    cargo run --release -p interop --example dcp_sample OUT
    python tests/interop/check_dcp.py OUT
"""

import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save


def pattern(tensor):
    """Byte k is (31 k + 7) mod 251; of bools, k mod 2. In blocks, as there may be billions."""
    size = tensor.numel() * tensor.element_size()
    for first in range(0, size, 1 << 24):
        k = torch.arange(first, min(size, first + (1 << 24)), dtype=torch.int64)
        yield first, k % 2 if tensor.dtype == torch.bool else (31 * k + 7) % 251


def is_pattern(tensor):
    found = tensor.reshape(-1).view(torch.uint8)
    return all(
        torch.equal(found[first : first + len(part)], part.to(torch.uint8))
        for first, part in pattern(tensor)
    )


def check(kind, tensors):
    wrong = [name for name, tensor in tensors.items() if not is_pattern(tensor)]
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    types = len({tensor.dtype for tensor in tensors.values()})
    print(f"{kind}: {len(tensors)} tensors, {types} types, {total} bytes; wrong: {wrong}")
    return not wrong


def main():
    path = Path(sys.argv[1])
    print(f"torch {torch.__version__}")
    metadata = dcp.FileSystemReader(path).read_metadata()
    state = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in metadata.state_dict_metadata.items()
    }
    dcp.load(state, checkpoint_id=path)
    is_right = check("torch.distributed.checkpoint.load", state)
    with tempfile.TemporaryDirectory(dir=path.parent) as temporary:
        file = Path(temporary) / "whole.pt"
        dcp_to_torch_save(path, file)
        whole = torch.load(file, weights_only=True)
    is_right &= whole.keys() == state.keys()
    is_right &= all(whole[name].shape == state[name].shape for name in state)
    is_right &= check("dcp_to_torch_save", whole)
    sys.exit(0 if is_right else 1)


if __name__ == "__main__":
    main()
