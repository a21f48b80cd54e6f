"""Whole protocols on tiny domains: every sequence of reports, enumerated through the real code.

The reports of a run are what its users send. A scripted oracle walks through all of them; the
probability of a sequence is the product of the oracle's exact law over the users. For each user and
every pair of its items, whatever the others hold, the ratio must stay below e^ε: adaptivity, ⊥ at
pruned prefixes, votes and local levels included.
"""

import math

import numpy as np
import pytest
import torch

from privacy.frequency_oracles import choose
from privacy.local_reports import Reporter
from strategies.heavy_hitters import tree
from strategies.heavy_hitters.search import Descent
from tests.strategies.heavy_hitters._direct import METHODS, methods, search

EPSILON = 1.3


class Scripted(Reporter):
    """Users' reports are read from a script; beyond its end, the first of all is taken."""

    def __init__(self, script, drop=False):
        self.script, self.at, self.drop = script, 0, drop
        self.choices, self.probability, self.calls = [], 1.0, []

    def oracle(self, candidates):
        oracle = choose("krr", EPSILON, candidates)
        law, outcomes = oracle.pmf()[:, :-1], oracle.outcomes()

        def total(values, coins):
            if self.drop:
                values = values[oracle.places(values) >= 0]
            self.calls.append((len(values), law.shape[1]))
            counts = np.zeros(oracle.size, np.int64)
            for place in oracle.places(values):
                y = self.script[self.at] if self.at < len(self.script) else 0
                self.at += 1
                self.choices.append((y, law.shape[1]))
                self.probability *= law[place, y]
                counts += outcomes[y]
            return counts

        oracle.total = total
        return oracle


def law_of(name, items, bits, drop=False):
    """Return {(shape of the run, reports): probability}."""
    found, script = {}, []
    while script is not None:
        strategy = methods(k=1, levels=2, shared=1)[name]
        if name == "taps":
            strategy.vote = 0.5
        reporter = strategy.reporter = Scripted(script, drop)
        search(strategy, items, bits, seed=4)
        key = tuple(reporter.calls), tuple(y for y, _ in reporter.choices)
        assert key not in found
        found[key] = reporter.probability
        script = _next(reporter.choices)
    assert sum(found.values()) == pytest.approx(1, abs=1e-12)
    return found


def _next(choices):
    """Return the script after this one, or None."""
    script = [y for y, _ in choices]
    while script:
        if script[-1] + 1 < choices[len(script) - 1][1]:
            script[-1] += 1
            return script
        script.pop()
    return None


def worst(name, base, bits, drop=False):
    """Return the largest ratio over users, pairs of their items, and sequences of reports."""
    most = 0.0
    for client, own in enumerate(base):
        for user in range(len(own)):
            laws = []
            for item in range(2**bits):
                items = [values.copy() for values in base]
                items[client][user] = item
                laws.append(law_of(name, items, bits, drop))
            for one in laws:
                for other in laws:
                    for key, probability in one.items():
                        least = other.get(key, 0.0)
                        most = max(most, probability / least if least else math.inf)
    return most


ITEMS = [np.array([0, 3]), np.array([2])]


def check(ratio):
    assert ratio <= math.exp(EPSILON) * (1 + 1e-9)
    assert ratio >= math.exp(EPSILON) * (1 - 1e-9)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "taps"])
def test_no_user_can_be_told_from_another(name):
    check(worst(name, ITEMS, 2))


def test_no_user_of_taps_can_be_told_from_another(monkeypatch):
    """One user a level at the first party; at the second, one that votes and one that reports."""
    levels = {0: np.array([0, 1]), 1: np.array([1, 1])}
    monkeypatch.setattr(tree, "assign", lambda seed, client, count, shares: levels[client])
    items = [np.array([0, 3]), np.array([1, 2])]
    voted = {call for calls, _ in law_of("taps", items, 2) for call in calls}
    assert (1, 2) in voted
    check(worst("taps", items, 2))


def test_users_report_at_both_levels_in_the_audit():
    """Or the audit would say nothing about adaptivity."""

    class Cohort:
        seed, clients = 4, np.array([0, 1])

        def inputs(self, row):
            return torch.from_numpy(ITEMS[row])

    descent = Descent(methods(k=1, levels=2, shared=1)["tap"])
    sizes = [[len(descent.users(Cohort(), row, level)) for level in (1, 2)] for row in (0, 1)]
    assert sizes[0] == [1, 1]


def test_dropping_users_whose_prefix_was_pruned_is_caught():
    """What public code of GTF does."""
    assert worst("gtf", ITEMS, 2, drop=True) == math.inf
