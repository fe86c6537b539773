"""The page in a headless Chromium: keys, buttons, sketch, picture, recording, phone, keyboard alone."""

import io
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from play_world import SHIFTS, ShiftWorld, serving, serving_all

from dreamloom.datasets.store import open_dataset
from dreamloom.play.real import warm_up_real
from dreamloom.play.shelf import Entry, Shelf

CHROMIUM = "/usr/bin/chromium"
QUIET = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
PATIENCE_MS = 240_000
LABELS = ("left", "right", "jump", "jump right", "down", "vanish")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not Path(CHROMIUM).exists(), reason=f"needs Chromium at {CHROMIUM}"),
]


class Page:
    """The page as a person uses it."""

    def __init__(self, page: Any, address: str) -> None:
        self.page, self.mistakes = page, []
        page.set_default_timeout(PATIENCE_MS)
        page.on("pageerror", lambda error: self.mistakes.append(str(error)))
        page.on("console", lambda message: self.mistakes.append(message.text) if message.type == "error" else None)
        page.goto(f"http://{address}")
        page.wait_for_selector("body[data-sequence]")

    def pixels(self, canvas: str = "frame") -> np.ndarray:
        """(h, w, 3) of a canvas."""
        width, height, data = self.page.evaluate(
            """id => { const c = document.getElementById(id);
            return [c.width, c.height, [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]]; }""",
            canvas,
        )
        return np.array(data, np.uint8).reshape(height, width, 4)[:, :, :3]

    def sequence(self) -> int:
        return int(self.page.evaluate("Number(document.body.dataset.sequence)"))

    def after(self, act: Callable[[], Any], frames: int = 1) -> np.ndarray:
        """What is shown once `act` has led to new frames."""
        wanted = self.sequence() + frames
        act()
        self.page.wait_for_function("n => Number(document.body.dataset.sequence) >= n", arg=wanted)
        return self.pixels()

    def pause(self) -> None:
        self.page.keyboard.press("p")
        self.page.wait_for_selector("#pause[aria-pressed=true]")

    def text(self, selector: str) -> str:
        return self.page.inner_text(selector)


@pytest.fixture(scope="module")
def world() -> ShiftWorld:
    return ShiftWorld(labels=LABELS)


@pytest.fixture(scope="module")
def address(world: ShiftWorld) -> Iterator[str]:
    with serving(world) as (address, _):
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright: AbstractContextManager[Any] = pytest.importorskip("playwright.sync_api").sync_playwright()
    with playwright as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=QUIET.split(), timeout=2 * PATIENCE_MS)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 800}, accept_downloads=True)
    page = Page(context.new_page(), address)
    yield page
    context.close()
    assert page.mistakes == []


def shifted(rgb: np.ndarray, label: str) -> np.ndarray:
    return np.roll(rgb, SHIFTS.get(label, (0, 0)), axis=(0, 1))


def start_of(world: ShiftWorld, prompt: int = 0) -> np.ndarray:
    return world.prompts[prompt, -1].permute(1, 2, 0).numpy()


@pytest.mark.parametrize(
    ("keys", "label"),
    [(["ArrowLeft"], "left"), (["d"], "right"), (["3"], "jump"), (["ArrowDown"], "down"), (["4"], "jump right")],
)
def test_keys_change_frames(page: Page, world: ShiftWorld, keys: list[str], label: str) -> None:
    page.pause()  # then one key is one frame
    before = page.pixels()
    np.testing.assert_array_equal(before, start_of(world))
    shown = page.after(lambda: [page.page.keyboard.press(key) for key in keys])
    np.testing.assert_array_equal(shown, shifted(before, label))


def test_two_arrows_are_one_action_and_holding_repeats(page: Page) -> None:
    keyboard = page.page.keyboard
    page.after(lambda: (keyboard.down("ArrowRight"), keyboard.down("ArrowUp")), frames=4)
    assert page.page.locator(".action.on b").all_inner_texts() == ["jump right"]
    keyboard.up("ArrowUp")
    assert page.page.locator(".action.on b").all_inner_texts() == ["right"]
    keyboard.up("ArrowRight")
    assert page.page.locator(".action.on").count() == 0
    page.page.wait_for_function("() => document.getElementById('latency').textContent.includes('/')")
    assert float(page.text("#latency").split("/")[0]) > 0


