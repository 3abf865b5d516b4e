"""A tiny Llama in a GGUF file, with a tokenizer of single characters."""

from pathlib import Path

import torch

WORDS = [chr(c) for c in range(33, 127)] + ["Ġ", "Ġt", "<|endoftext|>"]
D, F, V = 16, 32, len(WORDS)


def write(path: Path, architecture: str = "llama", seed: int = 0) -> dict[str, torch.Tensor]:
    """A Llama of two blocks in fp32; its tensors by their names in the file."""
    import gguf

    torch.manual_seed(seed)
    to = gguf.GGUFWriter(path, architecture)
    for name, value in {"block_count": 2, "context_length": 400, "embedding_length": D, "feed_forward_length": F,
                        "head_count": 2, "head_count_kv": 2, "vocab_size": V}.items():  # fmt: skip
        getattr(to, f"add_{name}")(value)
    to.add_layer_norm_rms_eps(1e-6)
    to.add_rope_dimension_count(D // 2)
    to.add_tokenizer_model("gpt2")
    to.add_token_list(WORDS)
    to.add_token_types([gguf.TokenType.NORMAL] * (V - 1) + [gguf.TokenType.CONTROL])
    to.add_token_merges(["Ġ t"])
    to.add_eos_token_id(V - 1)
    sizes = {"token_embd": (V, D), "output_norm": (D,), "output": (V, D)}
    parts = {"attn_q": (D, D), "attn_k": (D, D), "attn_v": (D, D), "attn_output": (D, D), "ffn_gate": (F, D),
             "ffn_up": (F, D), "ffn_down": (D, F), "attn_norm": (D,), "ffn_norm": (D,)}  # fmt: skip
    sizes |= {f"blk.{i}.{name}": size for i in range(2) for name, size in parts.items()}
    found = {name: torch.randn(size) for name, size in sizes.items()}
    for name, tensor in found.items():
        to.add_tensor(f"{name}.weight", tensor.numpy())
    to.write_header_to_file()
    to.write_kv_data_to_file()
    to.write_tensors_to_file()
    to.close()
    return found
