"""What holds for all tests."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def _no_statistics() -> Iterator[None]:
    """Only a few tests want points that the test itself did not make."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TENSORMETER_SAMPLE_INTERVAL", "0")
        patch.setenv("TENSORMETER_SELF_METRICS_INTERVAL", "0")
        yield
