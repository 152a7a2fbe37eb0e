"""What stands before Gradio: requests that the demo never makes are refused, and so are large ones.

The page sends pictures as JSON, so nothing needs Gradio's upload folder, its file server, its proxy or its component
calls. Without them no path of the server can be asked for, no file is ever written, and no address fetched.
"""

import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

#: Bytes of a request at most: the largest picture in base64, and room for the rest of the JSON.
MAX_REQUEST_BYTES = 9 * 2**20

#: Bytes of a refused request that are still received and thrown away: who is cut off in the middle of sending sees a
#: broken connection instead of the reason.
MAX_DISCARDED_BYTES = 64 * 2**20

#: Routes of Gradio that the demo does not use, below `/gradio_api/` or at the root.
CLOSED = (
    "upload", "upload_progress", "file", "stream", "proxy", "component_server", "custom_component", "monitoring",
    "runs", "run-history", "process_recording", "deep_link", "vibe-code", "vibe-edit", "dev",
)  # fmt: skip

_CLOSED_PATH = re.compile(rf"^(?:/gradio_api)?/(?:{'|'.join(map(re.escape, CLOSED))})(?:[/=].*)?$")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Guard:
    """ASGI middleware that refuses closed routes (403), large requests (413) and references to files (400).

    Args:
        app: The ASGI application behind it.
        max_bytes (`int`, *optional*): Larger request bodies are refused, whatever length they declare.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], max_bytes: int = MAX_REQUEST_BYTES):
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if is_closed(scope["path"].removeprefix(scope.get("root_path", ""))):
            await _refuse(send, 403, "This route is closed here: send pictures as base64 to /recognize_picture.")
            return
        if scope["method"] not in ("POST", "PUT", "PATCH"):
            await self.app(scope, receive, send)
            return
        body = await self._read(scope, receive)
        if body is None:
            await _refuse(send, 413, f"This request is larger than {self.max_bytes // 2**20} MB, the limit.")
        elif refers_to_file(body):
            await _refuse(send, 400, "References to files and addresses are not taken: send the bytes as base64.")
        else:
            await self.app(scope, _replay(body, receive), send)

    async def _read(self, scope: MutableMapping[str, Any], receive: Receive) -> bytes | None:
        """The whole body, or `None` where it is too large; of that nothing is kept, whatever length it declared."""
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        keep = declared.isdigit() and int(declared) <= self.max_bytes
        chunks: list[bytes] = []
        size, more = 0, True
        while more and size <= MAX_DISCARDED_BYTES:
            message = await receive()
            if message["type"] == "http.disconnect":
                break
            chunk = message.get("body", b"")
            size += len(chunk)
            keep = keep and size <= self.max_bytes
            if keep:
                chunks.append(chunk)
            else:
                chunks.clear()
            more = message.get("more_body", False)
        return b"".join(chunks) if keep else None


def is_closed(path: str) -> bool:
    """Whether a request path belongs to a route that the demo does not use."""
    return _CLOSED_PATH.match(re.sub(r"/{2,}", "/", path)) is not None


def refers_to_file(body: bytes) -> bool:
    """Whether a JSON body holds what Gradio would take for a file, a path or an address to fetch."""
    # Pictures are megabytes of base64: parse only what could hide the word, written out or escaped.
    if b"FileData" not in body and b"\\u" not in body:
        return False
    try:
        return _has_file(json.loads(body))
    except (ValueError, RecursionError):
        return True  # it would not be understood further on either


def _has_file(value: Any) -> bool:
    if isinstance(value, dict):
        return "FileData" in str(value.get("meta")) or any(map(_has_file, value.values()))
    return isinstance(value, list) and any(map(_has_file, value))


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body that was read already, then what the connection says next."""
    pending = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return pending.pop() if pending else await receive()

    return replayed


async def _refuse(send: Send, status: int, reason: str) -> None:
    body = json.dumps({"error": reason, "detail": reason}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 413:
        headers.append((b"connection", b"close"))  # the rest of the body is not waited for
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
