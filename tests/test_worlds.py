"""Several worlds behind one page: each is loaded when it is entered, left cleanly, and put away when room is needed."""

import gc
import io
import weakref

import httpx
import numpy as np
import pytest
from PIL import Image
from play_world import SHIFTS, Client, ShiftWorld, serving_all, wait_until
from websockets.exceptions import ConnectionClosed

from dreamloom.play.server import _shelf
from dreamloom.play.shelf import Entry, Shelf
from dreamloom.worldmodels.bundle import BundleError, bundled, load_world
from dreamloom.worldmodels.cover import cover


def shelf_of(*names: str, loaded: int = 4) -> tuple[Shelf, dict[str, weakref.ref[ShiftWorld]]]:
    """Worlds of different sides, and those of them that were loaded."""
    alive: dict[str, weakref.ref[ShiftWorld]] = {}

    def entry(index: int, name: str) -> Entry:
        def load() -> ShiftWorld:
            world = ShiftWorld(name=name, side=32 * (index + 1))
            alive[name] = weakref.ref(world)
            return world

        return Entry(name, load, np.full((4, 4, 3), 50 * index, np.uint8) if index else None)

    return Shelf([entry(index, name) for index, name in enumerate(names)], loaded=loaded), alive


def test_each_world_is_loaded_when_it_is_entered_and_plays_by_itself() -> None:
    shelf, alive = shelf_of("one", "two", "three")
    with serving_all(shelf) as address:
        assert list(alive) == []
        with Client(address, world="two") as player:
            assert (player.hello["world"], player.hello["shape"], list(alive)) == ("two", [64, 64], ["two"])
            _, first = player.frame()
            player.send(type="step", action=1, id=1)
            np.testing.assert_array_equal(player.frame(stamp=1)[1], np.roll(first, SHIFTS["right"], axis=(0, 1)))
            with Client(address) as other:
                assert (other.hello["world"], other.frame()[1].shape) == ("one", (32, 32, 3))
                assert shelf.loaded == ["two", "one"]
        with pytest.raises(ConnectionClosed, match="no world 'four'"):
            Client(address, world="four")


def test_the_longest_unused_world_makes_room_and_its_memory_is_given_back() -> None:
    shelf, alive = shelf_of("one", "two", "three", loaded=2)
    with serving_all(shelf) as address:
        with Client(address, world="one"):
            with Client(address, world="two"), pytest.raises(ConnectionClosed, match="2 worlds are being played"):
                Client(address, world="three")
            worker = shelf.load("two")
            wait_until(lambda: not worker.sessions)
            with Client(address, world="three") as player:
                assert player.frame()[1].shape == (96, 96, 3)
                assert shelf.loaded == ["one", "three"]
        del worker
        wait_until(lambda: bool(gc.collect() + 1) and alive["two"]() is None)
        assert alive["one"]() is not None
    assert shelf.loaded == []


def test_the_page_is_told_of_all_worlds_and_shows_their_pictures() -> None:
    with serving_all(shelf_of("one", "two", "one")[0]) as address:
        assert httpx.get(f"http://{address}/worlds", timeout=300).json() == [
            {"name": "one", "cover": False},
            {"name": "two", "cover": True},
            {"name": "one 2", "cover": True},
        ]
        with Image.open(io.BytesIO(httpx.get(f"http://{address}/cover/2", timeout=300).content)) as picture:
            np.testing.assert_array_equal(np.asarray(picture), np.full((4, 4, 3), 100, np.uint8))
        assert [httpx.get(f"http://{address}/cover/{i}", timeout=300).status_code for i in (0, 3, -1, "x")] == [
            404,
            404,
            404,
            422,
        ]


def test_all_bundled_worlds_are_shown_the_default_first() -> None:
    shelf = _shelf((), "cpu")
    assert shelf.names[0] == "coinrun" == bundled()[0]
    assert len(shelf.names) == len(bundled())
    assert shelf.loaded == []
    world = load_world("coinrun")
    np.testing.assert_array_equal(shelf.entries[0].cover, world.prompts[0, -1].permute(1, 2, 0).numpy())


def test_what_is_no_world_is_told_before_anything_is_loaded(tmp_path) -> None:
    with pytest.raises(BundleError, match="no folder 'nowhere'"):
        _shelf(("coinrun", "nowhere"), "cpu")
    (tmp_path / "world.yaml").write_text("name: x")
    with pytest.raises(BundleError, match=r"is not a world that can be shown: .*weights.safetensors"):
        cover(str(tmp_path))
    with pytest.raises(ValueError, match="no world to play"):
        Shelf([])
