"""The PyTorch front end: `import_graph` gives the Program of an FX graph of ATen operators.

Importing this package imports torch.
"""

from __future__ import annotations

from tilewright.frontend.torch import rows_contract as _contract
from tilewright.frontend.torch import rows_count as _count
from tilewright.frontend.torch import rows_index as _index
from tilewright.frontend.torch import rows_layout as _layout
from tilewright.frontend.torch import rows_linear as _linear
from tilewright.frontend.torch import rows_make as _make
from tilewright.frontend.torch import rows_norm as _norm
from tilewright.frontend.torch import rows_pointwise as _pointwise
from tilewright.frontend.torch import rows_pool as _pool
from tilewright.frontend.torch import rows_reduce as _reduce
from tilewright.frontend.torch import rows_sort as _sort
from tilewright.frontend.torch import rows_special as _special
from tilewright.frontend.torch.importer import (
    Imported,
    Input,
    Output,
    import_graph,
    name_of,
    unsupported,
)
from tilewright.frontend.torch.table import ROWS, Row

__all__ = [
    "ROWS",
    "Imported",
    "Input",
    "Output",
    "Row",
    "import_graph",
    "name_of",
    "unsupported",
]

# Importing the row modules fills the table.
ROW_MODULES = (
    _contract,
    _count,
    _index,
    _layout,
    _linear,
    _make,
    _norm,
    _pointwise,
    _pool,
    _reduce,
    _sort,
    _special,
)
