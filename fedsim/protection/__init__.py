"""What a run's privacy mechanism must say and do; the mechanisms themselves are in `privacy/`."""

from fedsim.protection.base import Line, NoPrivacy, PrivacyPart, Protection, Setting
from fedsim.protection.statement import Statement

__all__ = ["Line", "NoPrivacy", "PrivacyPart", "Protection", "Setting", "Statement"]
