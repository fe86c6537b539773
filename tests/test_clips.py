"""Clip sampling and the data module: what a batch is, and that nothing but (seed, step) decides it."""

import pickle
from pathlib import Path

import h5py
import lightning as L
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamloom.datasets.clips import ClipSource
from dreamloom.datasets.types import Clip
from dreamloom.train.data import ClipBatches, ClipData, StepLoader

RESIDENCES = ["device", "ram", "disk"]


def write_file(path: Path, lengths: list[int], *, labelled: bool = True, levels: list[int] | None = None, **storage):
    """A file whose pixels spell the row number, so that a clip can be traced back to its rows."""
    n = sum(lengths)
    rows = np.arange(n)
    pixels = np.stack([rows // 256, rows % 256, rows % 7], axis=-1).astype(np.uint8)
    over = np.zeros(n, bool)
    over[np.cumsum(lengths) - 1] = True
    with h5py.File(path, "w") as file:
        file.attrs.update(format="dreamloom", format_version=1, fps=15.0)
        file.create_dataset("observations", data=np.broadcast_to(pixels[:, None, None], (n, 4, 6, 3)), **storage)
        file["terminals"], file["timeouts"] = over & (rows % 2 == 0), over & (rows % 2 == 1)
        if labelled:
            file["actions"], file["rewards"] = rows * 3, rows.astype(np.float32) / 2
        if levels is not None:
            file["infos/level_seed"] = np.repeat(np.array(levels, np.int32), lengths)
    return path


def rows_of(clip: Clip) -> np.ndarray:
    pixel = clip.frames[..., 0, 0].long()
    return (pixel[:, :, 0] * 256 + pixel[:, :, 1]).numpy()


def same(one: Clip, other: Clip) -> bool:
    pairs = zip(vars(one).values(), vars(other).values(), strict=True)
    return all(a is b is None or torch.equal(a, b) for a, b in pairs)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_file(tmp_path_factory.mktemp("clips") / "d.hdf5", [9, 3, 20, 5, 11, 30, 8], levels=[1, 1, 2, 3, 4, 5, 5])


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 14), min_size=1, max_size=6),
    length=st.integers(1, 6),
    stride=st.integers(1, 3),
    residence=st.sampled_from(RESIDENCES),
    seed=st.integers(0, 2**31),
)
def test_windows_stay_inside_episodes_and_match_the_file(tmp_path_factory, lengths, length, stride, residence, seed):
    path = write_file(tmp_path_factory.mktemp("w") / "d.hdf5", lengths)
    span = (length - 1) * stride + 1
    if max(lengths) < span:
        with pytest.raises(ValueError, match=rf"d.hdf5: a window needs {span} rows .* longest episode has {max(lengths)}"):
            ClipSource(path, length=length, stride=stride)
        return
    source = ClipSource(path, length=length, stride=stride, residence=residence)
    clip = source.sample(seed, 0, 5)
    rows, episode = rows_of(clip), np.repeat(np.arange(len(lengths)), lengths)
    assert clip.frames.shape == (5, length, 3, 4, 6)
    assert clip.frames.is_contiguous()
    assert (np.diff(rows, axis=1) == stride).all()
    assert (episode[rows] == episode[rows[:, :1]]).all()
    with h5py.File(path) as file:
        np.testing.assert_array_equal(clip.frames.permute(0, 1, 3, 4, 2).numpy(), file["observations"][:][rows])
        for name in ("actions", "rewards", "terminals"):
            np.testing.assert_array_equal(getattr(clip, name).numpy(), file[name][:][rows])
    assert source.windows.skipped == sum(n < span for n in lengths)


def test_every_window_is_reachable_and_equally_likely(path):
    source = ClipSource(path, length=8)
    starts = source.rows(0, 0, 80_000)[:, 0]
    lengths = np.array([9, 3, 20, 5, 11, 30, 8])
    begins = np.cumsum(lengths) - lengths
    valid = np.concatenate([np.arange(b, b + n - 7) for b, n in zip(begins, lengths, strict=True) if n >= 8])
    seen, counts = np.unique(starts, return_counts=True)
    np.testing.assert_array_equal(seen, valid)
    assert len(source.windows) == len(valid)
    assert counts.min() > 0.9 * 80_000 / len(valid)


