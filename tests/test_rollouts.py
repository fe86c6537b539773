"""Replay from worlds: rollouts off real frames, the same bytes whoever makes them, read by every reader of pixels."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_genie import genie
from test_imagined import places, write_walks
from walk_world import SIDE, WalkWorld

from dreamloom import open_dataset
from dreamloom.agents.cql import DiscreteCQL
from dreamloom.agents.frames import FrameBuffer
from dreamloom.agents.vision import Vision
from dreamloom.cli import main
from dreamloom.nn.encoders import Impala
from dreamloom.train.actors import AgentPolicy, DataPolicy, RandomPolicy
from dreamloom.train.rollouts import Rollouts
from dreamloom.train.synthesize import synthesize
from dreamloom.worldmodels.bundle import save_bundle
from dreamloom.worldmodels.starts import DataStarts, PromptStarts
from dreamloom.worldmodels.world import Sampling

SMALL: dict[str, Any] = {"policy": "random", "n": 22, "shard_rows": 12, "horizon": 3, "batch_size": 2, "accelerator": "cpu"}


class UnsureWalk(WalkWorld):
    """As unsure as its square is far from place 0."""

    def step(self, *args: Any, **kwargs: Any) -> Any:
        state, outcome = super().step(*args, **kwargs)
        return state, replace(outcome, uncertainty=state.place.float())


def rollouts(world: Any, starts: Any, policy: Any, **settings: Any) -> Rollouts:
    settings = {"seed": 0, "horizon": 3, "batch_size": 4, "sampling": Sampling()} | settings
    return Rollouts(world, starts, policy, **settings)


def made(source: Rollouts, rows: range = range(30), workers: int = 1) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    with ThreadPoolExecutor(workers) as pool:
        columns, dropped = source.shard(rows, pool, lambda rows: None)
    return columns, dropped


@pytest.fixture
def walks(tmp_path: Path) -> Path:
    return write_walks(tmp_path / "walks.hdf5")


def test_a_rollout_is_its_steps_and_the_frame_that_closes_it(walks: Path) -> None:
    """The data's own actions, to the right, from wherever a walk was: a world without slips repeats the data."""
    world = WalkWorld(slips=0.0)
    starts = DataStarts(walks, world, length=1)
    columns, dropped = made(rollouts(world, starts, DataPolicy(starts, world)))
    ends = columns["terminals"] | columns["timeouts"]
    assert {len(column) for column in columns.values()} == {30}
    assert not dropped
    assert not (columns["terminals"] & columns["timeouts"]).any()
    assert (columns["actions"] == 1).all()
    where = np.array(places(columns["observations"]))
    inside = ~ends[:-1]
    assert (where[1:][inside] == where[:-1][inside] + 1).all()
    assert (where[columns["terminals"]] == SIDE - 2).all(), "the step from the last place but one ends the walk"
    assert (columns["rewards"] == columns["terminals"]).all()
    lengths = np.diff(np.flatnonzero(np.append(True, ends)))
    assert lengths.max() == 4
    kinds = {name: (column.dtype, column.shape[1:]) for name, column in columns.items()}
    assert kinds["observations"] == (np.uint8, (SIDE, SIDE, 3))
    assert (kinds["actions"][0], kinds["rewards"][0]) == (np.int64, np.float32)


@pytest.mark.parametrize("continuous", [False, True])
def test_rows_do_not_depend_on_batches_and_workers(continuous: bool) -> None:
    world = WalkWorld(continuous=continuous)
    starts, policy = PromptStarts(world.prompts), RandomPolicy(world.action_space)
    one, _ = made(rollouts(world, starts, policy, horizon=6))
    other, _ = made(rollouts(world, starts, policy, horizon=6, batch_size=3), workers=2)
    assert all(np.array_equal(one[name], other[name]) for name in one)
    assert one["actions"].shape == ((30, 1) if continuous else (30,))
    elsewhere, _ = made(rollouts(world, starts, policy, horizon=6), range(30, 60))
    assert not np.array_equal(one["observations"], elsewhere["observations"])


def test_what_the_world_is_unsure_of_is_cut_or_costs(walks: Path) -> None:
    world = UnsureWalk(slips=0.0)
    starts = DataStarts(walks, world, at="first", length=1)
    plain, _ = made(rollouts(world, starts, DataPolicy(starts, world), horizon=4))
    assert plain["infos/uncertainty"][:5].tolist() == [1, 2, 3, 4, 5]
    cut, dropped = made(rollouts(world, starts, DataPolicy(starts, world), horizon=4, limit=3.0))
    assert len(cut["rewards"]) + dropped["uncertainty"] == 30
    assert places(cut["observations"])[:4] == [0, 1, 2, 3], "three sure steps, and the frame that they end in"
    assert cut["timeouts"][:4].tolist() == [False, False, False, True]
    paid, _ = made(rollouts(world, starts, DataPolicy(starts, world), horizon=4, penalty=0.5))
    np.testing.assert_allclose(paid["rewards"], plain["rewards"] - 0.5 * plain["infos/uncertainty"])
    nothing, dropped = made(rollouts(world, starts, DataPolicy(starts, world), limit=0.5))
    assert (len(nothing["rewards"]), dropped["uncertainty"]) == (0, 30)
    assert rollouts(world, starts, DataPolicy(starts, world)).limit_from_first_steps(0.5) == 1.0


