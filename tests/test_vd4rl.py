"""V-D4RL's files, laid out as published: flat HDF5 and an archive an episode, read and written exactly."""

import gymnasium
import h5py
import numpy as np
import pytest

from dreamloom import cli
from dreamloom.datasets import atomic
from dreamloom.datasets.convert import save_dataset
from dreamloom.datasets.gymnasium_env import record
from dreamloom.datasets.policies import parse_mixture, random
from dreamloom.datasets.store import DatasetError, open_dataset
from dreamloom.datasets.transitions import load_transitions


@pytest.fixture(autouse=True)
def no_wait_for_the_disk(monkeypatch):
    monkeypatch.setattr(atomic, "fsync", lambda path: None)


def played(rows, seed=0, terminal=False, size=6):
    """One episode in dm_env's convention: row t holds the step that led into frame t."""
    random = np.random.default_rng(seed)
    action, reward = random.uniform(-1, 1, (rows, 2)).astype(np.float32), random.random(rows).astype(np.float32)
    action[0], reward[0] = 0, 0
    discount = np.ones(rows, np.float32)
    discount[-1] = 0.0 if terminal else 1.0
    return {
        "image": random.integers(0, 256, (rows, size, size, 3), np.uint8),
        "action": action,
        "reward": reward,
        "discount": discount,
    }


def flat(path, episodes):
    kinds = [np.r_[0.0, np.ones(len(part["action"]) - 2), 2.0] for part in episodes]
    with h5py.File(path, "w") as file:
        for name in ("action", "reward", "discount"):
            file.create_dataset(name, data=np.concatenate([part[name] for part in episodes]), compression="gzip")
        frames = np.concatenate([part["image"].transpose(0, 3, 1, 2) for part in episodes])
        file.create_dataset("observation", data=frames, compression="gzip")
        file.create_dataset("step_type", data=np.concatenate(kinds), compression="gzip")
    return path


def archives(folder, episodes):
    folder.mkdir()
    for number, part in enumerate(episodes):
        rows = np.arange(len(part["action"]))
        ends = {"is_first": rows == 0, "is_last": rows == rows[-1], "is_terminal": (rows == rows[-1]) & (part["discount"] == 0)}
        np.savez_compressed(folder / f"20220101T000000-{number:032x}-{len(rows)}.npz", **part, **ends)
    return folder


def saved(path, episodes):
    return flat(path, episodes) if path.suffix else archives(path, episodes)


@pytest.mark.parametrize("name", ["a.hdf5", "a"])
def test_a_step_belongs_to_the_frame_that_it_was_taken_at(tmp_path, name):
    parts = [played(5, 1), played(4, 2, terminal=True), played(3, 3)]
    data = open_dataset(saved(tmp_path / name, parts))
    assert data.observations.shape == (5 + 3 + 3, 6, 6, 3)
    assert data.timeouts[:].nonzero()[0].tolist() == [4, 10]
    assert data.terminals[:].nonzero()[0].tolist() == [7]
    found, row = load_transitions(data), 0
    assert len(found) == 4 + 3 + 2
    for part in parts:
        for t in range(len(part["action"]) - 1):
            np.testing.assert_array_equal(found.observations[row], part["image"][t])
            np.testing.assert_array_equal(found.actions[row], part["action"][t + 1])  # which led into frame t + 1
            assert found.rewards[row] == part["reward"][t + 1]
            assert found.terminals[row] == (part["discount"][t + 1] == 0)
            if not found.terminals[row]:
                np.testing.assert_array_equal(found.next_observations[row], part["image"][t + 1])
            row += 1
    np.testing.assert_array_equal(
        data.observations[[10, 0, 5]], np.stack([parts[2]["image"][2], *(p["image"][0] for p in parts[:2])])
    )


def contents(path):
    if path.suffix:
        with h5py.File(path) as file:
            return {name: (array[:], array.dtype, array.compression) for name, array in file.items()}
    found = {}
    for number, file in enumerate(sorted(path.iterdir())):
        with np.load(file, allow_pickle=False) as archive:
            found |= {f"{number}/{name}": (archive[name], archive[name].dtype, file.stem.split("-")[-1]) for name in archive}
    return found


