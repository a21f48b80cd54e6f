"""Partitions: who holds which samples. One file per scheme, index arrays only."""

from fedsim.partition.base import ArrayPartition, Partition, PartitionPart

__all__ = ["ArrayPartition", "Partition", "PartitionPart"]
