"""Load on a demo over loopback: many visitors at once, good and bad inputs mixed.

    python tests/demo/load_space.py                         # 50 visitors for two minutes, the packaged checkpoint
    python tests/demo/load_space.py --model DIR --clients 8 --seconds 20

Prints one JSON object and ends with 1 unless every answer was an answer or a clear refusal, and the server's memory
grew by less than 50 MB after warm-up. Linux only: memory is read from /proc.
"""

import argparse
import asyncio
import base64
import io
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
GROWTH_LIMIT_MB = 50
#: Share of questions whose asker is gone before the answer.
LEAVING = 0.05
#: What a visitor may be told instead of an answer; anything else is a fault.
REFUSALS = ("This ", "There is no ", "Too many people", "Queue is full", "is larger than", "not taken")


@dataclass
class Tally:
    """What came back."""

    seconds: list[float] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)


def inputs(seed: int = 0) -> list[tuple[str, str, Any, bool]]:
    """Endpoint, name, payload, and whether an answer is due."""
    rng = np.random.default_rng(seed)
    pictures = [path.read_bytes() for path in sorted((ROOT / "examples").glob("*.png")) if path.stem != "page"]
    inks = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "examples").glob("*.inkml"))]
    with io.BytesIO() as stream:
        Image.fromarray(rng.integers(0, 255, (300, 400), dtype=np.uint8)).save(stream, "JPEG")
        noise = stream.getvalue()
    plus = [[[0, 20], [40, 20]], [[20, 0], [20, 40]]]
    good = [("recognize_picture", "picture", _base64(data), True) for data in pictures]
    good += [("recognize_ink", "inkml", text, True) for text in inks] + [("recognize_ink", "ink", plus, True)] * 3
    bad = [
        ("recognize_picture", "cut", _base64(pictures[0][:200]), False),
        ("recognize_picture", "pdf", _base64(b"%PDF-1.7"), False),
        ("recognize_picture", "svg", _base64(b"<svg xmlns='http://www.w3.org/2000/svg'><script/></svg>"), False),
        ("recognize_picture", "path", "/etc/passwd", False),
        ("recognize_ink", "bomb", "<!DOCTYPE ink [<!ENTITY a 'b'>]><ink><trace>&a;</trace></ink>", False),
        ("recognize_ink", "empty", [], False),
        ("recognize_picture", "huge", "A" * 10_000_000, False),
    ]
    either = [("recognize_picture", "noise", _base64(noise), True)]
    return good * 2 + bad + either


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


async def visit(client: httpx.AsyncClient, cases: list[Any], end: float, tally: Tally, seed: int) -> None:
    """One visitor: sends, waits for the answer, thinks for a moment, sends again."""
    rng = random.Random(seed)
    while time.monotonic() < end:
        endpoint, name, payload, _ = rng.choice(cases)
        began = time.monotonic()
        try:
            kind, text = await ask(client, endpoint, payload, leave=rng.random() < LEAVING)
        except httpx.HTTPError as error:
            kind, text = "fault", f"{type(error).__name__} {error}"
        tally.kinds[f"{name}: {kind}"] += 1
        if kind == "answer":
            tally.seconds.append(time.monotonic() - began)
        elif kind == "fault" or (kind == "refusal" and not any(words in text for words in REFUSALS)):
            tally.faults.append(f"{name}: {text[:200]}")
        await asyncio.sleep(rng.uniform(0.1, 1.0))


async def ask(client: httpx.AsyncClient, endpoint: str, payload: Any, leave: bool = False) -> tuple[str, str]:
    """One question over the HTTP API: `answer`, `refusal`, `fault` or `left` (without waiting), and what was said."""
    response = await client.post(f"/gradio_api/call/{endpoint}", json={"data": [payload, False, False, True]})
    if response.status_code in (400, 413, 503):
        return "refusal", response.text
    if response.status_code != 200:
        return "fault", f"{response.status_code} {response.text}"
    if leave:
        return "left", ""
    async for event, data in _events(client, f"/gradio_api/call/{endpoint}/{response.json()['event_id']}"):
        if event == "complete":
            return "answer", data
        if event == "error":
            return "refusal", data
    return "fault", "the stream ended without an answer"


async def _events(client: httpx.AsyncClient, path: str) -> AsyncIterator[tuple[str, str]]:
    event = ""
    async with client.stream("GET", path) as stream:
        async for line in stream.aiter_lines():
            if line.startswith("event: "):
                event = line.removeprefix("event: ")
            elif line.startswith("data: "):
                yield event, line.removeprefix("data: ")


async def press(address: str, clients: int, seconds: float, warm_up: float, pid: int) -> dict[str, Any]:
    """Runs all visitors, with memory read after the warm-up and at the end."""
    cases, tally, warm = inputs(), Tally(), Tally()
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=address, timeout=180, limits=limits) as client:
        for duration, into in ((warm_up, warm), (seconds, tally)):
            end = time.monotonic() + duration
            watcher = asyncio.create_task(watch(pid, seconds / 12, into.memory))
            await asyncio.gather(*(visit(client, cases, end, into, seed) for seed in range(clients)))
            watcher.cancel()
    memory = [*tally.memory, round(resident_mb(pid), 1)]
    ordered = sorted(tally.seconds)
    return {
        "clients": clients,
        "seconds": seconds,
        "answers": len(ordered),
        "median_s": round(statistics.median(ordered), 3) if ordered else None,
        "p95_s": round(ordered[int(0.95 * (len(ordered) - 1))], 3) if ordered else None,
        "memory_mb": memory,
        "memory_growth_mb": round(memory[-1] - memory[0], 1),
        "kinds": dict(sorted(tally.kinds.items())),
        "faults": (warm.faults + tally.faults)[:20],
    }


async def watch(pid: int, seconds: float, memory: list[float]) -> None:
    """Notes the server's memory again and again, until it is cancelled."""
    while True:
        memory.append(round(resident_mb(pid), 1))
        await asyncio.sleep(seconds)


def resident_mb(pid: int) -> float:
    """Memory that the process really holds, in MB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def serve(model: str | None) -> tuple[subprocess.Popen[bytes], str]:
    """Starts `space/app.py` on a free port and waits until it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"GRADIO_SERVER_PORT": str(port)} | ({"MODEL_ID": model} if model else {})
    process = subprocess.Popen([sys.executable, ROOT / "space" / "app.py"], env=environment, stdout=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    for _ in range(600):
        if process.poll() is not None:
            raise SystemExit("the demo did not start")
        try:
            if httpx.get(f"{address}/config", timeout=30).status_code == 200:
                return process, address
        except httpx.HTTPError:
            time.sleep(1)
    process.kill()
    raise SystemExit("the demo did not answer within ten minutes")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--warm-up", type=float, default=20)
    parser.add_argument("--model", help="directory or Hub id; default: the packaged checkpoint")
    options = parser.parse_args()
    process, address = serve(options.model)
    try:
        result = asyncio.run(press(address, options.clients, options.seconds, options.warm_up, process.pid))
    finally:
        process.terminate()  # SIGINT is ignored where a shell started this in the background
        process.wait(30)
    sys.stdout.write(json.dumps(result, indent=2) + "\n")
    return int(bool(result["faults"]) or result["memory_growth_mb"] >= GROWTH_LIMIT_MB or not result["answers"])


if __name__ == "__main__":
    sys.exit(main())
