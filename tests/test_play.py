"""The player over real sockets: what is played and recorded, and that nobody makes another one wait."""

import io
import socket
import time
from itertools import pairwise
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from play_world import SHIFTS, Client, ShiftWorld, serving, wait_until
from websockets.exceptions import ConnectionClosed

from dreamloom.datasets.procgen import ACTION_NAMES
from dreamloom.datasets.store import open_dataset
from dreamloom.play.choices import choices
from dreamloom.play.connection import Limits
from dreamloom.play.gauge import UNKNOWN, Gauge, Watch
from dreamloom.play.keys import arrows, idle_action, page_keys, procgen_combo
from dreamloom.play.messages import FRAME, THUMBNAIL, Release, Reset
from dreamloom.play.server import play
from dreamloom.play.session import Session


def png(rgb: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "PNG")
    return buffer.getvalue()


def first_of(world: ShiftWorld, prompt: int = 0) -> np.ndarray:
    return world.prompts[prompt, -1].permute(1, 2, 0).numpy()


def test_labels_become_keys() -> None:
    assert arrows("jump right") == ["ArrowRight", "ArrowUp"]
    assert arrows("action 3") == []
    assert page_keys("D") == ["d"]
    assert (page_keys("D", steered=True), page_keys("A", steered=True), page_keys("Q", steered=True)) == ([" "], [], ["q"])
    assert page_keys("fall left") == ["ArrowDown", "ArrowLeft"]
    assert page_keys("slow right") == page_keys("right 2") == []
    assert idle_action(["left", "No-op", "stand"]) == 1
    assert idle_action(["left", "action 1"]) is None
    assert procgen_combo("right-up") == {"RIGHT", "UP"}
    assert procgen_combo("slow right") == {"RIGHT"}
    assert procgen_combo("D") == {"D"}
    assert procgen_combo("none") == frozenset()


def test_keys_change_frames() -> None:
    world = ShiftWorld()
    with serving(world) as (address, _), Client(address) as player:
        _, first = player.frame()
        np.testing.assert_array_equal(first, first_of(world))
        player.send(type="hold", action=1, id=7)
        for stamp in (7, None):  # the key stays down; a busy machine may skip frames
            header, later = player.frame(stamp=stamp)
            np.testing.assert_array_equal(later, np.roll(first, 2 * (header["sequence"] - 1), axis=1))
            assert (header["sequence"] >= 2, header["stamp"]) == (True, 7)


def test_a_tap_is_one_frame_even_when_it_is_over_before_the_frame_is_drawn() -> None:
    with serving(ShiftWorld(delay=0.05)) as (address, _), Client(address) as player:
        player.frame()
        player.send(type="settings", seed=0, fps=1)  # a second to release in
        player.send(type="hold", action=1, id=1)
        player.send(type="release")
        assert player.frame(stamp=1)[0]["sequence"] == 2
        player.patience = 1.5
        with pytest.raises(TimeoutError):
            player.frame()  # without an idle action the world keeps still


@pytest.mark.parametrize(("idle", "rest"), [(None, "AWAY_S"), (True, "AWAY_S"), (False, "REST_S")])
def test_an_idle_action_lets_time_pass_for_a_while(monkeypatch: pytest.MonkeyPatch, idle: bool | None, rest: str) -> None:
    for name in ("AWAY_S", "REST_S"):
        monkeypatch.setattr(f"dreamloom.play.session.{name}", 1e9 if name == rest else 0.0)
    with serving(ShiftWorld(labels=("left", "none"))) as (address, _), Client(address) as player:
        player.frame()
        assert player.hello["idles"]
        player.send(type="settings", seed=0, fps=60, idle=idle)
        player.send(type="hold", action=0, id=1)
        player.send(type="release")
        assert [player.frame()[0]["sequence"] for _ in range(4)][-1] >= 5
        monkeypatch.setattr(f"dreamloom.play.session.{rest}", 0.0)
        player.patience = 2.0
        with pytest.raises(TimeoutError):  # a frame does not come, before a hundred of them do
            _ = [player.frame() for _ in range(100)]


