"""The page and its views on 127.0.0.1: reachable from this machine alone."""

import json
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from .page import page
from .view import StackError, view

__all__ = ["HOST", "make_server"]

HOST = "127.0.0.1"
MOST_BYTES = 100_000  # of a stack


class Handler(BaseHTTPRequestHandler):
    """Answers ``GET /`` with the page, and ``POST /view`` with the view of the stack sent."""

    server_version = "fastconv"
    protocol_version = "HTTP/1.1"
    timeout = 30

    def do_GET(self) -> None:
        """Send the page."""
        if not self._is_local():
            self._send(HTTPStatus.FORBIDDEN, "text/plain", b"this server answers to 127.0.0.1 and localhost")
        elif self.path == "/":
            self._send(HTTPStatus.OK, "text/html; charset=utf-8", page().encode())
        else:
            self._send(HTTPStatus.NOT_FOUND, "text/plain", b"there is only /")

    def do_POST(self) -> None:
        """Send the view of a stack, or what is wrong with it."""
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MOST_BYTES:
            self.close_connection = True  # what follows is not read
            self._answer(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, {"error": f"at most {MOST_BYTES} bytes are read"}
            )
            return
        body = self.rfile.read(int(length))
        if not self._is_local() or self.headers.get_content_type() != "application/json":
            self._answer(HTTPStatus.FORBIDDEN, {"error": "only the page itself may ask"})
        elif self.path != "/view":
            self._answer(HTTPStatus.NOT_FOUND, {"error": "there is only /view"})
        else:
            try:
                self._answer(HTTPStatus.OK, view(json.loads(body)))
            except (StackError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
                self._answer(HTTPStatus.BAD_REQUEST, {"error": str(error)})

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent: every move of the pointer is a request."""

    def _is_local(self) -> bool:
        """Return whether the request was sent to this machine by its own name.

        A page of a stranger can have its own name resolved to 127.0.0.1, but not change what the browser sends as host;
        and it cannot send JSON to another origin without being asked first, which is answered nowhere here.
        """
        host = self.headers.get("Host", "").partition(":")[0]
        return host in (HOST, "localhost")

    def _answer(self, status: HTTPStatus, value: dict) -> None:
        self._send(status, "application/json", json.dumps(value, allow_nan=False).encode())

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)


def make_server(port: int = 0) -> ThreadingHTTPServer:
    """Return a server on 127.0.0.1; its `serve_forever` runs it.

    Parameters
    ----------
    port : int, optional
        0 for any free one: `server_port` tells which.

    Examples
    --------
    >>> from fastconv.explore import make_server
    >>> with make_server() as server:
    ...     print(server.server_address[0])
    127.0.0.1
    """
    return ThreadingHTTPServer((HOST, port), Handler)
