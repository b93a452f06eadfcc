"""The temperature that divides the logits, fitted on validation data."""

from __future__ import annotations

import numpy as np

from hybrid_train.evaluation.reliability import Array


def fit_temperature(logits: Array, labels: Array) -> float:
    """Return the temperature of least log loss (Guo et al., ICML 2017), between 0.05 and 20.

    It is 1.0 if there is no optimum: with fewer than two classes, or if all predictions are right.
    """
    from scipy.optimize import minimize_scalar

    logits = np.asarray(logits, np.float64)
    if len(logits) == 0 or len(np.unique(labels)) < 2 or (logits.argmax(1) == labels).all():
        return 1.0

    def loss(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        scaled = scaled - scaled.max(1, keepdims=True)
        normalizer = np.log(np.exp(scaled).sum(1))
        return float((normalizer - scaled[np.arange(len(labels)), labels]).mean())

    found = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20.0)), method="bounded")
    return float(np.exp(found.x))
