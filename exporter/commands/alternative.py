"""Exports what a user would ship otherwise: the uncompressed network in the same variants."""

import hashlib
import json
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

from exporter.commands.artifact import ArtifactWriter
from exporter.commands.kept import discard, fetch, keep
from exporter.commands.prepare import Job
from exporter.commands.weights import versions
from exporter.formats.base import Format, describe
from exporter.formats.variants import FLOAT32
from exporter.graph.fold import fold_batch_norms
from exporter.graph.network import Network
from exporter.graph.walk import is_of_keras
from exporter.lowrank.engine import Compressed
from exporter.output import artifact_name
from exporter.verification.verdict import Standing
from exporter.verification.verifier import Verifier

_PACKAGE = Path(__file__).parents[1]


class Alternatives:
    """Writes variants of the uncompressed network, each of them once, by the options of a run.

    They are kept from run to run, by a hash of all that makes them, unless the network has layers
    of the user's, whose code may have changed.

    Attributes:
        network: The baseline, with its batch normalisations folded if the run folds them.
    """

    def __init__(self, job: Job, baseline: Network, folder: Path, scratch: Path) -> None:
        """Takes the folder to write to, and one for files that are not kept."""
        self.network = fold_batch_norms(baseline)[0] if job.recipe.cut.fold else baseline
        compressed = Compressed.of(self.network)
        self._writer = ArtifactWriter(job.recipe, compressed, job.samples, job.card)
        self._job, self._folder, self._scratch = job, folder, scratch
        folder.mkdir(exist_ok=True)

    def write(self, fmt: Format, variant: str = FLOAT32) -> Path:
        """Returns the artifact of a variant, which is written if it is not there yet.

        Raises:
            ConversionError: If the converter fails.
        """
        path = self._folder / artifact_name(fmt, variant)
        if path.exists():
            return path
        key = f"{self._digest}-{path.name}" if self._digest else ""
        if not (key and fetch(key, path)):
            try:
                self._writer.write(fmt, variant, path, self._scratch)
            except BaseException:  # Ctrl-C, too: what is kept must be whole.
                discard(path)
                raise
            if key:
                keep(key, path)
        return path

    @cached_property
    def _digest(self) -> str:
        """Hash of the network, the samples and the options; empty if the network is not known."""
        network, job = self.network, self._job
        if not all(map(is_of_keras, network.layers.values())):
            return ""
        recipe = job.recipe
        options = {**asdict(recipe.quantization), **asdict(recipe.export)}
        for name in ("quantize", "formats", "output", "force", "keep_baseline"):
            del options[name]
        source = [recipe.source.calibration, recipe.source.seed, recipe.goal.max_size]
        described = [network.model.to_json(), options, source, asdict(job.card), versions()]
        digest = hashlib.sha256(json.dumps(described, default=str).encode())
        digest.update(job.dataset.digest.encode())
        for file in sorted(_PACKAGE.rglob("*.py")):  # Another version of the package, too.
            digest.update(file.read_bytes())
        for weight in network.model.get_weights():
            digest.update(weight.tobytes())
        return digest.hexdigest()[:32]

    def standings(
        self, fmt: Format, variant: str, verifier: Verifier
    ) -> tuple[dict[str, Standing], dict[str, Standing]]:
        """Runs the artifact of a variant, and returns how it stands on test and validation data.

        Raises:
            ConversionError: If the converter fails.
            ChildError: If the runtime cannot run what it wrote.
        """
        artifact = describe(fmt, variant, self.write(fmt, variant), self.network)
        return (
            verifier.standings_of(artifact, self.network),
            verifier.validated(artifact, self.network),
        )
