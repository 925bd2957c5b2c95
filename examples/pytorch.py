"""A module of PyTorch through torch.compile, and by tilewright.compile."""

import torch

import tilewright as tw
import tilewright.torch

model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.GELU(), torch.nn.Linear(32, 4)).eval()
x = torch.randn(8, 16)
with torch.inference_mode():
    fast = torch.compile(model, backend=tilewright.torch.backend)  # or backend="tilewright"
    torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)
for report in tilewright.torch.reports():
    print(report)

own = tw.compile(model, (x,))
torch.testing.assert_close(own(x), model(x), rtol=1e-4, atol=1e-5)
print(own.report)
