"""Exports what a user would ship otherwise: the uncompressed network in the same variants."""

from pathlib import Path

from exporter.commands.artifact import ArtifactWriter
from exporter.commands.prepare import Job
from exporter.formats.base import Format, describe
from exporter.formats.variants import FLOAT32
from exporter.graph.fold import fold_batch_norms
from exporter.graph.network import Network
from exporter.lowrank.engine import Compressed
from exporter.output import artifact_name
from exporter.verification.verifier import Standing, Verifier


class Alternatives:
    """Writes variants of the uncompressed network, each of them once, by the options of a run.

    Attributes:
        network: The baseline, with its batch normalisations folded if the run folds them.
    """

    def __init__(self, job: Job, baseline: Network, folder: Path, scratch: Path) -> None:
        """Takes the folder to write to, and one for files that are not kept."""
        self.network = fold_batch_norms(baseline)[0] if job.recipe.cut.fold else baseline
        compressed = Compressed.of(self.network)
        self._writer = ArtifactWriter(job.recipe, compressed, job.samples, job.card)
        self._folder, self._scratch = folder, scratch
        folder.mkdir(exist_ok=True)

    def write(self, fmt: Format, variant: str = FLOAT32) -> Path:
        """Returns the artifact of a variant, which is written if it is not there yet.

        Raises:
            ConversionError: If the converter fails.
        """
        path = self._folder / artifact_name(fmt, variant)
        if not path.exists():
            self._writer.write(fmt, variant, path, self._scratch)
        return path

    def standings(self, fmt: Format, variant: str, verifier: Verifier) -> dict[str, Standing]:
        """Runs the artifact of a variant, and returns how its outputs stand to the baseline's.

        Raises:
            ConversionError: If the converter fails.
            ChildError: If the runtime cannot run what it wrote.
        """
        artifact = describe(fmt, variant, self.write(fmt, variant), self.network)
        return verifier.standings_of(artifact, self.network)
