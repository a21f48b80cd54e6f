"""Events: checked when made, and the same after a trip through JSON."""

import json
import math

import pytest

from fedsim.errors import ConfigError
from privacy.events import (
    DiscreteGaussian,
    Event,
    FixedSize,
    Gaussian,
    Laplace,
    Poisson,
    PureDP,
    Skellam,
    Unsampled,
)

MECHANISMS = [
    Gaussian(noise_multiplier=1.1),
    Laplace(scale=0.5),
    PureDP(epsilon=2.0),
    Skellam(variance=100.0, l1_norm=9.0, l2_norm=3.0),
    DiscreteGaussian(sigma=2.0, shares=10, dimension=50, l1_norm=9.0, l2_norm=3.0),
]
SAMPLINGS = [Unsampled(), Poisson(rate=0.1 + 0.2), FixedSize(size=5, population=50)]


@pytest.mark.parametrize("mechanism", MECHANISMS, ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=lambda s: type(s).__name__)
def test_an_event_survives_json(mechanism, sampling):
    event = Event(mechanism=mechanism, sampling=sampling, count=7)
    text = json.dumps(event.to_json(), allow_nan=False)
    assert Event.from_json(json.loads(text)) == event
    assert hash(Event.from_json(json.loads(text))) == hash(event)


def test_the_written_form_is_what_older_ledgers_hold():
    """Changing a name here would make the ledgers that are out there unreadable."""
    written = [
        Event(mechanism=m, sampling=s).to_json()
        for m, s in zip(MECHANISMS, [*SAMPLINGS, *SAMPLINGS[:2]], strict=True)
    ]
    assert written == [
        {
            "mechanism": {"kind": "Gaussian", "noise_multiplier": 1.1},
            "sampling": {"kind": "Unsampled"},
            "count": 1,
        },
        {
            "mechanism": {"kind": "Laplace", "scale": 0.5},
            "sampling": {"kind": "Poisson", "rate": 0.30000000000000004},
            "count": 1,
        },
        {
            "mechanism": {"kind": "PureDP", "epsilon": 2.0},
            "sampling": {"kind": "FixedSize", "size": 5, "population": 50},
            "count": 1,
        },
        {
            "mechanism": {"kind": "Skellam", "variance": 100.0, "l1_norm": 9.0, "l2_norm": 3.0},
            "sampling": {"kind": "Unsampled"},
            "count": 1,
        },
        {
            "mechanism": {
                "kind": "DiscreteGaussian",
                "sigma": 2.0,
                "shares": 10,
                "dimension": 50,
                "l1_norm": 9.0,
                "l2_norm": 3.0,
            },
            "sampling": {"kind": "Poisson", "rate": 0.30000000000000004},
            "count": 1,
        },
    ]


GOOD = Event(mechanism=MECHANISMS[0], sampling=SAMPLINGS[1]).to_json()


@pytest.mark.parametrize(
    ("damaged", "said"),
    [
        ([], "not a privacy event"),
        ({**GOOD, "unit": "user"}, "not a privacy event"),
        ({k: v for k, v in GOOD.items() if k != "count"}, "not a privacy event"),
        ({**GOOD, "mechanism": {"kind": "Gausian"}}, "did you mean 'Gaussian'"),
        ({**GOOD, "mechanism": {"kind": "Poisson", "rate": 0.1}}, "unknown kind 'Poisson'"),
        ({**GOOD, "mechanism": "Gaussian"}, "unknown kind 'Gaussian'"),
        ({**GOOD, "mechanism": {"kind": "Gaussian"}}, "has the keys"),
        ({**GOOD, "mechanism": {"kind": "Gaussian", "noise_multiplier": "1"}}, "noise_multiplier"),
        ({**GOOD, "sampling": {"kind": "Poisson", "rate": 1.5}}, "rate: 1.5 is out of range"),
        ({**GOOD, "count": -1}, "count: -1"),
        ({**GOOD, "count": 1.5}, "count: 1.5"),
        ({**GOOD, "count": True}, "count: True"),
    ],
)
def test_what_cannot_be_understood_is_refused(damaged, said):
    with pytest.raises(ConfigError, match=said):
        Event.from_json(damaged)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Gaussian(noise_multiplier=-1.0),
        lambda: Gaussian(noise_multiplier=math.nan),
        lambda: Gaussian(noise_multiplier=math.inf),
        lambda: Laplace(scale=-0.1),
        lambda: PureDP(epsilon=math.nan),
        lambda: Poisson(rate=-0.1),
        lambda: FixedSize(size=11, population=10),
        lambda: FixedSize(size=0, population=10),
        lambda: Event(mechanism="gaussian"),
        lambda: Event(mechanism=Gaussian(noise_multiplier=1.0), sampling=Gaussian),
    ],
)
def test_an_impossible_event_cannot_be_made(make):
    with pytest.raises(ConfigError):
        make()


def test_times_multiplies_the_count():
    event = Event(mechanism=MECHANISMS[0], count=3)
    assert event.times(4) == Event(mechanism=MECHANISMS[0], count=12)
    assert event.times(0).count == 0
