"""Long rollouts of worlds whose steadiness is known beforehand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toy_game import ToyState, ToyWorld, write_toy

from dreamloom.datasets.store import open_dataset
from dreamloom.eval import steadiness
from dreamloom.eval.heldout import Episodes
from dreamloom.eval.protocols import steady as protocol
from dreamloom.eval.protocols.sequences import draw_sequences
from dreamloom.eval.protocols.trial import Trial
from dreamloom.eval.report import write_report
from dreamloom.eval.world import evaluate
from dreamloom.worldmodels.world import Outcome, Sampling

BLACK_FROM = 20
PROVENANCE = ("machine", "commit", "dreamloom", "seconds")


class Pixels(torch.nn.Module):
    """Features that are a small picture of the frame: a network that takes no time."""

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(frames.float(), 4).flatten(1)


class Blackening(ToyWorld):
    """Plays the toy game until its frame 20, which is black, as are all that follow."""

    def step(self, state: Any, action: Any, generator: Any = None, sampling: Any = None) -> tuple[Any, Outcome]:
        inner, outcome = super().step(ToyState(state.frame), action, generator, sampling)
        self.count = self.count + 1
        frame = torch.zeros_like(outcome.frame) if self.count >= BLACK_FROM else outcome.frame
        return ToyState(inner.frame), Outcome(frame)

    def reset(self, prompt: torch.Tensor) -> ToyState:
        self.count = 0
        return super().reset(prompt)


@pytest.fixture(scope="module")
def toy_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("toy") / "toy.hdf5")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "EffNet", Pixels)


def steadiness_of(world: ToyWorld, path: Path, **settings: Any) -> dict[str, Any]:
    given = {"sections": "steady", "steady_rollouts": 6, "steady_frames": 96, **settings}
    return evaluate(world, data=path, context=2, **given)[0]


def test_a_world_that_plays_the_game_is_steady_as_the_game_is(toy_file: Path) -> None:
    found = steadiness_of(ToyWorld("perfect"), toy_file)
    assert set(found) == {"world", "settings", "notes", "steady", "steady_real", "steady_curves", *PROVENANCE}
    assert found["steady"]["frames"] == {"median": 96.0, "low": 96.0, "high": 96.0}
    assert found["steady_real"]["frames"]["median"] == 96.0
    assert found["steady"]["blank"]["mean"] == found["steady_real"]["blank"]["mean"] == 0
    assert found["steady"]["stuck"] == found["steady_real"]["stuck"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert found["steady"]["moving_actions"] == ["right", "left"]
    assert list(found["steady"]["held"]["by_action"]) == ["stand", "right", "left"]
    assert found["steady"]["held"]["by_action"]["stand"]["stuck"] is None, "it is not meant to move"
    assert found["steady"]["held"]["by_action"]["left"] == {"rollouts": 1, "frames": 96.0, "blank": 0.0, "stuck": 0.0}


def test_a_world_that_turns_black_departs_at_that_frame(toy_file: Path) -> None:
    found = steadiness_of(Blackening("perfect"), toy_file)["steady"]
    assert found["frames"] == {"median": 20.0, "low": 20.0, "high": 20.0}
    assert found["held"]["frames"]["median"] == 20.0
    share = (96 - 19) / 96
    assert [found["blank"][key] for key in ("mean", "low", "high")] == pytest.approx([share] * 3)
    assert found["stuck"]["mean"] > 0.7, "nothing moves in the dark"


def test_a_world_that_ignores_actions_is_stuck(toy_file: Path) -> None:
    found = steadiness_of(ToyWorld("frozen"), toy_file)
    assert found["steady"]["stuck"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    assert found["steady"]["held"]["stuck"]["mean"] == 1.0
    assert found["steady_real"]["stuck"]["mean"] == 0.0
    assert found["steady"]["blank"]["mean"] == 0.0


def test_a_file_of_one_level_tells_no_distance(toy_file: Path) -> None:
    with open_dataset(toy_file) as data:
        whole = Episodes.of(data)
        trial = Trial(ToyWorld("perfect"), whole, clips=2, context=2, seed=0, sampling=Sampling())
        none = Episodes(data, whole.starts[:0], whole.ends[:0], whole.levels[:0])
        found, _ = protocol.steady(trial, none, rollouts=2, length=20)
    assert found["steady"]["frames"] == dict.fromkeys(("median", "low", "high"))
    assert found["steady"]["blank"]["mean"] == 0
    assert "at least two levels" in found["notes"]["steady.frames"]


def test_sequences_go_on_with_other_episodes(toy_file: Path) -> None:
    world = ToyWorld("perfect")
    with open_dataset(toy_file) as data:
        trial = Trial(world, Episodes.of(data), clips=2, context=3, seed=0, sampling=Sampling())
        drawn = draw_sequences(trial, 13, 200)
        rows = torch.arange(13)
        prompt, frames = drawn.prompt(rows), drawn.frames(rows)
        assert prompt.shape == (13, 3, 3, 32, 32)
        assert frames.shape == (13, 200, 3, 32, 32)
        assert len({run[0].first // 80 for run in drawn.pieces}) == 12, "every episode gives one before any gives two"
        for row, run in enumerate(drawn.pieces):
            assert all(piece.first % 80 + piece.length <= 80 for piece in run)
            assert all(piece.first % 80 == 0 for piece in run[1:])
            first = run[0].length - 1
            state, seen = world.reset(prompt[row : row + 1]), []
            for action in drawn.actions[row, :first]:
                state, outcome = world.step(state, action)
                seen.append(outcome.frame[0])
            assert torch.equal(torch.stack(seen), frames[row, :first]), "these actions led to these frames"
            assert torch.equal(drawn.moved[row], drawn.actions[row] > 0)


@given(
    far=st.lists(st.lists(st.booleans(), min_size=37, max_size=37), min_size=1, max_size=4),
    length=st.integers(1, 37),
)
def test_departures_are_those_of_a_look_at_every_frame(far: list[list[bool]], length: int) -> None:
    truth = torch.tensor(far).float()[:, :length]
    first, seen = steadiness.departures(lambda row, column: truth[row, column], len(truth), length, 0.5)
    for row, flags in enumerate(truth.bool().tolist()):
        runs = [t for t in range(length - 3) if all(flags[t : t + 4])]
        assert first[row] == (runs[0] + 1 if runs else length)
    known = ~seen.isnan()
    assert torch.equal(seen[known], truth[known])


@given(moved=st.lists(st.booleans(), min_size=1, max_size=80), seed=st.integers(0, 99))
def test_stuck_steps_lie_in_long_stillness(moved: list[bool], seed: int) -> None:
    meant = np.random.default_rng(seed).random(len(moved)) < 0.7
    inside = [
        any(not any(moved[i : i + 16]) for i in range(max(0, t - 15), t + 1) if i + 16 <= len(moved)) for t in range(len(moved))
    ]
    found = steadiness.stuck(torch.tensor([moved]), torch.from_numpy(meant)[None])
    wanted = np.logical_and(inside, meant).sum() / meant.sum() if meant.any() else np.nan
    assert found.item() == pytest.approx(wanted, nan_ok=True)


def test_contrast_and_motion_of_known_frames() -> None:
    frames = torch.zeros(1, 3, 3, 20, 20, dtype=torch.uint8)
    frames[0, 1, :, :10] = 200
    frames[0, 2] = frames[0, 1]
    frames[0, 2, 0, 0, 0] += 17  # one pixel of 400 is less than half a percent
    assert steadiness.contrast(frames)[0, :2].tolist() == [0.0, 100.0]
    assert steadiness.motion(frames).tolist() == [[True, False]]
    frames[0, 2, 1, 0, 1] += 17
    assert steadiness.motion(frames).tolist() == [[True, True]]
    frames[0, 2, 1, 0, 1] -= 1
    assert steadiness.motion(frames).tolist() == [[True, False]]


def test_nearest_is_the_distance_to_the_nearest() -> None:
    generator = torch.Generator().manual_seed(0)
    some, bank = torch.randn(7, 5, generator=generator), torch.randn(11, 5, generator=generator)
    wanted = [min(float((x - y).norm()) for y in bank) for x in some]
    assert steadiness.nearest(some, bank, part=3).tolist() == pytest.approx(wanted, abs=1e-5)


def test_only_the_sections_that_are_asked_for(toy_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--sections steady,speed: 'speed' is none of rollout, tokenizer"):
        steadiness_of(ToyWorld("perfect"), toy_file, sections="steady,speed")
    with pytest.raises(ValueError, match="--steady-frames must be at least 4, got 3"):
        steadiness_of(ToyWorld("perfect"), toy_file, steady_frames=3)
    settings = {"data": toy_file, "clips": 4, "context": 2, "steady_rollouts": 2, "steady_frames": 16}
    metrics, pictures = evaluate(ToyWorld("perfect"), sections="steady,rollout", **settings)
    assert metrics["settings"]["sections"] == ["rollout", "steady"]
    write_report(tmp_path, metrics, pictures)
    names = {"psnr.png", "grid.gif", "report.md", "metrics.json", "steady.png", "steady_strips.png"}
    assert {path.name for path in tmp_path.iterdir()} == names
    report = (tmp_path / "report.md").read_text()
    assert "| steady frames, median " in report
    assert "latency" not in report
    metrics, pictures = evaluate(ToyWorld("perfect"), sections="control", **settings)
    write_report(tmp_path / "other", metrics, pictures)
    assert {path.name for path in (tmp_path / "other").iterdir()} == {"report.md", "metrics.json"}
