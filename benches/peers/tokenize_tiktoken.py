"""Python's tiktoken on the same text: the peer of `muster data tokenize --tokenizer gpt2`.

The merge table comes from a file, so that no download is needed; the tiktoken-rs crate carries one:

    python3 benches/peers/tokenize_tiktoken.py \
        ~/.cargo/registry/src/*/tiktoken-rs-0.12.1/assets/r50k_base.tiktoken TEXT...
"""

import base64
import sys
import time

import tiktoken

PATTERN = (
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
)


def main():
    table, texts = sys.argv[1], sys.argv[2:]
    lines = [line.split() for line in open(table, "rb") if line.strip()]
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    encoding = tiktoken.Encoding(
        "r50k_base", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 50256}
    )
    size, tokens = 0, 0
    start = time.perf_counter()
    for path in texts:
        text = open(path, encoding="utf-8", errors="replace").read()
        size += len(text.encode())
        tokens += len(encoding.encode_ordinary(text))
    seconds = time.perf_counter() - start
    print(f"tiktoken {tiktoken.__version__}: {tokens} tokens, {size / seconds / 1e6:.1f} MB/s")


if __name__ == "__main__":
    main()
