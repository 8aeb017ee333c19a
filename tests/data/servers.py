"""A stand-in for three kinds of servers, on loopback: a web server, Google Cloud Storage, and the Hugging Face Hub.

It answers only the requests that reading makes, as the documentation of the servers describes them. It serves the files
of one folder, and may misbehave on request.
"""

import contextlib
import json
import re
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

HUB = "/datasets/somebody/images"
"""The repository. Its files are in the folder v1."""
SHA = "0123456789abcdef0123456789abcdef01234567"


class Server:
    """Serves `folder`. `requests` counts (file name, "whole" or "part"). `failures` are made once each, in order.

    A failure is an HTTP status, or the number of bytes (negative) after which the connection is closed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.requests: Counter[tuple[str, str]] = Counter()
        self.failures: dict[str, list[int]] = {}
        self.ranges = True
        self.answers: dict[str, tuple[int, dict[str, str], bytes, bool]] = {}
        """For file names: a status, headers and body to send instead. If the last is True, the body has no end."""
        self.endless_bytes = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def tars(self) -> set[str]:
        return {name for name, _ in self.requests if name.endswith(".tar")}


def _handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            if path == f"/api{HUB}" or path == f"/api{HUB}/revision/main":
                self._json({"id": HUB[10:], "_id": "0", "sha": SHA, "siblings": [], "private": False})
            elif path.startswith(f"/api{HUB}/tree/main"):
                self._json([_entry(file) for file in sorted(server.folder.iterdir())])
            elif match := re.fullmatch(
                rf"/files/v1/([^/]+)|(?:/download)?/storage/v1/b/bucket/o/v1/([^/]+)|{HUB}/resolve/[a-z0-9]+/v1/([^/]+)",
                path,
            ):
                self._file(next(group for group in match.groups() if group))
            else:
                self._status(404)

        do_HEAD = do_GET

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path.split("?")[0] == f"/api{HUB}/paths-info/main":
                names = json.loads(body)["paths"]
                found = [server.folder / name.removeprefix("v1/") for name in names]
                self._json([_entry(file) for file in found if file.exists()])
            else:
                self._status(404)

        def _file(self, name: str) -> None:
            part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")) if server.ranges else None
            if self.command == "GET":
                server.requests[name, "part" if part else "whole"] += 1
            if name in server.answers:
                return self._answer(*server.answers[name])
            failure = server.failures[name].pop(0) if server.failures.get(name) else 0
            if failure > 0:
                return self._status(failure)
            if not (server.folder / name).exists():
                return self._status(404)
            data = (server.folder / name).read_bytes()
            first, last = (int(part[1]), int(part[2] or len(data)) + 1) if part else (0, len(data))
            if first >= len(data):
                return self._status(416)
            body = data[first:last]
            self.send_response(206 if part else 200)
            if part:
                self.send_header("Content-Range", f"bytes {first}-{first + len(body) - 1}/{len(data)}")
            self.send_header("Accept-Ranges", "bytes")
            self._end(body[:failure] if failure else body, len(body))
            if failure:
                self.close_connection = True

        def _answer(self, status: int, headers: dict[str, str], body: bytes, endless: bool) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Connection", "close")
            self.end_headers()
            with contextlib.suppress(OSError):  # the client hangs up
                self.wfile.write(body)
                while endless:
                    self.wfile.write(body)
                    server.endless_bytes += len(body)
            self.close_connection = True

        def _json(self, value: object) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            body = json.dumps(value).encode()
            self._end(body, len(body))

        def _status(self, status: int) -> None:
            self.send_response(status)
            if status == 404:
                self.send_header("X-Error-Code", "EntryNotFound")
            self._end(b"{}", 2)

        def _end(self, body: bytes, length: int) -> None:
            self.send_header("Content-Length", str(length))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    return Handler


def _entry(file: Path) -> dict[str, object]:
    return {"type": "file", "oid": SHA, "size": file.stat().st_size, "path": f"v1/{file.name}"}
