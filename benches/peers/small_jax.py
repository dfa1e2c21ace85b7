"""A 4-layer transformer trained by JAX on the CPU: the peer of `benches/cpu/small.yaml`.

d 256, 4 layers, 4 heads, MLP 4d (GELU), sequence 128, batch 8, vocabulary 4096, tied embedding,
learned positions, LayerNorm, f32, AdamW. Prints the median step time and tokens per second.

    python3 benches/peers/small_jax.py --steps 10
"""

import argparse
import functools
import statistics
import time

import jax
import jax.numpy as jnp

V, T, B, L, H, D = 4096, 128, 8, 4, 4, 256


def init(key):
    keys = iter(jax.random.split(key, 4 * L + 2))
    n = lambda *shape: 0.02 * jax.random.normal(next(keys), shape, jnp.float32)
    ln = lambda: (jnp.ones(D), jnp.zeros(D))
    layer = lambda: dict(
        ln1=ln(), ln2=ln(),
        qkv=n(D, 3 * D), qkv_b=jnp.zeros(3 * D), out=n(D, D), out_b=jnp.zeros(D),
        up=n(D, 4 * D), up_b=jnp.zeros(4 * D), down=n(4 * D, D), down_b=jnp.zeros(D),
    )
    return dict(wte=n(V, D), wpe=n(T, D), layers=[layer() for _ in range(L)], lnf=ln())


def norm(x, p):
    mean = x.mean(-1, keepdims=True)
    var = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / jnp.sqrt(var + 1e-5) * p[0] + p[1]


def loss(params, tokens, targets):
    x = params["wte"][tokens] + params["wpe"]
    mask = jnp.tril(jnp.ones((T, T), bool))
    for p in params["layers"]:
        q, k, v = jnp.split(norm(x, p["ln1"]) @ p["qkv"] + p["qkv_b"], 3, -1)
        q, k, v = (y.reshape(B, T, H, D // H).transpose(0, 2, 1, 3) for y in (q, k, v))
        s = jnp.where(mask, q @ k.swapaxes(-1, -2) / (D // H) ** 0.5, -jnp.inf)
        y = (jax.nn.softmax(s, -1) @ v).transpose(0, 2, 1, 3).reshape(B, T, D)
        x = x + y @ p["out"] + p["out_b"]
        h = jax.nn.gelu(norm(x, p["ln2"]) @ p["up"] + p["up_b"], approximate=True)
        x = x + h @ p["down"] + p["down_b"]
    logits = norm(x, params["lnf"]) @ params["wte"].T
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)
    return -picked.mean()


@functools.partial(jax.jit, donate_argnums=(0, 1, 2))
def step(params, m, v, t, tokens, targets):
    value, g = jax.value_and_grad(loss)(params, tokens, targets)
    norm2 = jnp.sqrt(sum(jnp.sum(x * x) for x in jax.tree.leaves(g)))
    g = jax.tree.map(lambda x: x * jnp.minimum(1.0, 1.0 / norm2), g)
    m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, g)
    v = jax.tree.map(lambda v, g: 0.95 * v + 0.05 * g * g, v, g)

    def update(p, m, v):
        return p - 3e-4 * (m / (1 - 0.9**t) / (jnp.sqrt(v / (1 - 0.95**t)) + 1e-8) + 0.1 * p)

    return jax.tree.map(update, params, m, v), m, v, value


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=10)
    steps = parser.parse_args().steps
    params = init(jax.random.key(0))
    m = jax.tree.map(jnp.zeros_like, params)
    v = jax.tree.map(jnp.zeros_like, params)
    times = []
    for t in range(1, steps + 4):
        data = jax.random.randint(jax.random.key(t), (B, T + 1), 0, V)
        data.block_until_ready()
        start = time.perf_counter()
        params, m, v, value = step(params, m, v, float(t), data[:, :-1], data[:, 1:])
        value.block_until_ready()
        if t > 3:
            times.append(time.perf_counter() - start)
    median = statistics.median(times)
    speed = f"median {median * 1e3:.0f} ms, {B * T / median:.0f} tok/s"
    print(f"jax {jax.__version__} loss {float(value):.4f}: {speed}")


if __name__ == "__main__":
    main()
