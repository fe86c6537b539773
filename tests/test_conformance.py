"""Every kind of world does all that the World protocol promises."""

import pytest
from conformance import CASES, CHECKS


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("world", CASES)
def test_world(world: str, check: str) -> None:
    CHECKS[check](CASES[world])
