"""Minari both ways, against the real library: what it records is read here, and what is written here it loads."""

import errno
import json
import pickle
import sys

import gymnasium
import h5py
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("minari")
import minari
from minari.dataset._storages.hdf5_storage import HDF5Storage
from minari.dataset.minari_storage import MinariStorage
from minari.namespace import list_local_namespaces
from some_rows import recordings, rows, same

from dreamloom import cli
from dreamloom.datasets import atomic
from dreamloom.datasets.convert import save_dataset
from dreamloom.datasets.store import DatasetError, open_dataset
from dreamloom.datasets.transitions import iter_transitions, load_transitions
from dreamloom.datasets.types import Transitions


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """A Minari root of the test's own."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.setattr(atomic, "fsync", lambda path: None)
    return tmp_path / "minari"


class Toy(gymnasium.Env):
    """Observations of any space, drawn at random; episodes of three to five steps, every other one terminal."""

    def __init__(self, observation_space, action_space):
        self.observation_space, self.action_space = observation_space, action_space
        self.episode = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(self.episode)
        self.episode, self.step_count = self.episode + 1, 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self.step_count += 1
        over = self.step_count == 3 + self.episode % 3
        terminal = over and self.episode % 2 == 0
        return self.observation_space.sample(), float(self.step_count), terminal, over and not terminal, {}


def record(env, name, episodes=4, seed=0, **options):
    """What minari's own DataCollector records of a random policy."""
    collector = minari.DataCollector(env, **options)
    env.action_space.seed(seed)
    for episode in range(episodes):
        collector.reset(seed=seed + episode)
        over = False
        while not over:
            _, _, terminated, truncated, _ = collector.step(env.action_space.sample())
            over = terminated or truncated
    dataset = collector.create_dataset(name)
    collector.close()
    return dataset


def expected_of(dataset, flatten):
    """Transitions of a Minari dataset, restated from the episodes that minari itself gives."""
    parts = []
    for episode in dataset.iterate_episodes():
        seen = flatten(episode.observations)
        steps = len(episode.rewards)
        timeouts = episode.truncations.copy()
        timeouts[-1] |= not episode.terminations[-1]
        parts.append(
            Transitions(
                seen[:-1], episode.actions, np.float32(episode.rewards), seen[1:], episode.terminations.astype(bool), timeouts
            )
        )
        assert len(seen) == steps + 1
    return Transitions.concatenate(parts)


def vector(values):
    return np.asarray(values, np.float32).reshape(len(values), -1)


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1"])
def test_what_minari_records_is_read(name):
    limit = {"max_episode_steps": 30} if name == "Pendulum-v1" else {}
    dataset = record(gymnasium.make(name, **limit), "toys/real-v0")
    with open_dataset("minari:toys/real-v0") as data:
        found, expected = load_transitions(data), expected_of(dataset, vector)
        same(found, expected)
        same(Transitions.concatenate(list(iter_transitions(data, 7))), expected)
        same(load_transitions(pickle.loads(pickle.dumps(data))), expected)
        same(load_transitions(dataset.spec.data_path), expected)
        assert data.attrs["env"] == name
        assert data.actions.dtype == (np.int64 if name == "CartPole-v1" else np.float32)
        assert len(data.episodes[0]) == dataset.total_episodes


def test_dictionaries_become_one_vector_by_name():
    space = spaces.Dict(
        {
            "speed": spaces.Box(-1, 1, (2,), np.float64),
            "goal": spaces.Tuple([spaces.Discrete(5), spaces.Box(-1, 1, (2, 2))]),
            "mission": spaces.Text(9),
            "arm": spaces.Dict({"z": spaces.MultiBinary(3), "a": spaces.Box(-1, 1, ())}),
        }
    )
    dataset = record(Toy(space, spaces.Discrete(3)), "toys/dict-v0")

    def flatten(seen):
        parts = [seen["arm"]["a"], seen["arm"]["z"], *seen["goal"], seen["speed"]]
        return np.concatenate([vector(part) for part in parts], axis=1)

    with open_dataset("minari:toys/dict-v0") as data:
        same(load_transitions(data), expected_of(dataset, flatten))
        bounds = {"arm/a": [0, 1], "arm/z": [1, 4], "goal/0": [4, 5], "goal/1": [5, 9], "speed": [9, 11]}
        assert data.attrs["observation_parts"] == bounds


