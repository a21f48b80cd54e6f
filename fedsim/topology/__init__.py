"""Topologies: who is linked to whom. One file each."""

from fedsim.topology.base import TopologyPart

__all__ = ["TopologyPart"]