def test_buttons_have_label_key_and_thumbnail_and_act_while_pressed(page: Page, world: ShiftWorld) -> None:
    assert page.page.locator(".action b").all_inner_texts() == list(LABELS)
    assert page.page.locator(".action kbd").all_inner_texts() == ["←", "→", "↑", "→↑", "↓", "6"]
    page.page.wait_for_function(
        "() => [...document.querySelectorAll('.action canvas')].every(c => c.getContext('2d').getImageData(5, 5, 1, 1).data[3])"
    )
    page.pause()
    shown = page.after(lambda: page.page.locator(".action", has_text="down").click())
    np.testing.assert_array_equal(shown, shifted(start_of(world), "down"))


def test_gallery_and_reset(page: Page, world: ShiftWorld) -> None:
    page.pause()
    shown = page.after(lambda: page.page.get_by_label("Start from picture 3").click())
    np.testing.assert_array_equal(shown, start_of(world, 2))
    page.after(lambda: page.page.keyboard.press("1"))
    np.testing.assert_array_equal(page.after(lambda: page.page.keyboard.press("r")), start_of(world, 2))


def test_a_sketch_plays(page: Page) -> None:
    page.pause()
    page.page.click("#draw")
    page.page.click("#palette [aria-label=red]")
    page.page.click("#fill")
    page.page.click("#palette [aria-label=white]")
    box = page.page.locator("#paper").bounding_box()
    mouse = page.page.mouse
    mouse.move(box["x"] + box["width"] / 4, box["y"] + box["height"] / 2)
    mouse.down()
    mouse.move(box["x"] + box["width"] * 3 / 4, box["y"] + box["height"] / 2, steps=5)
    mouse.up()
    drawn = page.pixels("paper")
    assert (drawn[32, 20:44] == 255).all()
    shown = page.after(lambda: page.page.click("#use"))
    np.testing.assert_array_equal(shown, drawn)
    np.testing.assert_array_equal(page.after(lambda: page.page.keyboard.press("ArrowRight")), shifted(drawn, "right"))


def test_a_picture_of_ones_own_plays(page: Page, tmp_path: Path) -> None:
    rgb = np.zeros((64, 64, 3), np.uint8)
    rgb[10:30, 20:50] = [30, 200, 90]
    Image.fromarray(rgb).save(tmp_path / "mine.png")
    page.pause()
    shown = page.after(lambda: page.page.set_input_files("#file", tmp_path / "mine.png"))
    np.testing.assert_array_equal(shown, rgb)
    assert "part of the game" in page.text("#toast")
    (tmp_path / "no.png").write_text("this is no picture")
    page.page.set_input_files("#file", tmp_path / "no.png")
    page.page.wait_for_function("() => document.getElementById('toast').textContent.includes('no picture')")


def test_recording_downloads_and_reads_back(page: Page, tmp_path: Path) -> None:
    page.pause()
    page.page.keyboard.press("c")
    page.page.wait_for_selector("#record[aria-pressed=true]")
    for key in ("ArrowRight", "ArrowRight", "3"):
        page.after(lambda key=key: page.page.keyboard.press(key))
    page.page.keyboard.press("c")
    page.page.wait_for_selector("#downloads a")
    saved = {}
    for name in ("film", "gif", "dataset"):
        with page.page.expect_download() as download:
            page.page.click(f"#downloads a:text-is('{name}')")
        saved[name] = tmp_path / download.value.suggested_filename
        download.value.save_as(saved[name])
    with open_dataset(saved["dataset"]) as data:
        assert data.actions[:].tolist() == [1, 1, 2]
        frames = data.observations[:]
    np.testing.assert_array_equal(frames[2], shifted(frames[1], "right"))
    assert saved["film"].read_bytes()[4:8] == b"ftyp"
    with Image.open(io.BytesIO(saved["gif"].read_bytes())) as gif:
        assert gif.n_frames == 4


def test_settings_reach_the_world(page: Page, world: ShiftWorld) -> None:
    page.pause()
    page.page.click("#advanced summary")
    page.page.fill("[name=steps]", "5")
    page.page.fill("[name=temperature]", "0.25")
    page.page.keyboard.press("Tab")
    page.page.locator("#frame").click()
    page.after(lambda: page.page.click("#step"))
    assert (world.samplings[-1].steps, world.samplings[-1].temperature) == (5, 0.25)


