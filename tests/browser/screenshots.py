"""The pictures of a report that the documentation shows.

python -m tests.browser.screenshots out/report.html docs/images
"""

import io
import sys
from pathlib import Path

from PIL import Image

from tests.browser.chromium import Chromium

SIZE = (1280, 900)
SETTLED = "new Promise(done => setTimeout(done, 500))"


def main(report: Path, folder: Path) -> None:
    """Make them all."""
    with Chromium() as browser:
        browser.size(*SIZE)
        browser.open(report)
        browser.js("document.documentElement.style.scrollBehavior = 'auto'")
        for scheme in ("light", "dark"):
            browser.prefer(scheme)
            take(browser, folder / f"report-{scheme}.png")
        browser.prefer("light")
        browser.js("document.getElementById('gallery').scrollIntoView()")
        take(browser, folder / "report-gallery.png")
        browser.js("scrollTo(0, 0)")
        browser.size(794, 1123)  # A4 at 96 dots an inch
        browser.js("dispatchEvent(new Event('resize')), dispatchEvent(new Event('beforeprint'))")
        browser.prefer("light", media="print")
        take(browser, folder / "report-print.png")


def take(browser: Chromium, path: Path) -> None:
    """A picture of the window in 256 colours."""
    browser.js(SETTLED)
    whole = Image.open(io.BytesIO(browser.picture())).convert("RGB")
    whole.quantize(256, kmeans=1).save(path, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
