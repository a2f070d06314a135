"""Hard debiasing against closed forms: what is neutral is orthogonal to the bias, and pairs are equally far from all of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from influx.errors import InfluxError
from influx.hard_debiasing import HardDebiasing

WORDS = ("she", "he", "woman", "man", "queen", "king", "nurse", "pilot", "table", "mrs")
PAIRS = (("she", "he"), ("woman", "man"))
TIGHT = 1e-12  # float64 rounding of a few products of unit vectors


def vectors(seed: int = 0, d: int = 6, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(len(WORDS), d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def rows(*names: str) -> list[int]:
    return [WORDS.index(name) for name in names]


@pytest.mark.parametrize("components", [1, 2])
def test_directions_are_the_leading_eigenvectors_of_the_papers_matrix(components: int) -> None:
    """Against NumPy's eigenvectors of C = Σ_i Σ_w (w - μ_i)(w - μ_i)ᵀ / |D_i|, summed word by word."""
    sets = (("she", "he"), ("woman", "man", "mrs"), ("queen", "king"))
    unit = torch.nn.functional.normalize(vectors()).numpy()
    matrix = np.zeros((6, 6))
    for part in sets:
        mean = unit[rows(*part)].mean(0)
        for word in unit[rows(*part)]:
            matrix += np.outer(word - mean, word - mean) / len(part)
    leading = np.linalg.eigh(matrix)[1][:, ::-1][:, :components]
    found = HardDebiasing(sets, components=components).directions(vectors(), WORDS)
    np.testing.assert_allclose(found.T @ found, leading @ leading.T, atol=1e-10)  # projections: signs are free; eigh squares the rounding


def test_one_pair_gives_the_difference_of_its_unit_vectors() -> None:
    unit = torch.nn.functional.normalize(vectors())
    difference = torch.nn.functional.normalize(unit[0] - unit[1], dim=0)
    (found,) = HardDebiasing([["she", "he"]]).directions(vectors(), WORDS)
    assert abs(abs(float(found @ difference)) - 1) < TIGHT


@pytest.mark.parametrize("components", [1, 2])
def test_neutral_words_are_unit_vectors_orthogonal_to_the_bias(components: int) -> None:
    method = HardDebiasing(PAIRS, components=components)
    basis, made = method.directions(vectors(), WORDS), method.debiased(vectors(), WORDS)
    neutral = made[rows("queen", "king", "nurse", "pilot", "table", "mrs")]
    assert float((neutral @ basis.T).abs().max()) < TIGHT
    torch.testing.assert_close(neutral.norm(dim=1), torch.ones(6, dtype=torch.float64), rtol=0, atol=TIGHT)


def test_a_neutral_word_in_the_plane_by_hand() -> None:
    """she = (1, 0), he = (-1, 0): the bias is the first axis, and (3, 4) becomes (0, 1)."""
    plane = torch.zeros(len(WORDS), 2, dtype=torch.float64)
    plane[rows("she")], plane[rows("he")], plane[rows("nurse")] = torch.tensor([[1.0, 0], [-1, 0], [3, 4]], dtype=torch.float64).split(1)
    made = HardDebiasing([["she", "he"]]).debiased(plane, WORDS)
    assert made[rows("nurse")].tolist() == [[0.0, 1.0]]
    assert made[rows("table")].tolist() == [[0.0, 0.0]]  # it had no direction


def test_words_that_the_bias_belongs_to_keep_their_direction() -> None:
    made = HardDebiasing(PAIRS, specific=["mrs"]).debiased(vectors(), WORDS)
    kept = rows("she", "he", "woman", "man", "mrs")
    torch.testing.assert_close(made[kept], torch.nn.functional.normalize(vectors())[kept], rtol=0, atol=TIGHT)


def test_equalized_pairs_are_equally_far_from_every_neutral_word() -> None:
    made = HardDebiasing(PAIRS, equalized=[["queen", "king"], ["woman", "man"]]).debiased(vectors(), WORDS)
    neutral = made[rows("nurse", "pilot", "table", "mrs")]
    for pair in (("queen", "king"), ("woman", "man")):
        one, other = made[rows(*pair)]
        torch.testing.assert_close(neutral @ one, neutral @ other, rtol=0, atol=TIGHT)
        assert float(one @ one) == pytest.approx(1, abs=TIGHT)
        assert float(other @ other) == pytest.approx(1, abs=TIGHT)
        assert float((one - other).norm()) > 0.1  # they still differ: by the bias