def test_wrong_settings_are_explained_and_put_back(page: Page, world: ShiftWorld) -> None:
    page.pause()
    page.page.click("#advanced summary")
    page.page.fill("[name=temperature]", "0.5")
    page.page.keyboard.press("Tab")
    for name, wrong, why, kept in (
        ("temperature", "9", "temperature is a number from 0 to 4: put back to 0.5", "0.5"),
        ("fps", "0", "target fps is a whole number from 1 to 60: put back to the world's own", ""),
        ("seed", "1.5", "seed is a whole number from 0 to 2,147,483,647: put back to 0", "0"),
    ):
        page.page.fill(f"[name={name}]", wrong)
        page.page.keyboard.press("Tab")
        page.page.wait_for_function("why => document.getElementById('toast').textContent === why", arg=why)
        assert page.page.input_value(f"[name={name}]") == kept
    page.after(lambda: page.page.click("#step"))
    assert world.samplings[-1].temperature == 0.5


def test_a_lost_world_is_told_of_and_r_is_offered(page: Page, world: ShiftWorld) -> None:
    page.pause()
    assert page.page.locator("#lost").is_hidden()
    for _ in range(4):
        page.after(lambda: page.page.keyboard.press("6"))
    page.page.wait_for_selector("#lost:visible")
    assert page.page.locator("#stage.warns").count() == 1
    np.testing.assert_array_equal(page.after(lambda: page.page.keyboard.press("r")), start_of(world))
    assert page.page.locator("#lost").is_hidden()
    assert page.page.locator("#unsure").is_hidden()  # this world tells nothing of itself


def test_the_palette_stays_where_it_was(page: Page, world: ShiftWorld) -> None:
    page.pause()

    def palette() -> list[str]:
        page.page.keyboard.press("k")
        colours = page.page.eval_on_selector_all("#palette button", "all => all.map(b => b.style.getPropertyValue('--colour'))")
        page.page.keyboard.press("Escape")
        return colours

    before = palette()
    common = {tuple(colour) for colour in world.prompts[0, -1].permute(1, 2, 0).reshape(-1, 3).tolist()}
    assert {tuple(int(part) for part in colour[4:-1].split(",")) for colour in before[:3]} & common, "colours as they are"
    for _ in range(4):
        page.after(lambda: page.page.keyboard.press("6"))  # all black
    assert palette() == before


def test_full_screen_and_back(page: Page) -> None:
    narrow = page.page.locator("#stage").bounding_box()
    page.page.keyboard.press("f")
    page.page.wait_for_selector("body.full")
    wide = page.page.locator("#stage").bounding_box()
    assert wide["width"] > narrow["width"]
    assert page.page.locator("footer").is_hidden()
    page.page.keyboard.press("f")
    page.page.wait_for_selector("body:not(.full)")


def test_a_gallery_of_worlds_by_keyboard(browser: Any) -> None:
    worlds = [ShiftWorld(name="small"), ShiftWorld(name="large", side=128, labels=("none", "right"), unsure=0.5)]
    shelf = Shelf([Entry(world.name, lambda world=world: world, start_of(world)) for world in worlds])
    with serving_all(shelf) as address:
        context = browser.new_context()
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        mistakes: list[str] = []
        page.on("console", lambda message: mistakes.append(message.text) if message.type == "error" else None)
        page.goto(f"http://{address}")
        page.wait_for_selector("#worlds[open]")
        page.wait_for_function("() => [...document.querySelectorAll('#shelf img')].every(i => i.naturalWidth)")
        assert (page.locator("#shelf b").all_inner_texts(), shelf.loaded) == (["small", "large"], [])
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Enter")
        page.wait_for_selector("body[data-sequence]")
        assert page.title() == "large · dreamloom"
        assert page.url.endswith("?world=large")
        assert page.locator(".action b").all_inner_texts() == ["right", "idle"]
        assert (page.evaluate("document.getElementById('frame').width"), shelf.loaded) == (128, ["large"])
        page.keyboard.press("g")
        page.keyboard.press("1")
        page.wait_for_function("() => document.title.startsWith('small') && document.body.dataset.sequence")
        assert (page.evaluate("document.getElementById('frame').width"), shelf.loaded) == (64, ["large", "small"])
        assert [len(shelf.load(name).sessions) for name in ("large", "small")] == [0, 1]
        context.close()
        assert mistakes == []