def test_a_world_of_inferred_actions_rests_and_none_moves_before_the_first_key() -> None:
    world = ShiftWorld(labels=("left", "stand"))
    assert Session(world, lambda *_: None).moves_by_itself
    world.latent_actions = object()
    session = Session(world, lambda *_: None)
    assert not session.moves_by_itself
    session.state, session.fresh = object(), False
    assert session.wants(1e6) is None
    session.idles = True
    session.apply(Release(type="release"), 100.0)
    assert (session.wants(101.0), session.wants(159.0), session.wants(161.0)) == (1, 1, None)
    session.apply(Reset(type="reset"), 170.0)
    assert session.wants(170.1) is None


def test_actions_come_in_a_players_order_and_duplicates_are_left_out() -> None:
    def shown(names: list[str], game: str | None = None) -> list[tuple[str, str, str]]:
        return [(names[c.action], c.name, "+".join(key.removeprefix("Arrow") for key in c.keys)) for c in choices(names, game)]

    assert shown(ACTION_NAMES, "coinrun") == [
        ("left", "left", "Left"),
        ("right", "right", "Right"),
        ("up", "jump", "Up"),
        ("left-up", "jump left", "Left+Up"),
        ("right-up", "jump right", "Right+Up"),
        ("down", "down", "Down"),
        ("none", "idle", ""),
    ]
    assert [name for _, name, _ in shown(ACTION_NAMES, "leaper")] == ["left", "right", "up", "down", "idle"]
    assert ("D", "fire", " ") in shown(ACTION_NAMES, "bossfight")
    latent = ["fall left", "fall right", "jump", "right", "jump right", "stand", "left", "slow right", "action 8"]
    assert [name for _, name, _ in shown(latent, "coinrun")] == [
        *("left", "right", "slow right", "jump", "jump right", "fall left", "fall right", "action 8", "idle")
    ]
    assert shown(["NOOP", "FIRE", "RIGHTFIRE"]) == [
        ("RIGHTFIRE", "RIGHTFIRE", "Right+ "),
        ("FIRE", "FIRE", " "),
        ("NOOP", "idle", ""),
    ]


def test_frames_tell_how_unsure_the_world_is_and_when_it_is_lost() -> None:
    world = ShiftWorld(labels=("left", "vanish"), unsure=0.5)
    with serving(world) as (address, _), Client(address) as player:
        first, _ = player.frame()
        assert (first["doubt"], first["index"]) == (UNKNOWN, 0)
        player.send(type="pause", on=True)
        for stamp, (action, unsure, doubt) in enumerate([(0, 0.5, 127), (0, 0.25, 64), (0, 9.0, 254), (1, 0.0, 0)], 1):
            world.unsure = unsure
            player.send(type="step", action=action, id=stamp)
            header, _ = player.frame(stamp=stamp)
            assert (header["doubt"], header["index"]) == (doubt, 0)
        for stamp in (5, 6):  # the third and fourth of bad frames
            player.send(type="step", action=1, id=stamp)
            header, _ = player.frame(stamp=stamp)
            assert header["index"] == int(stamp == 6)
        player.send(type="reset")
        assert player.frame()[0]["index"] == 0


def test_a_plain_start_is_no_void_and_a_world_that_tells_nothing_has_no_doubt() -> None:
    flat = np.full((8, 8, 3), 40, np.uint8)
    watch = Watch.over(flat, Gauge(50.0))
    for _ in range(9):
        watch.see(flat, None)
    assert (watch.lost, watch.level) == (False, UNKNOWN)
    rich = np.zeros((8, 8, 3), np.uint8)
    rich[4:] = 200  # contrast 100, and a third of it is 33.3
    watch = Watch.over(rich, Gauge(120.0))
    for grey, lost in ((66, True), (67, False)):
        pale = np.zeros_like(rich)
        pale[4:] = grey
        for _ in range(4):
            watch.see(pale, None)
        assert watch.lost is lost


