"""The Wiener inverse against dense solves on small random Jacobians, in float64."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from pullback.errors import NumericsError, OptionError
from pullback.inversion import wiener
from pullback.inversion.prior import Prior
from pullback.inversion.wiener import WienerSolver

IN, OUT = (3, 6, 5), (4, 3, 2)
N, M = 90, 24


class Dense:
    """A random Jacobian with its prior, as matrices and as a solver."""

    def __init__(self, *, ridge: float = 1e-2, decay: float = 0.0, dtype: torch.dtype = torch.float64) -> None:
        generator = torch.Generator().manual_seed(7)
        self.generator, self.ridge = generator, ridge
        self.j = torch.randn(M, N, generator=generator, dtype=torch.float64)
        self.j = (torch.exp(-decay * torch.arange(M))[:, None] * self.j).to(dtype)
        self.prior = Prior.natural((0.5,) * 3, (0.2,) * 3, IN[1:])
        self.c = self.prior.covariance(torch.eye(N, dtype=dtype).reshape(N, *IN)).reshape(N, N)
        self.root = self.prior.root(torch.eye(N, dtype=dtype).reshape(N, *IN)).reshape(N, N).mT
        self.solver = WienerSolver(self.mv, self.vm, self.prior, IN, OUT, ridge=ridge)

    def mv(self, v: Tensor) -> Tensor:
        return (v.flatten(1) @ self.j.mT).reshape(-1, *OUT)

    def vm(self, w: Tensor) -> Tensor:
        return (w.flatten(1) @ self.j).reshape(-1, *IN)

    def draw(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64).to(self.j.dtype)

    def matrix(self) -> Tensor:
        return self.j @ self.c @ self.j.mT + self.ridge * self.solver.scale(self.j) * torch.eye(M, dtype=self.j.dtype)

    def solution(self, residuals: Tensor) -> Tensor:
        """C J^T A^-1 r by a dense solve, (K, *IN)."""
        z = torch.linalg.solve(self.matrix(), residuals.flatten(1).mT)
        return (self.c @ self.j.mT @ z).mT.reshape(-1, *IN)


def close(a: Tensor, b: Tensor, tolerance: float = 1e-8) -> bool:
    return bool((a - b).norm() <= tolerance * b.norm())


def test_the_converged_picture_is_the_dense_solve() -> None:
    case = Dense()
    r = case.draw(3, *OUT)
    solution = case.solver.solve(r, steps=100, tolerance=1e-11)
    assert close(solution.delta, case.solution(r))
    assert close(solution.misfit, (case.mv(case.solution(r)) - r).flatten(1).norm(dim=1) / r.flatten(1).norm(dim=1))
    assert (solution.relative_residual < 1e-10).all()
    assert solution.steps == int(solution.iterations.max()) < 100


def test_every_step_lowers_the_objective_and_few_explain_most_of_the_features() -> None:
    """The reason for solving in the image's coordinates: conjugate gradients on z need not come nearer to the features."""
    case = Dense(decay=0.2)
    r = case.mv(case.prior.root(case.draw(1, *IN)))
    white = torch.linalg.inv(case.root)

    def objective(delta: Tensor) -> float:
        ridge = case.ridge * case.solver.scale(case.j)
        return float((case.mv(delta) - r).square().sum() + ridge * (white @ delta.flatten()).square().sum())

    found = [case.solver.solve(r, steps=n, tolerance=1e-14) for n in range(1, 12)]
    values = [objective(solution.delta) for solution in found]
    assert all(later < before for before, later in pairwise(values))
    assert found[2].misfit < 0.5


def test_scale_estimates_the_mean_diagonal_and_is_reproducible() -> None:
    case = Dense()
    truth = float((case.j @ case.c @ case.j.mT).diagonal().mean())
    many = WienerSolver(case.mv, case.vm, case.prior, IN, OUT, probes=4000)
    assert many.scale(case.j) == pytest.approx(truth, rel=0.03)
    state = torch.random.get_rng_state()
    scales = [WienerSolver(case.mv, case.vm, case.prior, IN, OUT, seed=s).scale(case.j) for s in (0, 0, 1)]
    assert scales[0] == scales[1] != scales[2]
    assert torch.equal(state, torch.random.get_rng_state())


