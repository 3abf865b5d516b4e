"""Servers of the checks: vLLM's and our own, each in processes of its own, asked over HTTP."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

NAME, PATIENCE, MOST = "unlearned", 900.0, 512  # seconds, tokens
QUIET = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_CPU_KVCACHE_SPACE": "1",
         "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_LOGGING_LEVEL": "WARNING", "OMP_NUM_THREADS": "1"}  # fmt: skip


def vllm_command(python: str, model: Path, places: dict[str, Path], *more: str) -> list[str]:
    """``api_server``, since the CPU build's own command does not find its version."""
    overrides = json.dumps({key: str(place) for key, place in places.items()})
    where = ["--hf-overrides", overrides] if places else []
    longest = json.loads((model / "config.json").read_text(encoding="utf-8"))["max_position_embeddings"]
    return [
        python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--served-model-name", NAME,
        "--max-model-len", str(min(longest, MOST)), "--max-num-seqs", "16", "--max-logprobs", "-1", "--block-size",
        "32", *where, *more,
    ]  # fmt: skip


def ours_command(*asked: str) -> list[str]:
    return [sys.executable, "-m", "unlearn.serve", f"name={NAME}", "trainer.threads=1", *asked]


@contextmanager
def server(command: Sequence[str], log: Path) -> Iterator[tuple[str, subprocess.Popen]]:
    """Address, with /v1, and process of a server while it runs."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ours = "unlearn.serve" in command
    environment = os.environ | ({} if ours else QUIET)
    environment.pop("PYTHONPATH", None)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as stream:
        at = [f"port={port}"] if ours else ["--port", str(port)]
        process = subprocess.Popen([*command, *at], env=environment, stdout=stream, stderr=subprocess.STDOUT)
        try:
            _ready(process, f"http://127.0.0.1:{port}/health", log)
            yield f"http://127.0.0.1:{port}/v1", process
        finally:
            process.terminate()
            process.wait(timeout=120)


def _ready(process: subprocess.Popen, address: str, log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            if httpx.get(address, timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"{log}: the server did not start; its end:\n{log.read_text()[-2000:]}")
        time.sleep(1)


def complete(url: str, **asked) -> dict:
    """What /v1/completions answers; greedy unless said otherwise."""
    body = {"model": NAME, "temperature": 0} | asked
    return httpx.post(f"{url}/completions", json=body, timeout=PATIENCE).raise_for_status().json()


def counted(url: str, name: str) -> float:
    """What one of vLLM's counters says, over all its labels."""
    lines = httpx.get(url.replace("/v1", "/metrics"), timeout=60).text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(f"{name}{{"))


def memory_mb(pid: int) -> float:
    """Proportional set size of a process and all that it started."""
    found, total = [pid], 0.0
    for one in found:
        for task in Path(f"/proc/{one}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
        lines = Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()
        total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
    return total
