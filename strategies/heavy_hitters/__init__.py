"""Federated heavy hitters: which k items do most users hold, when each user reports once?"""
