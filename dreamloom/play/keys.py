"""Labels to keys: "jump right" is played with the up and right arrows, and is Procgen's ("RIGHT", "UP")."""

import re
from collections.abc import Sequence

ARROWS = {
    "left": "ArrowLeft",
    "right": "ArrowRight",
    "up": "ArrowUp",
    "jump": "ArrowUp",
    "down": "ArrowDown",
    "fall": "ArrowDown",
    "duck": "ArrowDown",
    "crouch": "ArrowDown",
}
STILL = {"noop", "stand", "still", "idle", "wait", "stay", "none", "nothing", "rest"}
LETTERS = {"d", "a", "w", "s", "q", "e"}
WASD = {"w", "a", "s", "d"}
FIRE = {"fire", "shoot", "attack", "interact"}
SPACE = " "  # as `KeyboardEvent.key` names it
_PARTS = re.compile("left|right|up|down|fire")


def words(label: str) -> list[str]:
    """The lower-case words of a label; "no-op" is one word, Atari's "UPRIGHTFIRE" three."""
    joined = re.findall(r"[a-z]+", re.sub(r"no[-_ ]op", "noop", label.lower()))
    return [part for word in joined for part in (_PARTS.findall(word) if _PARTS.sub("", word) == "" else [word])]


def arrows(label: str) -> list[str]:
    """The arrow keys that a label speaks of, as `KeyboardEvent.key` names them; empty where it speaks of none."""
    return sorted({ARROWS[word] for word in words(label) if word in ARROWS})


def page_keys(label: str, *, steered: bool = False) -> list[str]:
    """The keys that play an action on the page: its arrows, with the space bar where it fires, or the letter of its name.

    "right 2" and "slow right" have none: the arrow is for the plain "right", which was named first because it is the surest.

    Args:
        label: of the action.
        steered: whether some action of the world is a direction. Then W, A, S and D are the arrows' other names, and Procgen's
            "D", which fires, has the space bar.
    """
    if re.search(r"\d$|^(slow|fast) ", label):
        return []
    letter = label.lower()
    fires = bool(FIRE & set(words(label))) or (steered and letter == "d")
    own = [letter] if letter in LETTERS - (WASD if steered else set()) else []
    return arrows(label) + [SPACE] * fires or own


def idle_action(labels: Sequence[str]) -> int | None:
    """The action to take while no key is held: the first whose label says that nothing is done, or None."""
    return next((i for i, label in enumerate(labels) if STILL & set(words(label)) and not arrows(label)), None)


def procgen_combo(label: str) -> frozenset[str]:
    """The Procgen keys that a label speaks of; empty (Procgen's no-op) where it speaks of none."""
    spoken = set(words(label))
    if moves := arrows(label):
        return frozenset(key.removeprefix("Arrow").upper() for key in moves)
    if letter := sorted(LETTERS & spoken):
        return frozenset(letter[0].upper())
    return frozenset("D") if FIRE & spoken else frozenset()
