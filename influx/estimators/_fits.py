"""How much each example adds to a measurement, from models trained on random subsets: three ways to fit `v(S) ≈ c + Σ_{i in S} a_i`.

Each takes `kept [subsets, n]`, 1 where a subset keeps an example and 0 elsewhere, and `values [subsets, n_test]`, the measurements of the
models trained on them, both float64, and gives the coefficients `a [n, n_test]` with numbers about how well they are known. Every test
example is fitted on its own: its coefficients do not depend on the others.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from influx.errors import warn_accuracy

Kept = Float[Tensor, "subsets n"]
Values = Float[Tensor, "subsets n_test"]

RIDGE = tuple(10.0**power for power in range(-6, 4))  # penalties tried, in units of the mean eigenvalue of the centred Gram matrix
LASSO = (0.5, 0.3, 0.2, 0.14, 0.1, 0.07, 0.05, 0.03, 0.01, 0.001)  # in units of the smallest penalty that leaves no coefficient
RISEN = 1.01  # times the smallest error: from here on a smaller penalty is not tried
FOLDS = 4  # of the subsets, for the lasso's penalty
CLOSE, CLOSER = 1e-3, 1e-6  # duality gap to stop at, as a share of ½‖y‖²/m: for choosing the penalty, and for the coefficients
STEPS = 10_000  # of a proximal gradient descent at most
LOOK = 10  # steps between two looks at the gap


@dataclass(frozen=True)
class Fitted:
    """Coefficients, and facts for the record."""

    coefficients: Float[Tensor, "n n_test"]
    facts: dict[str, float]


def difference(kept: Kept, values: Values) -> Fitted:
    """a_i = mean of v over the subsets with i minus the mean over those without. Cost: one matrix product.

    Its standard error is that of two independent means, each subset a draw.
    """
    centred = values - values.mean(0)
    number = kept.sum(0).unsqueeze(1)  # [n, 1]
    other = len(kept) - number
    inside, outside = kept.T @ centred, (1 - kept).T @ centred
    squares = centred.square()
    variance = (kept.T @ squares - inside.square() / number) / (number * (number - 1).clamp_min(1))
    variance += ((1 - kept).T @ squares - outside.square() / other) / (other * (other - 1).clamp_min(1))
    found = inside / number - outside / other
    return Fitted(found, {"root_mean_square": _rms(found), "standard_error": variance.mean().clamp_min(0).sqrt().item()})


def ridge(kept: Kept, values: Values) -> Fitted:
    """Least squares with α‖a‖², the intercept free and α of each test example the one with the smallest leave-one-out error, which has a
    closed form (the errors are residuals divided by 1 minus the leverage). Cost: one eigendecomposition of order `subsets`."""
    m = len(kept)
    x, y = kept - kept.mean(0), values - values.mean(0)
    s, u = torch.linalg.eigh(x @ x.T)
    s = s.clamp_min(0)
    seen = u.T @ y  # [subsets, n_test]
    penalties = s.mean() * torch.tensor(RIDGE, dtype=x.dtype, device=x.device)
    errors = []
    for alpha in penalties:
        share = s / (s + alpha)
        leverage = 1 / m + u.square() @ share
        errors.append(((y - u @ (share.unsqueeze(1) * seen)) / (1 - leverage).unsqueeze(1)).square().mean(0))
    table = torch.stack(errors)  # [penalties, n_test]
    best = penalties[table.argmin(0)]
    coefficients = x.T @ (u @ (seen / (s.unsqueeze(1) + best)))
    return Fitted(coefficients, {"explained_out_of_sample": _explained(table.amin(0), y)})


def lasso(kept: Kept, values: Values) -> Fitted:
    """The minimum of (1/2m)‖y − Xa‖² + λ‖a‖₁, the intercept free and λ of each test example the one with the smallest error in `FOLDS`-fold
    cross-validation, of those in `LASSO`: tried from the largest on, until the error has risen by `RISEN`.

    All test examples go through one accelerated proximal gradient descent (Beck & Teboulle 2009, FISTA) with restarts (O'Donoghue & Candès
    2015), each to its own relative duality gap. The largest penalty tried leaves some coefficients to every test example, so that it has
    an order of the training examples, however little it means: the share explained says how much.
    Cost: some thousand products of [subsets, n] with [n, n_test], fewer columns of it as they are done.

    Warns:
        AccuracyWarning: the gap was not reached.
    """
    y = values - values.mean(0)
    size = y.square().mean(0).sqrt()
    y = torch.where(size > 0, y / size, 0.0)  # of unit variance, or constant
    best, errors = _penalties(kept.float(), y.float())  # a choice between a few penalties does not need float64, and takes half the time
    descent = _Descent(kept - kept.mean(0), y)
    found = descent.minimise(best.double(), torch.arange(len(size), device=y.device), kept.new_zeros(kept.shape[1], len(size)), CLOSER)
    if descent.unfinished:
        warn_accuracy(f"the lasso of {descent.unfinished} test examples has not converged in {STEPS} steps: raise method.subsets.")
    facts = {"explained_out_of_sample": _explained(errors.double(), y), "nonzero_share": (found != 0).double().mean().item()}
    return Fitted(size * found, facts)


def _penalties(kept: Kept, values: Values) -> tuple[Float[Tensor, " n_test"], Float[Tensor, " n_test"]]:
    """Each test example's penalty, as a share of the smallest that leaves no coefficient, and its cross-validated squared error."""
    folds = torch.arange(len(kept), device=kept.device) % FOLDS
    insides = [folds != fold for fold in range(FOLDS)]
    descents = [_Descent(kept[inside] - kept[inside].mean(0), values[inside] - values[inside].mean(0)) for inside in insides]
    starts = [kept.new_zeros(kept.shape[1], values.shape[1]) for _ in insides]
    lowest, best = torch.full_like(values[0], torch.inf), torch.zeros_like(values[0])
    trying = torch.arange(values.shape[1], device=values.device)  # columns whose error has not risen yet
    for ratio in LASSO:
        error = torch.zeros_like(lowest[trying])
        for inside, descent, start in zip(insides, descents, starts, strict=True):
            start[:, trying] = descent.minimise(torch.full_like(best, ratio), trying, start[:, trying], CLOSE)
            x, y = kept[~inside] - kept[inside].mean(0), (values[~inside] - values[inside].mean(0))[:, trying]
            error += (y - x @ start[:, trying]).square().sum(0) / len(kept)
        better = error < lowest[trying]
        lowest[trying[better]], best[trying[better]] = error[better], ratio
        trying = trying[error <= RISEN * lowest[trying]]
        if not len(trying):
            break
    return best, lowest


