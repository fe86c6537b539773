"""Downloads, from a small HTTP server on the loopback that can do what real ones do: ranges, cuts, errors, other files."""

import hashlib
import re
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import h5py
import numpy as np
import pytest

from dreamloom import cli
from dreamloom.datasets import d4rl
from dreamloom.datasets.convert import save_dataset
from dreamloom.datasets.fetch import FetchError, fetch
from dreamloom.datasets.store import open_dataset
from dreamloom.datasets.transitions import load_transitions

CONTENT = np.random.default_rng(0).bytes(300_000)


class Server(ThreadingHTTPServer):
    """Serves one file; the settings say what goes wrong."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.version, self.cut, self.status, self.length = CONTENT, '"1"', None, 200, True
        self.asked: list[str | None] = []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/data/file.hdf5"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server, wanted = self.server, self.headers.get("Range")
        server.asked.append(wanted)
        if server.status != 200:
            return self.send_error(server.status)
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted else 0
        if self.headers.get("If-Range", server.version) != server.version:
            start = 0
        if start >= len(server.content):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if server.version:
            self.send_header("ETag", server.version)
        if server.length:
            self.send_header("Content-Length", str(len(server.content) - start))
        self.end_headers()
        body = server.content[start:]
        self.wfile.write(body if server.cut is None else body[: server.cut])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_comes_whole_and_only_once(server, tmp_path):
    for _ in range(2):
        path = fetch(server.url, tmp_path / "deep" / "file.hdf5", sha256=hashlib.sha256(CONTENT).hexdigest())
        assert path.read_bytes() == CONTENT
    assert server.asked == [None]
    assert names(path.parent) == ["file.hdf5"]


def test_a_server_that_does_not_say_how_long_the_file_is(server, tmp_path):
    server.length = False
    assert fetch(server.url, tmp_path / "a").read_bytes() == CONTENT


def test_a_connection_that_breaks_is_taken_up_where_it_broke(server, tmp_path):
    server.cut = 70_000
    assert fetch(server.url, tmp_path / "a").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=70000-", "bytes=140000-", "bytes=210000-", "bytes=280000-"]


def test_a_download_goes_on_another_day(server, tmp_path):
    server.cut = 0
    with pytest.raises(FetchError, match=r"the connection broke 5 times after 0 bytes"):
        fetch(server.url, tmp_path / "a")
    assert names(tmp_path) == []
    part = tmp_path / "a.part"
    part.write_bytes(CONTENT[:1234])
    part.with_name("a.part.tag").write_text('"1"')
    server.cut, server.asked = None, []
    assert fetch(server.url, tmp_path / "a").read_bytes() == CONTENT
    assert server.asked == ["bytes=1234-"]
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("tag", ['"0"', "", None])
def test_a_part_of_another_version_is_thrown_away(server, tmp_path, tag):
    (tmp_path / "a.part").write_bytes(b"older" * 100)
    if tag is not None:
        (tmp_path / "a.part.tag").write_text(tag)
    assert fetch(server.url, tmp_path / "a").read_bytes() == CONTENT


def test_a_part_that_is_too_long_is_thrown_away(server, tmp_path):
    (tmp_path / "a.part").write_bytes(CONTENT + b"more")
    (tmp_path / "a.part.tag").write_text('"1"')
    assert fetch(server.url, tmp_path / "a").read_bytes() == CONTENT


def test_what_is_not_what_was_published_is_refused(server, tmp_path):
    with pytest.raises(FetchError, match=r"sha256 of the 300,000 bytes is [0-9a-f]+, the published one is 00"):
        fetch(server.url, tmp_path / "a", sha256="00")
    server.content = b"<html>please log in</html>"
    with pytest.raises(FetchError, match="begin with b'<htm'"):
        fetch(server.url, tmp_path / "a", start=b"\x89HDF")
    server.status = 404
    with pytest.raises(FetchError, match=r"file.hdf5: the server says 404 Not Found"):
        fetch(server.url, tmp_path / "a")
    assert names(tmp_path) == []


def test_two_at_once_fetch_one_file(server, tmp_path):
    threads = [threading.Thread(target=fetch, args=(server.url, tmp_path / "a")) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.asked == [None]
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert names(tmp_path) == ["a"]


def test_d4rls_files_are_fetched_into_d4rls_folder(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(d4rl, "HOST", f"http://127.0.0.1:{server.server_port}")
    with h5py.File(tmp_path / "made.hdf5", "w") as file:
        file["observations"] = np.arange(2500.0)[:, None]
        file["actions"], file["rewards"] = np.zeros((2500, 1)), np.zeros((2500, 1))
        file["terminals"] = np.zeros((2500, 1))
    server.content = (tmp_path / "made.hdf5").read_bytes()
    with open_dataset("d4rl:hopper-medium-v0") as data:
        assert names(tmp_path / "cache") == ["hopper_medium.hdf5"]
        # This old file has no timeouts, and D4RL's Hopper stops after 1000 steps.
        assert np.flatnonzero(data.timeouts[:]).tolist() == [999, 1999]
        assert data.path == tmp_path / "cache" / "hopper_medium.hdf5"
    server.shutdown()
    assert len(load_transitions("d4rl:hopper-medium-v0")) == 2497
    words = ["data", "convert", "d4rl:hopper-medium-v0", "--to", str(tmp_path / "a.npz")]
    assert cli.main(words) == 0


def test_off_line_the_reason_is_told_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path))
    monkeypatch.setattr(d4rl, "HOST", "http://127.0.0.1:9")
    assert cli.main(["data", "convert", "d4rl:hopper-medium-v2", "--to", str(tmp_path / "a.npz")]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    for word in ["http://127.0.0.1:9/gym_mujoco_v2/hopper_medium-v2.hdf5", "refused", str(tmp_path / "hopper_medium-v2.hdf5")]:
        assert word in told
    assert names(tmp_path) == []


def test_names_that_d4rl_does_not_publish():
    with pytest.raises(ValueError, match=r"no such dataset; there are: hopper-random-v2, .*hopper-medium-expert-v0$"):
        open_dataset("d4rl:hopper-perfect-v9")
    with pytest.raises(ValueError, match="there are: halfcheetah-random-v2"):
        open_dataset("d4rl:")
    files = dict(d4rl._files())
    assert len(files) == len(set(files.values()))
    assert d4rl.d4rl_url("halfcheetah-medium-replay-v2").endswith("/gym_mujoco_v2/halfcheetah_medium_replay-v2.hdf5")
    assert d4rl.d4rl_url("walker2d-medium-replay-v0").endswith("/gym_mujoco/walker_mixed.hdf5")
    assert d4rl.d4rl_url("ant-full-replay-v1").endswith("/gym_mujoco_v1/ant_full_replay-v1.hdf5")


def test_minaris_datasets_are_fetched_into_minaris_root(tmp_path, monkeypatch, capsys):
    minari_remotes = pytest.importorskip("minari.storage.remotes")
    from some_rows import rows, same

    root = tmp_path / "root"
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "published"))
    save_dataset(rows(5), "minari:toys/far-v0")
    save_dataset(rows(6), "minari:near-v0")

    class Published:
        """A remote that has what lies in the folder `published`."""

        def __init__(self, name, token):
            self.folder = tmp_path / name

        def download_dataset(self, name, path):
            if not (self.folder / name).exists():
                raise OSError("no such\nrepository")
            shutil.copytree(self.folder / name, path / name, dirs_exist_ok=True)

    monkeypatch.setitem(minari_remotes._registry, "toy", lambda: Published)
    monkeypatch.setenv("MINARI_REMOTE", "toy://published")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(root))
    for name, count in {"toys/far-v0": 5, "near-v0": 6}.items():
        same(load_transitions(f"minari:{name}"), rows(count), "timeouts")
        assert (root / name / "data" / "metadata.json").exists()
    monkeypatch.delenv("MINARI_REMOTE")
    assert len(load_transitions("minari:toys/far-v0")) == 5
    monkeypatch.setenv("MINARI_REMOTE", "toy://published")
    assert cli.main(["data", "convert", "minari:toys/none-v1", "--to", str(tmp_path / "a.npz")]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "minari:toys/none-v1: could not be fetched (no such repository)" in told