class Recorder(L.LightningModule):
    """Notes the rows of each batch."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[np.ndarray] = []
        self.validated: list[np.ndarray] = []

    def training_step(self, batch: Clip, index: int):
        self.seen.append(rows_of(batch))
        return self.weight * batch.frames.float().mean()

    def validation_step(self, batch: Clip, index: int):
        self.validated.append(rows_of(batch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(path: Path, folder: Path, max_steps: int, *, resume: Path | None = None, accumulate: int = 1, **options) -> Recorder:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    keep = L.pytorch.callbacks.ModelCheckpoint(folder, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    defaults = {"length": 5, "batch_size": 3, "steps_per_epoch": 4, "val_batches": 2, "val_fraction": 0.3}
    data = ClipData(path, **(defaults | options))
    trainer = L.Trainer(max_steps=max_steps, accelerator="cpu", callbacks=[keep], accumulate_grad_batches=accumulate, **quiet)
    model = Recorder()
    trainer.fit(model, data, ckpt_path=resume)
    return model


def numbers(first: int, seed: int = 7, **options) -> list[Clip]:
    return [ClipSource(**options).sample(seed, step, 4) for step in range(first, first + 3)]


@pytest.mark.parametrize("storage", [{}, {"chunks": (4, 4, 6, 3)}, {"chunks": (1, 4, 6, 3), "compression": "gzip"}])
@pytest.mark.parametrize("stride", [1, 2])
def test_residences_agree_however_the_file_is_stored(tmp_path, storage, stride):
    path = write_file(tmp_path / "d.hdf5", [12, 7, 20], **storage)
    expected = numbers(5, path=path, length=4, stride=stride, residence="ram")
    for residence in ("device", "disk", "auto"):
        clips = numbers(5, path=path, length=4, stride=stride, residence=residence)
        assert all(map(same, clips, expected))
    assert not any(map(same, expected, numbers(5, seed=8, path=path, length=4, stride=stride)))
    assert not any(map(same, expected, numbers(6, path=path, length=4, stride=stride)))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 99), st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 4))
def test_ranks_together_see_what_one_rank_sees(path, seed, step, batch, world_size):
    source = ClipSource(path, length=6)
    whole = source.rows(seed, step, batch * world_size)
    parts = [source.rows(seed, step, batch, rank=rank, world_size=world_size) for rank in range(world_size)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("storage", [{}, {"chunks": (4, 4, 6, 3), "compression": "gzip"}])
@pytest.mark.parametrize("residence", ["ram", "disk"])
def test_workers_change_nothing(tmp_path, storage, residence):
    source = ClipSource(write_file(tmp_path / "d.hdf5", [12, 7, 20], **storage), length=4, residence=residence)
    batches = ClipBatches(source, seed=3, batch_size=2, rank=0, world_size=1)
    streams = [list(StepLoader(batches, first=lambda: 5, length=7, num_workers=workers, pin=False)) for workers in (0, 2, 3)]
    assert len(streams[0]) == 7
    assert all(same(*clips) for other in streams[1:] for clips in zip(streams[0], other, strict=True))


def test_a_source_on_disk_travels_to_other_processes_without_its_frames(tmp_path):
    source = ClipSource(write_file(tmp_path / "d.hdf5", [2000]), length=4, residence="disk")
    expected = source.sample(0, 0, 2)
    with h5py.File(source.path) as file:
        frames = file["observations"].nbytes
    packed = pickle.dumps(source)
    assert len(packed) < frames / 3
    assert same(pickle.loads(packed).sample(0, 0, 2), expected)


def test_unlabelled_video(tmp_path):
    clip = ClipSource(write_file(tmp_path / "d.hdf5", [10], labelled=False), length=4).sample(0, 0, 2)
    assert clip.actions is None
    assert clip.rewards is None
    assert clip.frames.dtype == torch.uint8


def test_small_data_stays_in_ram_and_large_data_on_disk(path, monkeypatch):
    assert ClipSource(path, length=4).residence == "ram"
    monkeypatch.setattr("os.sysconf", {"SC_PHYS_PAGES": 4, "SC_PAGE_SIZE": 86 * 4 * 6 * 3 + 1}.__getitem__)
    assert ClipSource(path, length=4).residence == "ram"
    assert ClipSource(path, length=4, processes=2).residence == "disk"


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=2, max_size=9), data=st.data())
def test_split_shares_no_level(tmp_path_factory, lengths, data):
    levels = data.draw(st.none() | st.lists(st.integers(0, 4), min_size=len(lengths), max_size=len(lengths)))
    fraction = data.draw(st.sampled_from([0.05, 0.3, 0.9]))
    groups = np.array(range(len(lengths)) if levels is None else levels)
    usable = np.unique(groups[np.array(lengths) >= 3])
    path = write_file(tmp_path_factory.mktemp("s") / "d.hdf5", lengths, levels=levels)
    if not len(usable):
        return
    source = ClipSource(path, length=3)
    if len(usable) == 1:
        with pytest.raises(ValueError, match=r"d.hdf5: one episode or level cannot be split"):
            source.split(fraction)
        return
    seen = [set(np.repeat(groups, lengths)[part.rows(0, 0, 500)].flat) for part in source.split(fraction)]
    assert not seen[0] & seen[1]
    assert seen[0] | seen[1] == set(usable)
    assert sum(len(part.windows) for part in source.split(fraction)) == len(source.windows)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 40}, "d.hdf5: a window needs 40 rows of one episode, and the longest episode has 30"),
        ({"length": 16, "stride": 3}, "needs 46 rows"),
        ({"length": 0}, "length 0"),
        ({"stride": 0}, "stride 0"),
    ],
)
def test_windows_that_no_file_has(path, options, message):
    with pytest.raises(ValueError, match=message):
        ClipSource(path, **options)


def test_files_without_pixels(tmp_path):
    with h5py.File(tmp_path / "states.hdf5", "w") as file:
        file["observations"], file["actions"] = np.zeros((9, 4), np.float32), np.zeros((9, 2), np.float32)
        file["terminals"] = file["timeouts"] = np.zeros(9, bool)
    (tmp_path / "text.hdf5").write_text("not HDF5")
    for name in ("states.hdf5", "text.hdf5", "absent.hdf5"):
        with pytest.raises(ValueError, match=name):
            ClipSource(tmp_path / name)
    with pytest.raises(ValueError, match="val_fraction"):
        ClipData(tmp_path, val_fraction=1.0)


@pytest.mark.parametrize("stop", [1, 3, 4, 5, 8])
def test_resumed_run_sees_the_batches_of_an_uninterrupted_one(path, tmp_path, stop):
    whole = fit(path, tmp_path / "whole", 10)
    fit(path, tmp_path / "part", stop)
    rest = fit(path, tmp_path / "rest", 10, resume=tmp_path / "part" / f"step={stop}.ckpt")
    assert len(whole.seen) == 10
    np.testing.assert_array_equal(np.stack(rest.seen), np.stack(whole.seen[stop:]))


def test_accumulation_and_workers_resume_too(path, tmp_path):
    options = {"accumulate": 2, "num_workers": 2}
    whole = fit(path, tmp_path / "whole", 5, **options)
    fit(path, tmp_path / "part", 3, **options)
    rest = fit(path, tmp_path / "rest", 5, resume=tmp_path / "part" / "step=3.ckpt", **options)
    assert len(whole.seen) == 10
    np.testing.assert_array_equal(np.stack(rest.seen), np.stack(whole.seen[6:]))
    np.testing.assert_array_equal(np.stack(whole.seen), np.stack(fit(path, tmp_path / "one", 10).seen))


def test_validation_is_the_same_every_time_and_held_out(path, tmp_path):
    model, other = fit(path, tmp_path / "a", 12), fit(path, tmp_path / "b", 4, seed=1)
    assert len(model.validated) == 3 * 2
    for i, rows in enumerate(model.validated):
        np.testing.assert_array_equal(rows, other.validated[i % 2])
    assert not set(np.stack(model.validated).flat) & set(np.stack(model.seen).flat)
    assert not np.array_equal(model.seen[0], other.seen[0])


def test_nothing_held_out(path, tmp_path):
    model = fit(path, tmp_path, 2, val_fraction=0.0)
    assert len(model.seen) == 2
    assert not model.validated
