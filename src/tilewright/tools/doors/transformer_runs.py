"""Ten `transformers` architectures with small random weights, through both doors.

In: the packages transformers and, for the ONNX door, onnxscript, which PyTorch exports with;
configurations are below, weights are random. Out: per model and door, whether results agree with
eager execution in PyTorch, how many operator calls there are, and how many PyTorch ran. The ONNX
file comes from `torch.onnx.export` and is run with nothing but its bytes.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from tilewright.tools.doors.judge import difference

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported
__all__ = ["MODELS", "by_onnx", "by_torch", "cases"]

Recipe = tuple[Any, dict[str, Any]]


def ids(count: int, length: int) -> Any:
    """Token numbers."""
    return torch.randint(0, 90, (count, length), generator=torch.Generator().manual_seed(1))


def image(size: int) -> Any:
    """One picture."""
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))


def bert() -> Recipe:
    from transformers import BertConfig, BertModel

    c = BertConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                   intermediate_size=37, max_position_embeddings=64)  # fmt: skip
    return BertModel(c), {"input_ids": ids(2, 9), "attention_mask": torch.ones(2, 9).long()}


def gpt2() -> Recipe:
    from transformers import GPT2Config, GPT2LMHeadModel

    c = GPT2Config(vocab_size=99, n_positions=64, n_embd=32, n_layer=2, n_head=4)
    return GPT2LMHeadModel(c), {"input_ids": ids(2, 9), "use_cache": False}


def llama() -> Recipe:
    from transformers import LlamaConfig, LlamaForCausalLM

    c = LlamaConfig(vocab_size=99, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                    num_attention_heads=4, num_key_value_heads=2)  # fmt: skip
    return LlamaForCausalLM(c), {"input_ids": ids(2, 9), "use_cache": False}


def t5() -> Recipe:
    from transformers import T5Config, T5Model

    c = T5Config(vocab_size=99, d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4)
    given = {"input_ids": ids(2, 9), "decoder_input_ids": ids(2, 5), "use_cache": False}
    return T5Model(c), given


def vit() -> Recipe:
    from transformers import ViTConfig, ViTModel

    c = ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=37,
                  image_size=32, patch_size=8)  # fmt: skip
    return ViTModel(c), {"pixel_values": image(32)}


def whisper() -> Recipe:
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    c = WhisperConfig(vocab_size=99, d_model=32, encoder_layers=2, encoder_attention_heads=4,
                      encoder_ffn_dim=37, num_mel_bins=20, max_source_positions=30,
                      decoder_layers=1, decoder_attention_heads=4, decoder_ffn_dim=37)  # fmt: skip
    return WhisperEncoder(c), {"input_features": torch.randn(1, 20, 60)}


def mamba() -> Recipe:
    from transformers import MambaConfig, MambaModel

    c = MambaConfig(vocab_size=99, hidden_size=32, state_size=8, num_hidden_layers=2)
    return MambaModel(c), {"input_ids": ids(2, 9), "use_cache": False}


def clip() -> Recipe:
    from transformers import CLIPTextConfig, CLIPTextModel

    c = CLIPTextConfig(vocab_size=99, hidden_size=32, intermediate_size=37, num_hidden_layers=2,
                       num_attention_heads=4, max_position_embeddings=32)  # fmt: skip
    return CLIPTextModel(c), {"input_ids": ids(2, 9)}


def convnext() -> Recipe:
    from transformers import ConvNextConfig, ConvNextModel

    c = ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 2, 1])
    return ConvNextModel(c), {"pixel_values": image(64)}


def swin() -> Recipe:
    from transformers import SwinConfig, SwinModel

    c = SwinConfig(image_size=32, patch_size=2, embed_dim=16, depths=[1, 2], num_heads=[2, 4],
                   window_size=4)  # fmt: skip
    return SwinModel(c), {"pixel_values": image(32)}


MODELS: dict[str, Callable[[], Recipe]] = {
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


class _Made:
    """A model, its inputs, what eager execution gives, and the float64 reference."""

    def __init__(self, name: str) -> None:
        torch.manual_seed(0)
        model, self.given = MODELS[name]()
        self.model = model.eval()
        with torch.no_grad():
            self.want = [t.numpy() for t in tensors(self.model(**self.given))]
            wide = {k: _double(v) for k, v in self.given.items()}
            self.exact = [t.numpy() for t in tensors(self.model.double()(**wide))]
        self.model = self.model.float()

    def wrong(self, got: Sequence[Any]) -> str:
        """What is wrong with results, or nothing."""
        if len(got) != len(self.want):
            return f"{len(got)} results for {len(self.want)}"
        found = map(difference, got, self.want, self.exact)
        return "; ".join(f"result {k} is {w}" for k, w in enumerate(found) if w)


def by_torch(name: str) -> dict[str, Any]:
    """torch.compile(backend="tilewright")."""
    import torch._dynamo

    import tilewright.torch as door

    made = _Made(name)
    torch._dynamo.reset()
    door.reset_reports()
    with torch.no_grad():
        compiled = torch.compile(made.model, backend=door.backend, dynamic=False)
        wrong = made.wrong([t.numpy() for t in tensors(compiled(**made.given))])
    reports = door.reports()
    handed: Counter[str] = Counter()
    for r in reports:
        handed.update(r.handed)
    return {
        "outcome": "wrong" if wrong else "agree", "detail": wrong, "handed": dict(handed),
        "calls": sum(r.calls for r in reports), "graphs": len(reports),
    }  # fmt: skip


def by_onnx(name: str) -> dict[str, Any]:
    """torch.onnx.export, then the ONNX door."""
    import tilewright as tw

    made = _Made(name)
    tensors_of = {k: v for k, v in made.given.items() if isinstance(v, torch.Tensor)}
    rest = {k: v for k, v in made.given.items() if k not in tensors_of}

    class Positional(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = made.model

        def forward(self, *args: Any) -> Any:
            given = dict(zip(tensors_of, args, strict=True))
            return tuple(tensors(self.model(**given, **rest)))

    with torch.no_grad():
        exported = torch.onnx.export(
            Positional(), tuple(tensors_of.values()), dynamo=True, verbose=False
        )
    proto = exported.model_proto
    model = tw.onnx.load(proto.SerializeToString())
    names = [i.name for i in proto.graph.input]
    arrays = [t.numpy() for t in tensors_of.values()]
    wrong = made.wrong(model.run(dict(zip(names, arrays, strict=True))))
    return {
        "outcome": "wrong" if wrong else "agree", "detail": wrong, "handed": {},
        "calls": len(proto.graph.node),
    }  # fmt: skip


def _double(x: Any) -> Any:
    return x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x


def cases(k: int, n: int, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every n-th model from the k-th on, through both doors."""
    logging.disable(logging.WARNING)
    out = []
    for name in list(MODELS)[k::n]:
        for door, run in (("torch", by_torch), ("onnx", by_onnx)):
            started = time.perf_counter()
            try:
                row = run(name)
            except Exception as error:  # noqa: BLE001 - a model that fails is a case, too
                text = f"{type(error).__name__}: {error}"[:400]
                row = {"outcome": "error", "detail": text, "calls": 0, "handed": {}}
            seconds = round(time.perf_counter() - started, 1)
            out.append({"name": f"{name}.{door}", "door": door, **row, "seconds": seconds})
    return out
