import json

import gymnasium
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreamloom.datasets import plans as plans_module
from dreamloom.datasets.plans import planned, plans_path, solve_levels
from dreamloom.datasets.procgen import collect_procgen, make_procgen
from dreamloom.datasets.search import Search, Solution, _without_some
from dreamloom.datasets.simulator import Simulator, fingerprints
from dreamloom.datasets.store import open_dataset

pytest.importorskip("procgen")
MAZE = {"env_name": "maze", "distribution_mode": "easy"}
SHORT = {"rounds": 40, "seed": 0, "threads": 1}
SPACE = gymnasium.spaces.Discrete(15)


def record(path, **options):
    settings = {"game": "maze", "levels": "0:4", "steps": 400, "num_envs": 2, "segment": 200, "num_threads": 2}
    collect_procgen(**{**settings, "out": path, "policy": "search", "search_rounds": 40, **options})
    return open_dataset(path)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    path = tmp_path_factory.mktemp("search") / "maze.hdf5"
    record(path).close()
    return path


def solutions_of(recording):
    lines = plans_path(recording).read_text().splitlines()[1:]
    return {found["level"]: Solution(**found) for found in map(json.loads, lines)}


def returned(game, level, plan):
    """The return of a list of actions in a level, in an environment that nothing was loaded into."""
    env = make_procgen(1, env_name=game, start_level=level, num_levels=1, distribution_mode="easy", rand_seed=7)
    total = 0.0
    for number, action in enumerate(plan):
        env.observe()
        env.act(np.array([action]))
        reward, _, first = env.observe()
        total += float(reward[0])
        assert not first[0] or number == len(plan) - 1
    return total


def test_plans_do_what_they_say_in_an_environment_of_their_own(recorded):
    found = solutions_of(recorded)
    assert sorted(found) == [0, 1, 2, 3]
    for one in found.values():
        assert len({tuple(plan) for plan in one.plans}) == len(one.plans) > 5
        assert [returned("maze", one.level, plan) for plan in one.plans] == [one.gained] * len(one.plans)
        assert one.gained == 10


def test_every_whole_episode_is_one_of_its_levels_plans(recorded):
    found = solutions_of(recorded)
    with open_dataset(recorded) as data:
        actions, terminals, timeouts = data.actions[:], data.terminals[:], data.timeouts[:]
        levels = data.infos["level_seed"][:]
        ends = np.flatnonzero(terminals | timeouts)
        episodes = list(zip([0, *(ends[:-1] + 1)], ends + 1, strict=True))
        played = {level: set() for level in found}
        for start, end in episodes:
            level = int(levels[start])
            plans = [plan for plan in found[level].plans if plan[: end - start] == actions[start:end].tolist()]
            assert plans, (level, start)
            if terminals[end - 1]:
                played[level].add(end - start)
                assert end - start in map(len, plans)
                assert data.rewards[start:end].sum() == 10
        assert terminals.sum() > 5
        assert any(len(lengths) > 1 for lengths in played.values()), "variations are played too"


@pytest.mark.parametrize(("game", "levels"), [("coinrun", [3]), ("miner", [1]), ("jumper", [4])])
def test_other_games_are_solved_where_drawing_actions_is_not_enough(game, levels):
    search = Search({"env_name": game, "distribution_mode": "easy"}, rounds=150, seed=0)
    for level in levels:
        found = search.solve(level)
        assert found.gained >= 10, level
        assert returned(game, level, found.plans[0]) == found.gained
    search.close()


def test_a_state_that_is_loaded_goes_on_as_the_one_that_was_left():
    simulator = Simulator({**MAZE, "env_name": "coinrun"})
    root, _ = simulator.root(3)
    actions = np.random.default_rng(0).integers(0, 9, (2, 20, 64))

    def play(states, steps):
        simulator.load(states)
        return [simulator.step(step) for step in steps]

    play([root] * 64, actions[0])
    left = simulator.states()
    straight = [simulator.step(step) for step in actions[1]]
    again = play(left, actions[1])
    for one, other in zip(straight, again, strict=True):
        for mine, theirs in zip(one, other, strict=True):
            np.testing.assert_array_equal(mine, theirs)
    simulator.close()


def test_a_search_that_was_killed_goes_on_and_finds_the_same(tmp_path, recorded, monkeypatch):
    whole = plans_path(recorded).read_bytes()
    path = tmp_path / "a.plans.jsonl"
    lines = whole.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]) + lines[3][:25])
    searched = []
    solve = Search.solve
    monkeypatch.setattr(plans_module.Search, "solve", lambda self, level: searched.append(level) or solve(self, level))
    record(tmp_path / "a.hdf5", num_threads=1).close()
    assert searched == [2, 3]
    assert path.read_bytes() == whole
    assert (tmp_path / "a.hdf5").read_bytes() == recorded.read_bytes()


def test_plans_of_another_search_are_refused(tmp_path, recorded):
    path = tmp_path / "a.plans.jsonl"
    path.write_bytes(plans_path(recorded).read_bytes())
    with pytest.raises(ValueError, match=r"a\.plans\.jsonl: holds plans of a search with other settings"):
        record(tmp_path / "a.hdf5", search_rounds=41)


def test_a_level_in_which_nothing_is_found_is_played_by_the_scripted_policy(tmp_path):
    path = tmp_path / "a.plans.jsonl"
    [found] = solve_levels(path, range(8, 9), {**MAZE, "env_name": "heist"}, **{**SHORT, "rounds": 2})
    assert found.plans == []
    assert found.gained == 0


def constant(action):
    return lambda lanes, space, rng: lambda frames, first: np.full(lanes, action)


def test_levels_that_begin_alike_have_no_plan_and_after_a_plan_the_other_policy_plays():
    frames = np.zeros((3, 64, 64, 3), np.uint8) + np.arange(3, dtype=np.uint8)[:, None, None, None]
    marks = fingerprints(frames).tolist()
    known = [Solution(0, 1.0, [[1, 2]], marks[0]), Solution(1, 1.0, [[5]], marks[1]), Solution(2, 1.0, [[6]], marks[1])]
    act = planned(known, constant(9))(3, SPACE, np.random.default_rng(0))
    begin, go_on = np.ones(3, bool), np.zeros(3, bool)
    assert act(frames, begin).tolist() == [1, 9, 9]
    assert act(frames, go_on).tolist() == [2, 9, 9]
    assert act(frames, go_on).tolist() == [9, 9, 9]
    assert act(frames, np.array([True, False, False])).tolist() == [1, 9, 9]


@given(st.lists(st.integers(0, 14), min_size=1, max_size=60), st.integers(0, 99))
def test_leaving_out_steps_keeps_the_order_of_the_others(plan, seed):
    left = _without_some(np.array(plan), np.random.default_rng(seed)).tolist()
    assert len(left) <= len(plan)
    rest = iter(plan)
    assert all(action in rest for action in left)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"search_rounds": 0}, "--search-rounds 0: must be at least 1"),
        ({"policy": "random", "search_rounds": 5}, "goes with --policy search, not 'random'"),
    ],
)
def test_a_users_mistake_is_named(tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        record(tmp_path / "a.hdf5", **options)
