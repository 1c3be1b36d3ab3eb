"""ARM64 processors, emulated by QEMU: exact counts of instructions, without an ARM machine."""

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from exporter.data import Array
from exporter.disk import scratch_folder
from exporter.errors import RecipeError
from exporter.formats.base import Format
from exporter.isolation import ChildError
from exporter.output import CACHE
from exporter.targets.base import Cost, Subject, Target

FOLDER_VARIABLE = "EXPORTER_ARM64"
"""Environment variable that names the folder which ``scripts/arm64`` made."""

LINE_BYTES = 64
"""Bytes that one miss of a cache loads."""

SECONDS = 600
"""Most time of one emulation."""

_GUEST = Path(__file__).parent / "arm64" / "guest.py"
_PYTHON = "usr/bin/python3.11"


class Arm64(Target):
    """Counts the instructions of LiteRT on a processor.

    ``figures`` has the bytes that miss a cache of 512 KiB, ``missed_bytes``.
    """

    unit = "instructions"

    def __init__(self, name: str, processor: str) -> None:
        """Takes the name that QEMU has for the processor."""
        super().__init__(name)
        self._processor = processor

    def check(self) -> None:
        """Refuses a machine without QEMU, or without the folder that ``scripts/arm64`` makes."""
        lacking = [
            tool
            for tool in ("qemu-aarch64", "unshare", "setarch", "setpriv")
            if not shutil.which(tool)
        ]
        folder = folder_of_arm64()
        if not (folder / "cache.so").exists():
            lacking.append(str((folder / "cache.so").absolute()))
        if lacking:
            raise RecipeError(
                f"Target {self.name!r} counts instructions in QEMU. Missing: {', '.join(lacking)}. "
                "Run scripts/arm64 of the repository, which needs Debian's packages qemu-user, "
                f"debootstrap and gcc, and let {FOLDER_VARIABLE} name the folder that it made."
            )

    def measure(
        self,
        fmt: Format,
        subjects: Sequence[Subject],
        inputs: Mapping[str, Array],
        *,
        detailed: bool = True,
    ) -> list[Cost]:
        """Counts on noise of the inputs' shapes; see the base class."""
        del fmt, inputs
        paths = [subject.path for subject in subjects]
        counts = self._emulate(paths, "count.so")
        if not detailed:
            return [Cost(count) for count in counts]
        misses = self._emulate(paths, "cache.so")
        return [
            Cost(count, {"missed_bytes": LINE_BYTES * missed})
            for count, missed in zip(counts, misses, strict=True)
        ]

    def text(self, cost: Cost) -> str:
        """See the base class."""
        missed = cost.figures.get("missed_bytes")
        told = "" if missed is None else f", {missed / 1000:,.0f} KB missed"
        few = cost.value < 10_000
        counted = f"{cost.value:,.0f}" if few else f"{cost.value / 1000:,.0f} k"
        return f"{counted} instructions{told}"

    def _emulate(self, paths: Sequence[Path], plugin: str) -> list[int]:
        folder = folder_of_arm64().resolve()
        root = folder / "root"
        with scratch_folder() as scratch:
            output = scratch / "counts"
            # Both runtimes choose their kernels by /proc/cpuinfo, and crash on that of x86. The
            # mount is private; where this is not root, it is one of a user namespace.
            private = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-rm"]
            mount = 'mount --bind "$0" /proc/cpuinfo && exec "$@"'
            emulator = ["qemu-aarch64", "-cpu", self._processor, "-seed", "1", "-L", str(root)]
            command = [
                *("setpriv", "--pdeathsig", "KILL"),  # An emulation ends with this process.
                # Addresses, and so the counts of hashing, are the same at each run.
                *("setarch", "-R", *private, "sh", "-c", mount),
                str(folder / f"cpuinfo.{self._processor}"),
                *(*emulator, "-plugin", f"{folder / plugin},out={output}"),
                *(str(root / _PYTHON), "-S", str(_GUEST), *(str(path.resolve()) for path in paths)),
            ]
            environment = {
                "PATH": os.environ["PATH"],
                "PYTHONHOME": str(root / "usr"),
                "PYTHONPATH": str(folder / "site"),
                "PYTHONHASHSEED": "0",
                "PYTHONDONTWRITEBYTECODE": "1",
                "OPENBLAS_NUM_THREADS": "1",
            }
            try:
                subprocess.run(
                    command,
                    env=environment,
                    capture_output=True,
                    text=True,
                    check=True,
                    timeout=SECONDS,
                )
            except subprocess.TimeoutExpired as error:
                raise ChildError(f"the emulation took more than {SECONDS} s") from error
            except subprocess.CalledProcessError as error:
                words = error.stderr.strip().rpartition("\n")[2]
                raise ChildError(f"the emulation ended with {error.returncode}: {words}") from error
            lines = (line.split() for line in output.read_text().splitlines())
            marks = {int(tag): int(count) for tag, count in lines}
        own = marks[-2] - marks[-1]
        # Noise of the cache may be less than nothing.
        return [max(0, marks[2 * n + 1] - marks[2 * n] - own) for n in range(len(paths))]


def folder_of_arm64() -> Path:
    """Returns the folder of the aarch64 packages and the plugins."""
    return Path(os.environ.get(FOLDER_VARIABLE) or CACHE / "arm64")
