"""What one client does: the contract of a client half, local SGD, evaluation."""

from fedsim.client.half import Batch, ClientContext, ClientHalf, Shift
from fedsim.client.work import LocalSGD

__all__ = ["Batch", "ClientContext", "ClientHalf", "LocalSGD", "Shift"]
