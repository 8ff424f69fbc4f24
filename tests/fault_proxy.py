"""A proxy before a real S3 server that breaks some of the calls: refused, cut half-way, or done but never answered.

It passes requests on as they came, `Host` too, so that signatures stay valid. It is a process of its own: deltalake
holds the interpreter while it waits for an answer.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import aiohttp
from aiohttp import web
from yarl import URL

Kind = Literal["refuse", "hang up", "cut upload", "cut download", "lose answer"]
REFUSAL = (
    b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>ServiceUnavailable</Code>'
    b"<Message>Please reduce your request rate.</Message></Error>"
)
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "expect"}
CONTROL = "/-control-"


@dataclass(frozen=True)
class Fault:
    """What goes wrong, with which calls."""

    kind: Kind
    share: float = 1.0
    """Of the calls it applies to, drawn by a seeded generator."""
    methods: tuple[str, ...] = ("GET", "HEAD", "PUT", "POST", "DELETE")
    path: str = ""
    """Text that the address contains."""
    times: int = 1_000_000
    """Most calls that are broken."""


@dataclass
class FaultProxy:
    """A running proxy, as a test sees it."""

    endpoint: str

    def set(self, *faults: Fault, target: str | None = None) -> None:
        """Break calls in these ways from now on; with a new `target`, before another server."""
        order = {"faults": [asdict(fault) for fault in faults], "target": target}
        self._control(json.dumps(order).encode())

    def broken(self) -> list[int]:
        """Calls broken by each of the faults last set."""
        found: list[int] = json.loads(self._control(None))
        return found

    def _control(self, data: bytes | None) -> bytes:
        with urllib.request.urlopen(self.endpoint + CONTROL, data=data, timeout=20) as answer:
            return bytes(answer.read())


@contextmanager
def fault_proxy(target: str, *, seed: int = 0) -> Iterator[FaultProxy]:
    """A proxy before the server at `target`, for the length of the block; no faults yet."""
    command = [sys.executable, str(Path(__file__).resolve()), target, str(seed)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        assert port, "the proxy ended at its start"
        yield FaultProxy(f"http://127.0.0.1:{port}")
    finally:
        process.kill()
        process.communicate()


class _Server:
    def __init__(self, target: str, seed: int) -> None:
        self._target = target
        self._draw = random.Random(seed)
        self._faults: list[Fault] = []
        self._broken: Counter[int] = Counter()

    async def control(self, request: web.Request) -> web.Response:
        """Take orders, or say what was broken."""
        if request.method == "GET":
            return web.json_response([self._broken[number] for number in range(len(self._faults))])
        order = await request.json()
        self._faults = [Fault(**{**fault, "methods": tuple(fault["methods"])}) for fault in order["faults"]]
        self._broken.clear()
        self._target = order["target"] or self._target
        return web.Response()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Break the call, or pass it on."""
        fault = self._next_fault(request)
        if fault is None:
            return await self._whole(request)
        if fault.kind == "cut upload":
            await request.content.read(100)
        if fault.kind in ("cut upload", "hang up"):
            return _close(request)
        if fault.kind == "refuse":
            await request.content.read()
            return web.Response(status=503, body=REFUSAL, content_type="application/xml")
        if fault.kind == "cut download":
            return await self._half(request)
        await self._forward(request)
        return _close(request)

    def _next_fault(self, request: web.Request) -> Fault | None:
        for number, fault in enumerate(self._faults):
            fits = request.method in fault.methods and fault.path in request.path_qs
            if fits and self._broken[number] < fault.times and self._draw.random() < fault.share:
                self._broken[number] += 1
                return fault
        return None

    async def _forward(self, request: web.Request) -> tuple[int, dict[str, str], bytes] | None:
        """Status, headers and body of the server's answer; None where the server is away."""
        headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP}
        url, body = URL(self._target + request.raw_path, encoded=True), await request.content.read()
        options: dict[str, Any] = {"auto_decompress": False, "skip_auto_headers": ("Accept", "User-Agent")}
        try:
            async with (
                aiohttp.ClientSession(**options) as session,
                session.request(request.method, url, headers=headers, data=body, allow_redirects=False) as answer,
            ):
                kept = {name: value for name, value in answer.headers.items() if name.lower() not in HOP_BY_HOP}
                return answer.status, kept, await answer.read()
        except aiohttp.ClientError:
            return None

    async def _whole(self, request: web.Request) -> web.StreamResponse:
        found = await self._forward(request)
        return _close(request) if found is None else web.Response(status=found[0], headers=found[1], body=found[2])

    async def _half(self, request: web.Request) -> web.StreamResponse:
        """The whole length in the header, half of the bytes behind it."""
        found = await self._forward(request)
        if found is not None:
            response = web.StreamResponse(status=found[0], headers=found[1])
            await response.prepare(request)
            await response.write(found[2][: len(found[2]) // 2])
        return _close(request)


def _close(request: web.Request) -> web.StreamResponse:
    """End the connection without an answer."""
    if request.transport is not None:
        request.transport.abort()
    raise ConnectionResetError


async def _app(target: str, seed: int) -> web.Application:
    server, app = _Server(target, seed), web.Application()
    app.router.add_route("*", CONTROL, server.control)
    app.router.add_route("*", "/{path:.*}", server.handle)
    return app


def _main(target: str, seed: int) -> None:
    import logging
    import socket

    logging.disable()  # of connections that are closed on purpose
    listening = socket.create_server(("127.0.0.1", 0))
    print(listening.getsockname()[1], flush=True)
    web.run_app(_app(target, seed), sock=listening, print=None, access_log=None)


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]))
