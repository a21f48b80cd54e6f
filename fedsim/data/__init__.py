"""Data sets as scenario parts: one file per format or source, each giving a `Dataset`."""

from fedsim.data.dataset import DataPart, Dataset, Task

__all__ = ["DataPart", "Dataset", "Task"]
