"""A stand-in for a bucket of S3 on loopback, which may stall, drip, or send without an end.

It answers GetObject alone, for the files of one folder. `faults` tell what is wrong with a file:

    stall       no answer at all
    drip        the right headers, and then a byte a second
    endless     the right bytes, and then more of them, without a length

The key of a fault is the name of a file. With " whole" behind it, parts of the file are served well.
"""

import contextlib
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

URL = "s3://images/v1"


class FaultyBucket:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.faults: dict[str, str] = {}
        self.sent = 0
        """Bytes of answers without an end."""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._server.server_port}",
            "AWS_ACCESS_KEY_ID": "somebody",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_MAX_ATTEMPTS": "2",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _handler(bucket: FaultyBucket) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            name = unquote(urlsplit(self.path).path).rpartition("/")[2]
            data = (bucket.folder / name).read_bytes()
            part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            body = data[int(part[1]) : int(part[2] or len(data)) + 1] if part else data
            fault = bucket.faults.get(name if part else f"{name} whole", bucket.faults.get(name))
            if fault == "stall":
                time.sleep(1000)
            self.send_response(206 if part else 200)
            if fault == "endless":
                self.send_header("Connection", "close")
            else:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with contextlib.suppress(OSError):  # the client hangs up
                if fault == "drip":
                    for byte in body:
                        self.wfile.write(bytes([byte]))
                        time.sleep(1)
                self.wfile.write(body)
                while fault == "endless":
                    self.wfile.write(bytes(1 << 16))
                    bucket.sent += 1 << 16
            self.close_connection = fault is not None

        def log_message(self, *arguments: object) -> None:
            pass

    return Handler
