"""Audits: attacks that try to break a privacy claim, and what may be concluded from their success.

Lower bounds that hold with a stated confidence: `one_run`, `multi_run`. Estimates, which are not
bounds: `canary_clients`. Attacks: `membership`, `inversion`.
"""
