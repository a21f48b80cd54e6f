"""Audits of a scenario's privacy claim: their contract, and how one is run.

The audits themselves are in `privacy/audit/`; the `audit` group lists them.
"""

from fedsim.auditing.base import Audit, AuditPart, Verdict

__all__ = ["Audit", "AuditPart", "Verdict"]
