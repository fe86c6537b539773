"""Writing transitions in the formats that people of the field read, and turning one format into another."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dreamloom.datasets.atomic import atomic_folder, require_new_file
from dreamloom.datasets.columns import is_pixels
from dreamloom.datasets.hdf5 import copy_rows, save_hdf5
from dreamloom.datasets.kinds import split_ref
from dreamloom.datasets.npz import save_npz
from dreamloom.datasets.shards import read_manifest, write_index, write_shard
from dreamloom.datasets.store import Dataset, open_dataset
from dreamloom.datasets.subset import subset
from dreamloom.datasets.transitions import count_transitions, iter_transitions, left_out
from dreamloom.datasets.types import Transitions

_PIECE = 2**26  # bytes of rows that are in memory at a time
_SHARD = 2**27  # bytes of a shard
TARGETS = "FILE.hdf5, FILE.npz, minari:NAME, dgrl:FOLDER, vd4rl:FILE.hdf5, or a folder without a suffix"
_OWN = ("format", "format_version")  # attributes that speak of the file, not of the data


@dataclass(frozen=True)
class Rows:
    """Transitions on their way: how many, how large, what is known of them, and how to go through them."""

    count: int
    row_bytes: int
    attrs: Mapping[str, Any]
    source: Transitions | Dataset

    def parts(self, nbytes: int = _PIECE) -> Iterator[Transitions]:
        """All rows, piece by piece, with a progress bar."""
        size = max(1, min(nbytes // max(1, self.row_bytes), 2**20))
        with tqdm(total=self.count, unit=" rows", unit_scale=True, delay=1.0) as progress:
            for part in _pieces(self.source, size):
                yield part
                progress.update(len(part))

    def discrete_actions(self) -> int:
        """How many discrete actions there are (Minari wants to know beforehand); 0 where actions are continuous."""
        actions = self.source.actions
        if actions is None or actions.ndim > 1:
            return 0
        named = len(self.attrs.get("action_names", []))
        blocks = (actions[start : start + 2**20] for start in range(0, len(actions), 2**20))
        return max([named, 1, *(int(block.max()) + 1 for block in blocks)])


def convert(
    src: str,
    *,
    to: str,
    levels: str | None = None,
    rows: int | None = None,
    top_return: float | None = None,
    seed: int = 0,
    max_episode_steps: int | None = None,
) -> None:
    """Turns a dataset, or some of its episodes, into another format, e.g. D4RL's HDF5, Minari, DGRL's or V-D4RL's episodes.

    Vectors come out as transitions, in order and one by one, whatever their number; columns under `infos/` stay behind.
    Recorded pictures are copied to HDF5 row by row, with their levels, each frame once.

    Args:
        src: what `dreamloom data` reads: an HDF5 file, a folder of shards or of episodes, an .npz archive, minari:NAME or
            d4rl:NAME.
        to: FILE.hdf5, FILE.npz, minari:NAMESPACE/NAME-v0, a folder (a name without a suffix), dgrl:FOLDER, vd4rl:FILE.hdf5 or
            vd4rl:FOLDER.
        levels: only episodes on these level seeds: LO:HI, or DGRL's train (0:200), validation (200:250) or test (250 and up).
        rows: only so many rows, in whole episodes drawn at random.
        top_return: only the share of episodes with the highest return, e.g. 0.1.
        seed: of the draw of rows.
        max_episode_steps: the environment's step limit, for a D4RL file without timeouts.

    Examples:
        dreamloom data convert data/cheetah_synth --to data/cheetah_synth.hdf5
        dreamloom data convert data/cheetah_synth --to minari:cheetah/synth-v0
        dreamloom data convert data/coinrun.hdf5 --levels train --rows 100000 --to dgrl:data/coinrun_100k

    Raises:
        ValueError: the source cannot be read, no episode is left, or the target exists or has no known form.
    """
    _target(to)
    with open_dataset(src, max_episode_steps=max_episode_steps) as data:
        whole = levels is rows is top_return is None
        part = data if whole else subset(data, levels=levels, rows=rows, top_return=top_return, seed=seed)
        count, missing = save_dataset(part, to), None if _is_copied(part, to) else left_out(part)
    print(f"{to}: {count:,} transitions")
    if missing:
        print(missing)


def save_dataset(data: Transitions | Dataset, to: str | Path, *, attrs: Mapping[str, Any] | None = None) -> int:
    """Writes transitions, whole or not at all; an open dataset is streamed and may be larger than memory.

    Args:
        data: transitions, or an open dataset, whose rows count by D4RL's rule (`iter_transitions`).
        to: "FILE.hdf5" (D4RL's own `qlearning_dataset` reads these very transitions from it), "FILE.npz", a folder (no
            suffix), "minari:NAMESPACE/NAME-v0", "dgrl:FOLDER", "vd4rl:FILE.hdf5" or "vd4rl:FOLDER".
        attrs: what is known of the data, as JSON: `env`, `synthetic`, `source`, ...; it goes before what a dataset says itself.

    Returns:
        The number of transitions written.

    Raises:
        ValueError: `to` exists or has no known form, or the dataset has no actions or rewards.
    """
    kind, rest = _target(to)
    path, rows = Path(rest), _rows(data, attrs or {})
    if kind == "minari":
        from dreamloom.datasets.minari_save import save_minari

        save_minari(rest, rows.parts(), rows.attrs, actions=rows.discrete_actions())
        return rows.count
    if kind:
        return _save_episodes(kind, path, rows)
    if path.suffix in (".hdf5", ".h5"):
        if isinstance(data, Dataset) and _is_copied(data, to):
            copy_rows(path, data, rows.attrs)
        else:
            save_hdf5(path, rows.parts(), rows.attrs)
    elif path.suffix == ".npz":
        save_npz(path, rows.parts(), rows.count, rows.attrs)
    else:
        _save_folder(path, rows)
    return rows.count


def _target(to: str | Path) -> tuple[str, str]:
    """Format and place of what is to be written, where that can be; no file is looked at or made.

    Raises:
        ValueError: it exists, cannot be written, or has no known form.
    """
    kind, rest = split_ref(str(to))
    if kind == "d4rl" or (not kind and Path(rest).suffix not in ("", ".hdf5", ".h5", ".npz")):
        raise ValueError(f"{to}: no known format; expected {TARGETS}")
    if kind == "minari":
        from dreamloom.datasets.minari_save import require_new_minari

        require_new_minari(rest)
    else:
        require_new_file(rest, option="--to")
    return kind, rest


def _is_copied(data: Dataset, to: str | Path) -> bool:
    """Whether a recording goes over row by row, each frame once, rather than as transitions."""
    flat = Path(to).suffix in (".hdf5", ".h5") and not str(to).startswith("vd4rl:")
    return flat and is_pixels(data.observations) and data.next_observations is None


def _save_episodes(kind: str, path: Path, rows: Rows) -> int:
    if kind == "dgrl":
        from dreamloom.datasets.dgrl import save_dgrl

        return save_dgrl(path, rows.source, rows.attrs.get("game"))
    from dreamloom.datasets.vd4rl import save_vd4rl

    return save_vd4rl(path, rows.source)


def _save_folder(folder: Path, rows: Rows) -> None:
    with atomic_folder(folder) as temporary:
        manifests = []
        for number, part in enumerate(rows.parts(_SHARD)):
            write_shard(temporary, number, part, rows.attrs)
            manifests.append(read_manifest(temporary, number) or {})
        write_index(temporary, manifests, rows.attrs)


def _rows(data: Transitions | Dataset, attrs: Mapping[str, Any]) -> Rows:
    known = {name: value for name, value in data.attrs.items() if name not in _OWN} if isinstance(data, Dataset) else {}
    count = count_transitions(data) if isinstance(data, Dataset) else len(data)
    row_bytes = 2 * data.observations[:1].nbytes + 64
    merged = {name: value for name, value in {**known, **attrs}.items() if value is not None}
    return Rows(count, row_bytes, merged, data)


def _pieces(source: Transitions | Dataset, size: int) -> Iterator[Transitions]:
    if isinstance(source, Dataset):
        yield from iter_transitions(source, size)
    else:
        yield from (source[start : start + size] for start in range(0, max(1, len(source)), size))
