"""What a search found in the levels of a game: kept in a file as it is found, and played by a policy."""

import json
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from tqdm import tqdm

from dreamloom.datasets.policies import Act, Policy
from dreamloom.datasets.search import Plan, Search, Solution
from dreamloom.datasets.simulator import fingerprints


def plans_path(out: Path) -> Path:
    """Where the plans of a recording stay: `data/a.hdf5` -> `data/a.plans.jsonl`."""
    return out.with_suffix(".plans.jsonl")


def solve_levels(path: Path, levels: range, options: dict[str, Any], *, rounds: int, seed: int, threads: int) -> list[Solution]:
    """Searches all levels, or what is left of them: each goes to the file as it is found.

    Args:
        path: JSON lines: the settings, then a `Solution` each.
        levels: level seeds.
        options: of the environment, as `make_procgen` takes them; which levels it plays is not looked at.
        rounds: of 64 tries at the most, in each level.
        seed: of the search.
        threads: that step the simulator; they do not change what is found.

    Raises:
        ValueError: the file is of another search.
    """
    options = {name: value for name, value in options.items() if name not in ("start_level", "num_levels")}
    settings = {"search": {"rounds": rounds, "seed": seed, "env": options}}
    found = {one.level: one for one in _read(path, settings)}
    missing = [level for level in levels if level not in found]
    if missing:
        solved = sum(bool(one.plans) for one in found.values())
        searching = closing(Search(options, rounds=rounds, seed=seed, threads=threads))
        with searching as search, open(path, "a", encoding="utf-8") as file:
            for level in (progress := tqdm(missing, initial=len(found), total=len(levels), unit=" levels", desc=str(path))):
                found[level] = search.solve(level)
                file.write(json.dumps(asdict(found[level])) + "\n")
                file.flush()
                solved += bool(found[level].plans)
                progress.set_postfix_str(f"solved {solved / len(found):.0%}", refresh=False)
    return [found[level] for level in levels]


def _read(path: Path, settings: dict[str, Any]) -> list[Solution]:
    """What is in the file, which is begun where it is not there; a last line that was cut off is taken away."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    head = json.dumps(settings).encode()
    if lines and lines[0] != head:
        raise ValueError(f"{path}: holds plans of a search with other settings; delete it, or choose another --out")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(line + b"\n" for line in lines or [head]))
    return [Solution(**json.loads(line)) for line in lines[1:]]


class Searched:
    """The policy `search`: looks for plans when it is first asked to play, and plays them.

    Args:
        path: file of the plans.
        levels: level seeds, all of which are searched.
        otherwise: plays where there is no plan.
        settings: of `solve_levels`.
    """

    def __init__(self, path: Path, levels: range, otherwise: Policy, **settings: Any) -> None:
        self._path, self._levels, self._otherwise, self._settings = path, levels, otherwise, settings
        self._policy: Policy | None = None

    def __call__(self, lanes: int, space: gymnasium.Space, rng: np.random.Generator) -> Act:
        if self._policy is None:
            self._policy = planned(solve_levels(self._path, self._levels, **self._settings), self._otherwise)
        return self._policy(lanes, space, rng)


def planned(solutions: Iterable[Solution], otherwise: Policy) -> Policy:
    """Plays one of a level's plans, drawn anew in each episode.

    A level is told by its first frame. Where there is no plan, or two levels begin alike, and after a plan's end, the
    other policy plays.

    Args:
        solutions: of the levels.
        otherwise: plays all else.
    """
    plans: dict[int, list[Plan]] = {}
    for one in solutions:
        plans[one.first] = [] if one.first in plans else one.plans

    def start(lanes: int, space: gymnasium.Space, rng: np.random.Generator) -> Act:
        other = otherwise(lanes, space, rng)
        playing: list[Sequence[int]] = [[]] * lanes
        age = np.zeros(lanes, np.int64)

        def act(frames: np.ndarray, first: np.ndarray) -> np.ndarray:
            actions = other(frames, first)
            begun = np.flatnonzero(first)
            age[begun] = 0
            for lane, number in zip(begun.tolist(), fingerprints(frames[begun]).tolist(), strict=True):
                known = plans.get(number, [])
                playing[lane] = known[rng.integers(len(known))] if known else []
            for lane, plan in enumerate(playing):
                if age[lane] < len(plan):
                    actions[lane] = plan[age[lane]]
            age[:] += 1
            return actions

        return act

    return start