class _Descent:
    """Proximal gradient descent on the lasso of one centred design, the columns of y side by side."""

    def __init__(self, x: Float[Tensor, "m n"], y: Float[Tensor, "m n_test"]) -> None:
        m, n = x.shape
        self.x, self.y = x, y
        gram = x.T @ x if n <= m else x @ x.T
        self.gram = gram / m if n <= m else None
        self.step = m / torch.linalg.eigvalsh(gram)[-1]
        self.slope = x.T @ y / m
        self.largest = self.slope.abs().amax(0)  # [n_test]
        self.power = (0.5 * y.square().mean(0)).clamp_min(torch.finfo(y.dtype).tiny)
        self.unfinished = 0

    def minimise(
        self, ratios: Float[Tensor, " n_test"], columns: Int[Tensor, " columns"], start: Float[Tensor, "n columns"], close: float
    ) -> Float[Tensor, "n columns"]:
        """The coefficients of some columns, from `start` until each one's duality gap is below `close` x ½‖y‖²/m."""
        made = start.clone()
        left = torch.arange(len(columns), device=columns.device)  # of `columns`, those that are not there yet
        found = ahead = start
        t = torch.ones_like(self.power[columns])
        for step in range(1, STEPS + 1):
            at = columns[left]
            penalty = ratios[at] * self.largest[at]
            moved = ahead - self.step * (self._times(ahead) - self.slope[:, at])
            new = moved.sign() * (moved.abs() - self.step * penalty).clamp_min(0)
            turned = ((ahead - new) * (new - found)).sum(0) > 0
            t = torch.where(turned, torch.ones_like(t), t)
            after = 0.5 * (1 + (1 + 4 * t.square()).sqrt())
            ahead, found, t = new + (t - 1) / after * (new - found), new, after
            if step % LOOK == 0:
                made[:, left] = found
                on = self._gap(found, at, penalty) > close
                left, found, ahead, t = left[on], found[:, on], ahead[:, on], t[on]
                if not len(left):
                    break
        self.unfinished = len(left)
        return made

    def _times(self, a: Float[Tensor, "n columns"]) -> Float[Tensor, "n columns"]:
        return self.gram @ a if self.gram is not None else self.x.T @ (self.x @ a) / len(self.x)

    def _gap(
        self, a: Float[Tensor, "n columns"], columns: Int[Tensor, " columns"], penalty: Float[Tensor, " columns"]
    ) -> Float[Tensor, " columns"]:
        """(objective − dual value) / (½‖y‖²/m); the dual point is the residual, shrunk until it is allowed."""
        y, power = self.y[:, columns], self.power[columns]
        residual = y - self.x @ a
        steepest = (self.x.T @ residual / len(y)).abs().amax(0)
        scale = (penalty / steepest.clamp_min(torch.finfo(a.dtype).tiny)).clamp_max(1)
        primal = 0.5 * residual.square().mean(0) + penalty * a.abs().sum(0)
        dual = power - 0.5 * (y - scale * residual).square().mean(0)
        return (primal - dual) / power


def _explained(errors: Float[Tensor, " n_test"], y: Float[Tensor, "m n_test"]) -> float:
    """1 − squared error on models not fitted to / variance, mean over test examples that vary."""
    variance = y.square().mean(0)
    share = (1 - errors / variance)[variance > 0]
    return share.mean().item() if len(share) else 0.0


def _rms(values: Tensor) -> float:
    return values.square().mean().sqrt().item()
