"""Save a compiled model, load it, and write it as C: python examples/artifact.py [FOLDER]"""

import hashlib
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

import tilewright as tw
from tilewright.ir.program import array_key

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "build")
folder.mkdir(exist_ok=True)
stream = np.random.default_rng(0)
w = stream.standard_normal((16, 32)).astype(np.float32)
v = stream.standard_normal((32, 4)).astype(np.float32)
program = tw.program(f"""program mlp(x: f32[8, 16]):
  const w: f32[16, 32] @{array_key(w)}
  const v: f32[32, 4] @{array_key(v)}
  h: f32[i<8, j<32] = sum(k<16) x[i, k] * w[k, j]
  r: f32[i<8, j<32] = max(h[i, j], 0.0)
  y: f32[i<8, j<4] = sum(k<32) r[i, k] * v[k, j]
  return y
""")
model = tw.compile(replace(program, values={array_key(a): a for a in (w, v)}), threads=1)

model.save(folder / "mlp.twa")  # an artifact is code: load only what you trust
digest = hashlib.sha256((folder / "mlp.twa").read_bytes()).hexdigest()
loaded = tw.load(folder / "mlp.twa", sha256=digest)  # compiles nothing

x = ((np.arange(8 * 16) % 7) - 3).astype(np.float32).reshape(8, 16)
y = loaded(x)
np.testing.assert_array_equal(y, model(x))
np.testing.assert_allclose(y, np.maximum(x @ w, 0) @ v, rtol=1e-4, atol=1e-4)

model.save_c(folder, "mlp")  # mlp.h, mlp.c, mlp_*.o, mlp.bin: see examples/call_from_c.c
np.save(folder / "y.npy", y)
print("the artifact gives what the model gives; mlp.h says how to call it from C")