def test_pause_and_single_steps() -> None:
    world = ShiftWorld()
    with serving(world) as (address, _), Client(address) as player:
        _, first = player.frame()
        player.send(type="pause", on=True)
        player.status(paused=True)
        player.send(type="step", action=2, id=3)
        np.testing.assert_array_equal(player.frame(stamp=3)[1], np.roll(first, -2, axis=0))
        player.send(type="hold", action=1, id=4)
        assert player.frame(stamp=4)[0]["sequence"] == 3
        time.sleep(0.3)  # held all the while, it is one frame
        player.send(type="pause", on=False)
        assert player.frame()[0]["sequence"] >= 4


def test_thumbnails_show_what_each_action_would_do() -> None:
    with serving(ShiftWorld()) as (address, _), Client(address) as player:
        _, first = player.frame()
        seen = dict((header["index"], rgb) for header, rgb in (player.frame(kind=THUMBNAIL) for _ in range(5)))
        for label in player.hello["actions"]:
            down, right = SHIFTS[label["name"]]
            np.testing.assert_array_equal(seen[label["action"]], np.roll(first, (4 * down, 4 * right), axis=(0, 1)))


def play_four(player: Client, seed: int) -> list[np.ndarray]:
    player.send(type="settings", seed=seed, fps=30, steps=None, temperature=None)
    player.send(type="pause", on=True)
    player.send(type="reset")
    frames = []
    for stamp in range(1, 5):
        player.send(type="step", action=stamp % 2, id=1000 * seed + stamp)
        frames.append(player.frame(stamp=1000 * seed + stamp)[1])
    return frames


def test_a_seed_repeats_itself_whoever_else_plays() -> None:
    with serving(ShiftWorld(noise=8)) as (address, _), Client(address) as alone:
        expected, other = play_four(alone, 1), play_four(alone, 2)
        with Client(address) as crowd:
            crowd.send(type="hold", action=2, id=1)
            again = play_four(alone, 3), play_four(alone, 1001)
        with Client(address) as late:
            np.testing.assert_array_equal(play_four(late, 1), expected)
    assert not np.array_equal(other, expected)
    assert not np.array_equal(again[0], again[1])


def test_players_share_batches_and_differ_in_what_they_do() -> None:
    world = ShiftWorld(delay=0.2)  # longer than a frame, so that everyone is due again when a batch is done
    with serving(world) as (address, _):
        players = [Client(address) for _ in range(8)]
        firsts = [player.frame()[1] for player in players]
        for index, player in enumerate(players):
            player.send(type="hold", action=index % 4, id=1)
        for index, player in enumerate(players):
            header, rgb = player.frame(stamp=1)
            shift = np.array(SHIFTS[world.labels[index % 4]]) * (header["sequence"] - 1)
            np.testing.assert_array_equal(rgb, np.roll(firsts[index], shift, axis=(0, 1)))
        world.calls.clear()
        wait_until(lambda: len(world.calls) >= 5)
        assert world.calls[1:5] == [8, 8, 8, 8]  # the first one may have begun before the last key went down
        for player in players:
            player.socket.close()


def test_each_player_has_settings_of_its_own() -> None:
    world = ShiftWorld()
    with serving(world) as (address, _), Client(address) as one, Client(address) as two:
        one.send(type="settings", seed=0, fps=20, steps=3, temperature=0.5)
        for player in (one, two):
            player.send(type="hold", action=0, id=1)
            player.frame(stamp=1)
        assert {(s.steps, s.temperature) for s in world.samplings} >= {(3, 0.5), (None, None)}


