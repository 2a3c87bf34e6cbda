"""The page in a real browser."""

from __future__ import annotations

import io
import json
import time

import numpy as np
from PIL import Image

# Seconds after which a test has failed that waits for something.
LIMIT = 60


class Tab:
    """A tab of the browser that shows the page."""

    def __init__(self, browser, url: str) -> None:
        self.url = url
        self.page = browser.new_page(viewport={"width": 1100, "height": 600})
        self.page.set_default_timeout(LIMIT * 1000)
        self.troubles: list[str] = []
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.troubles.append(str(error)))
        self.page.on("dialog", lambda dialog: self.troubles.append(dialog.message) or dialog.dismiss())
        self.page.on("request", self._check)

    def _hear(self, message) -> None:
        if message.type in {"error", "warning"}:
            self.troubles.append(message.text)

    def _check(self, request) -> None:
        if not request.url.startswith((self.url, "data:")):
            self.troubles.append(f"asks for {request.url}")

    def show(self, place: str = "") -> None:
        self.page.goto("about:blank")
        self.page.goto(self.url + place)
        self.settle()

    def wait(self, expression: str) -> None:
        """Wait until an expression is true; Playwright's own waiting needs `eval`, which the page forbids."""
        end = time.monotonic() + LIMIT
        while not self.page.evaluate(expression):
            assert time.monotonic() < end, expression
            self.page.wait_for_timeout(50)

    def settle(self) -> None:
        """Wait until a slide is shown, and all tiles that it needs are drawn."""
        self.wait("plot?.document.is_idle && location.hash.split('/').length === 4")
        # Bokeh asks for tiles a moment after it has painted.
        self.page.wait_for_timeout(150)
        tiles = "[...plot.document.get_model_by_name('source').tiles.values()]"
        self.wait(f"{tiles}.every((each) => each.loaded || each.finished)")
        self.page.wait_for_timeout(300)  # the page remembers its place, and Bokeh paints

    @property
    def place(self) -> list[float]:
        """Middle in level-0 pixels, and level-0 pixels per pixel of the screen."""
        return [float(each) for each in self.page.url.partition("#")[2].split("/")[1:]]

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Return where a place of the slide is on the screen."""
        box = self.page.locator("#plot").bounding_box()
        middle_x, middle_y, zoom = self.place
        return (
            box["x"] + box["width"] / 2 + (x - middle_x) / zoom,
            box["y"] + box["height"] / 2 + (y - middle_y) / zoom,
        )

    def colour(self, x: float, y: float) -> np.ndarray:
        """Return the mean colour of 5 x 5 pixels of the screen at a place of the slide."""
        screen = np.asarray(Image.open(io.BytesIO(self.page.screenshot())).convert("RGB")).astype(float)
        column, row = map(round, self.at(x, y))
        return screen[row - 2 : row + 3, column - 2 : column + 3].mean((0, 1))

    def opacity(self, name: str, value: float) -> None:
        self.page.locator(f"#opacity-{name}").fill(str(value))
        self.page.wait_for_timeout(300)

    def drag(self) -> None:
        """Move the plot by 100 pixels to the right and 50 down."""
        address = self.page.evaluate("location.hash")
        x, y = self.at(*self.place[:2])
        self.page.mouse.move(x, y)
        self.page.mouse.down()
        for step in range(1, 6):
            self.page.mouse.move(x + 20 * step, y + 10 * step)
            self.page.wait_for_timeout(30)
        self.page.mouse.up()
        self.wait(f"location.hash !== {json.dumps(address)}")

    def texts(self, selector: str) -> list[str]:
        return [text.strip() for text in self.page.locator(selector).all_inner_texts()]
