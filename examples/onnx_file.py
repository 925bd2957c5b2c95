"""An ONNX file: made, loaded, run."""

import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

import tilewright as tw

graph = helper.make_graph(
    [helper.make_node("Gemm", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])],
    "net",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    [onnx.numpy_helper.from_array(np.eye(4, 3, dtype=np.float32), "w")],
)
opsets = [helper.make_opsetid("", 21)]
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    model = tw.onnx.load(path)

for batch in (1, 5):
    x = np.random.randn(batch, 4).astype(np.float32)
    (y,) = model.run({"x": x})
    np.testing.assert_allclose(y, np.maximum(x[:, :3], 0), rtol=1e-6)
print("equal to NumPy, for every batch")
