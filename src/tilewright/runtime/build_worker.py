"""LLVM text to machine code, in this process or as the body of a build worker.

In: LLVM text and what identifies a target machine. Out: ELF bytes or assembly text.
Invariant: imports nothing of the package but the frame protocol, and touches no process-global
option of LLVM unless it is asked to, as a worker is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from tilewright.runtime.wire import Header, serve

__all__ = ["LlvmRefused", "MachineSpec", "emit", "main", "options_here", "set_options"]


class LlvmRefused(Exception):
    """LLVM could not parse, verify or compile the text."""


@dataclass(frozen=True)
class MachineSpec:
    """What decides the bytes besides the text."""

    triple: str
    cpu: str
    features: str
    opt: int = 2
    passes: int = 0  # speed level of LLVM's optimization pipeline; 0 is no pipeline
    disable_lsr: bool = False


@lru_cache(maxsize=16)
def _machine(spec: MachineSpec) -> Any:
    import llvmlite.binding as llvm

    host = llvm.get_default_triple().split("-")[0]
    if spec.triple.split("-")[0] == host:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
    else:
        llvm.initialize_all_targets()
        llvm.initialize_all_asmprinters()
    return llvm.Target.from_triple(spec.triple).create_target_machine(
        cpu=spec.cpu, features=spec.features, opt=spec.opt, reloc="pic", codemodel="small"
    )


def emit(text: str, spec: MachineSpec, *, assembly: bool = False) -> bytes:
    """Compile `text`. Errors: LlvmRefused."""
    import llvmlite.binding as llvm

    try:
        machine = _machine(spec)
        module = llvm.parse_assembly(text, context=llvm.create_context())
        module.triple = spec.triple
        module.data_layout = str(machine.target_data)
        module.verify()
        if spec.passes:
            options = llvm.create_pipeline_tuning_options(speed_level=spec.passes)
            builder = llvm.create_pass_builder(machine, options)
            builder.getModulePassManager().run(module, builder)
        if assembly:
            return str(machine.emit_assembly(module)).encode()
        return bytes(machine.emit_object(module))
    except RuntimeError as error:  # what llvmlite raises for every refusal of LLVM
        raise LlvmRefused(str(error).strip()) from None


_options: tuple[str, ...] = ()


def options_here() -> tuple[str, ...]:
    """The options of LLVM that are set in this process."""
    return _options


def set_options(options: Sequence[str]) -> None:
    """Set options of LLVM for the life of this process: a process of ours alone, because every
    other user of llvmlite in it gets them too. What is set stays set."""
    import llvmlite.binding as llvm

    global _options
    for option in options:
        if option not in _options:
            llvm.set_option("tilewright", option)
            _options += (option,)


def _answer(header: Header, body: bytes) -> tuple[Header, bytes]:
    try:
        data = emit(body.decode(), MachineSpec(**header["spec"]), assembly=header["assembly"])
    except LlvmRefused as error:
        return {"refused": str(error)}, b""
    return {}, data


def request(text: str, spec: MachineSpec, *, assembly: bool = False) -> tuple[Header, bytes]:
    """The frame that asks a worker for `emit(text, spec)`."""
    return {"spec": asdict(spec), "assembly": assembly}, text.encode()


def main(arguments: list[str]) -> None:
    """Serve until standard input closes; arguments are LLVM options for the life of the worker."""
    set_options(arguments)
    serve(_answer)
