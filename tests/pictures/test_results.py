"""Result types: what they refuse, what they say, and that a null picture is drawn exactly as its picture is."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from pullback.errors import ImageError, NumericsError
from pullback.pictures import Certificate, ClassPicture


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", ["tensor", "null"])
def test_what_is_not_finite_is_refused(make, bad, where):
    tensors = {"tensor": torch.zeros(3, 4, 4), "null": torch.zeros(3, 4, 4)}
    tensors[where][1, 2, 3] = bad
    with pytest.raises(NumericsError, match="1 of 48 values"):
        make(**tensors)


@pytest.mark.parametrize("shape", [(4, 4), (1, 1, 3, 4, 4), (3, 0, 4)])
def test_what_is_no_picture_is_refused(make, shape):
    with pytest.raises(ImageError, match="cannot be drawn"):
        make(torch.zeros(shape))


def test_a_null_of_another_shape_is_refused(make):
    with pytest.raises(ImageError, match="does not belong"):
        make(torch.zeros(3, 4, 4), torch.zeros(3, 4, 5))


def test_results_are_frozen_and_keep_dtype_and_tensor(make):
    tensor = torch.zeros(3, 4, 4, dtype=torch.float64)
    picture = make(tensor)
    assert picture.tensor is tensor
    with pytest.raises(dataclasses.FrozenInstanceError):
        picture.mode = "other"


def test_range_and_clamped_share_by_hand(make):
    tensor = torch.tensor([-4.0, -2.0, 0.0, 3.0]).view(1, 2, 2)  # colours -0.5, 0, 0.5, 1.25
    null = torch.tensor([-1.0, 0.0, 1.0, 8.0]).view(1, 2, 2)  # colours 0.25, 0.5, 0.75, 2.5
    picture = make(tensor, null)
    assert picture.value_range == (-4, 3)
    assert picture.clamped_share == 0.5
    assert picture.null_range == (-1, 8)
    assert picture.null_clamped_share == 0.25
    assert np.asarray(picture.rgb())[..., 0].tolist() == [[0, 0], [128, 255]]
    assert np.asarray(picture.null_rgb())[..., 0].tolist() == [[64, 128], [191, 255]]


def test_a_signed_null_is_drawn_at_the_scale_of_its_picture(make):
    tensor = torch.tensor([-2.0, 0.0, 1.0, 2.0]).view(1, 2, 2)
    null = torch.tensor([-1.0, 0.5, 2.0, 9.0]).view(1, 2, 2)
    picture = make(tensor, null, natural=False)
    assert picture.scales == (2.0,)
    assert picture.clamped_share == 0
    assert picture.null_clamped_share == 0.25
    assert np.asarray(picture.null_rgb())[..., 0].tolist() == [[64, 159], [255, 255]]
    assert "-/+ 2.00" in picture.mapping()


def test_a_signed_picture_of_zeros_is_grey(make):
    picture = make(torch.zeros(3, 2, 2), torch.full((3, 2, 2), 0.5), natural=False)
    assert picture.scales == (1.0,)
    assert set(np.asarray(picture.rgb()).ravel()) == {128}
    assert set(np.asarray(picture.null_rgb()).ravel()) == {191}


def test_one_image_of_a_batch_does_not_change_how_another_is_drawn(make, noise):
    batch = noise(2, 3, 6, 5)
    loud = torch.stack([batch[0], 1000 * batch[1]])
    alone = np.asarray(make(batch[0], natural=False).rgb())
    for pictures in (batch, loud):
        drawn = np.asarray(make(pictures, natural=False).rgb())
        assert drawn.shape == (2 * 6 + 4, 5, 3)
        assert np.array_equal(drawn[:6], alone)


def test_words_say_mode_range_clamping_and_null(make, noise):
    (row,) = make(noise(3, 4, 4), noise(3, 4, 4) / 9).rows()
    words = "\n".join(row.lines)
    for part in ("Stage 2.", "cascade, frozen, unfitted", "range", "of values clamped", "null: range", "misfit 0.250"):
        assert part in words
    assert [heading for heading, _ in row.cells] == ["adjoint picture", "its null picture"]
    (lonely,) = make(noise(3, 4, 4)).rows()
    assert len(lonely.cells) == 1
    assert "no null picture" in lonely.lines


def test_dictionary_is_json_and_complete(make, noise):
    picture = make(noise(3, 4, 4).half(), noise(3, 4, 4).half(), natural=False, figures={"misfit": float("nan")})
    described = json.loads(json.dumps(picture.to_dict(), allow_nan=False))
    assert described["shape"] == [3, 4, 4]
    assert described["dtype"] == "float16"
    assert described["value_range"] == list(picture.value_range)
    assert described["scales"] == list(picture.scales)
    assert described["null"] == {"value_range": list(picture.null_range), "clamped_share": picture.null_clamped_share}
    assert described["figures"] == {"misfit": None}
    assert described["provenance"] == {
        "encoder": "net", "weights": "aa" * 32, "image": "bb" * 32, "settings": {"eps": 1e-6, "shape": [3, 2]},
        "version": "0.0", "seed": 7,
    }  # fmt: skip


def test_class_picture_adds_up_and_gives_its_saliency(make, noise):
    positive, negative = noise(3, 4, 5), -noise(3, 4, 5) / 2
    picture = ClassPicture(
        make(positive + negative), make(positive), make(negative), 2, "tench", "w * alpha", {"cosine": 0.5}
    )
    saliency = picture.saliency()
    assert saliency.shape == (4, 5)
    torch.testing.assert_close(saliency[1, 2], (positive + negative)[:, 1, 2].square().sum().sqrt())
    assert [row.lines[0].split(":")[0] for row in picture.rows()] == ["class 2", "full", "positive", "negative"]
    assert json.loads(json.dumps(picture.to_dict()))["negative"]["mode"] == "cascade, frozen, unfitted"
    batch = make(noise(2, 3, 4, 5))
    assert ClassPicture(batch, batch, batch, 2, "tench", "w", {}).saliency().shape == (2, 4, 5)


def test_certificate_shows_its_field():
    field = torch.zeros(4, 6, dtype=torch.bool)
    field[1:3, 2:4] = True
    facts = {"holds": True, "nested_condition": False, "exact": True, "outside": 0.0, "area": 4 / 24, "vacuous": False}
    certificate = Certificate(2, "unit (1, 0, 0)", field, **facts, areas={"median": 0.5}, unknown=(), words="Inside.")
    assert np.array_equal(np.asarray(certificate.rgb())[..., 0] == 255, field.numpy())
    described = json.loads(json.dumps(certificate.to_dict()))
    assert described["size"] == [4, 6]
    assert described["area"] == 4 / 24
    assert "field" not in described
    assert "vacuous: no" in certificate.rows()[0].lines[2]


def test_representation_is_one_line(make, noise):
    picture = make(noise(3, 4, 4), noise(3, 4, 4))
    for result in (picture, ClassPicture(picture, picture, picture, 0, "a\nb", "w", {})):
        assert "\n" not in repr(result)
    assert repr(picture).startswith("Picture(3x4x4 float32 cpu, 'adjoint picture', mode 'cascade, frozen, unfitted'")
