"""The virtual clock: how many seconds a run would have taken on the devices of its scenario.

    synchronous round:   t ← t + max_k training seconds + max_k evaluation seconds
    asynchronous:        t ← when the server made this round's model, as its strategy says

A client's seconds are those of its footprint (`fedsim.footprint`): bytes that moved over the links
of the topology, operations that were done. A synchronous exchange ends when the last reply that
came is in, good or rejected; a client that never replied is not waited for. Clients evaluate in an
exchange of their own, after training, and that takes its time too; where their scores come with the
training replies (`evaluation.fused`), it is part of these. An asynchronous server does not wait for
evaluations: the clients in flight go on meanwhile. The server's own work and its evaluation take no
time.

Rounds are in step even where no server makes them so: the nodes of a gossip network, and edge
servers between two averages of the cloud, begin a round together. Where each waits for nobody but
those it hears from, a run is as fast or faster.

Where a round's seconds cannot be told (a mechanism hides what they are computed from), neither can
those of any later round: the clock stops for good, and says None.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from fedsim.footprint import REPLIED, SECONDS, UP


class Clock:
    """Simulated seconds since the start of a run.

    Attributes:
        seconds: Now; None if it is unknown.
    """

    def __init__(self) -> None:
        self.seconds: float | None = 0.0

    def advance(self, exchanges: Iterable[Mapping[str, Sequence[float]]]) -> None:
        """Let exchanges pass, one after the other, each as long as its slowest reply.

        Args:
            exchanges: The columns of each one's footprint.
        """
        for columns in exchanges:
            if self.seconds is None:
                return
            if SECONDS not in columns:
                self.seconds = None
                return
            came = columns.get(REPLIED, columns[UP])
            pairs = zip(columns[SECONDS], came, strict=True)
            self.seconds += max((busy for busy, sent in pairs if sent > 0), default=0.0)
