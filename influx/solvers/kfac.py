"""K-FAC: the curvature of a layer as a Kronecker product (Martens & Grosse 2015; Grosse & Martens 2016 for convolutions)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from influx import rules
from influx.solvers.factored import FactoredSolver


@dataclass(frozen=True)
class Kfac(FactoredSolver):
    """Λ = λ_S λ_Aᵀ: inputs and output gradients of a layer taken as independent.

    Exact when they are: for one linear layer with one output, whose GGN under squared error is A itself. Departure from the paper: 1. the
    damping is added to the product's eigenvalues, not split between the factors, so that it means what it means in every solver.
    """

    corrected: ClassVar[bool] = False

    labels: str = "empirical"

    def __post_init__(self) -> None:
        rules.check_fields("method.solver", self)