def agent_of(walks: Path, stack: int = 2) -> DiscreteCQL:
    torch.manual_seed(0)
    vision = Vision(Impala((3 * stack, SIDE, SIDE), latent_size=8, channels=(4, 4, 4)))
    agent = DiscreteCQL(seeds=2, width=8, vision=vision)
    agent.prepare(FrameBuffer(walks, stack=stack), seed=0)
    return agent.eval()


def test_agents_act_on_stacks_of_what_they_see(walks: Path) -> None:
    world, agent = WalkWorld(slips=0.0, rewards=False), agent_of(walks)
    starts = DataStarts(walks, world, at="first", length=3)
    columns, _ = made(rollouts(world, starts, AgentPolicy(agent, world), horizon=3), range(8))
    frames = torch.from_numpy(columns["observations"]).permute(0, 3, 1, 2)
    for first, who in ((0, 0), (4, 1)):  # rollouts 0 and 1, of agents 0 and 1
        for step in range(1, 4):
            stack = frames[[first + step - 1, first + step]].flatten(0, 1).expand(2, 1, -1, -1, -1)
            assert agent.act(stack)[who, 0] == columns["actions"][first + step]


def test_a_world_of_latent_actions_repeats_data_and_notes_its_own_actions(walks: Path) -> None:
    world = genie(seed=3)
    starts = DataStarts(walks, world, length=2)
    policy = DataPolicy(starts, world)
    columns, _ = made(rollouts(world, starts, policy), range(12))
    assert (columns["actions"] == 1).all()
    assert (columns["infos/uncertainty"] > 0).all()
    assert columns["observations"].shape == (12, 8, 8, 3)


@pytest.fixture(scope="module")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    save_bundle(genie(latent=False, action_names=["left", "right", "wait"]), folder / "mine")
    write_walks(folder / "walks.hdf5", lengths=(8, 8, 8))
    return folder


@pytest.fixture(scope="module")
def whole(bundled: Path) -> Path:
    synthesize(str(bundled / "mine"), starts=str(bundled / "walks.hdf5"), out=bundled / "whole", **SMALL)
    return bundled / "whole"


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix != ".png"}


def test_the_folder_reads_as_one_dataset(whole: Path, bundled: Path, capsys: pytest.CaptureFixture) -> None:
    with open_dataset(whole) as data:
        assert len(data) == 22
        assert data.attrs["synthetic"]
        assert (data.fps, data.action_names) == (15.0, ["left", "right", "wait"])
        source = data.attrs["source"]
        assert (source["policy"], source["horizon"], source["real"]["rows"]) == ("random", 3, 24)
        assert data.infos["uncertainty"].dtype == np.float32
        assert data.next_observations is None, "a frame is kept once"
        starts, ends = data.episodes
        assert (ends - starts).tolist() == [4, 4, 4, 4, 4, 2], "a shard's last rollout is cut where the shard ends"
    buffer = FrameBuffer([bundled / "walks.hdf5", whole])
    assert len(buffer) == 24 + 16
    assert main(["data", str(whole)]) == 0
    assert "6 episodes" in capsys.readouterr().out


def test_two_ranks_make_the_same_bytes_and_missing_shards_are_made_again(whole: Path, bundled: Path) -> None:
    words = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    words = ["synthesize", str(bundled / "mine"), f"--starts={bundled / 'walks.hdf5'}", f"--out={bundled / 'two'}", *words]
    run = subprocess.run(
        [sys.executable, "-m", "dreamloom", *words, "--devices=2"], capture_output=True, text=True, timeout=550
    )
    assert run.returncode == 0, run.stderr
    assert content(bundled / "two") == content(whole)
    (bundled / "two" / "shard-00001.json").unlink()
    (bundled / "two" / "index.json").unlink()
    assert main(words) == 0
    assert content(bundled / "two") == content(whole)


def test_settings_are_kept_and_others_refused(whole: Path, bundled: Path) -> None:
    settings = json.loads((whole / "shard-00000.json").read_text())["settings"]
    assert settings["starts"] == {"path": "walks.hdf5", "at": "uniform", "frames": 1}
    with pytest.raises(ValueError, match=r"other settings: horizon=3 \(now 4\)"):
        synthesize(str(bundled / "mine"), starts=str(bundled / "walks.hdf5"), out=whole, **SMALL | {"horizon": 4})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"policy": None, "horizon": 3}, "--starts, --horizon: for a world, which needs --policy"),
        ({"guidance": 1.0}, "--guidance: for an upsampler"),
        ({"curate": "range"}, "only uncertainty"),
        ({"policy": "nobody.ckpt"}, "no checkpoint at nobody.ckpt"),
        ({"policy": "data", "starts": None}, "needs --starts"),
        ({"rewards": "no.such:thing"}, "expected module:callable"),
        ({"horizon": 0}, "--horizon 0: expected at least 1"),
    ],
)
def test_what_does_not_fit_is_told(settings: dict, said: str, bundled: Path, tmp_path: Path) -> None:
    asked = SMALL | {"starts": str(bundled / "walks.hdf5"), "out": tmp_path / "out"} | settings
    world = genie(prompts=torch.zeros(1, 1, 3, 8, 8, dtype=torch.uint8))
    save_bundle(world, tmp_path / "prompted")
    with pytest.raises(ValueError, match=said):
        synthesize(str(tmp_path / "prompted"), **asked)
