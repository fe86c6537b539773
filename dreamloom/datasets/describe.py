"""What is in a dataset file: schema, episodes, statistics, and a contact sheet to look at."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from dreamloom.datasets.atomic import atomic_path
from dreamloom.datasets.store import Dataset, open_dataset

_ROWS, _COLUMNS = 8, 12  # episodes, and frames of each, on the contact sheet
_TILE = 96  # smallest side of a frame on the sheet, in pixels


def describe(path: Path, *, out: Path | None = None) -> None:
    """Shows what is in a dataset file, and draws a contact sheet of it.

    Args:
        path: the file.
        out: the PNG to draw; by default FILE.png beside the file. An older one is replaced.

    Examples:
        dreamloom data data/coinrun.hdf5

    Raises:
        ValueError: not a dataset, or not a whole one.
    """
    sheet = out or path.with_suffix(".png")
    with open_dataset(path) as data:
        for title, lines in _report(data).items():
            print(title, *(f"  {line}" for line in lines), sep="\n")
        if len(data):
            with atomic_path(sheet) as temporary:
                contact_sheet(data).save(temporary)
            print(f"contact sheet\n  {sheet}")


def _report(data: Dataset) -> dict[str, list[str]]:
    sections = {str(data.path): _schema(data), "episodes": _episodes(data), "rewards": _rewards(data)}
    sections |= {"actions": _actions(data), "levels": _levels(data), "attributes": _attributes(data)}
    return {title: lines for title, lines in sections.items() if lines}


def _schema(data: Dataset) -> list[str]:
    names = ["observations", "actions", "rewards", "terminals", "timeouts"]
    arrays = {name: getattr(data, name) for name in names} | {f"infos/{k}": v for k, v in data.infos.items()}
    size = data.path.stat().st_size / 1e6
    lines = [f"{name:<18}{a.dtype!s:<9}{a.shape}" for name, a in arrays.items() if a is not None]
    return [f"{len(data):,} rows, {size:,.1f} MB, {data.fps:g} frames/s", *lines]


def _episodes(data: Dataset) -> list[str]:
    starts, ends = data.episodes
    if not len(starts):
        return ["none"]
    terminals, timeouts = int(data.terminals[:].sum()), int(data.timeouts[:].sum())
    ended = f"{terminals:,} terminal, {timeouts:,} timed out or cut"
    return [f"{len(starts):,} episodes: {ended}", f"rows an episode: {_quantiles(ends - starts)}"]


def _rewards(data: Dataset) -> list[str]:
    if data.rewards is None or not len(data):
        return []
    rewards, (starts, _) = data.rewards[:], data.episodes
    returns = np.add.reduceat(rewards.astype(np.float64), starts)
    rate = f"{(rewards != 0).mean():.2%} of the rows have a reward"
    return [rate, f"return of an episode: {_quantiles(returns)}, mean {returns.mean():.3g}"]


def _actions(data: Dataset) -> list[str]:
    if data.actions is None or not len(data):
        return ["none: unlabelled video"] if data.actions is None else []
    actions = data.actions[:]
    if actions.dtype.kind == "f":
        return [f"dimension {i}: {_quantiles(values)}" for i, values in enumerate(actions.T)]
    codes, counts = np.unique(actions, return_counts=True)
    names = dict(enumerate(data.action_names or []))
    longest = max(counts)
    return [
        f"{code:>3}  {names.get(code, ''):<12}{count / len(actions):>7.2%}  {'#' * round(40 * count / longest)}"
        for code, count in zip(codes.tolist(), counts.tolist(), strict=True)
    ]


def _levels(data: Dataset) -> list[str]:
    if "level_seed" not in data.infos or not len(data):
        return []
    seeds = np.unique(data.infos["level_seed"][:])
    return [f"{len(seeds):,} levels, seeds {seeds[0]} to {seeds[-1]}"]


def _attributes(data: Dataset) -> list[str]:
    flat: dict[str, Any] = {}
    for name, value in sorted(data.attrs.items()):
        if isinstance(value, dict):
            flat |= {f"{name}.{key}": inner for key, inner in value.items()}
        else:
            flat[name] = ", ".join(map(str, value)) if isinstance(value, list) else value
    return [f"{name}: {value}" for name, value in flat.items()]


def _quantiles(values: np.ndarray) -> str:
    points = np.quantile(values, [0, 0.25, 0.5, 0.75, 1])
    return "min {:.4g}, quarter {:.4g}, half {:.4g}, three quarters {:.4g}, max {:.4g}".format(*points)


def contact_sheet(data: Dataset) -> Image.Image:
    """A grid of frames: a row is one episode in time order from its first frame to its last, captioned.

    The episodes are spread evenly over the file.
    """
    starts, ends = data.episodes
    chosen = np.unique(np.linspace(0, len(starts) - 1, _ROWS).round().astype(int))
    height, width = data.observations.shape[1:3]
    scale = -(-_TILE // min(height, width))
    tile, caption, gap = (width * scale, height * scale), 16, 2
    sheet = Image.new("RGB", (_COLUMNS * (tile[0] + gap) + gap, len(chosen) * (tile[1] + caption + gap)), "#181818")
    draw = ImageDraw.Draw(sheet)
    for line, episode in enumerate(chosen.tolist()):
        top = line * (tile[1] + caption + gap)
        start, end = int(starts[episode]), int(ends[episode])
        draw.text((gap, top + 2), _caption(data, episode, start, end), fill="#c8c8c8")
        rows = np.unique(np.linspace(start, end - 1, _COLUMNS).round().astype(int))
        for column, frame in enumerate(data.observations[rows]):
            picture = Image.fromarray(frame).resize(tile, Image.Resampling.NEAREST)
            sheet.paste(picture, (gap + column * (tile[0] + gap), top + caption))
    return sheet


def _caption(data: Dataset, episode: int, start: int, end: int) -> str:
    parts = [f"episode {episode}", f"rows {start}-{end - 1}"]
    if "level_seed" in data.infos:
        parts.append(f"level {data.infos['level_seed'][start]}")
    if data.rewards is not None:
        parts.append(f"return {data.rewards[start:end].sum():.3g}")
    return "   ".join([*parts, "terminal" if data.terminals[end - 1] else "timed out or cut"])
