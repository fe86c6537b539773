"""What is in a dataset: schema, episodes, statistics, and a picture to look at."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dreamloom.datasets.atomic import atomic_path, require_writable
from dreamloom.datasets.columns import COLUMNS, is_pixels
from dreamloom.datasets.contact_sheet import augmentation_sheet, contact_sheet
from dreamloom.datasets.reading import reading
from dreamloom.datasets.runs import run_ends
from dreamloom.datasets.scores import normalized_score, score_constants
from dreamloom.datasets.store import Dataset, open_dataset
from dreamloom.datasets.summary import Summary, iter_blocks, summarize
from dreamloom.datasets.transitions import count_transitions, iter_transitions, left_out

_LOOK = 4096  # rows that show whether one follows from the other
_DIMENSIONS = 40  # that are told one by one
_ACTIONS = 100  # discrete ones that are told one by one
_LINE = 1000  # characters of a line; the settings of a recording are some hundred


def describe(
    path: str | Path,
    *,
    out: Path | None = None,
    constants: tuple[float, float] | None = None,
    max_episode_steps: int | None = None,
    augment: bool = False,
) -> None:
    """Reads a dataset whole, shows what is in it, and draws a picture of it.

    The picture is drawn only where every row could be read. Frames are drawn as a contact sheet; vectors as returns over time,
    rewards, and the range of every dimension.

    Args:
        path: an HDF5 file, a folder of shards or of episodes, an .npz archive, minari:NAME or d4rl:NAME.
        out: the PNG to draw; by default FILE.png beside the file. An older one is replaced.
        constants: returns of a random and of an expert policy, e.g. '[0, 500]', for normalised scores; by default those that
            D4RL publishes for the environment.
        max_episode_steps: the environment's step limit, for a D4RL file without timeouts.
        augment: draw what each augmentation makes of some of the frames, rather than episodes.

    Examples:
        dreamloom data data/coinrun.hdf5
        dreamloom data data/coinrun.hdf5 --augment --out augmented.png
        dreamloom data halfcheetah-medium-v2.hdf5

    Raises:
        ValueError: not a dataset, or not a whole one.
    """
    if out is not None:
        require_writable(out)
    with open_dataset(path, max_episode_steps=max_episode_steps) as data:
        found = _Found(data, constants)
        for title, lines in found.sections().items():
            print(*(_printable(line) for line in (title, *(f"  {line}" for line in lines))), sep="\n")
        if len(data):
            shown = "augmentations" if augment else "contact sheet" if is_pixels(data.observations) else "picture"
            picture = out or _beside(data)
            if out is None and not _takes_files(picture.parent):
                print(f"{shown}\n  none: {picture.parent} is read-only; --out FILE.png draws it elsewhere")
                return
            with atomic_path(picture) as temporary:
                (augmentation_sheet(data).save if augment else found.draw)(temporary)
            print(f"{shown}\n  {picture}")


class _Found:
    """All that one look at a dataset finds out."""

    def __init__(self, data: Dataset, constants: tuple[float, float] | None) -> None:
        self.data = data
        names = _names(data)
        self.env = next((name for name in names if score_constants(name)), names[0])
        self.constants = constants or score_constants(self.env)
        self.consecutive = _consecutive(data)
        self.columns = {name: summarize(getattr(data, name), name) for name in self._numbers()}
        self.broken = {name: (int(found.nan.sum()), int(found.infinite.sum())) for name, found in self.columns.items()}
        self._read_the_rest()
        whole = "rewards" in self.columns and not self.columns["rewards"].broken[0]
        self.returns = self._returns() if self.consecutive and whole else None

    def sections(self) -> dict[str, list[str]]:
        """Title -> lines of the report."""
        sections = {self.data.ref: self._schema(), "episodes": list(self._episodes()), "rewards": list(self._rewards())}
        if "observations" in self.columns:
            sections["observations"] = _table(self.columns["observations"])
        sections |= {"actions": self._actions(), "levels": self._levels(), "attributes": self._attributes()}
        sections["not finite"] = [", ".join(self._not_finite())] if any(map(sum, self.broken.values())) else []
        sections["passed over"] = [f"{name}: {why}" for name, why in self.data.passed_over.items()]
        return {title: lines for title, lines in sections.items() if lines}

    def draw(self, path: Path) -> None:
        """Draws the picture."""
        if is_pixels(self.data.observations):
            contact_sheet(self.data).save(path)
            return
        from dreamloom.datasets.overview import overview

        figure = overview(
            f"{self.data.path.name}: {len(self.data):,} rows",
            self.columns,
            returns=self.returns,
            constants=self.constants,
            actions=self._codes(),
        )
        with reading(self.data.ref, "picture"), np.errstate(all="ignore"):
            figure.savefig(path, dpi=110)

    def _numbers(self) -> Iterator[str]:
        if len(self.data):
            if not is_pixels(self.data.observations):
                yield "observations"
            if self.data.actions is not None and self.data.actions.dtype.kind == "f":
                yield "actions"
            if self.data.rewards is not None:
                yield "rewards"

    def _read_the_rest(self) -> None:
        """Every row of every column is read once, so that damage is found."""
        columns = {name: getattr(self.data, name) for name in COLUMNS}
        for name, array in (columns | {f"infos/{name}": array for name, array in self.data.infos.items()}).items():
            if array is None or name in self.columns:
                continue
            nan = infinite = 0
            for block in iter_blocks(array, name):
                if block.dtype.kind == "f":
                    nan, infinite = nan + int(np.isnan(block).sum()), infinite + int(np.isinf(block).sum())
            self.broken[name] = nan, infinite

    def _not_finite(self) -> Iterator[str]:
        for name, (nan, infinite) in self.broken.items():
            counts = [f"{count:,} {what}" for count, what in ((nan, "NaN"), (infinite, "infinite")) if count]
            if counts:
                yield f"{name} {' and '.join(counts)}"

    def _returns(self) -> np.ndarray:
        assert self.data.rewards is not None
        starts, ends = self.data.episodes
        totals, first = np.zeros(len(starts)), 0
        for block in iter_blocks(self.data.rewards):
            episodes = np.searchsorted(ends, np.arange(first, first + len(block)), side="right")
            np.add.at(totals, episodes, block.astype(np.float64))
            first += len(block)
        return totals

    def _schema(self) -> list[str]:
        data = self.data
        arrays = {name: getattr(data, name) for name in COLUMNS} | {f"infos/{k}": v for k, v in data.infos.items()}
        files = [data.path] if data.path.is_file() else [path for path in data.path.rglob("*") if path.is_file()]
        size = sum(file.stat().st_size for file in files) / 1e6
        rate = f", {data.fps:g} frames/s" if is_pixels(data.observations) else ""
        lines = [f"{name:<22}{array.dtype!s:<9}{array.shape}" for name, array in arrays.items() if array is not None]
        return [f"{len(data):,} rows, {size:,.1f} MB{rate}", *lines]

    def _episodes(self) -> Iterator[str]:
        data = self.data
        terminals, timeouts = int(data.terminals[:].sum()), int(data.timeouts[:].sum())
        if not len(data):
            yield "none"
            return
        if self.consecutive:
            starts, ends = data.episodes
            yield f"{len(starts):,} episodes: {terminals:,} terminal, {timeouts:,} timed out or cut"
            yield f"rows an episode: {_quantiles(ends - starts)}"
        else:
            yield f"none: rows do not follow one another; {terminals:,} are terminal ({terminals / len(data):.2%})"
        if data.actions is not None and data.rewards is not None:
            unknown = _without_what_followed(data)
            without = f", {unknown:,} of them (terminal) without what followed" if unknown else ""
            yield f"{count_transitions(data):,} transitions{without}"
            missing = left_out(data)
            if missing:
                yield missing.removeprefix(f"{data.ref}: ")

    def _rewards(self) -> Iterator[str]:
        if "rewards" not in self.columns:
            return
        assert self.data.rewards is not None
        share = sum(np.count_nonzero(block) for block in iter_blocks(self.data.rewards)) / len(self.data)
        yield f"{share:.2%} of the rows have a reward"
        yield _table(self.columns["rewards"])[0].replace("dimension 0", "reward of a row")
        if self.returns is None:
            return
        yield f"return of an episode: {_quantiles(self.returns)}, mean {self.returns.mean():.3g}"
        if self.constants:
            scores, (low, high) = normalized_score(self.env, self.returns, self.constants), self.constants
            told = f"mean {scores.mean():.1f}, max {scores.max():.1f}"
            yield f"normalised score ({self.env}: 0 is a return of {low:g}, 100 of {high:g}): {told}"

    def _actions(self) -> list[str]:
        if "actions" in self.columns:
            return _table(self.columns["actions"])
        codes = self._codes()
        if codes is None:
            return ["none: unlabelled video"] if self.data.actions is None else []
        most = max(codes.values(), default=1)
        lines = [f"{name:<17}{count / len(self.data):>7.2%}  {'#' * round(40 * count / most)}" for name, count in codes.items()]
        return [*lines, f"the {_ACTIONS} most frequent ones"] if len(lines) == _ACTIONS else lines

    def _codes(self) -> dict[str, int] | None:
        """How often each discrete action is taken."""
        if self.data.actions is None or self.data.actions.dtype.kind == "f":
            return None
        totals: Counter[int] = Counter()
        for block in iter_blocks(self.data.actions):
            codes, counts = np.unique(block, return_counts=True)
            totals.update(dict(zip(codes.tolist(), counts.tolist(), strict=True)))
        names = dict(enumerate(self.data.action_names or []))
        shown = sorted(code for code, _ in totals.most_common(_ACTIONS))
        return {f"{code:>3}  {names.get(code, '')}": totals[code] for code in shown}

    def _levels(self) -> list[str]:
        if "level_seed" not in self.data.infos or not len(self.data):
            return []
        seeds: set[int] = set()
        for block in iter_blocks(self.data.infos["level_seed"]):
            seeds.update(np.unique(block).tolist())
        return [f"{len(seeds):,} levels, seeds {min(seeds)} to {max(seeds)}"]

    def _attributes(self) -> list[str]:
        flat: dict[str, Any] = {}
        for name, value in sorted(self.data.attrs.items()):
            if isinstance(value, dict):
                flat |= {f"{name}.{key}": inner for key, inner in value.items()}
            else:
                flat[name] = ", ".join(map(str, value)) if isinstance(value, list) else value
        return [f"{name}: {value}" for name, value in flat.items()]


def _names(data: Dataset) -> list[str]:
    """What the environment may be called, the likeliest first."""
    source = data.attrs.get("source")
    options = source.get("env") if isinstance(source, dict) else None
    mode = options.get("distribution_mode", "easy") if isinstance(options, dict) else "easy"
    if mode != "easy":  # the constants of Procgen's games are those of the easy mode
        return [f"{data.attrs.get('game')}-{mode}"]
    given = [str(data.attrs[key]) for key in ("env", "game") if key in data.attrs]
    return [*given, data.path.stem, data.ref]


def _consecutive(data: Dataset) -> bool:
    """Whether rows follow one another, as they do in a recording; of most of a generative model's rows nothing follows."""
    if data.next_observations is None or len(data) < 2 or data.actions is None or data.rewards is None:
        return True
    first = next(iter_transitions(data, _LOOK))
    return len(first) < 2 or bool(run_ends(first, None)[:-1].mean() < 0.5)


