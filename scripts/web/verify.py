"""Judges the ONNX artifacts of a run by what onnxruntime-web predicts: ``scripts/verify-web``."""

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from mimetypes import guess_type
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from exporter.commands.verify import verify_stored
from exporter.data import Array
from exporter.errors import ExporterError
from exporter.formats.base import Artifact, to_real, to_stored
from exporter.formats.batches import batched
from exporter.graph.signature import Tensors
from exporter.isolation import LEAST_SECONDS, ChildError
from exporter.report.tables import WIDTH
from exporter.report.verdicts import print_verdicts
from exporter.verification.contents import read_contents
from exporter.verification.probes import Probe, predict

RUNNER = Path(__file__).with_name("runner.mjs")

PAGE = """<script type="module">
import { serve } from "/runner.mjs";
serve(() => import("/packages/ort.wasm.min.mjs"), "");
</script>"""

IN_NODE = """import { serve } from "%s";
serve(() => import("%s"), "%s");"""


class WebRunner:
    """An ONNX file opened by onnxruntime-web, which ends with the ``with`` statement.

    A host, ``node`` or ``chromium``, fetches batches from a server on this machine alone.
    """

    def __init__(self, artifact: Artifact, host: str, packages: Path, folder: Path) -> None:
        """Starts the server and the host, which may write to a folder."""
        found = read_contents(artifact.format, artifact.path, artifact.size)
        self.inputs, self.outputs = found.interface
        self._host = host
        self._batches: queue.Queue[bytes | None] = queue.Queue()
        self._answers: queue.Queue[tuple[str, bytes]] = queue.Queue()
        files = {
            "/": (PAGE.encode(), "text/html"),
            "/runner.mjs": (RUNNER.read_bytes(), "text/javascript"),
            "/artifact": (artifact.path.read_bytes(), "application/octet-stream"),
        }
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler(files, packages))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{self._server.server_port}"
        own = packages / "ort.node.min.mjs"
        command = {
            "node": [
                *("node", "--input-type=module", "-e"),
                IN_NODE % (RUNNER.as_uri(), own.as_uri(), base),
            ],
            "chromium": [
                *("chromium", "--headless", "--disable-gpu", "--no-first-run"),
                # Root cannot have one; the page and what it loads are of this machine.
                *(["--no-sandbox"] if os.geteuid() == 0 else []),
                *(f"--user-data-dir={folder}", base),
            ],
        }[host]
        self._noise = (folder / "noise.txt").open("w+")
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self._noise,
            stderr=self._noise,
            start_new_session=True,  # Chromium is many processes.
        )

    def __enter__(self) -> "WebRunner":
        return self

    def __exit__(self, *_: object) -> None:
        self._batches.put(None)
        # It may have ended, and been waited for; else it is waited for here.
        with suppress(ProcessLookupError), self._noise, self._process:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._server.shutdown()
        self._server.server_close()

    def __call__(self, inputs: Tensors) -> dict[str, Any]:
        """Predicts a batch."""
        self._batches.put(_packed(to_stored(inputs, self.inputs)))
        kind, content = self._answer()
        if kind == "error":
            raise ChildError(f"onnxruntime-web failed in {self._host}: {content.decode()}")
        return to_real(_unpacked(content), self.outputs)

    def _answer(self) -> tuple[str, bytes]:
        end = time.monotonic() + LEAST_SECONDS
        while time.monotonic() < end:
            try:
                return self._answers.get(timeout=1)
            except queue.Empty:
                if self._process.poll() is not None:
                    break
        self._noise.seek(0)
        words = self._noise.read().strip().rpartition("\n")[2] or "no message"
        raise ChildError(f"{self._host} gave no answer (exit code {self._process.poll()}): {words}")

    def _handler(
        self, files: Mapping[str, tuple[bytes, str]], packages: Path
    ) -> type[BaseHTTPRequestHandler]:
        batches, answers = self._batches, self._answers

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/batch":
                    batch = batches.get()
                    return self._send(204 if batch is None else 200, batch or b"", "text/plain")
                file = packages / Path(self.path).name
                if self.path in files:
                    return self._send(200, *files[self.path])
                if self.path.startswith("/packages/") and file.is_file():
                    kind = guess_type(file.name)[0] or "application/octet-stream"
                    return self._send(200, file.read_bytes(), kind)
                return self._send(404, b"", "text/plain")

            def do_POST(self) -> None:
                content = self.rfile.read(int(self.headers["Content-Length"]))
                answers.put((self.path.removeprefix("/"), content))
                self._send(200, b"", "text/plain")

            def _send(self, status: int, content: bytes, kind: str) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                if status != 204:
                    self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                """Keeps quiet."""

        return Handler


def _packed(tensors: Mapping[str, Array]) -> bytes:
    told = [
        {"name": name, "type": array.dtype.name, "dims": array.shape, "size": array.nbytes}
        for name, array in tensors.items()
    ]
    return b"".join([json.dumps(told).encode(), b"\n", *(a.tobytes() for a in tensors.values())])


def _unpacked(content: bytes) -> dict[str, Array]:
    start, tensors = content.index(b"\n") + 1, {}
    for told in json.loads(content[:start]):
        part = content[start : start + told["size"]]
        tensors[told["name"]] = np.frombuffer(part, told["type"]).reshape(told["dims"])
        start += told["size"]
    return tensors


def main(run: str, packages: str, *hosts: str) -> int:
    """Prints the verdicts on a run by what hosts compute, and returns the exit code."""

    def in_hosts(
        artifact: Artifact, probes: Sequence[Probe], _: Path
    ) -> dict[str, dict[str, dict[str, Array]]]:
        outputs: dict[str, dict[str, dict[str, Array]]] = {}
        for host in hosts:
            with (
                tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
                WebRunner(artifact, host, Path(packages), Path(folder)) as runner,
            ):
                predictor = batched(runner, runner.inputs)
                outputs[host] = {probe.name: predict(predictor, probe) for probe in probes}
        return outputs

    try:
        reports = verify_stored(run, formats=("onnx", "ort"), run=in_hosts)
    except ExporterError as error:
        print(f"verify-web: error: {error}", file=sys.stderr)
        return error.exit_code
    print_verdicts(reports, Console(highlight=False, width=WIDTH))
    return int(not all(report.accepted for report in reports))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