def test_the_real_game_is_offered_only_where_there_is_one(page: Page, browser: Any) -> None:
    assert page.page.locator("#mode").is_hidden()
    pytest.importorskip("procgen")
    world = ShiftWorld(game="coinrun", labels=LABELS)
    warm_up_real(world)  # as `dreamloom play` does
    with serving(world) as (address, _):
        context = browser.new_context()
        other = Page(context.new_page(), address)
        other.after(lambda: other.page.keyboard.press("t"))
        other.page.wait_for_selector("#real[aria-pressed=true]")
        assert "real game" in other.text("#badge")
        other.after(lambda: other.page.keyboard.down("ArrowRight"), frames=3)
        context.close()
        assert other.mistakes == []


def test_phone(browser: Any, address: str) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    phone = Page(context.new_page(), address)
    frame, stage = (phone.page.locator(one).bounding_box() for one in ("#frame", "#stage"))
    buttons = [button.bounding_box() for button in phone.page.locator(".action").all()]
    assert frame["width"] > 350
    assert phone.page.evaluate("document.documentElement.scrollWidth") <= 390
    assert all(box["y"] >= stage["y"] + stage["height"] for box in buttons), "the pad is under the frame"
    assert all(box["height"] >= 44 and box["width"] >= 44 for box in buttons), "a thumb can hit them"
    assert all(box["y"] + box["height"] <= 844 for box in buttons), "without scrolling"
    phone.pause()
    before = phone.pixels()
    shown = phone.after(lambda: phone.page.locator(".action", has_text="left").tap())
    np.testing.assert_array_equal(shown, shifted(before, "left"))
    context.close()
    assert phone.mistakes == []


def focused(page: Page) -> str:
    """Names what has the focus."""
    name = "e === document.body ? 'body' : e.id || e.getAttribute('aria-label') || e.textContent"
    return page.page.evaluate(f"(e => {name})(document.activeElement)")


def test_everything_can_be_reached_and_used_by_keyboard(page: Page) -> None:
    keyboard = page.page.keyboard
    page.pause()
    seen: list[str] = []
    for _ in range(40):
        keyboard.press("Tab")
        seen.append(focused(page))
        style = "(e => getComputedStyle(e.matches('#file') ? e.parentElement : e).outlineStyle)(document.activeElement)"
        if seen[-1] != "body":  # after the last one
            assert page.page.evaluate(style) != "none", f"{seen[-1]} shows no focus"
    names = " | ".join(seen)
    for wanted in ("left, key", "Start from picture 1", "file", "draw", "pause", "step", "reset", "record", "full", "advanced"):
        assert wanted in names
    page.page.focus(".action >> nth=1")
    before = page.pixels()
    np.testing.assert_array_equal(page.after(lambda: keyboard.press("Enter")), shifted(before, "right"))


def test_a_sketch_by_keyboard(page: Page) -> None:
    keyboard = page.page.keyboard
    page.pause()
    keyboard.press("k")
    assert focused(page) == "paper"
    before = page.pixels("paper")
    for key in ("ArrowLeft", "ArrowUp", "Space"):
        keyboard.press(key)
    painted = np.argwhere((page.pixels("paper") != before).any(-1))
    assert len(painted) > 0
    assert np.abs(painted - 31).max() < 8
    keyboard.press("Control+z")
    np.testing.assert_array_equal(page.pixels("paper"), before)
    keyboard.press("Escape")
    assert page.page.locator("#sketch").is_hidden()


def test_a_page_says_why_it_ended(browser: Any) -> None:
    from dreamloom.play.connection import Limits

    with serving(ShiftWorld(), Limits(sessions=1)) as (address, _):
        context = browser.new_context()
        Page(context.new_page(), address)
        second = context.new_page()
        second.set_default_timeout(PATIENCE_MS)
        second.goto(f"http://{address}")
        second.wait_for_selector("#again:visible")
        assert "places are taken" in second.inner_text("#why")
        context.close()