def test_own_features_give_the_posterior_mean_and_zero_features_their_control() -> None:
    """The formula of the specification for an affine network F(x) = J x + b, own features and F = 0."""
    case = Dense()
    prior = replace(case.prior, mean=torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64))
    solver = WienerSolver(case.mv, case.vm, prior, IN, OUT, ridge=case.ridge)
    x, b = case.draw(*IN), case.draw(*OUT)
    mu = prior.mu(x)
    own, control = case.mv(x[None])[0] + b, torch.zeros(OUT, dtype=torch.float64)
    r = torch.stack([f - b - case.mv(mu[None])[0] for f in (own, control)])
    assert close(r[0], case.mv((x - mu)[None])[0], 1e-12)
    pictures = mu + solver.solve(r, steps=100, tolerance=1e-11).delta
    dense = mu + case.solution(r)
    assert close(pictures, dense)
    assert not close(pictures[1], mu, 0.1)  # gates and biases draw something without any feature


def test_a_zero_right_hand_side_gives_zero_beside_others() -> None:
    case = Dense()
    r = case.draw(2, *OUT)
    r[0] = 0
    solution = case.solver.solve(r, steps=10)
    assert not solution.delta[0].any() and solution.misfit[0] == 0
    assert solution.relative_residual[0] == 0 and solution.iterations.tolist()[0] == 0
    assert solution.delta[1].any()
    alone = case.solver.solve(r[:1], steps=10)
    assert not alone.delta.any() and alone.steps == 0


def test_a_batch_is_each_right_hand_side_alone() -> None:
    """Also when they stop at different steps, and long before convergence, where step lengths differ."""
    case = Dense(decay=0.2)
    r = case.draw(3, *OUT) * torch.tensor([1.0, 1e6, 1e-6], dtype=torch.float64)[:, None, None, None]
    r[1] = torch.linalg.eigh(case.matrix()).eigenvectors[:, -1].reshape(OUT)  # one step solves it
    for steps, tolerance in ((3, 1e-12), (40, 1e-6)):
        together = case.solver.solve(r, steps=steps)
        assert together.iterations[1] == 1
        for k in range(3):
            alone = case.solver.solve(r[k : k + 1], steps=steps)
            assert close(together.delta[k], alone.delta[0], tolerance)
            if steps == 3:
                assert together.iterations[k] == alone.iterations[0]
            else:  # sums of another batch shape are rounded otherwise, which moves the last steps: both end by the tolerance
                assert max(together.iterations[k], alone.iterations[0]) < steps
                assert max(together.relative_residual[k], alone.relative_residual[0]) < 2e-7


def test_superposition_in_the_converged_limit_only() -> None:
    case = Dense()
    r = case.draw(*OUT)
    seeds = torch.stack([r * torch.eye(OUT[0], dtype=r.dtype)[c][:, None, None] for c in range(OUT[0])])
    for steps, exact in ((100, True), (3, False)):
        whole = case.solver.solve(r[None], steps=steps, tolerance=1e-12).delta[0]
        parts = case.solver.solve(seeds, steps=steps, tolerance=1e-12).delta.sum(0)
        assert close(parts, whole, 1e-9) is exact


def test_without_ridge_the_picture_is_the_projection_on_the_row_space_in_the_prior_s_metric() -> None:
    """delta = C J^T z reproduces the features, and x - delta is orthogonal to it under C^-1."""
    case = Dense(ridge=1e-10)
    x = case.draw(1, *IN)
    delta = case.solver.solve(case.mv(x), steps=200, tolerance=1e-12).delta
    assert close(case.mv(delta), case.mv(x), 1e-6)
    rest = (x - delta).flatten()
    whitened = torch.linalg.solve(case.c, torch.stack([x.flatten(), delta.flatten()]).mT)
    assert abs(rest @ whitened[:, 1]) < 1e-6 * (x.flatten() @ whitened[:, 0])
    inside = case.prior.covariance(case.vm(case.draw(1, *OUT)))  # already in the space: comes back whole
    assert close(case.solver.solve(case.mv(inside), steps=200, tolerance=1e-12).delta, inside, 1e-6)


