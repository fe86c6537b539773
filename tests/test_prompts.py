"""What worlds are started from: windows at rest with something to be seen, and sketches that the bundled world keeps."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from dreamloom.play.keys import idle_action
from dreamloom.worldmodels.bundle import load_world
from dreamloom.worldmodels.prompts import choose_prompts

LENGTH = 12


def write(path: Path, kinds: list[str]) -> Path:
    """Episodes of stripes, `still` or `moving`, of `rich` (narrow) or `plain` (wide) stripes, or `black`; red tells which."""
    frames = np.zeros((len(kinds), LENGTH, 16, 16, 3), np.uint8)
    for episode, kind in enumerate(kinds):
        for t in range(LENGTH):
            columns = np.arange(16) + (t if "moving" in kind else 0)
            stripes = columns // (2 if "rich" in kind else 4) % 2 * 200
            frames[episode, t, :, :, 1:] = 0 if kind == "black" else stripes[:, None]
        frames[episode, ..., 0] = 10 * episode
    with h5py.File(path, "w") as file:
        file["observations"] = frames.reshape(-1, 16, 16, 3)
        file["terminals"] = np.arange(1, frames.shape[0] * LENGTH + 1) % LENGTH == 0
    return path


def episodes(prompts: torch.Tensor) -> list[int]:
    return (prompts[:, -1, 0, 0, 0] // 10).tolist()


def test_starts_at_rest_come_first_and_the_clearest_of_them_leads(tmp_path: Path) -> None:
    data = write(tmp_path / "some.hdf5", ["moving rich", "black", "still plain", "moving plain", "still rich", "moving rich"])
    prompts = choose_prompts(data, 2, 4, 1, 0)
    assert prompts.shape == (2, 4, 3, 16, 16)
    assert episodes(prompts) == [4, 2]
    torch.testing.assert_close(prompts, choose_prompts(data, 2, 4, 1, 0))
    assert set(episodes(choose_prompts(data, 5, 2, 2, 1))) == {0, 2, 3, 4, 5}, "the black screen comes last of all"


def test_an_episode_that_comes_to_rest_is_entered_there(tmp_path: Path) -> None:
    path = write(tmp_path / "one.hdf5", ["still rich"])
    with h5py.File(path, "r+") as file:
        for t in range(3):  # it moves at first
            file["observations"][t] = np.roll(file["observations"][t], t + 1, axis=1)
    prompts = choose_prompts(path, 1, 1, 1, 0)
    with h5py.File(path) as file:
        np.testing.assert_array_equal(prompts[0, 0].permute(1, 2, 0), file["observations"][4])


def test_as_many_as_there_are_and_never_too_few_without_a_word(tmp_path: Path) -> None:
    data = write(tmp_path / "two.hdf5", ["still rich", "still plain"])
    assert episodes(choose_prompts(data, 3, 4, 1, 0, fewer=True)) == [0, 1]
    with pytest.raises(ValueError, match="2 episodes of at least 8 frames; 3 prompts need as many"):
        choose_prompts(data, 3, 4, 1, 0)


@pytest.mark.parametrize(("name", "all_starts"), [("coinrun", True), ("coinrun-latent", False)])
def test_a_pillar_drawn_in_a_bundled_world_is_seen_and_lasts_eight_frames(name: str, all_starts: bool) -> None:
    """On a canvas in every start; a Genie draws each frame anew, and keeps it in some."""
    world = load_world(name)
    drawn, places = zip(*filter(None, map(with_a_pillar, world.prompts[:, -1])), strict=True)
    state = world.reset(torch.stack(drawn)[:, None])

    def kept() -> list[float]:
        return [near(now[:, *place], then[:, *place]) for now, then, place in zip(state.frame, drawn, places, strict=True)]

    assert min(kept()) > 0.7  # nothing of a drawing is lost on the way to the world
    idle, generator = idle_action(world.action_names), torch.Generator().manual_seed(0)
    for _ in range(8):
        state, _ = world.step(state, idle, generator)
    assert (min if all_starts else max)(kept()) > 0.7


def with_a_pillar(frame: torch.Tensor) -> tuple[torch.Tensor, tuple[slice, slice]] | None:
    """A prompt with a pillar on its ground in the ground's mean colour, as the page's palette has it, beside the middle."""
    side = frame.shape[-1]
    columns = slice(side * 5 // 8, side * 6 // 8)
    ground = frame[:, -side // 16 :, columns].float().mean((1, 2))
    same = (frame[:, :, columns].float().mean(-1) - ground[:, None]).abs().mean(0) < 40
    top = side - int(same.flip(0).long().cumprod(0).sum())
    rows = slice(top - side // 5, top)
    if not side // 2 <= top < side or same[rows].any():
        return None
    frame = frame.clone()
    frame[:, rows, columns] = ground[:, None, None].round().to(torch.uint8)
    return frame, (rows, columns)


def near(a: torch.Tensor, b: torch.Tensor) -> float:
    """Share of pixels that are about alike."""
    return float(((a.float() - b.float()).abs().mean(0) < 60).float().mean())
