"""Where D4RL publishes its files (Fu et al. 2020; the addresses are those that its package registers)."""

from collections.abc import Iterator

HOST = "http://rail.eecs.berkeley.edu/datasets/offline_rl"

_QUALITIES = ("random", "medium", "expert", "medium-replay", "full-replay", "medium-expert")
_ANT_MAZES = {
    "umaze": "u-maze_noisy_multistart_False_multigoal_False",
    "umaze-diverse": "u-maze_noisy_multistart_True_multigoal_True",
    "medium-play": "big-maze_noisy_multistart_True_multigoal_False",
    "medium-diverse": "big-maze_noisy_multistart_True_multigoal_True",
    "large-play": "hardest-maze_noisy_multistart_True_multigoal_False",
    "large-diverse": "hardest-maze_noisy_multistart_True_multigoal_True",
}
_ADROIT = {"human": "{}-v0_demos_clipped", "cloned": "{}-demos-v0-bc-combined", "expert": "{}-v0_expert_clipped"}
_KITCHEN = {
    "complete": "mini_kitchen_microwave_kettle_light_slider",
    "partial": "kitchen_microwave_kettle_light_slider",
    "mixed": "kitchen_microwave_kettle_bottomburner_light",
}


def d4rl_url(name: str) -> str:
    """Address of a dataset.

    Args:
        name: e.g. "halfcheetah-medium-v2".

    Raises:
        ValueError: D4RL publishes no such file.
    """
    files = dict(_files())
    if name not in files:
        like = [known for known in files if known.split("-")[0] == name.split("-")[0]]
        raise ValueError(f"d4rl:{name}: D4RL publishes no such dataset; there are: {', '.join(like or files)}")
    return f"{HOST}/{files[name]}.hdf5"


def _files() -> Iterator[tuple[str, str]]:
    for env in ("halfcheetah", "hopper", "walker2d", "ant"):
        for quality in _QUALITIES:
            for version in ("v2", "v1"):
                yield f"{env}-{quality}-{version}", f"gym_mujoco_{version}/{env}_{quality.replace('-', '_')}-{version}"
            if quality != "full-replay":
                # The oldest files call a replay mixed.
                old = f"{env}_{quality.replace('medium-replay', 'mixed').replace('-', '_')}"
                yield f"{env}-{quality}-v0", f"gym_mujoco/{old.replace('walker2d_mixed', 'walker_mixed')}"
    for size in ("umaze", "medium", "large"):
        yield f"maze2d-{size}-v1", f"maze2d/maze2d-{size}-sparse-v1"
        yield f"maze2d-{size}-dense-v1", f"maze2d/maze2d-{size}-dense-v1"
    yield "maze2d-open-v0", "maze2d/maze2d-open-sparse"
    yield "maze2d-open-dense-v0", "maze2d/maze2d-open-dense"
    for kind, file in _ANT_MAZES.items():
        yield f"antmaze-{kind}-v2", f"ant_maze_v2/Ant_maze_{file}_sparse_fixed"
        yield f"antmaze-{kind}-v0", f"ant_maze_new/Ant_maze_{file}_sparse"
    for hand in ("pen", "hammer", "door", "relocate"):
        for quality, file in _ADROIT.items():
            yield f"{hand}-{quality}-v1", f"hand_dapg_v1/{hand}-{quality}-v1"
            yield f"{hand}-{quality}-v0", f"hand_dapg/{file.format(hand)}"
    for kind, file in _KITCHEN.items():
        yield f"kitchen-{kind}-v0", f"kitchen/{file}-v0"