@pytest.mark.parametrize("shape", [(32, 40, 3), (36, 36), (8, 8, 1)])
@pytest.mark.parametrize("packed", [False, True])
def test_pictures_stay_pictures(shape, packed):
    env = Toy(spaces.Box(0, 255, shape, np.uint8), spaces.Discrete(3))
    dataset = record(env, "toys/pixels-v0", jpeg_encoding=packed)
    found = load_transitions("minari:toys/pixels-v0")
    assert found.observations.dtype == np.uint8
    same(found, expected_of(dataset, lambda seen: np.asarray(seen).reshape(len(seen), *(*shape, 1)[:3])))
    save_dataset(found, "minari:toys/again-v0")
    same(load_transitions("minari:toys/again-v0"), found)
    assert minari.load_dataset("toys/again-v0").observation_space.shape == (*shape, 1)[:3]


def test_stacked_frames_are_refused():
    record(Toy(spaces.Box(0, 255, (4, 36, 36), np.uint8), spaces.Discrete(3)), "toys/stack-v0", jpeg_encoding=False)
    with pytest.raises(DatasetError, match=r"frames are \(4, 36, 36\); expected single frames \(h, w, c\)"):
        open_dataset("minari:toys/stack-v0")


def test_what_is_recorded_keeps_its_episodes_when_written():
    dataset = record(gymnasium.make("Pendulum-v1", max_episode_steps=20), "toys/real-v0")
    assert cli.main(["data", "convert", "minari:toys/real-v0", "--to", "minari:toys/copy-v3"]) == 0
    copy = minari.load_dataset("toys/copy-v3")
    assert (copy.total_episodes, copy.total_steps) == (dataset.total_episodes, dataset.total_steps)
    assert copy.env_spec.id == "Pendulum-v1"
    for one, other in zip(dataset.iterate_episodes(), copy.iterate_episodes(), strict=True):
        for key in ("observations", "actions", "terminations", "truncations"):
            np.testing.assert_array_equal(getattr(one, key), getattr(other, key))
        np.testing.assert_allclose(one.rewards, other.rewards, rtol=1e-6)
    assert "toys/copy-v3" in minari.list_local_datasets()


@settings(max_examples=8)
@given(recordings(), st.booleans())
def test_rows_that_do_not_follow_one_another_are_episodes_of_their_own(tmp_path_factory, data, discrete):
    if discrete:
        data = Transitions(**{**vars(data), "actions": np.arange(len(data)) % 4})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(tmp_path_factory.mktemp("minari")))
        save_dataset(data, "minari:toys/synth-v0", attrs={"synthetic": True})
        found = open_dataset("minari:toys/synth-v0")
        same(load_transitions(found), data, "timeouts")
        assert found.attrs["synthetic"] is True
        loaded = minari.load_dataset("toys/synth-v0")
        same(expected_of(loaded, vector), data, "timeouts", "next_known") if len(data) else None
        for episode in loaded.iterate_episodes():
            # d3rlpy refuses an episode that ends in both ways.
            assert episode.terminations[-1] != episode.truncations[-1]
            assert not (episode.terminations | episode.truncations)[:-1].any()


def test_formats_turn_into_minari_and_back(tmp_path):
    save_dataset(rows(50), tmp_path / "a.npz", attrs={"env": "HalfCheetah-v5"})
    assert cli.main(["data", "convert", str(tmp_path / "a.npz"), "--to", "minari:cheetah/synth-v0"]) == 0
    assert cli.main(["data", "convert", "minari:cheetah/synth-v0", "--to", str(tmp_path / "b.hdf5")]) == 0
    same(load_transitions(tmp_path / "b.hdf5"), rows(50), "timeouts")
    assert minari.load_dataset("cheetah/synth-v0").env_spec.id == "HalfCheetah-v5"


