"""Asynchronous strategies on clients of given speeds, who start in the order of their index."""

from dataclasses import replace

import numpy as np

from tests.strategies._toy import Masks, ToyGrid, ToyMeter, loop, model, quadratic

CENTRE = np.array([8.0, 6.0, 2.0, 16.0])
BUSY_S = np.array([3.0, 1.0, 1.0, 0.5])


class Timed(ToyMeter):
    def busy(self, replies, clients):
        return BUSY_S[clients]


def in_turn(strategy):
    """Have clients start in the order of their index."""
    drawn = strategy.chosen

    def chosen(server_round, offered):
        asked = drawn(server_round, offered)
        strategy._order = asked
        return asked

    strategy.chosen = chosen
    return strategy


def trace(strategy, offered, answer=None):
    """Return (x, seconds, who was asked) after each round; round r offers `offered[r - 1]`."""
    masks = np.zeros((len(offered), len(CENTRE)), bool)
    for row, clients in zip(masks, offered, strict=True):
        row[list(clients)] = True

    def stepped(message):
        client = grid.client_index(message.metadata.dst_node_id)
        return [quadratic(message, centre=float(CENTRE[client]))]

    grid = ToyGrid(len(CENTRE), answer or stepped)
    run = loop(strategy, grid, Masks(masks))
    strategy.federation = replace(strategy.federation, latencies=lambda: BUSY_S)
    run.meter = Timed()
    models, reports = zip(*run.run(model(0.0)), strict=True)
    x = [float(params["x"]) for params in models]
    return x, [r.simulated_seconds for r in reports], [r.admitted for r in reports]