def test_the_reported_residual_and_misfit_are_the_true_ones() -> None:
    case = Dense(decay=0.3, dtype=torch.float32)
    r = case.draw(2, *OUT)

    def gradient(delta: Tensor) -> Tensor:
        y = torch.linalg.solve(case.root, delta.flatten(1).mT).mT
        left = (r - case.mv(delta)).flatten(1)
        return left @ case.j @ case.root - case.ridge * case.solver.scale(case.j) * y

    for steps in (1, 5):
        solution = case.solver.solve(r, steps=steps)
        expected = gradient(solution.delta).norm(dim=1) / gradient(torch.zeros_like(solution.delta)).norm(dim=1)
        assert torch.allclose(solution.relative_residual, expected, rtol=1e-2)
        misfit = (case.mv(solution.delta) - r).flatten(1).norm(dim=1) / r.flatten(1).norm(dim=1)
        assert torch.allclose(solution.misfit, misfit, rtol=1e-4)
    hard = Dense(
        ridge=1e-7, dtype=torch.float32
    )  # where the updated residual goes on falling and the true one does not
    solution = hard.solver.solve(r, steps=200, tolerance=1e-9)
    assert (solution.relative_residual > 2e-9).all()


def test_seconds_choose_a_count_that_steps_reproduces_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Dense(decay=0.2)
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(wiener, "time", SimpleNamespace(perf_counter=lambda: clock.now))

    def slow_mv(v: Tensor) -> Tensor:
        clock.now += 1.0
        return case.mv(v)

    solver = WienerSolver(slow_mv, case.vm, case.prior, IN, OUT)
    r = case.draw(2, *OUT)
    budgeted = solver.solve(r, seconds=8.5, tolerance=1e-12)
    # 7 would fit; 5 is the ladder's largest below, and one more pair of products gives the true residual.
    assert budgeted.steps == 5
    assert budgeted.seconds == 6.0
    fixed = solver.solve(r, steps=budgeted.steps, tolerance=1e-12)
    assert torch.equal(fixed.delta, budgeted.delta)
    assert solver.solve(r, seconds=0.1).steps == 2
    assert solver.solve(r, seconds=0.1, steps=1).steps == 1
    pace = iter([1.0] * 3)  # of ten planned steps the fourth and all later ones take five seconds each

    def slowing_mv(v: Tensor) -> Tensor:
        clock.now += next(pace, 5.0)
        return case.mv(v)

    cut = WienerSolver(slowing_mv, case.vm, case.prior, IN, OUT).solve(r, seconds=14.0, tolerance=1e-12)
    assert cut.steps == 6  # 3 + 5 + 5 is within 14 seconds still
    assert torch.equal(cut.delta, solver.solve(r, steps=6, tolerance=1e-12).delta)


def test_float32_and_the_caller_s_tensor_untouched() -> None:
    case = Dense(dtype=torch.float32)
    r = case.draw(2, *OUT)
    kept = r.clone()
    solution = case.solver.solve(r, steps=60)
    assert torch.equal(r, kept)
    assert solution.delta.dtype == torch.float32
    assert close(solution.delta, case.solution(r), 1e-4)


def test_what_cannot_be_solved_is_refused() -> None:
    case = Dense()
    r = case.draw(1, *OUT)
    for budget in ({}, {"steps": 0, "seconds": 1.0}, {"steps": 0}, {"seconds": -1.0}):
        with pytest.raises(OptionError, match=r"steps|seconds"):
            case.solver.solve(r, **budget)
    with pytest.raises(OptionError, match="residuals"):
        case.solver.solve(r[0], steps=1)
    with pytest.raises(OptionError, match="ridge"):
        WienerSolver(case.mv, case.vm, case.prior, IN, OUT, ridge=0.0)
    with pytest.raises(OptionError, match="pictures"):
        WienerSolver(case.mv, case.vm, case.prior, (3, 5, 6), OUT)
    with pytest.raises(NumericsError, match="does not react"):
        WienerSolver(case.mv, lambda w: 0 * case.vm(w), case.prior, IN, OUT).solve(r, steps=1)
    with pytest.raises(NumericsError, match="finite"):
        case.solver.solve(r * float("nan"), steps=2)
