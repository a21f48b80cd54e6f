"""Short names for the events that the accountants' tests are full of, and the published tables."""

from privacy.events import Event, FixedSize, Gaussian, Laplace, Poisson, PureDP, Unsampled

ADD, REPLACE = "add_remove", "replace_one"

TABLE = {
    # sigma, q, T, delta: PLD, its replace-one, dp-accounting's RDP, Opacus' RDP, PRV at .01, .001
    "A": (1.0, 0.01, 1000, 1e-5, 1.82824, 2.84345, 2.10137, 2.10137, 1.83837, 1.82937),
    "B": (1.1, 0.004266667, 14063, 1e-5, 2.38178, 4.22153, 2.59666, 2.59666, 2.39184, 2.38283),
    "C": (0.6, 0.02, 500, 1e-6, 11.90624, 13.91308, 13.49032, 13.46178, 11.91693, 11.90793),
    "D": (1.0, 0.05, 200, 1e-5, 4.76592, 7.10698, 5.36786, 5.36764, 4.77624, 4.76724),
    "E": (2.0, 0.1, 100, 1e-3, 1.54386, 3.11831, 1.79900, 1.79900, 1.55406, 1.54506),
    "H": (0.8, 0.001, 10_000, 1e-6, 0.94732, 1.32517, 1.70363, 1.70363, 0.95728, 0.94828),
}


def gaussian(z, count=1):
    return Event(mechanism=Gaussian(noise_multiplier=z), count=count)


def poisson(z, rate, count=1):
    return Event(mechanism=Gaussian(noise_multiplier=z), sampling=Poisson(rate=rate), count=count)


def fixed(z, size, population, count=1):
    sampling = FixedSize(size=size, population=population)
    return Event(mechanism=Gaussian(noise_multiplier=z), sampling=sampling, count=count)


def laplace(scale, count=1, sampling=None):
    return Event(mechanism=Laplace(scale=scale), sampling=sampling or Unsampled(), count=count)


def pure(epsilon, count=1, sampling=None):
    return Event(mechanism=PureDP(epsilon=epsilon), sampling=sampling or Unsampled(), count=count)
