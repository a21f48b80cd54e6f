"""The audited claim: what the ledger's events allow, for the client that they hit."""

import numpy as np
import pytest

from fedsim.protection import Statement
from privacy.audit.claim import claim_of
from privacy.audit.tradeoff import gdp_tpr
from privacy.events import Event, Gaussian

EVENT = Event(mechanism=Gaussian(noise_multiplier=2.0)).to_json()
STATED = Statement(mechanism="a test", epsilon=4.377, delta=1e-5, unit="example")
FPR = np.array([0.01, 0.1, 0.5])


@pytest.mark.parametrize(
    ("client", "rounds"),
    [(1, 3), (2, 1), (None, 3)],  # client 1 is hit most
)
def test_a_client_is_hit_by_its_own_rounds(client: int | None, rounds: int) -> None:
    """R Gaussians of z = 2 are a Gaussian mechanism of μ = √R / 2."""
    lines = [
        {"round": 1, "events": [EVENT], "clients": [1, 2]},
        {"round": 2, "events": [EVENT], "clients": [1]},
        {"round": 3, "events": [EVENT], "clients": [1, 3]},
    ]
    found = claim_of(STATED, lines, client).tpr(FPR)
    np.testing.assert_allclose(found, gdp_tpr(FPR, np.sqrt(rounds) / 2), atol=0.01)


def test_lines_without_clients_hit_everyone() -> None:
    lines = [{"round": r, "events": [EVENT]} for r in (1, 2, 3, 4)]
    for client in (None, 7):
        claim = claim_of(STATED, lines, client)
        np.testing.assert_allclose(claim.tpr(FPR), gdp_tpr(FPR, 1.0), atol=0.01)
        assert claim.fpr(float(claim.tpr(FPR)[1])) == pytest.approx(0.1, abs=0.01)
