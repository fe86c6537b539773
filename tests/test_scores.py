"""Normalised scores: D4RL's constants, found by any of the names that an environment goes by."""

import numpy as np
import pytest

from dreamloom.datasets.scores import normalized_score, score_constants, step_limit


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("halfcheetah-medium-v2", -280.178953, 12135.0),
        ("HalfCheetah-v5", -280.178953, 12135.0),
        ("d4rl:hopper-medium-replay-v2", -20.272305, 3234.3),
        ("minari:mujoco/hopper/expert-v0", -20.272305, 3234.3),
        ("walker2d_medium_expert-v2", 1.629008, 4592.3),
        ("walker2d", 1.629008, 4592.3),
        ("Ant-v4", -325.6, 3879.7),
        ("antmaze-umaze-diverse-v2", 0.0, 1.0),
        ("antmaze-large-play-v0", 0.0, 1.0),
        ("kitchen-partial-v0", 0.0, 4.0),
        ("FrankaKitchen-v1", 0.0, 4.0),
        ("D4RL/pen/human-v2", 96.262799, 3076.8331017826877),
        ("AdroitHandDoor-v1", -56.512833, 2880.5693087298737),
        ("hammer-cloned-v1", -274.856578, 12794.134825156867),
        ("relocate-expert-v0", -6.425911, 4233.877797728884),
        ("maze2d-umaze-v1", 23.85, 161.86),
        ("maze2d-large-dense-v1", 30.569041, 303.4857382709002),
        ("maze2d-medium-dense-v1", 44.264742, 297.4552547777125),
        ("fruitbot", -1.5, 32.4),
        ("maze", 5.0, 10.0),
        ("procgen:procgen-starpilot-v0", 2.5, 64.0),
        ("cheetah_run", 0.0, 1000.0),
    ],
)
def test_a_random_policy_has_0_and_an_expert_100(name, low, high):
    assert score_constants(name) == (low, high)
    np.testing.assert_allclose(normalized_score(name, np.array([low, high, (low + high) / 2])), [0, 100, 50], atol=1e-9)


@pytest.mark.parametrize(
    "name", ["MyHopper-v0", "hopper-backwards-v0", "Humanoid-v5", "ant-dir", "antelope", "maze2d-open-v0", "coinrun-hard", ""]
)
def test_other_environments_need_constants_of_their_own(name):
    assert score_constants(name) is None
    with pytest.raises(ValueError, match=r"no reference returns for it .*constants=\(min, max\)"):
        normalized_score(name, 3.0)
    assert normalized_score(name, 3.0, (1.0, 5.0)) == 50.0


def test_a_users_constants_go_before_d4rls():
    assert normalized_score("Hopper-v5", 3.0, (1.0, 5.0)) == 50.0
    with pytest.raises(ValueError, match="min below max"):
        normalized_score("Hopper-v5", 3.0, (5.0, 1.0))


def test_step_limits():
    assert step_limit("Hopper-v5") == step_limit("halfcheetah_medium") == step_limit("antmaze-large-play-v2") == 1000
    assert (step_limit("antmaze-umaze-diverse-v2"), step_limit("maze2d-medium-dense-v1")) == (700, 600)
    assert (step_limit("pen-human-v0"), step_limit("kitchen-mixed-v0"), step_limit("mine")) == (100, 280, None)
