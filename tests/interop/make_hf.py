"""Makes small published models of every family, with their logits, by Hugging Face's transformers.

    python tests/interop/make_hf.py tests/fixtures/interop/hf

Made with transformers 5.24.0 and torch 2.15.0 on CPUs. Each directory holds a model as
save_pretrained writes it, random weights, and `logits.safetensors`: `tokens` [T] i64 and `logits`
[T, V] f32 of that model in f32.
"""

import json
import pathlib
import sys
import tempfile

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

VOCABULARY = 96
COMMON = dict(
    vocab_size=VOCABULARY,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    initializer_range=0.2,
    bos_token_id=0,
    eos_token_id=0,
)

MODELS = {
    "gpt2": (
        GPT2LMHeadModel,
        GPT2Config(
            vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64,
            initializer_range=0.2, bos_token_id=0, eos_token_id=0,
        ),
    ),
    "llama": (LlamaForCausalLM, LlamaConfig(intermediate_size=48, rope_theta=500000.0, **COMMON)),
    "llama-tied": (
        LlamaForCausalLM,
        LlamaConfig(intermediate_size=48, tie_word_embeddings=True, head_dim=16,
                    attention_bias=True, **COMMON),
    ),
    "qwen3_moe": (
        Qwen3MoeForCausalLM,
        Qwen3MoeConfig(intermediate_size=48, moe_intermediate_size=24, num_experts=6,
                       num_experts_per_tok=2, norm_topk_prob=True, head_dim=16, **COMMON),
    ),
    "olmoe": (
        OlmoeForCausalLM,
        OlmoeConfig(intermediate_size=24, num_experts=6, num_experts_per_tok=2,
                    **{**COMMON, "num_key_value_heads": 4}),
    ),
    "mixtral": (
        MixtralForCausalLM,
        MixtralConfig(intermediate_size=24, num_local_experts=4, num_experts_per_tok=2,
                      sliding_window=None, **COMMON),
    ),
    "deepseek_v3": (
        DeepseekV3ForCausalLM,
        DeepseekV3Config(intermediate_size=48, moe_intermediate_size=24, n_routed_experts=8,
                         num_experts_per_tok=2, n_group=4, topk_group=2, n_shared_experts=1,
                         first_k_dense_replace=1, q_lora_rank=24, kv_lora_rank=16,
                         qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8,
                         num_nextn_predict_layers=0,
                         **{**COMMON, "num_key_value_heads": 4}),
    ),
    # Frequencies that are stretched: of 8 planes one stays, one blends, six turn slower.
    "llama-scaled": (
        LlamaForCausalLM,
        LlamaConfig(intermediate_size=48, head_dim=16, rope_theta=10000.0,
                    rope_scaling={"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0,
                                  "high_freq_factor": 4.0,
                                  "original_max_position_embeddings": 32},
                    **{**COMMON, "max_position_embeddings": 128}),
    ),
    # Of 4 planes one stays and one blends; queries, keys and scores have factors besides.
    "deepseek_v3-yarn": (
        DeepseekV3ForCausalLM,
        DeepseekV3Config(intermediate_size=48, moe_intermediate_size=24, n_routed_experts=4,
                         num_experts_per_tok=2, n_group=1, topk_group=1, n_shared_experts=1,
                         first_k_dense_replace=1, q_lora_rank=24, kv_lora_rank=16,
                         qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8,
                         num_nextn_predict_layers=0,
                         rope_scaling={"rope_type": "yarn", "factor": 4.0, "beta_fast": 8.0,
                                       "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 0.5,
                                       "original_max_position_embeddings": 64},
                         **{**COMMON, "num_key_value_heads": 4, "max_position_embeddings": 256}),
    ),
    # No layer has experts.
    "deepseek_v3-dense": (
        DeepseekV3ForCausalLM,
        DeepseekV3Config(intermediate_size=48, first_k_dense_replace=2, q_lora_rank=None,
                         kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8,
                         num_nextn_predict_layers=0,
                         **{**COMMON, "num_key_value_heads": 4}),
    ),
}

