"""Fetching published datasets once, into the folders where their own libraries look for them.

D4RL publishes no checksums: its files are held against the length that the server states. What Minari publishes lies on the
Hugging Face hub, whose library resumes and checks for itself.
"""

import fcntl
import hashlib
import os
import urllib.error
import urllib.request
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import IO

from tqdm import tqdm

from dreamloom.datasets.atomic import fsync
from dreamloom.datasets.d4rl import d4rl_url

_TRIES = 5  # that get no further byte, before giving up
_TIMEOUT = 30.0  # seconds without a byte
_BLOCK = 2**20
_BROKEN = (HTTPException, TimeoutError, ConnectionError)


class FetchError(ValueError):
    """A file that could not be fetched; the message names its address."""


def fetch(url: str, path: Path, *, sha256: str | None = None, start: bytes = b"") -> Path:
    """Downloads a file, unless it is there.

    What has come so far stays in PATH.part, and a broken download goes on from there, now or when asked again. The file
    appears under its name only when it is whole.

    Args:
        url: its address.
        path: where it shall be.
        sha256: checksum, where one is published.
        start: what such a file begins with, for a server that answers with a page instead.

    Raises:
        FetchError: the server cannot be reached or has no such file, the connection breaks again and again, or the file is
            not the one that was published.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with part.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # two processes must not write one file; the later one finds it done
        if path.exists():
            _remove(part)
            return path
        try:
            _download(url, file, path.name)
            _check(url, part, sha256, start)
        except (urllib.error.URLError, *_BROKEN) as error:
            raise FetchError(_told(url, path, error)) from error
        finally:
            if not (part.exists() and part.stat().st_size):
                _remove(part)
        fsync(part)
        os.replace(part, path)
        _remove(part)
        fsync(path.parent)
    return path


def d4rl_file(name: str) -> Path:
    """A file that D4RL publishes, fetched into D4RL's own folder (`D4RL_DATASET_DIR`, or ~/.d4rl/datasets) if it is not there.

    Args:
        name: e.g. "halfcheetah-medium-v2".

    Raises:
        ValueError: D4RL publishes no such file.
        FetchError: it could not be fetched.
    """
    url = d4rl_url(name)
    folder = Path(os.environ.get("D4RL_DATASET_DIR") or Path.home() / ".d4rl" / "datasets")
    path = folder / url.rpartition("/")[2]
    return path if path.exists() else fetch(url, path, start=b"\x89HDF")


def minari_folder(name: str) -> Path:
    """A dataset of Minari's, fetched from Minari's remote (`MINARI_REMOTE`) if it is not in Minari's own root.

    Raises:
        ValueError: no name of a Minari dataset.
        FetchError: it could not be fetched.
    """
    from dreamloom.datasets.minari_format import minari_path

    path = minari_path(name)
    if path.exists():
        return path
    from minari.storage.remotes import get_cloud_storage

    # Beside the others, in a hidden folder that Minari does not list and that a broken download goes on in.
    part = path.parents[name.count("/")] / ".fetching"
    try:
        get_cloud_storage().download_dataset(name, part)
    except ImportError:
        raise
    except Exception as error:  # the hub's library has errors of its own, and of two HTTP libraries
        raise FetchError(_told(f"minari:{name}", path, error)) from error
    if not (part / name / "data" / "metadata.json").is_file():
        raise FetchError(f"minari:{name}: Minari publishes no such dataset")
    path.parent.mkdir(parents=True, exist_ok=True)
    os.replace(part / name, path)
    return path


def _download(url: str, file: IO[bytes], name: str) -> None:
    """Appends what is missing, with a new connection whenever one breaks."""
    tries = 0
    while tries < _TRIES:
        before = file.seek(0, os.SEEK_END)
        with _open(url, file) as answer:
            total = _total(answer, file)
            whole = _append(answer, file, total, name)
        if whole and file.tell() == (total or file.tell()):
            return
        tries = 0 if file.tell() > before else tries + 1
    raise ConnectionError(f"the connection broke {_TRIES} times after {file.tell():,} bytes")


def _open(url: str, file: IO[bytes]) -> HTTPResponse:
    """Asks for the rest of the file, if it is still the same one; for all of it where there is no rest to speak of."""
    tag = _tag(Path(file.name))
    request = urllib.request.Request(url)
    version = tag.read_text() if tag.exists() else ""
    if file.tell() and version:
        request.add_header("Range", f"bytes={file.tell()}-")
        request.add_header("If-Range", version)
    try:
        answer = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        answer = urllib.request.urlopen(url, timeout=_TIMEOUT)  # nothing is missing, or too much is there: once more
    if answer.status != 206:
        file.truncate(0)
        tag.write_text(answer.headers.get("ETag") or answer.headers.get("Last-Modified") or "")
    return answer


def _total(answer: HTTPResponse, file: IO[bytes]) -> int | None:
    """Bytes of the whole file, where the server says."""
    length = answer.headers.get("Content-Length")
    return None if length is None else file.seek(0, os.SEEK_END) + int(length)


def _append(answer: HTTPResponse, file: IO[bytes], total: int | None, name: str) -> bool:
    """Writes what comes; returns whether it ended in order."""
    bar = tqdm(total=total, initial=file.tell(), unit="B", unit_scale=True, desc=name, delay=0.5)
    with bar as progress:
        try:
            while block := answer.read1(_BLOCK):
                file.write(block)
                progress.update(len(block))
        except _BROKEN:
            return False
        finally:
            file.flush()
    return True


def _check(url: str, part: Path, sha256: str | None, start: bytes) -> None:
    with part.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest() if sha256 else None
        file.seek(0)
        begins = file.read(len(start))
    size = part.stat().st_size
    if begins != start:
        _remove(part)
        raise FetchError(f"{url}: the {size:,} bytes that came begin with {begins!r}, expected {start!r}")
    if found != sha256:
        _remove(part)
        raise FetchError(f"{url}: sha256 of the {size:,} bytes is {found}, the published one is {sha256}")


def _remove(part: Path) -> None:
    part.unlink(missing_ok=True)
    _tag(part).unlink(missing_ok=True)


def _tag(part: Path) -> Path:
    """Where it is noted which version of the file the part belongs to."""
    return part.with_name(part.name + ".tag")


def _told(url: str, path: Path, error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"{url}: the server says {error.code} {error.reason}"
    reason = " ".join(str(getattr(error, "reason", None) or error).split())
    return f"{url}: could not be fetched ({reason}); try again, or fetch it where there is a network and put it at {path}"
