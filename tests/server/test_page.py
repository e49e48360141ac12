"""The page in a headless Chromium: drawing, stopping, dropping a picture, painting a mask over the edge, a grid."""

import base64
import io
import shutil

import numpy as np
import pytest
from PIL import Image

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("needs Chromium", allow_module_level=True)

DROP = """([text, name]) => {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const data = new DataTransfer();
    data.items.add(new File([bytes], name, { type: "image/png" }));
    dispatchEvent(new DragEvent("drop", { dataTransfer: data, cancelable: true }));
}"""


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


PATIENCE = 300_000  # ms for what a process of its own does
WIDE, NARROW = (1280, "light"), (360, "dark")


@pytest.fixture
def page(request, browser, server):
    """The page, opened; fails on a message in the console, a request elsewhere, or a page wider than the window."""
    width, scheme = request.param
    opened = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    seen: list[str] = []
    allowed = (server.url, "blob:", "data:")
    opened.on("console", lambda message: seen.append(message.text))
    opened.on("pageerror", lambda error: seen.append(str(error)))
    opened.on("request", lambda asked: None if asked.url.startswith(allowed) else seen.append(asked.url))
    opened.goto(server.url)
    opened.wait_for_selector("#tokens:not(:empty)")
    yield opened
    assert not [text for text in seen if "status of 400" not in text]  # what the browser prints of a refused request
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    opened.close()


def state(page) -> str:
    return page.inner_text("#state")


def finished(page) -> None:
    page.wait_for_selector("#go:enabled", timeout=60_000)


def drop(page, png: bytes) -> None:
    page.evaluate(DROP, [base64.b64encode(png).decode(), "picture.png"])


