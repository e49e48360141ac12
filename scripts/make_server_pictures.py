"""Make docs/server-*.png: the page of `latent-diffusion serve` in a headless Chromium. Needs playwright and Chromium.

usage: python scripts/make_server_pictures.py [URL], beside a server started with
`latent-diffusion serve --train-folder FOLDER`, where FOLDER has a run
"""

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

URL = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:7860/"
DOCS = Path(__file__).parents[1] / "docs"
COLOURS = 128
STROKE = ((14, 12), (22, 10), (34, 12), (44, 14))  # px of the picture


def save(page: Page, name: str) -> None:
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    picture.quantize(COLOURS).save(DOCS / f"server-{name}.png", optimize=True)


def draw(page: Page, pictures: int) -> None:
    page.goto(URL)
    page.wait_for_selector("#tokens:not(:empty)")
    page.fill("[name=seed]", "7")
    page.fill("[name=num_images]", str(pictures))
    page.click("#go")
    page.wait_for_selector("#results figure img", timeout=120_000)
    page.wait_for_selector("#go:enabled")


def repaint(page: Page) -> None:
    page.locator("#results button").first.click()
    page.wait_for_selector("#sheet:visible")
    page.locator("#brush").fill("14")
    box = page.locator("#canvas").bounding_box()
    if box is None:
        sys.exit("the canvas is not there")
    at = [(box["x"] + x * box["width"] / 64, box["y"] + y * box["height"] / 64) for x, y in STROKE]
    page.mouse.move(*at[0])
    page.mouse.down()
    for point in at[1:]:
        page.mouse.move(*point, steps=6)
    page.mouse.up()
    page.fill("[name=num_images]", "1")
    page.fill("[name=seed]", "3")
    page.check("[value=fill]")
    page.click("#go")
    page.wait_for_selector("#comparison:visible", timeout=120_000)
    page.wait_for_selector("#go:enabled")


def show_training(page: Page) -> None:
    page.click("#tab-train")
    page.wait_for_selector("#samples img")
    page.wait_for_selector("#chart polyline", state="attached")


with sync_playwright() as running:
    browser = running.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
    wide = browser.new_page(viewport={"width": 1280, "height": 780}, color_scheme="light")
    draw(wide, 3)
    save(wide, "draw")
    wide.set_viewport_size({"width": 1280, "height": 1720})
    repaint(wide)
    save(wide, "repaint")
    wide.set_viewport_size({"width": 1280, "height": 940})
    show_training(wide)
    save(wide, "train")
    narrow = browser.new_page(viewport={"width": 360, "height": 780}, color_scheme="dark")
    draw(narrow, 1)
    save(narrow, "narrow")
    browser.close()