def test_an_equalized_pair_differs_by_the_bias_alone() -> None:
    """w - w' = ±2 sqrt(1 - |ν|²) times the direction, of the sign that it had."""
    method = HardDebiasing(PAIRS, equalized=[["queen", "king"]])
    (direction,), made = method.directions(vectors(), WORDS), method.debiased(vectors(), WORDS)
    unit = torch.nn.functional.normalize(vectors())[rows("queen", "king")]
    centre = unit.mean(0) - (unit.mean(0) @ direction) * direction
    sign = torch.sign((unit[0] - unit[1]) @ direction)
    wanted = 2 * sign * (1 - centre.square().sum()).sqrt() * direction
    torch.testing.assert_close(made[rows("queen")] - made[rows("king")], wanted.unsqueeze(0), rtol=0, atol=TIGHT)


def test_debiasing_twice_changes_no_neutral_word_and_lengths_do_not_matter() -> None:
    method = HardDebiasing(PAIRS)
    once = method.debiased(vectors(), WORDS)
    torch.testing.assert_close(method.debiased(once, WORDS), once, rtol=0, atol=TIGHT)
    lengths = torch.arange(1.0, len(WORDS) + 1, dtype=torch.float64).unsqueeze(1)
    torch.testing.assert_close(method.debiased(vectors() * lengths, WORDS), once, rtol=0, atol=1e-11)


def test_a_rotation_of_the_space_rotates_the_result() -> None:
    turn = torch.linalg.qr(vectors(3)[:6])[0]
    method = HardDebiasing(PAIRS, equalized=[["queen", "king"]])
    torch.testing.assert_close(method.debiased(vectors() @ turn, WORDS), method.debiased(vectors(), WORDS) @ turn, rtol=0, atol=1e-11)


def test_sets_that_are_not_whole_in_the_vocabulary_are_left_out() -> None:
    more = HardDebiasing([*PAIRS, ["aunt", "uncle"], ["queen", "duke"]], equalized=[["queen", "duke"]])
    assert more.check(WORDS) == 2
    kept = HardDebiasing(PAIRS, specific=["queen"])
    torch.testing.assert_close(more.debiased(vectors(), WORDS), kept.debiased(vectors(), WORDS), rtol=0, atol=TIGHT)


def test_single_precision_is_kept() -> None:
    made = HardDebiasing(PAIRS, equalized=[["queen", "king"]]).debiased(vectors().float(), WORDS)
    assert made.dtype == torch.float32
    torch.testing.assert_close(
        made.double(), HardDebiasing(PAIRS, equalized=[["queen", "king"]]).debiased(vectors(), WORDS), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: HardDebiasing([["she"]]), r"task.rival.definitional has \['she'\]: each of its sets holds two different words or more"),
        (lambda: HardDebiasing(PAIRS, equalized=[["he", "he"]]), "task.rival.equalized has"),
        (lambda: HardDebiasing(PAIRS, equalized=[["she", "he"], ["he", "king"]]), "task.rival.equalized has he in two sets"),
        (lambda: HardDebiasing(["she", "he"]), "task.rival.definitional=.* must be a list of lists of words"),
        (lambda: HardDebiasing(PAIRS, components=0), "task.rival.components=0 is not possible"),
        (lambda: HardDebiasing([["aunt", "uncle"]]).check(WORDS), "has 0 of the 1 definitional sets of task.rival whole.*min_count"),
        (lambda: HardDebiasing(PAIRS, components=3).directions(vectors(), WORDS), "has 2 of the 2 .* 3 directions need as many"),
    ],
)
def test_what_cannot_be_debiased_gets_one_clear_line(make: object, said: str) -> None:
    with pytest.raises(InfluxError, match=said) as raised:
        make()  # type: ignore[operator]
    assert "\n" not in str(raised.value)
