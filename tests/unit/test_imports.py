"""The folder list is the pipeline: who may import whom, what stays lazy, and which names stay above.

Read from the syntax trees, so nothing is executed. `tools` and the doors may also use the package as a
user does, through the public names of `tilewright` itself.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2] / "src" / "tilewright"

# Data flows down this list; a package imports only those above it, and itself.
ORDER = (
    "errors", "config", "ir", "machine", "frontend", "derive", "group", "schedule", "lower", "memory",
    "codegen", "runtime", "runner", "verify", "tune", "tools", "api", "arrays", "onnx", "torch", "__main__",
)  # fmt: skip
MAY_USE_THE_PUBLIC_NAMES = {"tools", "api", "onnx", "torch", "__main__", "__init__"}

DOORS = {"onnx", "torch"}

# Below the front end an operator is structure: roles, monoids and definitions, never one of these.
# Scalar functions that a Program's expressions have themselves (exp, tanh, sigmoid, ...) are not operators.
OPERATORS = {
    "matmul", "gemm", "batchmatmul", "conv", "conv1d", "conv2d", "conv3d", "convolution",
    "convtranspose", "depthwise", "softmax", "logsoftmax", "relu", "leakyrelu", "prelu", "gelu", "silu",
    "hardsigmoid", "hardswish", "attention", "maxpool", "avgpool", "averagepool", "globalaveragepool",
    "pooling", "layernorm", "layernormalization", "batchnorm", "batchnormalization", "instancenorm",
    "groupnorm", "rmsnorm", "lstm", "gru", "rnn", "einsum", "onnx",
}  # fmt: skip
NAMELESS = ("group", "schedule", "lower", "codegen")
HEAVY = ("llvmlite", "onnx", "torch", "onnxruntime", "rich", "click", "sqlite3", "platformdirs", "tomllib")


def sources(*packages: str) -> list[Path]:
    paths = sorted(ROOT.rglob("*.py"))
    if packages:
        paths = [path for path in paths if path.relative_to(ROOT).parts[0].removesuffix(".py") in packages]
    return paths


def package_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, package of ours) for every import statement anywhere in the file."""
    own = ["tilewright", *path.relative_to(ROOT).with_suffix("").parts]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(own[: len(own) - node.level]) if node.level else ""
            module = ".".join(part for part in (base, node.module or "") if part)
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "tilewright" else [module]
        for name in names:
            parts = name.split(".")
            if parts[0] == "tilewright":
                yield getattr(node, "lineno", 0), parts[1] if len(parts) > 1 else ""


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_package_imports_only_what_is_above_it(path: Path) -> None:
    package = package_of(path)
    if package == "__init__":
        return
    assert package in ORDER, f"{package} is not in the folder list of the design"
    allowed = set(ORDER[: ORDER.index(package) + 1])
    for line, other in imported(path):
        if package in ("api", "tools") and other in DOORS:
            continue  # lazily, where a path or a module of that kind is given or measured
        if other in ORDER:
            assert other in allowed, f"{path.relative_to(ROOT)}:{line} imports {other}, which is below {package}"
        else:  # a public name of the package itself
            assert package in MAY_USE_THE_PUBLIC_NAMES, (
                f"{path.relative_to(ROOT)}:{line} imports tilewright's public names"
            )


def words(path: Path) -> Iterator[tuple[int, str]]:
    """Yield every identifier, attribute and non-docstring string constant, split into words."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docstrings: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                docstrings.add(id(first.value))
    for node in ast.walk(tree):
        texts: list[str] = []
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            texts = [node.value]
        for attribute in ("id", "attr", "arg", "name"):
            value = getattr(node, attribute, None)
            if isinstance(value, str):
                texts.append(value)
        for text in texts:
            for word in "".join(c.lower() if c.isalnum() else " " for c in text).split():
                yield getattr(node, "lineno", 0), word


@pytest.mark.parametrize("path", sources(*NAMELESS), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_operator_of_a_front_end_is_named_below_it(path: Path) -> None:
    """Docstrings and comments may explain with examples; code may not ask for a name."""
    found = [(line, word) for line, word in words(path) if word in OPERATORS]
    assert not found, f"{path.relative_to(ROOT)} names {found}"


def test_the_scan_sees_names(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text('"""softmax in words"""\n# gemm\ndef f(Conv, y):\n    return y.matmul + "max-pool gelu_x"\n')
    assert {word for _, word in words(file)} & OPERATORS == {"conv", "matmul", "gelu"}


def test_every_module_says_what_it_is() -> None:
    for path in sources():
        text = path.read_text(encoding="utf-8")
        if text.strip():
            assert ast.get_docstring(ast.parse(text)), f"{path.relative_to(ROOT)} has no docstring"


def test_importing_the_package_stays_light() -> None:
    """Import cost is a contract; what makes it heavy must be imported where it is used."""
    code = "import sys, tilewright; print(' '.join(sorted({m.split('.')[0] for m in sys.modules})))"
    modules = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={"PYTHONPATH": str(ROOT.parent)},
    ).stdout.split()  # fmt: skip
    assert not set(modules) & set(HEAVY)


def test_no_pickle_no_network_no_blind_except() -> None:
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name.split(".")[0] for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [(node.module or "").split(".")[0]]
            if path.relative_to(ROOT) == Path("verify/fuzz.py"):
                names = [name for name in names if name != "pickle"]  # from its own forked child
            banned = {"pickle", "marshal", "shelve", "socket", "urllib", "http", "requests"} & set(names)
            assert not banned, f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)} imports {banned}"
