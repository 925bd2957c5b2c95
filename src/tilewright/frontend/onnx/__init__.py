"""The ONNX front end: `from_onnx` gives a Program, `import_onnx` also says where each definition came from."""

from __future__ import annotations

from tilewright.frontend.onnx import operators_index as _index
from tilewright.frontend.onnx import operators_layout as _layout
from tilewright.frontend.onnx import operators_math as _math
from tilewright.frontend.onnx import operators_matmul as _matmul
from tilewright.frontend.onnx import operators_norm as _norm
from tilewright.frontend.onnx import operators_reduce as _reduce
from tilewright.frontend.onnx import operators_resize as _resize
from tilewright.frontend.onnx import operators_window as _window
from tilewright.frontend.onnx.importer import Imported
from tilewright.frontend.onnx.importer import from_onnx
from tilewright.frontend.onnx.importer import import_onnx
from tilewright.frontend.onnx.proto import NEWEST_OPSET
from tilewright.frontend.onnx.table import ROWS
from tilewright.frontend.onnx.table import Row

__all__ = ["NEWEST_OPSET", "ROWS", "Imported", "Row", "from_onnx", "import_onnx"]

# Importing the operator modules fills the table.
OPERATOR_MODULES = (_index, _layout, _math, _matmul, _norm, _reduce, _resize, _window)