@pytest.mark.parametrize("source", ["a.hdf5", "a"])
@pytest.mark.parametrize("target", ["b.hdf5", "b"])
def test_written_and_read_again_is_the_same(tmp_path, source, target):
    parts = [played(501, 1, size=4), played(501, 2, size=4)]
    data = open_dataset(saved(tmp_path / source, parts))
    assert save_dataset(data, f"vd4rl:{tmp_path / target}") == 1000
    expected, found = contents(saved(tmp_path / f"expected{target[1:]}", parts)), contents(tmp_path / target)
    assert found.keys() == expected.keys()
    for name, (array, *rest) in expected.items():
        np.testing.assert_array_equal(found[name][0], array, err_msg=name)
        assert list(found[name][1:]) == rest, name


class Clock(gymnasium.Env):
    """Ends by the clock, as the control suite does with an action repeat of 2; each frame tells its number."""

    observation_space = gymnasium.spaces.Box(0, 255, (4, 4, 3), np.uint8)
    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    limit = 500

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.age = 0
        return self._seen(), {}

    def step(self, action):
        self.age += 1
        return self._seen(), float(action[0]), False, self.age == self.limit, {}

    def _seen(self):
        return np.full((4, 4, 3), self.age % 256, np.uint8)


def test_an_episode_that_is_recorded_has_501_frames_as_published(tmp_path):
    settings = {"steps": 1000, "size": 4, "seed": 0, "segment": 500, "crop": "stretch"}
    mixture = parse_mixture("random", {"random": random})
    record(Clock(), lambda seen: seen, mixture, tmp_path / "ours.hdf5", settings, {}, closing=True)
    with open_dataset(tmp_path / "ours.hdf5") as data:
        assert len(data.actions) == 2 * 501
        assert data.timeouts[:].nonzero()[0].tolist() == data.infos["last_frame"][:].nonzero()[0].tolist() == [500, 1001]
        assert len(load_transitions(data)) == 1000
        assert save_dataset(data, f"vd4rl:{tmp_path / 'flat.hdf5'}") == 1000
        actions, rewards = data.actions[:], data.rewards[:]
    with h5py.File(tmp_path / "flat.hdf5") as file:
        assert file["observation"].shape == (1002, 3, 4, 4)
        assert file["observation"][:, 0, 0, 0].tolist() == [t % 256 for t in range(501)] * 2
        assert np.flatnonzero(file["step_type"][:] == 0).tolist() == [0, 501]
        assert np.flatnonzero(file["step_type"][:] == 2).tolist() == [500, 1001]
        assert (file["discount"][:] == 1).all()
        for first in (0, 501):  # the step that led INTO a frame stands with it
            np.testing.assert_array_equal(file["action"][first + 1 : first + 501], actions[first : first + 500])
            np.testing.assert_array_equal(file["reward"][first + 1 : first + 501], rewards[first : first + 500])
            assert not file["action"][first].any()


def test_a_published_folder_of_files_is_one_dataset(tmp_path, capsys):
    folder = tmp_path / "main" / "walker_walk" / "medium" / "84px"
    folder.mkdir(parents=True)
    parts = [played(5, 1), played(5, 2), played(5, 3)]
    flat(folder / "data_0.hdf5", parts[:2])
    flat(folder / "data_1.hdf5", parts[2:])
    with open_dataset(folder) as data:
        assert data.attrs["env"] == "walker-walk"
        np.testing.assert_array_equal(data.observations[:], np.concatenate([part["image"] for part in parts]))
        assert load_transitions(data).actions.shape == (12, 2)
    assert cli.main(["data", str(folder), "--out", str(tmp_path / "a.png")]) == 0
    assert "normalised score (walker-walk: 0 is a return of 0, 100 of 1000)" in capsys.readouterr().out
    assert cli.main(["data", "convert", str(folder), "--to", str(tmp_path / "ours.hdf5")]) == 0
    with open_dataset(tmp_path / "ours.hdf5") as ours, open_dataset(folder) as data:
        assert ours.next_observations is None
        for name in ("observations", "actions", "rewards", "terminals", "timeouts"):
            np.testing.assert_array_equal(getattr(ours, name)[:], getattr(data, name)[:])


