"""The verdict on one artifact."""

from dataclasses import dataclass

from exporter.data.metrics import Metric, loss_of
from exporter.screen import fits_screen
from exporter.verification.departure import (
    Departure,
    LayerAgreement,
    find_departure,
    losses_by_layer,
)
from exporter.verification.parity import Parity
from exporter.verification.quality import Quality
from exporter.verification.structure import StructureProof


@dataclass(frozen=True)
class Standing:
    """One output of an artifact beside that of the baseline Keras model, on the same samples.

    Attributes:
        samples: Number of samples; fewer than others have where a large model is executed slowly.
        snr_db: Signal to noise ratio in decibels.
        top1_agreement: Part of the samples with the same class; None without classes.
        metric: Task metric of the artifact itself; None without labels.
        baseline: Task metric of the baseline; None without labels.
    """

    samples: int
    snr_db: float
    top1_agreement: float | None
    metric: Metric | None
    baseline: Metric | None

    @property
    def loss(self) -> float:
        """What was lost against the baseline, negative if it gained.

        It is accuracy, 0 to 1, or the relative growth of an error; without labels, the part of the
        samples that changed their class, or of the amplitude that is noise.
        """
        if self.metric is not None and self.baseline is not None:
            return loss_of(self.baseline, self.metric)
        if self.top1_agreement is not None:
            return 1 - self.top1_agreement
        return float(10 ** (-self.snr_db / 20))


@fits_screen
@dataclass(frozen=True)
class ConversionVerdict:
    """Tells whether an artifact is the compressed Keras model.

    Attributes:
        parity: Comparison within a tolerance; None if the artifact is quantized or did not run.
        structure: Proof of its stored tensors; None if it could not be parsed.
        standings: How the outputs stand to the baseline on the first probe; those of another shape
            are left out.
        quality: Comparison of a quantized artifact; None for others and if it did not run.
        error: Why it was not compared: it is of another model or another file, did not run, or
            could not be parsed.
        layers: How the outputs of layers agree, if the artifact is quantized or predicts something
            else; empty if the runtime does not show what its operators compute.
        stored: Whether it was held against the stored predictions of a run, without the model, so
            that its structure is not looked at.
    """

    parity: Parity | None
    structure: StructureProof | None
    standings: dict[str, Standing]
    quality: Quality | None = None
    error: str | None = None
    layers: tuple[LayerAgreement, ...] = ()
    stored: bool = False

    @property
    def metrics(self) -> dict[str, Metric]:
        """Task metrics of the artifact itself, by output; empty without labels."""
        return {name: each.metric for name, each in self.standings.items() if each.metric}

    @property
    def departure(self) -> Departure | None:
        """The first layer at which an artifact that does not pass departs from the model."""
        return None if self.passed else find_departure(self.layers)

    @property
    def losses(self) -> dict[str, float]:
        """The part of the noise that each layer of a quantized artifact adds, the largest first."""
        return losses_by_layer(self.layers) if self.quality else {}

    @property
    def passed(self) -> bool:
        """Whether the artifact ran, predicts the same, and stores the planned factors.

        The noise of no layer of a quantized one may exceed what rounding explains.
        """
        proofs = [self.parity or self.quality, *([] if self.stored else [self.structure])]
        proven = all(proof is not None and proof.passed for proof in proofs)
        return self.error is None and proven and not any(each.departs for each in self.layers)
