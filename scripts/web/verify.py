"""Judges the ONNX artifacts of a run by what onnxruntime-web predicts: ``scripts/verify-web``."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from exporter.commands.verify import verify_stored
from exporter.data import Array
from exporter.errors import ExporterError
from exporter.formats import FORMATS
from exporter.formats.base import Artifact, to_real, to_stored
from exporter.formats.batches import batched
from exporter.graph.signature import Tensors
from exporter.isolation import ChildError
from exporter.report.console import WIDTH, print_verdicts
from exporter.verification.probes import Probe, predict

BACKEND = "wasm"


class WebRunner:
    """An ONNX file opened by onnxruntime-web in Node, which ends with the ``with`` statement."""

    def __init__(self, artifact: Artifact, packages: Path, folder: Path) -> None:
        """Starts Node; arrays go there and back through files in a folder."""
        self.inputs, self.outputs = FORMATS[artifact.format].read_interface(artifact.path)
        self._folder = folder
        self._noise = (folder / "noise").open("w+")
        command = ["node", Path(__file__).with_name("runner.mjs"), packages, artifact.path]
        self._process = subprocess.Popen(
            list(map(str, command)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._noise,
            text=True,
        )

    def __enter__(self) -> "WebRunner":
        return self

    def __exit__(self, *_: object) -> None:
        with self._noise, self._process:  # Waits.
            self._process.kill()

    def __call__(self, inputs: Tensors) -> dict[str, Any]:
        """Predicts a batch."""
        told = {}
        for number, (name, array) in enumerate(to_stored(inputs, self.inputs).items()):
            file = self._folder / f"input-{number}"
            file.write_bytes(array.tobytes())
            told[name] = {"type": array.dtype.name, "dims": array.shape, "file": str(file)}
        request = json.dumps({"target": str(self._folder), "inputs": told})
        with suppress(
            BrokenPipeError
        ):  # The reply is missing then, and what Node printed tells why.
            self._process.stdin.write(f"{request}\n")
            self._process.stdin.flush()
        reply = self._process.stdout.readline()
        if not reply:
            self._process.wait()
            self._noise.seek(0)
            words = [line for line in self._noise.read().splitlines() if "Error" in line]
            raise ChildError(f"onnxruntime-web failed: {words[0].strip() if words else 'silently'}")
        outputs = {
            name: np.fromfile(each["file"], each["type"]).reshape(each["dims"])
            for name, each in json.loads(reply).items()
        }
        return to_real(outputs, self.outputs)


def main(run: str, packages: str) -> int:
    """Prints the verdicts on a run, and returns the exit code."""

    def in_node(
        artifact: Artifact, probes: Sequence[Probe], _: Path
    ) -> dict[str, dict[str, dict[str, Array]]]:
        with (
            tempfile.TemporaryDirectory() as folder,
            WebRunner(artifact, Path(packages), Path(folder)) as runner,
        ):
            callable_ = batched(runner, runner.inputs)
            return {BACKEND: {probe.name: predict(callable_, probe) for probe in probes}}

    try:
        reports = verify_stored(run, formats=("onnx", "ort"), run=in_node)
    except ExporterError as error:
        print(f"verify-web: error: {error}", file=sys.stderr)
        return error.exit_code
    print_verdicts(reports, Console(highlight=False, width=WIDTH))
    return int(not all(report.accepted for report in reports))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
