"""The front end from PyPI in headless Chromium, on a server that knows our nodes.

SURF_FRONT_END names the `static` folder of another front end than the one that is installed,
SURF_SCREENSHOTS a folder for pictures.
"""

import importlib.util
import json
import os
import re
import shutil
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
from surf.tests.web.object_info import object_info
from surf.tests.web.server import Site

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
READY = """() => {
    const app = window.comfyAPI?.app?.app ?? window.app;
    return app?.graph?.nodes.length && window.LiteGraph?.registered_node_types.SurfRefiner;
}"""
BEGUN = """
    const known = window.LiteGraph.registered_node_types;
    return app.graph.nodes.map((node) => node.type).filter((type) => !(type in known));
"""
STATUS = {"type": "status", "data": {"status": {"exec_info": {"queue_remaining": 0}}, "sid": "1"}}
OTHERS = (
    "fonts.g",
    "favicon",
    "the server responded with a status of 404",
    "net::ERR_",
    "[Vue Router",
    "for graph that was never set up",
)
"""Parts of console errors that are not ours: addresses outside, and what an idle host lacks."""


def front_end():
    """Find the folder of the front end; None where there is none."""
    if named := os.environ.get("SURF_FRONT_END"):
        return Path(named)
    package = importlib.util.find_spec("comfyui_frontend_package")
    return Path(package.origin).parent / "static" if package else None


def why_not():
    """Say what the tests of the front end lack; None where nothing."""
    if importlib.util.find_spec("playwright") is None:
        return "expected playwright, see tests/web/requirements.txt"
    if front_end() is None:
        return "expected comfyui-frontend-package, see tests/web/requirements.txt"
    return None if CHROMIUM else "expected chromium on PATH, such as Debian's package"


def pytest_collection_modifyitems(items):
    here = [item for item in items if Path(__file__).parent in item.path.parents]
    for item in here:
        item.add_marker(pytest.mark.web)
        if reason := why_not():
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With --dist loadscope, keep what shares a page in one process, the styles of nodes apart.

    pytest-xdist 3.8.0 has groups for it, which do nothing under pytest 9.2.
    """
    if config.getvalue("dist") != "loadscope":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class PageScheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            style = re.search(r"\[(classic|nodes2)", nodeid)
            return nodeid.split("::")[0] + (style[1] if style else "")

    return PageScheduling(config, log)


@pytest.fixture(scope="session")
def chromium():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        yield browser
        browser.close()


class Canvas:
    """A page with the front end on it, its errors, and the graph that it shows."""

    def __init__(self, page, site, style):
        self.page, self.site, self.style, self.errors = page, site, style, []
        page.on("console", self.note)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.route_web_socket("**/ws**", lambda socket: socket.send(json.dumps(STATUS)))
        page.route(lambda url: not url.startswith(site.address), lambda route: route.abort())
        page.goto(site.address, wait_until="domcontentloaded")
        page.wait_for_function(READY, timeout=120_000)
        self.unknown_at_first = self.call(BEGUN)

    def note(self, message):
        if message.type == "error" and not any(part in message.text for part in OTHERS):
            self.errors.append(message.text)

    def drop(self, path):
        """Drop a file on the canvas, as from a file manager, and wait until it is loaded."""
        text = path.read_text(encoding="utf-8")
        count = len(json.loads(text)["nodes"])
        self.page.evaluate(
            """([text, name]) => {
                const data = new DataTransfer();
                data.items.add(new File([text], name, {type: "application/json"}));
                const options = {dataTransfer: data, bubbles: true, cancelable: true};
                const target = document.querySelector("#graph-canvas") ?? document.body;
                target.dispatchEvent(new DragEvent("dragover", options));
                target.dispatchEvent(new DragEvent("drop", options));
            }""",
            [text, path.name],
        )
        self.page.wait_for_function(
            """count => {
                const app = window.comfyAPI?.app?.app ?? window.app;
                return app.graph.nodes.length === count;
            }""",
            arg=count,
            timeout=120_000,
        )
        self.page.wait_for_timeout(300)

    def call(self, script, *given):
        """Evaluate a script with the front end's `app` in reach."""
        start = "const app = window.comfyAPI?.app?.app ?? window.app;"
        return self.page.evaluate(f"async (given) => {{ {start} {script} }}", list(given))

    def clear(self):
        self.call("app.graph.clear(); return null;")

    def picture(self, name):
        """Save a screenshot where the caller wants some."""
        if folder := os.environ.get("SURF_SCREENSHOTS"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.page.screenshot(path=str(Path(folder) / f"{name}.png"))


SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.InstalledVersion": "9.0.0",
    "Comfy.Minimap.Visible": False,
    "Comfy.Workflow.ShowMissingModelsWarning": False,
}


@contextmanager
def open_canvas(chromium, style, **settings):
    """The front end at 1600 x 1000, on a server of its own."""
    site = Site(front_end(), object_info(), SETTINGS | settings)
    thread = threading.Thread(target=site.server.serve_forever, daemon=True)
    thread.start()
    page = chromium.new_page(viewport={"width": 1600, "height": 1000})
    yield Canvas(page, site, style)
    page.close()
    site.server.shutdown()
    site.server.server_close()
    thread.join()


@pytest.fixture(scope="module", params=[False, True], ids=["classic", "nodes2"])
def canvas(request, chromium):
    """The front end with each of its two styles of nodes."""
    style = "nodes2" if request.param else "classic"
    with open_canvas(chromium, style, **{"Comfy.VueNodes.Enabled": request.param}) as canvas:
        yield canvas
