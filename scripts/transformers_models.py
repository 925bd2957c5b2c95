"""Ten `transformers` architectures with small random weights through the PyTorch door.

    python scripts/transformers_models.py [--only NAME] [--json PATH]

Needs the package transformers. In: nothing; configurations are below, weights are random. Out: per
model, whether torch.compile(backend="tilewright") agrees with eager execution, operator calls, and
what share of them PyTorch ran. Exit status 1 where a model differs or more than 1 % is handed over.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

Made = tuple[Any, dict[str, Any]]


def ids(count: int, length: int) -> Any:
    """Token numbers."""
    return torch.randint(0, 90, (count, length), generator=torch.Generator().manual_seed(1))


def image(size: int) -> Any:
    """One picture."""
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))


def bert() -> Made:
    from transformers import BertConfig, BertModel

    c = BertConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                   intermediate_size=37, max_position_embeddings=64)  # fmt: skip
    return BertModel(c), {"input_ids": ids(2, 9), "attention_mask": torch.ones(2, 9).long()}


def gpt2() -> Made:
    from transformers import GPT2Config, GPT2LMHeadModel

    c = GPT2Config(vocab_size=99, n_positions=64, n_embd=32, n_layer=2, n_head=4)
    return GPT2LMHeadModel(c), {"input_ids": ids(2, 9), "use_cache": False}


def llama() -> Made:
    from transformers import LlamaConfig, LlamaForCausalLM

    c = LlamaConfig(vocab_size=99, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                    num_attention_heads=4, num_key_value_heads=2)  # fmt: skip
    return LlamaForCausalLM(c), {"input_ids": ids(2, 9), "use_cache": False}


def t5() -> Made:
    from transformers import T5Config, T5Model

    c = T5Config(vocab_size=99, d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4)
    given = {"input_ids": ids(2, 9), "decoder_input_ids": ids(2, 5), "use_cache": False}
    return T5Model(c), given


def vit() -> Made:
    from transformers import ViTConfig, ViTModel

    c = ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=37,
                  image_size=32, patch_size=8)  # fmt: skip
    return ViTModel(c), {"pixel_values": image(32)}


def whisper() -> Made:
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    c = WhisperConfig(vocab_size=99, d_model=32, encoder_layers=2, encoder_attention_heads=4,
                      encoder_ffn_dim=37, num_mel_bins=20, max_source_positions=30,
                      decoder_layers=1, decoder_attention_heads=4, decoder_ffn_dim=37)  # fmt: skip
    return WhisperEncoder(c), {"input_features": torch.randn(1, 20, 60)}


def mamba() -> Made:
    from transformers import MambaConfig, MambaModel

    c = MambaConfig(vocab_size=99, hidden_size=32, state_size=8, num_hidden_layers=2)
    return MambaModel(c), {"input_ids": ids(2, 9), "use_cache": False}


def clip() -> Made:
    from transformers import CLIPTextConfig, CLIPTextModel

    c = CLIPTextConfig(vocab_size=99, hidden_size=32, intermediate_size=37, num_hidden_layers=2,
                       num_attention_heads=4, max_position_embeddings=32)  # fmt: skip
    return CLIPTextModel(c), {"input_ids": ids(2, 9)}


def convnext() -> Made:
    from transformers import ConvNextConfig, ConvNextModel

    c = ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 2, 1])
    return ConvNextModel(c), {"pixel_values": image(64)}


def swin() -> Made:
    from transformers import SwinConfig, SwinModel

    c = SwinConfig(image_size=32, patch_size=2, embed_dim=16, depths=[1, 2], num_heads=[2, 4],
                   window_size=4)  # fmt: skip
    return SwinModel(c), {"pixel_values": image(32)}


MODELS: dict[str, Callable[[], Made]] = {
    "bert": bert, "gpt2": gpt2, "llama": llama, "t5": t5, "vit": vit, "whisper": whisper,
    "mamba": mamba, "clip": clip, "convnext": convnext, "swin": swin,
}  # fmt: skip


def tensors(x: Any) -> list[Any]:
    """All tensors in nested results."""
    if isinstance(x, torch.Tensor):
        return [x]
    if isinstance(x, dict):
        return [t for y in x.values() for t in tensors(y)]
    return [t for y in x for t in tensors(y)] if isinstance(x, list | tuple) else []


def run(name: str) -> dict[str, Any]:
    """One model: `agree`, worst difference, counts."""
    import torch._dynamo

    import tilewright.torch as door

    torch.manual_seed(0)
    model, given = MODELS[name]()
    model = model.eval()
    torch._dynamo.reset()
    door.reset_reports()
    with torch.no_grad():
        want = tensors(model(**given))
        exact = tensors(model.double()(**{k: _double(v) for k, v in given.items()}))
        model = model.float()
        started = time.perf_counter()
        compiled = torch.compile(model, backend=door.backend, dynamic=False)
        got = tensors(compiled(**given))
        seconds = time.perf_counter() - started
    agree, worst = len(want) == len(got), 0.0
    for x, y, e in zip(want, got, exact, strict=False):
        top = e.abs().max().item()
        allowed = 4 * max((x - e).abs().max().item(), 8 * 2**-24 * top)
        error = (y - e).abs().max().item()
        worst = max(worst, error / max(top, 1e-30))
        agree = agree and x.shape == y.shape and error <= allowed
    reports = door.reports()
    handed: dict[str, int] = {}
    for r in reports:
        for op, count in r.handed.items():
            handed[op] = handed.get(op, 0) + count
    calls = sum(r.calls for r in reports)
    return {
        "model": name, "agree": agree, "worst": worst, "calls": calls, "graphs": len(reports),
        "handed": handed, "share": sum(handed.values()) / max(calls, 1),
        "first_call_s": round(seconds, 1),
    }  # fmt: skip


def _double(x: Any) -> Any:
    return x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x


def main() -> int:
    """Run them all; a table and the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="one model")
    parser.add_argument("--json", type=Path, help="write the rows here")
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    rows = []
    for name in [given.only] if given.only else MODELS:
        try:
            row = run(name)
        except Exception as error:  # noqa: BLE001 - a model that fails is a row, too
            row = {"model": name, "agree": False, "share": 1.0, "calls": 0,
                   "error": f"{type(error).__name__}: {error}"[:2000]}  # fmt: skip
        rows.append(row)
        print(json.dumps(row), flush=True)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1))
    return int(any(not r["agree"] or r["share"] > 0.01 for r in rows))


if __name__ == "__main__":
    sys.exit(main())
