"""Differentially private sums that answer similarity queries; see `base`."""