def test_no_environment_of_a_stranger_is_built(root, tmp_path, monkeypatch):
    dataset = record(gymnasium.make("CartPole-v1"), "toys/real-v0")
    (tmp_path / "trap.py").write_text("raise SystemExit('the trap was imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    path = root / "toys" / "real-v0" / "data" / "metadata.json"
    metadata = json.loads(path.read_text())
    metadata["env_spec"] = json.dumps({**json.loads(metadata["env_spec"]), "entry_point": "trap:make", "id": "trap:Trap-v0"})
    expected = expected_of(dataset, vector)
    for missing in [[], ["observation_space"], ["observation_space", "action_space"]]:
        path.write_text(json.dumps({key: value for key, value in metadata.items() if key not in missing}))
        found = load_transitions("minari:toys/real-v0")
        same(found, expected)
        save_dataset(open_dataset("minari:toys/real-v0"), f"minari:toys/copy-v{len(missing)}")
    assert "trap" not in sys.modules
    assert minari.load_dataset("toys/copy-v0").env_spec is None


def test_datasets_that_cannot_be_read(root):
    record(gymnasium.make("CartPole-v1"), "toys/real-v0")
    folder = root / "toys" / "real-v0" / "data"
    whole = json.loads((folder / "metadata.json").read_text())
    for change, word in {
        "data_format": "metadata.json: not a Minari dataset's: it names no `data_format`",
        "total_episodes": "holds 4 episodes, metadata.json says 99",
        "observation_space": "metadata.json: `observation_space` cannot be read",
    }.items():
        (folder / "metadata.json").write_text(json.dumps({**whole, change: 99}))
        with pytest.raises(DatasetError, match=word):
            open_dataset(folder)
    (folder / "metadata.json").write_text("{")
    with pytest.raises(DatasetError, match=r"metadata.json: is not JSON"):
        open_dataset(folder)
    deep = '{"type": "Tuple", "subspaces": [' * 3000 + "]}" * 3000
    for text in ("[" * 100_000, json.dumps({**whole, "observation_space": deep})):
        (folder / "metadata.json").write_text(text)
        with pytest.raises(DatasetError, match=r"metadata.json.* cannot be read: it is nested too deep"):
            open_dataset(folder)
    (folder / "metadata.json").write_text(json.dumps(whole))
    (folder / "main_data.hdf5").unlink()
    with pytest.raises(DatasetError, match="No data found in data path"):
        open_dataset(folder)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("observations", None, "no array `episode_0/observations`"),
        ("actions", None, "no array `episode_0/actions`"),
        ("rewards", np.ones(1, np.float32), r"`episode_0/rewards` is float32 \(1,\), expected a number for each step"),
        ("truncations", np.array([b"a"]), r"`episode_0/truncations` is \|S1 \(1,\)"),
        ("actions", np.zeros(3, np.int64), "`episode_0` does not fit the spaces"),
        ("observations", h5py.ExternalLink("other.hdf5", "/x"), "`episode_0/observations` is a link to another file"),
    ],
)
def test_an_episode_that_lacks_something_is_named(root, key, value, words):
    record(gymnasium.make("CartPole-v1"), "toys/real-v0")
    with h5py.File(root / "toys" / "real-v0" / "data" / "main_data.hdf5", "a") as file:
        del file[f"episode_0/{key}"]
        if value is not None:
            file[f"episode_0/{key}"] = value
    with pytest.raises(DatasetError, match=words):
        _ = open_dataset("minari:toys/real-v0").actions[:]


def test_arrow_files_need_pyarrow_which_the_extra_brings(root, capsys, monkeypatch):
    record(gymnasium.make("CartPole-v1"), "toys/real-v0")
    path = root / "toys" / "real-v0" / "data" / "metadata.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "data_format": "arrow"}))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert cli.main(["data", "minari:toys/real-v0"]) == 2
    assert "pip install 'dreamloom[minari]'" in capsys.readouterr().err


@pytest.mark.parametrize("failing", ["update_episodes", "update_metadata"])
def test_a_full_disk_leaves_nothing_under_a_final_name(root, monkeypatch, failing):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(MinariStorage, failing, full)
    monkeypatch.setattr(HDF5Storage, failing, full)
    with pytest.raises(OSError, match="No space left"):
        save_dataset(rows(5), "minari:deep/er/synth-v0")
    assert [path for path in root.rglob("*") if path.is_file()] == []
    monkeypatch.undo()
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(root))
    save_dataset(rows(5), "minari:deep/er/synth-v0")
    assert list_local_namespaces() == ["deep", "deep/er"]
    assert [json.loads(path.read_text()) for path in root.rglob("namespace_metadata.json")] == [{}, {}]


@pytest.mark.parametrize("name", ["synth", "a/../b-v0", "/tmp/x-v0", ""])
def test_names_that_minari_does_not_know(name, capsys):
    with pytest.raises(ValueError, match="expected one like"):
        open_dataset(f"minari:{name}")
    with pytest.raises(ValueError, match="expected one like"):
        save_dataset(rows(2), f"minari:{name}")


def test_a_dataset_is_never_replaced(root):
    save_dataset(rows(2), "minari:synth-v0")
    with pytest.raises(ValueError, match="exists already"):
        save_dataset(rows(3), "minari:synth-v0")
    assert len(load_transitions("minari:synth-v0")) == 2
    assert [path.name for path in root.iterdir()] == ["synth-v0"]
