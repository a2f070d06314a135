"""From `retraining.response` to the response, and the refusal of what it cannot answer."""

from __future__ import annotations

from influx.errors import InfluxError
from influx.kronecker import convex
from influx.problem import Problem
from influx.responses.anchored import Anchored
from influx.responses.base import Response
from influx.responses.bregman import Bregman
from influx.responses.linearised import Linearised
from influx.responses.proximal import Proximal
from influx.responses.retrained import Retrained
from influx.solvers import Solver

RETRAIN = Retrained.name


def choose(word: str, proximity: float | None, tolerance: float, max_iterations: int, strength: float, solver: Solver) -> Response:
    """The response of this name with the options that are its own.

    Raises:
        InfluxError: it needs a proximal weight and there is none.
    """
    if word == RETRAIN:
        return Retrained()
    if proximity is None:
        raise InfluxError(f"retraining.response={word} needs a number: set retraining.proximity, the proximal weight p.")
    if word == Linearised.name:
        return Linearised(solver, float(proximity))
    iterative: type[Anchored] = Bregman if word == Bregman.name else Proximal
    return iterative(float(proximity), float(tolerance), max_iterations, float(strength))


def proximity(word: str, method: str, damping: float | str | None) -> float:
    """p by default: the damping of the method that is to be validated (null: it has none).

    Raises:
        InfluxError: there is no number to take.
    """
    if isinstance(damping, int | float):
        return float(damping)
    why = "has no damping" if damping is None else f"has method.damping={damping}, which is no number yet"
    raise InfluxError(f"method={method} {why}: retraining.response={word} needs retraining.proximity=<number>, say 0.01.")


def check(response: Response, problem: Problem) -> None:
    """Raise `InfluxError` when the response has no single answer, or its solver cannot give it."""
    if isinstance(response, Anchored) and response.proximity + problem.weight_decay == 0:
        raise InfluxError(
            f"retraining.response={response.name} has no single minimum with retraining.proximity=0 and training.weight_decay=0: "
            "set retraining.proximity (by default method.damping) above 0."
        )
    if isinstance(response, Bregman) and not convex(problem):
        raise InfluxError(
            "retraining.response=pbrf holds a model by the Bregman divergence of its loss, no distance when the loss is not convex in the "
            f"outputs, and {type(problem.objective).__name__} is not: use retraining.response=proximal or retrain."
        )
    if isinstance(response, Linearised):
        response.check(problem)
