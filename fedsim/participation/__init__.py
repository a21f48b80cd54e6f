"""Participation: which clients take part in which round. One file per model."""

from fedsim.participation.base import ParticipationPart, Population, Schedule

__all__ = ["ParticipationPart", "Population", "Schedule"]