# Tokens of the logits; windows of stretched frequencies are longer than those of before.
TOKENS = {"llama-scaled": 100, "deepseek_v3-yarn": 100}


def biases(model):
    """Balancing biases of DeepSeek's routers, which begin at zero, as if it had been trained."""
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.copy_(torch.randn(buffer.shape) * 0.1)


def gains(model):
    """Norms' gains and biases begin at one and zero, which hides where they go."""
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            parameter.data.add_(torch.randn(parameter.shape) * 0.1)


def logits(kind, source, path, count=20):
    """Of the files: a model that was BF16 has rounded tables of positions, too."""
    model = kind.from_pretrained(source, dtype=torch.float32).eval()
    tokens = torch.randint(0, VOCABULARY, (count,), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        out = model(tokens[None]).logits[0]
    save_file({"tokens": tokens, "logits": out.float().contiguous()}, path / "logits.safetensors")


def fp8(source, target, block):
    """A model with FP8 matrices and a factor for each block, as DeepSeek publishes them."""
    target.mkdir(parents=True, exist_ok=True)
    tensors, plain = {}, {}
    for name, weight in load_file(source / "model.safetensors").items():
        is_matrix = weight.dim() == 2 and name.endswith("proj.weight") or "_proj_with_mqa" in name
        if not is_matrix:
            tensors[name] = plain[name] = weight
            continue
        rows, columns = [-(-size // block) for size in weight.shape]
        scales = torch.zeros(rows, columns)
        values = torch.zeros_like(weight)
        for row in range(rows):
            for column in range(columns):
                at = (slice(row * block, (row + 1) * block),
                      slice(column * block, (column + 1) * block))
                scales[row, column] = weight[at].abs().max() / 448.0
                values[at] = weight[at] / scales[row, column]
        values = values.to(torch.float8_e4m3fn)
        wide = scales.repeat_interleave(block, 0).repeat_interleave(block, 1)
        tensors[name] = values
        tensors[name + "_scale_inv"] = scales
        plain[name] = values.float() * wide[: weight.shape[0], : weight.shape[1]]
    # A layer that predicts a further token, which no model here has.
    tensors["model.layers.2.eh_proj.weight"] = torch.zeros(32, 64)
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    config["num_nextn_predict_layers"] = 1
    config["quantization_config"] = {
        "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
        "weight_block_size": [block, block],
    }
    (target / "config.json").write_text(json.dumps(config, indent=2))
    with tempfile.TemporaryDirectory() as wide:
        wide = pathlib.Path(wide)
        save_file(plain, wide / "model.safetensors", {"format": "pt"})
        (wide / "config.json").write_text((source / "config.json").read_text())
        logits(DeepseekV3ForCausalLM, wide, target)


def tokenizer(path):
    """A token for each printable character, and one that ends a text."""
    characters = [chr(code) for code in range(ord(" "), 127)]
    vocabulary = {"<|endoftext|>": 0, **{c: i + 1 for i, c in enumerate(characters)}}
    made = Tokenizer(models.BPE(vocabulary, []))
    made.decoder = decoders.Fuse()
    made.add_special_tokens(["<|endoftext|>"])
    made.save(str(path / "tokenizer.json"))
    config = {"eos_token": "<|endoftext|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (path / "tokenizer_config.json").write_text(json.dumps(config))


def main():
    root = pathlib.Path(sys.argv[1])
    for name, (kind, config) in MODELS.items():
        torch.manual_seed(1)
        model = kind(config)
        gains(model)
        biases(model)
        path = root / name
        if name == "olmoe":
            # Of a type and in files as large models have.
            model = model.to(torch.bfloat16)
            model.save_pretrained(path, max_shard_size="30KB")
        else:
            model.save_pretrained(path)
        logits(kind, path, path, TOKENS.get(name, 20))
    tokenizer(root / "qwen3_moe")
    fp8(root / "deepseek_v3", root / "deepseek_v3-fp8", 16)


main()
