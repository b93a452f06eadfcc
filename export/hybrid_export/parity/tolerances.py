"""How far an exported file may be from PyTorch fp32, by precision, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PrecisionName = Literal["fp32", "fp16", "bf16", "int8"]


@dataclass(frozen=True, kw_only=True)
class Tolerances:
    """Tolerances of one precision. Those of logits are for logits of up to 10 and grow with them.

    ``tie_margin`` is how far apart PyTorch's own two largest logits must be for another top-1 to
    count as a flip; ``flip_share`` how many flips are allowed, as a share of the images.
    """

    logits_max_abs: float
    features_cosine_min: float
    batch_invariance: float
    auroc_shift: float
    tie_margin: float
    heatmaps_correlation: float
    flip_share: float = 0.0
    #: The softmax is computed in fp32 from the file's own logits, in every precision.
    probabilities_consistency: float = 1e-5

    def allowed_flips(self, images: int) -> int:
        """Return the flips that are allowed among so many images; if any are, at least one is."""
        return max(1, int(self.flip_share * images)) if self.flip_share else 0

    def to_dict(self, scale: float) -> dict[str, float]:
        """Return the tolerances that applied, for the parity report."""
        return {
            "logits_max_abs": self.logits_max_abs * scale,
            "features_cosine_min": self.features_cosine_min,
            "batch_invariance_max_abs": self.batch_invariance * scale,
            "auroc_shift": self.auroc_shift,
            "tie_margin": self.tie_margin,
            "flip_share": self.flip_share,
            "heatmaps_correlation": self.heatmaps_correlation,
        }


#: fp32: another order of the same sums moves a logit by some 1e-6 in a network of 60 layers.
#: fp16: 11 significant bits, a relative rounding of 5e-4 that averages out over long sums; a
#:   decision at a threshold moves by less than 0.005 in probability.
#: bf16: 8 significant bits, eight times coarser than fp16, with fp32's range.
#: int8: judged by what it decides, since its logits carry the rounding of 255 steps a tensor.
#: A batch may change which kernel runs, and so the order of the sums: within the file's own
#: rounding that is allowed, a change of the prediction never is.
TOLERANCES: dict[PrecisionName, Tolerances] = {
    "fp32": Tolerances(
        logits_max_abs=1e-4,
        features_cosine_min=0.999999,
        batch_invariance=1e-5,
        auroc_shift=1e-9,
        tie_margin=2e-4,
        heatmaps_correlation=0.9999,
    ),
    "fp16": Tolerances(
        logits_max_abs=2e-2,
        features_cosine_min=0.9999,
        batch_invariance=1e-2,
        auroc_shift=0.005,
        tie_margin=4e-3,
        heatmaps_correlation=0.99,
    ),
    "bf16": Tolerances(
        logits_max_abs=2e-1,
        features_cosine_min=0.999,
        batch_invariance=1e-1,
        auroc_shift=0.01,
        tie_margin=4e-2,
        heatmaps_correlation=0.95,
    ),
    "int8": Tolerances(
        logits_max_abs=1.0,
        features_cosine_min=0.98,
        batch_invariance=1e-1,
        auroc_shift=0.01,
        tie_margin=4e-2,
        heatmaps_correlation=0.8,
        flip_share=0.01,
    ),
}
