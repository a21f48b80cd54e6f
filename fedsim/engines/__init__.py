"""Engines: each gives the round loop a Flower `Grid`; they differ in nothing else."""