def spoil(path, name, value):
    with h5py.File(path, "a") as file:
        del file[name]
        if value is not None:
            file[name] = value
    return path


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("reward", None, "no array `reward`"),
        ("observation", np.zeros((5, 9, 6, 6), np.uint8), r"expected uint8 \(N, 3, h, w\)"),
        ("step_type", np.array([0, 1, 2, 1, 2]), "`step_type` is 2 in row 2, and row 3 does not begin an episode"),
        ("discount", np.array([1, 1, 0.5, 1, 1]), "`discount` must be 1"),
        ("discount", np.array([b"a"] * 5), r"`discount` is \|S1 \(5,\), expected numbers"),
        ("action", np.arange(5), r"`action` is int64 \(5,\)"),
        ("action", np.zeros((4, 2)), r"`action` is float64 \(4, 2\), expected floats \(N, a\) for 5 frames of `observation`"),
        ("reward", np.zeros(6), r"`reward` is float64 \(6,\), expected numbers \(N,\) for 5 frames"),
        ("step_type", np.array([0, 1, 1, 1, 2, 2]), r"`step_type` is int64 \(6,\), expected numbers"),
        ("step_type", np.array([0, 1, 7, 1, 2]), "`step_type` is 7 in row 2, expected 0, 1 or 2"),
        ("step_type", np.array([0, np.nan, 1, 1, 2]), "`step_type` is nan in row 1"),
        ("reward", np.float32(3), r"`reward` is float32 \(\)"),
    ],
)
def test_a_malformed_file_is_named(tmp_path, name, value, words):
    path = spoil(flat(tmp_path / "a.hdf5", [played(5)]), name, value)
    with pytest.raises(DatasetError, match=words):
        open_dataset(path)


def test_files_of_a_folder_have_frames_and_actions_of_one_size(tmp_path):
    flat(tmp_path / "a.hdf5", [played(5)])
    flat(tmp_path / "b.hdf5", [played(5, size=8)])
    with pytest.raises(DatasetError, match=r"b.hdf5: frames are \(8, 8, 3\), those of a.hdf5 are \(6, 6, 3\)"):
        open_dataset(tmp_path)
    spoil(flat(tmp_path / "b.hdf5", [played(5)]), "action", np.zeros((5, 3)))
    with pytest.raises(DatasetError, match=r"b.hdf5: actions are \(3,\), those of a.hdf5 are \(2,\)"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"reward": np.float32(1)}, "`reward` is a single float32"),
        (
            {name: np.zeros((0, 2), np.float32) for name in ("action", "reward", "discount", "image")},
            "`image` is .*, expected 0 frames",
        ),
        ({"image": np.zeros((4, 6, 6, 3), np.uint8)}, r"`image` is \(4, 6, 6, 3\), expected 5 frames"),
    ],
)
def test_a_malformed_episode_is_named(tmp_path, change, words):
    archives(tmp_path / "a", [played(5)])
    np.savez(tmp_path / "a" / "b.npz", **{**played(5), **change})
    with pytest.raises(DatasetError, match=r"b.npz: .*" + words):
        open_dataset(f"vd4rl:{tmp_path / 'a'}")


def test_other_targets_are_refused(tmp_path):
    data = open_dataset(flat(tmp_path / "a.hdf5", [played(5)]))
    with pytest.raises(ValueError, match=r"expected FILE.hdf5 or a folder"):
        save_dataset(data, f"vd4rl:{tmp_path / 'a.npz'}")
    with pytest.raises(DatasetError, match="DGRL holds discrete actions"):
        save_dataset(data, f"dgrl:{tmp_path / 'b'}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="no episode is in it"):
        open_dataset(f"vd4rl:{tmp_path / 'empty'}")
