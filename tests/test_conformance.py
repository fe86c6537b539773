"""Every kind of world does all that the World protocol promises."""

import sys
from types import ModuleType
from typing import Any

import gymnasium
import pages
import pytest
from conformance import CASES, CHECKS, Case


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("world", CASES)
def test_world(world: str, check: str) -> None:
    CHECKS[check](CASES[world])


def test_the_world_of_the_page_is_a_world(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that docs/worlds.md tells how to write, which is shorter than 100 lines."""
    snippets = pages.blocks((pages.ROOT / "docs/worlds.md").read_text(), "python")
    own = next(snippet for snippet in snippets if "(Playable)" in snippet)
    assert len(own.splitlines()) < 100
    variables: dict[str, Any] = {"__name__": "of_the_page", "gymnasium": gymnasium}
    monkeypatch.setitem(sys.modules, "of_the_page", ModuleType("of_the_page"))  # where dataclasses look for it
    exec(compile(own, "docs/worlds.md", "exec"), variables)
    for check in CHECKS:
        if check != "cached_equals_plain":
            CHECKS[check](Case(variables["Drift"], rounding=0))
    assert variables["mine"].reset(seed=0)[0].shape == (3, 64, 64, 3)