def test_a_client_that_does_not_read_slows_nobody_and_gets_the_newest_frame() -> None:
    world = ShiftWorld(side=256)  # 3 MB/s: a socket's buffers are full at once
    with serving(world) as (address, _), Client(address, max_queue=1) as slow, Client(address) as quick:
        for player in (slow, quick):
            player.frame()
            player.send(type="settings", seed=0, fps=60)
            player.send(type="hold", action=1, id=1)
        newest = [quick.frame()[0]["sequence"] for _ in range(60)][-1]
        got = [slow.frame()[0]["sequence"]]
        while got[-1] < newest:
            got.append(slow.frame()[0]["sequence"])
        assert got == sorted(got)
        assert max(b - a for a, b in pairwise(got)) > 5, got  # what it had no time for was skipped, not kept


def test_a_picture_or_a_sketch_is_a_start() -> None:
    drawn = np.zeros((64, 64, 3), np.uint8)
    drawn[20:40, 10:30] = [200, 30, 40]
    with serving(ShiftWorld()) as (address, _), Client(address) as player:
        player.frame()
        player.socket.send(png(drawn))
        np.testing.assert_array_equal(player.frame()[1], drawn)
        player.send(type="step", action=1, id=5)
        np.testing.assert_array_equal(player.frame(stamp=5)[1], np.roll(drawn, 2, axis=1))
        wide = np.zeros((90, 200, 3), np.uint8)
        wide[:, 55:145] = [10, 250, 10]  # the centre square
        player.socket.send(png(wide))
        _, cut = player.until(lambda m: isinstance(m, tuple) and m[0]["kind"] == FRAME and m[1][32, 32, 1] > 200)
        assert cut.shape == (64, 64, 3)
        assert (cut[:, :, 1] > 200).mean() > 0.95


def test_the_gallery_and_reset() -> None:
    world = ShiftWorld()
    with serving(world) as (address, _), Client(address) as player:
        player.frame()
        player.send(type="start", prompt=2)
        np.testing.assert_array_equal(player.frame()[1], first_of(world, 2))
        player.send(type="step", action=0, id=1)
        player.frame(stamp=1)
        player.send(type="reset")
        np.testing.assert_array_equal(player.frame()[1], first_of(world, 2))


def record_some(player: Client) -> str:
    """Records three frames, a reset, and one more; returns the address of the downloads."""
    player.frame()
    player.send(type="pause", on=True)
    player.send(type="record", on=True)
    for stamp, action in enumerate([1, 2, 0], 1):
        player.send(type="step", action=action, id=stamp)
        player.frame(stamp=stamp)
    player.send(type="reset")
    player.frame()
    player.send(type="step", action=3, id=9)
    player.frame(stamp=9)
    player.send(type="record", on=False)
    assert player.status(recording=False)["recorded"] == 4
    return f"/recording/{player.hello['key']}"


def test_recording_reads_back_as_a_dataset(tmp_path: Path) -> None:
    with serving(ShiftWorld()) as (address, _), Client(address) as player:
        answer = httpx.get(f"http://{address}{record_some(player)}/hdf5", timeout=300)
    assert 'filename="shift-' in answer.headers["content-disposition"]
    (tmp_path / "session.hdf5").write_bytes(answer.content)
    with open_dataset(tmp_path / "session.hdf5") as data:
        assert data.actions[:].tolist() == [1, 2, 0, 3]
        assert data.timeouts[:].tolist() == [False, False, True, False]
        assert data.action_names == list(ShiftWorld().labels)
        assert data.attrs["source"]["command"] == "dreamloom play"
        starts, ends = data.episodes
        assert (starts.tolist(), ends.tolist()) == ([0, 3], [3, 4])
        frames = data.observations[:]
        for row in (0, 1):  # action i, taken at frame i, led to frame i + 1
            shift = SHIFTS[ShiftWorld().labels[int(data.actions[row])]]
            np.testing.assert_array_equal(np.roll(frames[row], shift, axis=(0, 1)), frames[row + 1])


