"""A small server for the front end: its files, our nodes and pages, answers of an idle host."""

import json
import mimetypes
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

IDLE = {
    "embeddings": [],
    "experiment/models": [],
    "extensions": [],
    "features": {},
    "folder_paths": {},
    "global_subgraphs": {},
    "history": {},
    "jobs": {"jobs": [], "pagination": {"offset": 0, "limit": 200, "total": 0, "has_more": False}},
    "models": [],
    "node_replacements": {},
    "prompt": {"exec_info": {"queue_remaining": 0}},
    "queue": {"queue_running": [], "queue_pending": []},
    "system_stats": {
        "system": {"os": "linux", "comfyui_version": "0.33.0", "python_version": "3", "argv": []},
        "devices": [],
    },
    "userdata": [],
    "users": {"storage": "server", "migrated": True},
    "workflow_templates": {},
}
"""What each address answers below /api."""
ROOT = Path(__file__).parents[2]
WEB = "extensions/surf/"
"""Address of the pack's WEB_DIRECTORY."""


def translations():
    """{language: {"nodeDefs": texts}} as the host puts them together from locales/."""
    return {
        path.parent.name: {path.stem: json.loads(path.read_text(encoding="utf-8"))}
        for path in (ROOT / "locales").glob("*/nodeDefs.json")
    }


class IdleHost(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, *args, site, **kwargs):
        self.site = site
        super().__init__(*args, **kwargs)

    def log_message(self, *args):
        """Say nothing."""

    def answer(self, body, kind="application/json", status=200):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def answer_json(self, value, status=200):
        self.answer(json.dumps(value).encode(), status=status)

    def do_GET(self):
        path = unquote(urlsplit(self.path).path).strip("/")
        if not path.startswith("api/"):
            return self.answer_file(path or "index.html")
        name = path.removeprefix("api/").removeprefix("v2/")
        if name == "object_info":
            return self.answer_json(self.site.nodes)
        if name == "i18n":
            return self.answer_json(translations())
        if name == "settings":
            return self.answer_json(self.site.settings)
        if name in IDLE:
            return self.answer_json(IDLE[name])
        return self.answer_json({}, status=404)

    def answer_file(self, path):
        folder = ROOT / "web" if path.startswith(WEB) else self.site.static
        file = (folder / path.removeprefix(WEB)).resolve()
        if not (file.is_relative_to(folder) and file.is_file()):
            return self.answer(b"", status=404)
        kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
        return self.answer(file.read_bytes(), kind)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path.endswith("/prompt"):
            self.site.prompts.append(json.loads(body)["prompt"])
            return self.answer_json({"prompt_id": "1", "number": 1, "node_errors": {}})
        return self.answer_json({})

    do_PUT = do_DELETE = do_POST


class Site:
    """The server, and the prompts that it was sent.

    Args:
        static: folder of the front end's package.
        nodes: see `object_info`.
        settings: of the user, such as {"Comfy.VueNodes.Enabled": True}.
    """

    def __init__(self, static: Path, nodes: dict, settings: dict):
        self.static, self.nodes, self.settings = static.resolve(), nodes, settings
        self.prompts = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(IdleHost, site=self))
        self.server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self.server.server_port}/"
