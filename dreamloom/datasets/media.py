"""Which videos and pictures a folder holds: links are followed, and what cannot be read is named."""

import errno
import logging
import re
import stat
from collections import deque
from pathlib import Path

from dreamloom.datasets.pictures import is_animated
from dreamloom.datasets.reading import special

log = logging.getLogger(__name__)

VIDEOS = {".apng", ".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".webm"}
PICTURES = {".bmp", ".jpeg", ".jpg", ".png", ".webp"}


def find_videos(folder: Path) -> tuple[list[Path], dict[Path, str]]:
    """What can be read as a clip below a folder, and why the rest cannot.

    Returns:
        Video files, animated pictures and folders that hold pictures, sorted; and path -> reason for all other files.
    """
    files, skipped = walk(folder)
    videos = {path for path in files if path.suffix.lower() in VIDEOS}
    pictures = {path for path in files if path.suffix.lower() in PICTURES}
    moving = {path for path in pictures if is_animated(path)}
    foreign = dict.fromkeys(sorted(set(files) - videos - pictures), "not a video or a picture")
    return sorted(videos | moving | {path.parent for path in pictures - moving}), {**skipped, **foreign}


def find_pictures(folder: Path) -> list[Path]:
    """All picture files below a folder, sorted; links that lead nowhere and the like are warned of."""
    files, skipped = walk(folder)
    for path, reason in skipped.items():
        log.warning("skipped %s: %s", path, reason)
    return sorted(path for path in files if path.suffix.lower() in PICTURES)


def stills_of(folder: Path) -> list[Path]:
    """The stills directly in a folder, frame10 after frame9; links that lead nowhere are among them."""
    names = (path for path in folder.iterdir() if path.suffix.lower() in PICTURES and not path.name.startswith("."))
    return sorted((path for path in names if not is_animated(path)), key=_by_number)


def _by_number(path: Path) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name)]


def walk(folder: Path) -> tuple[list[Path], dict[Path, str]]:
    """All regular files below a folder, and path -> reason for what is none. Hidden files and folders are passed over.

    Links are followed; a folder that is reached twice is read once, under its own name rather than a link's, so a loop
    of links ends.
    """
    files: list[Path] = []
    skipped: dict[Path, str] = {}
    seen: dict[tuple[int, int], Path] = {}
    folders, linked = [folder], deque[Path]()
    while folders or linked:
        here = folders.pop() if folders else linked.popleft()
        try:
            entries = sorted(entry for entry in here.iterdir() if not entry.name.startswith("."))
            place = here.stat()
        except OSError as error:
            skipped[here] = f"cannot be opened: {error.strerror}"
            continue
        first = seen.setdefault((place.st_dev, place.st_ino), here)
        if first is not here:
            skipped[here] = f"a link to a folder that is read as {first}"
            continue
        for entry in entries:
            mode, reason = _mode(entry)
            if stat.S_ISDIR(mode):
                (linked if entry.is_symlink() else folders).append(entry)
            elif stat.S_ISREG(mode):
                files.append(entry)
            else:
                skipped[entry] = reason or f"is {special(mode)}, expected a file"
    return sorted(files), skipped


def _mode(path: Path) -> tuple[int, str]:
    """What kind of thing a path leads to; 0 and the reason where it leads nowhere."""
    try:
        return path.stat().st_mode, ""
    except OSError as error:
        reasons = {errno.ENOENT: "a link to nothing", errno.ELOOP: "a link that leads to itself"}
        return 0, reasons.get(error.errno or 0, f"cannot be opened: {error.strerror}")
