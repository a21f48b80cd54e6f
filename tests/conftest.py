"""What all tests share."""

import os
import signal

import pytest
import torch

# A shell starts what runs in the background with interrupts ignored, and that is inherited; tests
# that press Ctrl-C would then wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Programs, not tests; those beside other simulators import what only their own environments have.
collect_ignore = ["bench"]


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pytest_collection_modifyitems(items):
    # Deployed runs take longest and mostly wait, so they begin while there is other work to do.
    items.sort(key=lambda item: "tests/deployment/" not in item.nodeid)
    if os.environ.get("FEDSIM_NIGHTLY"):
        return
    skip = pytest.mark.skip(reason="at length; set FEDSIM_NIGHTLY=1 to run it")
    for item in items:
        if item.get_closest_marker("nightly"):
            item.add_marker(skip)
