"""A world's actions as a player sees them: which are worth a key, in what order, and by what names."""

from collections.abc import Sequence
from typing import NamedTuple

from dreamloom.datasets.procgen import ACTION_NAMES
from dreamloom.play.keys import FIRE, LETTERS, STILL, arrows, page_keys, words
from dreamloom.worldmodels.labels import PLATFORMERS, UNARMED

# The order of a pad: left and right, then upwards, then downwards.
ORDER = ("left", "right", "up", "up left", "up right", "down", "down left", "down right")
# Games that go one way at a time: a step aside comes before one up or down (tried in Procgen, state by state).
AXIAL = {"leaper", "maze", "miner"}


class Choice(NamedTuple):
    """An action that is worth a key.

    Attributes:
        action: the world's number of it.
        name: what a player would call it.
        keys: what plays it, as `KeyboardEvent.key` names it.
    """

    action: int
    name: str
    keys: list[str]


def choices(names: Sequence[str], game: str | None = None) -> list[Choice]:
    """The actions of a world that differ for a player: ways first, then the others, idle last.

    Procgen's 15 combinations of keys hold several that do the same in a game; the plainest of them stands for all.

    Args:
        names: of the world's actions.
        game: Procgen game that the world imitates.
    """
    procgen = set(names) <= set(ACTION_NAMES)
    steered = any(arrows(name) for name in names)
    ranked = sorted(range(len(names)), key=lambda i: (_rank(names[i], game if procgen else None), i))
    found: dict[str, Choice] = {}
    for action in ranked:
        name = _spoken(names[action], game if procgen else None)
        keys = page_keys(names[action], steered=steered)
        found.setdefault(name, Choice(action, name, keys))
    return list(found.values())


def _rank(name: str, game: str | None) -> tuple[int, int]:
    """Place in a player's order: the way that is gone, then the plainer name."""
    spoken, way = set(words(name)), _way(name)
    if way:
        return ORDER.index(way) if way in ORDER else len(ORDER), len(words(name))
    if STILL & spoken or game in UNARMED:
        return len(ORDER) + 3, 0 if STILL & spoken else 1
    if FIRE & spoken or name == "D":
        return len(ORDER) + 1, 0
    return len(ORDER) + 2, 0


def _way(name: str) -> str:
    """The arrows that a name speaks of, "up left"; empty where it speaks of none."""
    held = [key.removeprefix("Arrow").lower() for key in arrows(name)]
    return " ".join(sorted(held, key=("up", "down", "left", "right").index))


def _spoken(name: str, game: str | None) -> str:
    """What a player calls an action. Of a Procgen game, duplicates bear the name of what they do."""
    way = _way(name)
    if not way and (STILL & set(words(name)) or (game in UNARMED and name.lower() in LETTERS)):
        return name if name[-1:].isdigit() else "idle"
    if game is None:
        return name
    if game in AXIAL or (game in PLATFORMERS and way.startswith("down ")):
        way = way.split()[-1] if way else way
    if game in PLATFORMERS:
        way = way.replace("up", "jump")
    return way or ("fire" if name == "D" else name)