def encoded(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("page", [WIDE], indirect=True)
def test_draw_stop_and_fill_in_from_a_picture(page, server):
    page.fill("[name=prompt]", "a red disc")
    page.fill("[name=num_inference_steps]", "3")
    page.fill("[name=seed]", "11")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#results figure img", timeout=60_000)
    assert "seed 11" in page.inner_text("#results") and "3 steps" in state(page)
    with page.expect_download() as download:
        page.click("#results a")
    png = download.value.path().read_bytes()
    page.fill("[name=num_inference_steps]", "190")
    page.click("#go")
    page.wait_for_selector("#state:has-text('step ')")
    page.click("#stop")
    finished(page)
    assert int(state(page).split()[1]) < 190
    page.fill("[name=prompt]", "something else")
    drop(page, png)
    playwright.expect(page.locator("[name=prompt]")).to_have_value("a red disc")
    filled = {name: page.input_value(f"[name={name}]") for name in ("prompt", "seed", "num_inference_steps", "width")}
    assert filled == {"prompt": "a red disc", "seed": "11", "num_inference_steps": "3", "width": "32"}
    assert page.is_hidden("#fault") and page.is_hidden("#left-out")
    page.click("#go")
    finished(page)
    with page.expect_download() as download:
        page.click("#results a")
    np.testing.assert_array_equal(pixels(download.value.path().read_bytes()), pixels(png))
    page.click("#vary")
    assert page.input_value("[name=variation_seed]") and float(page.input_value("[name=variation_strength]")) > 0
    page.click("#results button")
    assert page.locator("#canvas").bounding_box()["width"] > 150
    page.click("#tab-history")
    page.wait_for_selector("#history figure")


def saved_mask(page) -> np.ndarray:
    with page.expect_download() as download:
        page.click("#save-mask")
    return np.asarray(Image.open(download.value.path()).convert("L"))


def drag_right_edge(page, distance: float) -> None:
    edge = page.locator(".edge.right")
    edge.scroll_into_view_if_needed()
    grip = edge.bounding_box()
    page.mouse.move(grip["x"] + 4, grip["y"] + 4)
    page.mouse.down()
    page.mouse.move(grip["x"] + 4 + distance, grip["y"] + 4, steps=4)
    page.mouse.up()


@pytest.mark.parametrize("page", [NARROW], indirect=True)
def test_a_stroke_beyond_the_edge_is_kept_whole_and_the_rest_stays(page, server):
    old = Image.effect_noise((48, 40), 90).convert("RGB")
    page.click("#tab-repaint")
    drop(page, encoded(old))
    page.wait_for_selector("#sheet:visible")
    page.locator("#brush").fill("6")
    page.fill("[name=num_inference_steps]", "3")
    box = page.locator("#canvas").bounding_box()
    zoom = box["width"] / 48
    stroke = [(10, 20), (-6, 20), (-6, 30), (14, 30)]  # px of the picture; two of them are beyond its left edge
    mouse = page.mouse
    page.locator("#canvas").scroll_into_view_if_needed()
    box = page.locator("#canvas").bounding_box()
    at = [(box["x"] + x * zoom, box["y"] + y * zoom) for x, y in stroke]
    mouse.move(*at[0])
    mouse.down()
    for point in at[1:]:
        mouse.move(*point, steps=8)
    mouse.up()
    page.click("#invert")
    page.click("#undo")
    page.click("#undo")
    page.click("#redo")
    mask = saved_mask(page)
    assert mask.shape == (40, 48) and set(np.unique(mask)) == {0, 255}
    assert mask[20, :10].all() and mask[30, :14].all(), "a part of the stroke is lost"
    assert not mask[:14].any() and not mask[:, 20:].any()
    page.click("#go")
    finished(page)
    assert page.is_hidden("#fault")
    assert page.inner_text("#outside").startswith("0 pixels changed")
    with page.expect_download() as download:
        page.click("#save-result")
    new = pixels(download.value.path().read_bytes())
    differs = (new != np.asarray(old)).any(-1)
    assert differs.any() and not differs[mask == 0].any()
    np.testing.assert_array_equal(saved_mask(page), mask)
    page.focus("#canvas")
    for key in ("i", "e", "ArrowRight", " ", "Control+z", "Control+z"):
        page.keyboard.press(key)
    np.testing.assert_array_equal(saved_mask(page), mask)
    drag_right_edge(page, 16 * zoom)
    assert page.input_value("[name=right]") == "16"
    page.click("#go")
    finished(page)
    assert page.inner_text("#outside").startswith("0 pixels changed outside the new part")


@pytest.mark.parametrize("page", [WIDE], indirect=True)
def test_a_grid(page, server):
    page.click("#tab-grid")
    page.fill("[name=width]", "32")
    page.fill("[name=height]", "32")
    page.fill("#x-values", "1, 3")
    page.fill("#y-values", "1, 2, 3")
    page.click("#go")
    finished(page)
    assert page.is_hidden("#fault")
    with page.expect_download() as download:
        page.click("#save-grid")
    sheet = Image.open(download.value.path())
    assert sheet.height == 22 + 3 * 192 and sheet.width > 2 * 192


@pytest.mark.parametrize("page", [NARROW], indirect=True)
def test_a_finished_run_is_shown_and_drawn_with(page, server, trained):
    page.focus("#tab-draw")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    playwright.expect(page.locator("#run-state")).to_have_text("discs is finished: 4 of 4 updates")
    assert page.is_hidden("#settings") and page.is_hidden("#bar") and page.is_hidden("#stop-run")
    lines = page.locator("#chart polyline")
    playwright.expect(lines).to_have_count(5)  # of training, and of held-out pictures in four bands of noise
    assert "held out, most noise" in page.get_attribute("#chart svg", "aria-label")
    playwright.expect(page.locator("#samples img")).to_have_count(4)
    page.select_option("#train-form [name=data]", "bare")
    page.fill("#train-form [name=size]", "16")
    page.click("#train-form .main")
    playwright.expect(page.locator("#fault")).to_contain_text("there are no captions")
    page.click("#use-run")
    playwright.expect(page.locator("#settings [name=prompt]")).to_have_value("a red apple <lora:discs:1>")
    page.fill("[name=num_inference_steps]", "2")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#results figure img", timeout=60_000)
    assert page.is_hidden("#fault")


@pytest.mark.slow
@pytest.mark.parametrize("page", [WIDE], indirect=True)
def test_examine_train_and_draw(page, server):
    """All of it in processes of their own, on the tiny model."""
    choose = {"data": "discs", "recipe": "finetune"}
    page.click("#tab-train")
    page.wait_for_selector("#train-form:visible")
    for name, value in choose.items():
        page.select_option(f"#train-form [name={name}]", value)
    page.fill("#train-form [name=name]", "whole")
    for name, value in {"steps": "20", "batch_size": "2", "size": "16", "held_out": "2"}.items():
        page.fill(f"#train-form [name={name}]", value)
    page.fill("#train-form [name=prompts]", "a red disc\na green disc")
    page.click("#examine")
    page.wait_for_selector("#report:visible", timeout=PATIENCE)
    assert "peak memory" in page.inner_text("#report") and "4 in" in page.inner_text("#report")
    page.click("#train-form .main")
    finished_run = page.locator("#run-state", has_text="whole is finished: 20 of 20 updates")
    finished_run.wait_for(timeout=PATIENCE)
    assert page.is_hidden("#fault") and page.is_hidden("#run-fault")
    page.click("#use-run")
    playwright.expect(page.locator("#settings [name=model]")).to_have_value("runs/whole")
    page.fill("[name=num_inference_steps]", "2")
    page.click("#go")
    page.wait_for_selector("#results figure img", timeout=60_000)
    assert page.is_hidden("#fault")
