"""FedPEM: each client runs PEM on its own users, and only the results are put together.

    client i:  PEM (`strategies.heavy_hitters.pem`) on N_i users;  sends its k best, N_i max(f̂, 0)
    server:    adds up the counts, item by item;  releases the k largest

The baseline of Zhang, Ye & Hu (SIGMOD 2025). One round.
"""

from __future__ import annotations

from dataclasses import dataclass

from strategies.heavy_hitters.search import Search


@dataclass(kw_only=True)
class FedPEM(Search):
    """No level is shared."""

    def shared(self) -> int:
        return 0
