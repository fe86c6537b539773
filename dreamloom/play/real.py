"""The real game behind the page's toggle: Procgen, played with the world's own action labels."""

from importlib.util import find_spec

import numpy as np
from PIL import Image

from dreamloom.datasets.procgen import make_procgen
from dreamloom.play.keys import procgen_combo
from dreamloom.worldmodels.world import World


def has_real_game(game: str | None) -> bool:
    """Whether a world names its game and Procgen is installed."""
    return game is not None and find_spec("procgen") is not None


class RealGame:
    """One Procgen game; it starts the next level by itself when one ends, and is freed with its last reference.

    Args:
        world: names the game and the actions; action i presses the keys that label i speaks of. Where it has
            `game_options` (distribution_mode, use_backgrounds, ...), the game looks as it did in the world's data.
        seed: of the levels.

    Raises:
        ValueError: Procgen is not installed.
    """

    def __init__(self, world: World, *, seed: int) -> None:
        options = {"distribution_mode": "easy", **getattr(world, "game_options", {})}
        self.env = make_procgen(1, env_name=world.game, start_level=seed, rand_seed=seed, num_threads=0, **options)
        combos = [frozenset(combo) for combo in self.env.get_combos()]
        presses = [procgen_combo(name) for name in world.action_names]
        self.size = world.frame_shape[2], world.frame_shape[1]
        noop = combos.index(frozenset())
        self.actions = [combos.index(keys) if keys in combos else noop for keys in presses]

    @property
    def level_seed(self) -> int:
        """The level that is being played."""
        return int(self.env.get_info()[0]["level_seed"])

    def frame(self) -> np.ndarray:
        """(h, w, 3) uint8 of the world's shape, what is to be seen now."""
        return np.array(Image.fromarray(self.env.observe()[1]["rgb"][0]).resize(self.size, Image.Resampling.BOX))

    def step(self, action: int) -> tuple[np.ndarray, float, bool]:
        """Plays one frame: (frame, reward, whether a level ended; the frame is the next level's then)."""
        self.env.act(np.array([self.actions[action]]))
        reward, _, first = self.env.observe()
        return self.frame(), float(reward[0]), bool(first[0])


def warm_up_real(world: World) -> None:
    """Loads the real game's pictures, which takes seconds the first time, if there is a real game."""
    if has_real_game(world.game):
        RealGame(world, seed=0)
