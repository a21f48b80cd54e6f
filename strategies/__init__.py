"""Federated algorithms, one file each: client half and server half together."""
