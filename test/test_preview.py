# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""`ocdit preview` in a real browser (headless Chromium), served by a process of its own, with the smallest network."""

import base64
import io
import os
import re
import shutil
import socket
import sys

import numpy as np
import pytest
import trimesh
from model_fixtures import firm_model
from PIL import Image

from ocdit_ros import cli
from ocdit_ros.model import save_checkpoint

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def test_without_nicegui_it_says_how_to_get_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "nicegui", None)
    assert cli.main(["preview", "--mesh", "mug.ply"]) == 1
    assert "make preview" in capsys.readouterr().err


@pytest.fixture(scope="module")
def sync_api():
    pytest.importorskip("nicegui", reason="the extra 'preview' is not installed (make preview)")
    if BROWSER is None:
        pytest.skip("there is no Chromium here (apt-get install chromium)")
    return pytest.importorskip("playwright.sync_api", reason="playwright is not installed (make preview)")


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def server(sync_api, tmp_path_factory):
    """The command as somebody starts it; its port."""
    from node_harness import Program

    root = tmp_path_factory.mktemp("preview")
    save_checkpoint(firm_model(), root / "tiny.safetensors")
    for name in ("crate", "brick"):
        trimesh.creation.box((40, 60, 80)).export(root / f"{name}.ply")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meshes = [str(root / f"{name}.ply") for name in ("crate", "brick")]
    words = ["preview", "--mesh", *meshes, "--scale", "0.001", "--device", "cpu", "--port", str(port),
             "--weights", str(root / "tiny.safetensors"), "--cache", str(root / "cache"),
             "--coarse-size", "64", "--crop-size", "32"]  # fmt: skip
    # NiceGUI behaves otherwise where it thinks that pytest runs it.
    hidden = {name: os.environ.pop(name) for name in [*os.environ] if name.startswith("PYTEST")}
    program = Program([sys.executable, "-m", "ocdit_ros.cli", *words])
    os.environ.update(hidden)
    program.wait_for(f"http://127.0.0.1:{port}")
    yield port
    program.end()


@pytest.fixture(scope="module")
def browser(sync_api):
    with sync_api.sync_playwright() as playwright:
        one = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield one
        one.close()


@pytest.fixture
def page(browser, server):
    """The page, and at the end that it asked for nothing from elsewhere and reported no error."""
    outside, errors = [], []
    one = browser.new_page(viewport={"width": 1300, "height": 900})
    one.set_default_timeout(60_000)
    address = f"http://127.0.0.1:{server}"
    one.on("request", lambda r: None if r.url.startswith((address, "data:", "blob:")) else outside.append(r.url))
    one.on("pageerror", lambda error: errors.append(str(error)))
    one.goto(address)
    one.get_by_text("Drop an image to begin.").wait_for()
    yield one
    one.close()
    assert (outside, errors) == ([], [])


def picture(page, place: str) -> np.ndarray:
    """The picture that is shown at a place of the page."""
    shown = page.locator(f".{place} img").first
    shown.wait_for()
    data = shown.get_attribute("src").partition(",")[2]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def found(page) -> tuple[int, int]:
    """(instances shown, instances below the threshold) as the page says."""
    status = page.get_by_text(re.compile(r"\d+ found in")).inner_text()
    hidden = re.search(r"(\d+) more", status)
    return int(status.split()[0]), int(hidden[1]) if hidden else 0


def test_an_image_is_dropped_and_the_threshold_moved(page, photo):
    page.set_input_files("input[type=file]", photo)
    page.get_by_text(re.compile("found in")).wait_for()
    shown, hidden = found(page)
    assert shown + hidden >= 1
    assert picture(page, "picture").shape == (48, 64, 3)
    slider = page.locator(".q-slider").first.locator("[tabindex]")
    before = page.locator("tbody tr").count() if shown else 0
    for _ in range(10):  # a tenth each: to the end, whatever the score is
        slider.press("PageDown" if hidden else "PageUp")
    page.wait_for_function(
        "expected => document.body.innerText.includes(expected)", arg=f"{shown + hidden if hidden else 0} found in"
    )
    after = found(page)
    assert sum(after) == shown + hidden  # nothing was computed anew
    assert (after[0] if hidden else after[1]) == shown + hidden
    if hidden:
        page.wait_for_function("n => document.querySelectorAll('tbody tr').length > n", arg=before)


def test_denoising_is_animated(page, photo):
    page.set_input_files("input[type=file]", photo)
    page.get_by_text(re.compile("found in")).wait_for()
    page.get_by_role("button", name="Denoising").click()
    page.get_by_text("emerge from noise").wait_for()
    first = picture(page, "film")
    assert first.ndim == 3
    page.wait_for_function(  # it plays by itself
        "first => document.querySelector('.film img').src !== first",
        arg=page.locator(".film img").first.get_attribute("src"),
    )


def test_without_objects_or_image_it_says_so(page, photo, tmp_path):
    page.get_by_role("button", name="Segment").click()
    page.get_by_text("Give an image first.").wait_for()
    (tmp_path / "no.png").write_bytes(b"no image")
    page.set_input_files("input[type=file]", tmp_path / "no.png")
    page.get_by_text("This is no image that can be read").wait_for()
    page.get_by_role("button", name="none").click()
    page.set_input_files("input[type=file]", photo)
    page.get_by_text("Choose an object.").wait_for()


@pytest.mark.integration
def test_a_camera_topic_is_watched(page):
    rclpy = pytest.importorskip("rclpy", reason="watching a topic takes ROS")
    from node_harness import header, image
    from rclpy.context import Context

    context = Context()
    rclpy.init(context=context)
    node = rclpy.create_node("camera_of_preview", context=context)
    from sensor_msgs.msg import Image as Message

    publisher = node.create_publisher(Message, "/somewhere/image", 1)
    try:
        page.get_by_label("or camera topic").fill("/somewhere/image")
        page.locator(".q-toggle").first.click()
        page.get_by_text("Waiting for images on /somewhere/image.").wait_for()
        pixels = np.full((32, 80, 3), 90, np.uint8)
        for number in range(300):
            publisher.publish(image(pixels, header(number)))
            if page.get_by_text(re.compile("found in")).count():
                break
            page.wait_for_timeout(200)
        assert picture(page, "picture").shape == (32, 80, 3)
    finally:
        node.destroy_node()
        rclpy.try_shutdown(context=context)


def test_it_listens_on_this_machine_alone(server):
    addresses = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
    others = {address for address in addresses if not address.startswith("127.")} or {"127.0.0.2"}
    for address in others:
        with socket.socket() as client:
            client.settimeout(2)
            assert client.connect_ex((address, server)) != 0
    socket.create_connection(("127.0.0.1", server), timeout=5).close()
