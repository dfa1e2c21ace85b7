"""GPT-2 124M trained by PyTorch on the CPU: the peer of `benches/cpu/gpt2-124m.yaml`.

Same shape, batch, type and optimizer as there: batch 4 x 64, f32, AdamW with clipping, one
step per iteration, random tokens. Prints the median step time and tokens per second.

`--mode` is `eager`, `compile` (torch.compile of the forward and backward passes, with fixed
shapes), or `max-autotune` (the same, choosing among product kernels by timing them). With `--type
bf16` products run under autocast to bf16, which is less work than f32. The allocator and OpenMP
are set by whoever starts this: see tuned.sh.

    benches/peers/tuned.sh glibc 1 python3 benches/peers/gpt2_torch.py --threads 1 --steps 6
"""

import argparse
import contextlib
import statistics
import time

import torch
import torch.nn.functional as F
from torch import nn

V, T_MAX, L, H, D = 50257, 1024, 12, 12, 768
# The allocator takes several steps to settle.
WARM_UP = 5


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(D), nn.LayerNorm(D)
        self.c_attn, self.attn_proj = nn.Linear(D, 3 * D), nn.Linear(D, D)
        self.c_fc, self.mlp_proj = nn.Linear(D, 4 * D), nn.Linear(4 * D, D)

    def forward(self, x):
        b, t, _ = x.shape
        q, k, v = self.c_attn(self.ln_1(x)).split(D, dim=2)
        q, k, v = (y.view(b, t, H, D // H).transpose(1, 2) for y in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attn_proj(y.transpose(1, 2).reshape(b, t, D))
        return x + self.mlp_proj(F.gelu(self.c_fc(self.ln_2(x)), approximate="tanh"))


class Gpt2(nn.Module):
    def __init__(self):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(V, D), nn.Embedding(T_MAX, D)
        self.blocks = nn.ModuleList(Block() for _ in range(L))
        self.ln_f = nn.LayerNorm(D)
        self.head = nn.Linear(D, V, bias=False)
        self.head.weight = self.wte.weight
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=0.02)

    def forward(self, tokens, targets):
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.ln_f(x))
        return F.cross_entropy(logits.view(-1, V), targets.reshape(-1))


def compiled(model, mode):
    if mode == "eager":
        return model
    return torch.compile(
        model, fullgraph=True, dynamic=False, mode=None if mode == "compile" else mode
    )


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--batch", type=int, default=4)
    p.add_argument("--seq", type=int, default=64)
    p.add_argument("--steps", type=int, default=6)
    p.add_argument("--mode", choices=["eager", "compile", "max-autotune"], default="eager")
    p.add_argument("--type", choices=["f32", "bf16"], default="f32")
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    torch.manual_seed(0)
    model = Gpt2()
    count = sum(p.numel() for p in model.parameters())
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    forward = compiled(model, a.mode)
    bf16 = torch.autocast("cpu", torch.bfloat16)
    products = contextlib.nullcontext() if a.type == "f32" else bf16
    times = []
    for step in range(a.steps + WARM_UP):
        data = torch.randint(0, V, (a.batch, a.seq + 1))
        start = time.perf_counter()
        with products:
            loss = forward(data[:, :-1], data[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds = time.perf_counter() - start
        print(f"step {step} loss {loss.item():.4f} {seconds * 1e3:.0f} ms", flush=True)
        if step >= WARM_UP:
            times.append(seconds)
    median = statistics.median(times)
    tokens = a.batch * a.seq
    print(f"{a.threads} threads, {count} parameters")
    what = f"torch {torch.__version__} {a.mode} {a.type}"
    print(f"{what}: median {median * 1e3:.0f} ms, {tokens / median:.1f} tok/s")


if __name__ == "__main__":
    main()
