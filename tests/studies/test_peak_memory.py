"""The peak is seen, and forgotten when told to."""

from __future__ import annotations

import pytest
import torch

from pullback.studies.memory import forget_peak, peak


def test_a_large_tensor_lifts_the_peak_until_it_is_forgotten() -> None:
    cpu = torch.device("cpu")
    forget_peak(cpu)
    before = peak(cpu)
    if before is None:
        pytest.skip("this system does not tell the peak")
    large = torch.ones(300, 2**20, dtype=torch.uint8)
    del large
    lifted = peak(cpu)
    forget_peak(cpu)
    after = peak(cpu)
    assert lifted is not None and after is not None
    assert lifted - before > 250 * 2**20
    assert lifted - after > 250 * 2**20
