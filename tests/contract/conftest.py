"""Some of Flower's strategies collect garbage for every reply: slow with all of torch loaded."""

import gc

import pytest


@pytest.fixture(autouse=True)
def _nothing_to_collect():
    gc.freeze()
    yield
    gc.unfreeze()