def _without_what_followed(data: Dataset) -> int:
    if data.next_observations is None:
        return int(data.terminals[:].sum())
    return 0 if data.next_known is None else int((~data.next_known[:]).sum())


def _beside(data: Dataset) -> Path:
    if data.ref.startswith(("minari:", "d4rl:")):
        return Path(data.ref.partition(":")[2].replace("/", "-") + ".png")
    return data.path.with_name(data.path.name + ".png") if data.path.is_dir() else data.path.with_suffix(".png")


def _takes_files(folder: Path) -> bool:
    """Not where its mode says read-only: the superuser, who may write there all the same, is asked for `--out` too."""
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    return os.access(there, os.W_OK) and bool(there.stat().st_mode & 0o222)


def _printable(line: str) -> str:
    """Names and attributes of a file may hold control characters, which a terminal would obey."""
    shown = line if len(line) <= _LINE else f"{line[:_LINE]}..."
    return "".join(letter if letter.isprintable() else "?" for letter in shown)


def _table(column: Summary) -> list[str]:
    """A line of statistics for each dimension."""
    inner = column.quantiles(0.25, 0.5, 0.75)
    lines = []
    for i in range(min(column.mean.size, _DIMENSIONS)):
        told = f"{_points([column.low[i], *inner[:, i], column.high[i]])}, mean {column.mean[i]:.4g}, std {column.std[i]:.4g}"
        broken = f"{column.broken[i]:,} values are not finite" if column.broken[i] else ""
        none = np.isnan(column.low[i])
        lines.append(f"dimension {i}: {broken if none else told}{'; ' + broken if broken and not none else ''}")
    left = column.mean.size - _DIMENSIONS
    return [*lines, f"and {left} more"] if left > 0 else lines


def _quantiles(values: np.ndarray) -> str:
    return _points(np.quantile(values, [0, 0.25, 0.5, 0.75, 1]))


def _points(points: Sequence[float] | np.ndarray) -> str:
    return "min {:.4g}, quarter {:.4g}, half {:.4g}, three quarters {:.4g}, max {:.4g}".format(*points)
