"""torch.compile with max-autotune: as `inductor`, choosing among templates by timing them."""

from __future__ import annotations

from tilewright.tools.peers import inductor

__all__ = ["Adapter"]


class Adapter(inductor.Adapter):
    """The peer `inductor_max`."""

    mode = "max-autotune-no-cudagraphs"
