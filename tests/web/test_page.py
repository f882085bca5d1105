"""The page of `fewstep play` in a real Chromium: it draws, offline, and shows no error."""

from __future__ import annotations

import ipaddress
import json
import shlex
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.cli.conftest import fewstep as run

from fewstep.cli import play

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    # The mask is painted in WebGL, by software.
    *("--use-angle=swiftshader", "--enable-unsafe-swiftshader"),
]
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="needs Chromium, for example from `apt-get install chromium`"
)
WAIT = 60_000  # milliseconds; a busy machine must not fail a test


@pytest.fixture
def dialled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every address off this machine that this process connects to or looks up."""
    away: list[str] = []

    def watch(name: str, host: Callable[..., Any]) -> None:
        real = getattr(socket, name) if name == "getaddrinfo" else getattr(socket.socket, name)

        def watched(*arguments: Any, **named: Any) -> Any:
            given = str(host(*arguments))
            if given not in ("localhost", "None", "") and not _here(given):
                away.append(given)
            return real(*arguments, **named)

        monkeypatch.setattr(socket if name == "getaddrinfo" else socket.socket, name, watched)

    watch("getaddrinfo", lambda host, *_: host.decode() if isinstance(host, bytes) else host)
    watch("connect", lambda _, address: address[0] if isinstance(address, tuple) else "")
    return away


def _here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Browser:
    """A page in Chromium, with all that it asked for and complained about."""

    def __init__(self, chromium: Any, url: str) -> None:
        self.page = chromium.new_page(viewport={"width": 1280, "height": 900})
        self.page.set_default_timeout(WAIT)
        self.errors: list[str] = []
        self.away: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", self._heard)
        self.page.on("request", lambda request: self._asked(request.url, url))
        self.page.goto(url)

    def _heard(self, message: Any) -> None:
        url = message.location["url"]
        # Seen once, on a busy machine: Gradio refused a file. Whether the pictures that
        # are shown have been loaded is checked by `loaded`.
        refused = "403 (Forbidden)" in message.text and "/file=" in url
        if message.type == "error" and not refused:
            self.errors.append(f"{message.text}: {url}")

    def loaded(self, name: str) -> None:
        """Wait until the file of a picture has been loaded."""
        self.page.wait_for_function(
            "name => { const image = document.querySelector(`#${name}-picture img`);"
            " return image && image.complete && image.naturalWidth > 0 }",
            arg=name,
        )

    def _asked(self, asked: str, url: str) -> None:
        if not asked.startswith((url, "data:", "blob:")):
            self.away.append(asked)

    def source(self, name: str) -> str:
        return str(self.page.locator(f"#{name}-picture img").get_attribute("src"))

    def changes(self, name: str, action: Callable[[], object]) -> None:
        """Wait until an action has changed a picture."""
        before = self.source(name)
        action()
        self.page.wait_for_function(
            "([name, before]) => { const image = document.querySelector(`#${name}-picture img`);"
            " return image && image.getAttribute('src') !== before }",
            arg=[name, before],
        )

    def drag(self, box: Any, start: float, end: float) -> None:
        mouse, y = self.page.mouse, box["y"] + box["height"] / 2
        mouse.move(box["x"] + start * box["width"], y)
        mouse.down()
        for k in range(1, 9):
            mouse.move(box["x"] + (start + (end - start) * k / 8) * box["width"], y)
        mouse.up()

    def tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name, exact=True).click()

    def code(self, name: str, part: str) -> str:
        """Return the text of a code box, once it has a part."""
        box = self.page.locator(f"#{name} .cm-content")
        sync_api.expect(box).to_contain_text(part, timeout=WAIT)
        return str(box.inner_text())

    def draws_at(self, w: str) -> None:
        """Wait until captions and files of both pictures are of a guidance weight."""
        for name in ("student", "teacher"):
            self.caption(name, f"w = {float(w):g},")
            self.loaded(name)
            assert f"-w-{float(w):g}-" in self.source(name)

    def caption(self, name: str, part: str) -> None:
        box = self.page.locator(f"#{name}-caption")
        sync_api.expect(box).to_contain_text(part, timeout=WAIT)


def test_the_page(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dialled: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in digits.iterdir():
        Path(folder.name).symlink_to(folder)
    used: list[str] = []

    def use(url: str) -> None:
        with sync_api.sync_playwright() as playwright:
            chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            browser = Browser(chromium, url)
            for check in (
                the_slider_redraws,
                a_picture_is_saved_with_its_settings,
                the_last_position_is_drawn,
                tabs_draw,
            ):
                check(browser)
            a_narrow_screen_shows_all(browser)
            assert browser.errors == []
            assert browser.away == []
            chromium.close()
        used.append(url)

    monkeypatch.setattr(play, "_wait", use)
    models = [Path("student-4"), Path("encoder-4")]
    play.play_command(models, teacher=Path("teacher"))
    assert used
    assert used[0].startswith("http://127.0.0.1:")
    assert dialled == []


def the_slider_redraws(browser: Browser) -> None:
    browser.caption("student", "4 evaluations")
    browser.caption("teacher", "64 evaluations")
    browser.caption("teacher", "ms per image")
    browser.page.get_by_label("Teacher's steps").click()
    browser.page.get_by_role("option", name="4", exact=True).click()
    browser.caption("teacher", "w = 6, 4 steps")
    box = browser.page.locator("#w input[type=range]").bounding_box()
    student = browser.source("student")
    browser.changes("teacher", lambda: browser.drag(box, 0.5, 0.9))
    assert browser.source("student") != student
    browser.caption("student", "w = 12.")
    browser.changes("student", lambda: browser.page.get_by_label("Seed").fill("5"))
    sync_api.expect(browser.page.locator("#scale")).to_contain_text("1 + w = 13.")


def a_picture_is_saved_with_its_settings(browser: Browser) -> None:
    browser.tab("Command line (student)")
    line = browser.code("student-command", "--seed 5")
    browser.tab("Python (student)")
    program = browser.code("student-python", "seed=5")
    with browser.page.expect_download() as download:
        browser.page.locator("#student-save").click()
    name = download.value.suggested_filename
    download.value.save_as("saved.png")
    with Image.open("saved.png") as image:
        settings, saved = json.loads(image.info["fewstep"]), np.asarray(image)
    assert (settings["command"], settings["models"], settings["seed"]) == ("sample", ["student"], 5)
    assert name == f"student-4-w-{settings['w']:g}-steps-4-seed-5.png"
    done = run(*shlex.split(line.replace("\\\n", ""))[1:], cwd=Path.cwd())
    assert done.returncode == 0, done.stderr
    assert np.array_equal(saved, np.asarray(Image.open(name)))
    Path(name).unlink()
    exec(compile(program, "page", "exec"), {})
    assert np.array_equal(saved, np.asarray(Image.open(name)))


def the_last_position_is_drawn(browser: Browser) -> None:
    slider = browser.page.locator("#w input[type=range]")
    box = slider.bounding_box()
    browser.drag(box, 0.9, 0.3)
    browser.drag(box, 0.3, 0.6)
    browser.draws_at(slider.input_value())
    slider.press("ArrowLeft")
    slider.press("ArrowLeft")
    browser.draws_at(slider.input_value())


def tabs_draw(browser: Browser) -> None:
    page = browser.page
    browser.tab("Image to image")
    browser.code("student-python", "fewstep.img2img(")
    browser.caption("teacher", "6 evaluations")
    browser.tab("Inpaint")
    browser.caption("student", "Paint over")
    canvas = page.locator("#editor canvas").first
    canvas.wait_for()
    page.wait_for_timeout(1000)  # milliseconds, until the editor has its image
    browser.drag(canvas.bounding_box(), 0.4, 0.6)
    browser.code("student-python", "fewstep.inpaint(")
    browser.tab("Transfer")
    browser.code("student-python", "fewstep.transfer(encoder, model")
    browser.caption("student", "8 evaluations")
    page.locator("#shown textarea, #shown input").first.fill("99")
    page.locator("#shown textarea, #shown input").first.blur()
    message = page.get_by_text("it has no class 99").first
    sync_api.expect(message).to_be_visible(timeout=WAIT)
    browser.tab("Interpolate")
    page.locator("#shown textarea, #shown input").first.fill("3")
    page.locator("#shown textarea, #shown input").first.blur()
    browser.code("student-python", "fewstep.interpolate(a, b, 9)")


def a_narrow_screen_shows_all(browser: Browser) -> None:
    page = browser.page
    page.set_viewport_size({"width": 400, "height": 800})
    page.get_by_role("tab", name="Draw", exact=True).click()
    browser.code("student-python", "fewstep.sample(")
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