def test_recording_downloads_as_film_and_gif() -> None:
    av = pytest.importorskip("av")
    with serving(ShiftWorld()) as (address, _), Client(address) as player:
        path = record_some(player)
        film, gif = (httpx.get(f"http://{address}{path}/{kind}", timeout=300).content for kind in ("mp4", "gif"))
    with av.open(io.BytesIO(film)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert (len(frames), frames[0].shape) == (5, (512, 512, 3))
    small = frames[0][4::8, 4::8].astype(int)
    assert np.abs(small - first_of(ShiftWorld())).mean() < 8  # chroma is halved
    with Image.open(io.BytesIO(gif)) as picture:
        assert (picture.size, picture.format) == ((256, 256), "GIF")
        assert picture.n_frames >= 4


def test_a_recording_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dreamloom.play.record.MAX_BYTES", 10 * 64 * 64 * 3)
    with serving(ShiftWorld()) as (address, _), Client(address) as player:
        player.frame()
        player.send(type="settings", seed=0, fps=60)
        player.send(type="record", on=True)
        player.status(recording=True)
        player.send(type="hold", action=1, id=1)
        assert player.status(recording=False)["recorded"] == 9


def test_nothing_recorded_is_not_found() -> None:
    with serving(ShiftWorld()) as (address, _), Client(address) as player:
        for key in (player.hello["key"], "nobody", "..%2f..%2fetc%2fpasswd"):
            assert httpx.get(f"http://{address}/recording/{key}/gif", timeout=300).status_code == 404
        assert httpx.get(f"http://{address}/recording/{player.hello['key']}/exe", timeout=300).status_code == 422


def test_real_game_and_back() -> None:
    pytest.importorskip("procgen")
    world = ShiftWorld(game="coinrun", labels=("left", "right", "jump right", "none"))
    with serving(world) as (address, _), Client(address, patience=240) as player:
        player.frame()
        assert player.hello["real"]
        player.send(type="pause", on=True)
        player.send(type="mode", real=True)
        _, start = player.until(lambda m: isinstance(m, tuple) and m[0]["kind"] == FRAME and m[0]["sequence"] == 2)
        player.send(type="record", on=True)
        for stamp in range(1, 9):
            player.send(type="step", action=1, id=stamp)
            _, walked = player.frame(stamp=stamp)
        assert not np.array_equal(walked, start)
        player.send(type="mode", real=False)
        np.testing.assert_array_equal(player.frame()[1], walked)  # the dream goes on from there
        player.send(type="step", action=0, id=20)
        np.testing.assert_array_equal(player.frame(stamp=20)[1], np.roll(walked, -2, axis=1))
        answer = httpx.get(f"http://{address}/recording/{player.hello['key']}/hdf5", timeout=300)
    assert answer.content[:4] == b"\x89HDF"


def test_a_world_that_fails_pauses_its_player_and_nobody_else() -> None:
    with serving(ShiftWorld(broken=3)) as (address, _), Client(address) as unlucky, Client(address) as lucky:
        unlucky.send(type="hold", action=3, id=1)
        assert "the world failed" in unlucky.error()
        assert unlucky.status(paused=True)
        lucky.send(type="hold", action=0, id=1)
        assert lucky.frame(stamp=1)
        unlucky.send(type="pause", on=False)
        unlucky.send(type="hold", action=0, id=2)
        assert unlucky.frame(stamp=2)


def test_a_port_in_use_is_a_clear_mistake() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"port {port} on 127.0.0.1 is in use"):
            play(("coinrun",), port=port, no_open=True)
    with pytest.raises(ValueError, match="port"):
        play(("coinrun",), port=70000, no_open=True)
    with pytest.raises(ValueError, match="max-sessions"):
        play(("coinrun",), max_sessions=0)


def test_leaving_makes_room() -> None:
    with serving(ShiftWorld(), Limits(sessions=1)) as (address, worker):
        with Client(address), pytest.raises(ConnectionClosed, match="places are taken"):
            Client(address)
        wait_until(lambda: not worker.sessions)
        with Client(address) as next_one:
            next_one.frame()
