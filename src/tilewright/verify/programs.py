"""Random valid Programs, drawn from the statement grammar.

In: a seed. Out: a `Case`: a Program, sizes of its dims, a seed for its inputs. Invariants: the
same seed gives the same case; every read without `else` is in range; sizes include 0, 1, primes
and numbers around vector widths; the work of one statement is bounded.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from tilewright.errors import UserError
from tilewright.ir.program import Program
from tilewright.ir.program_parser import parse_program
from tilewright.verify.control import BLOCK_KINDS
from tilewright.verify.maker import Maker
from tilewright.verify.statements import KINDS

__all__ = ["BLOCK_KINDS", "KINDS", "Case", "draw", "generate"]


_BARE = 0.4  # programs that leave some operands outside of their function's domain


@dataclass(frozen=True)
class Case:
    """A Program with sizes for its dims and the seed of its inputs. `constants`: inputs whose
    values the compiler may know.
    """

    program: Program
    sizes: dict[str, int]
    seed: int
    kinds: tuple[str, ...] = field(default=(), compare=False)
    constants: tuple[str, ...] = ()

    def __str__(self) -> str:
        sizes = " ".join(f"{n}={v}" for n, v in self.sizes.items())
        known = f"# constants {' '.join(self.constants)}\n" if self.constants else ""
        return f"# sizes {sizes}\n# seed {self.seed}\n{known}{self.program}"

    @staticmethod
    def parse(text: str) -> Case:
        """The case of its text. Errors: F010 for a wrong header, those of `parse_program`."""
        lines = text.splitlines()
        if len(lines) < 3 or not lines[0].startswith("# sizes"):
            raise UserError("F010", "a case begins with a line of sizes and a line with the seed")
        sizes = dict(x.split("=") for x in lines[0].split()[2:])
        seed = int(lines[1].split()[2])
        known = lines[2].split()[2:] if lines[2].startswith("# constants") else ()
        values = {n: int(v) for n, v in sizes.items()}
        return Case(parse_program(text), values, seed, constants=tuple(known))


def generate(
    seed: int,
    statements: int | None = None,
    zero_sizes: bool = True,
    blocks: bool = False,
    kind: str = "",
) -> Case:
    """A random case; about `statements` definitions (default: log-uniform, 1 to 16). blocks: with
    branches, loops and sizes that values define. kind: statements of this kind come first.
    """
    rng = random.Random(seed)
    maker = Maker(rng, zero_sizes)
    bare = random.Random(f"bare {seed}")
    maker.bare = bare if bare.random() < _BARE else None
    wanted = statements or int(2 ** rng.uniform(0, 4))
    # A third of the statements have blocks then.
    made = {**KINDS, **{k: (f, 6 * w) for k, (f, w) in BLOCK_KINDS.items()}} if blocks else KINDS
    kinds: list[str] = []
    tries = 0
    while len(maker.body) < wanted:
        tries += 1
        name = rng.choices(list(made), [w for _, w in made.values()])[0]
        if kind and not kinds and tries < 20:
            name = kind
        before = len(maker.body)
        made[name][0](maker)
        if len(maker.body) > before:
            kinds.append(name)
    program = maker.program()
    known = maker.known_inputs(program)
    return Case(program, maker.sizes, rng.randrange(1 << 30), tuple(kinds), known)


def draw(seed: int) -> Case:
    """A case of 1 to 50 definitions, log-uniform; one in a hundred has up to 1,000. Every third
    case has blocks.
    """
    rng = random.Random(f"size {seed}")
    low, high = (50, 1000) if rng.random() < 0.01 else (1, 50)
    wanted = round(low * (high / low) ** rng.random())
    return generate(seed, wanted, blocks=seed % 3 == 2)
