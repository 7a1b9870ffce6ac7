from __future__ import annotations

import pytest

from pullback.encoders import load_encoder
from pullback.inversion import shipped_correctors


def test_shipped_correctors_are_for_the_stages_they_were_fitted_on() -> None:
    encoder = load_encoder("builtin:scenes")
    found = shipped_correctors(encoder)
    assert found is not None
    assert found.fits([encoder.input_shape[0], *(s.channels for s in encoder.stages[:-1])])


@pytest.mark.parametrize("options", [{"stages": ("layer1", "layer2")}, {"preprocessing": "size=8"}])
def test_other_stages_of_the_same_weights_get_none(options: dict[str, object]) -> None:
    encoder = load_encoder("builtin:scenes", **options)  # type: ignore[arg-type]
    assert shipped_correctors(encoder) is None
