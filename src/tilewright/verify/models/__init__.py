"""Random valid ONNX models, after NNSmith: operator specifications whose constraints are solved
while a graph grows."""

from tilewright.verify.models.graph import Model, draw_model

__all__ = ["Model", "draw_model"]
