"""EK-FAC: K-FAC's eigenvectors with the curvature's own diagonal in them (George et al. 2018; Grosse et al. 2023, section 2.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from influx import rules
from influx.solvers.factored import FactoredSolver


@dataclass(frozen=True)
class Ekfac(FactoredSolver):
    """Λ = E[(Q_Sᵀ G Q_A)²] over the pseudo-gradients G: of all matrices with these eigenvectors the nearest to the layer's own curvature.

    Departure from Grosse et al.: 1. pseudo-gradients of the "ggn" are all n_out columns of a root of ∂²ℓ/∂f², so that nothing is drawn;
    they draw labels from the model's prediction, here `curvature=fisher` with `labels=sampled`.
    """

    corrected: ClassVar[bool] = True

    labels: str = "empirical"

    def __post_init__(self) -> None:
        rules.check_fields("method.solver", self)
