"""The ONNX front end: `from_onnx` gives a Program, `import_onnx` also says where each definition
came from.
"""

from __future__ import annotations

from tilewright.frontend.onnx import operators_attention as _attention
from tilewright.frontend.onnx import operators_control as _control
from tilewright.frontend.onnx import operators_extern as _extern
from tilewright.frontend.onnx import operators_index as _index
from tilewright.frontend.onnx import operators_layout as _layout
from tilewright.frontend.onnx import operators_math as _math
from tilewright.frontend.onnx import operators_matmul as _matmul
from tilewright.frontend.onnx import operators_norm as _norm
from tilewright.frontend.onnx import operators_pool as _pool
from tilewright.frontend.onnx import operators_quant as _quant
from tilewright.frontend.onnx import operators_recurrent as _recurrent
from tilewright.frontend.onnx import operators_reduce as _reduce
from tilewright.frontend.onnx import operators_resize as _resize
from tilewright.frontend.onnx import operators_sample as _sample
from tilewright.frontend.onnx import operators_window as _window
from tilewright.frontend.onnx.importer import Imported, from_onnx, import_onnx
from tilewright.frontend.onnx.proto import NEWEST_OPSET
from tilewright.frontend.onnx.table import ROWS, Row
from tilewright.frontend.onnx.value import ValueNeeded

__all__ = ["NEWEST_OPSET", "ROWS", "Imported", "Row", "ValueNeeded", "from_onnx", "import_onnx"]

# Importing the operator modules fills the table.
OPERATOR_MODULES = (
    _attention,
    _control,
    _extern,
    _index,
    _layout,
    _math,
    _matmul,
    _norm,
    _pool,
    _quant,
    _recurrent,
    _reduce,
    _resize,
    _sample,
    _window,
)
