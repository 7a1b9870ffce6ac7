"""A Gaussian prior of natural images, `x ~ N(mu, C)`: colour covariance times a power spectrum (specification, 3b and 3c).

`C = colour (x) D^T diag(s) D` with `D` the orthonormal DCT-II in both directions. The cosine basis continues an image by
half-sample symmetry, so nothing wraps around from one border to the other, and `C` is exactly symmetric positive definite,
which conjugate gradients need. The spectrum is `1 / (f0^2 + |f|^2)^(p/2)`, `f` in cycles per image along the longer side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor

from pullback.errors import OptionError

# Principal components of ImageNet's RGB pixels as published with AlexNet's colour augmentation (Krizhevsky et al. 2012;
# the numbers are those of fb.resnet.torch), and the standard deviations every ImageNet model card divides by.
_PCA_VALUES = (0.2175, 0.0188, 0.0045)
_PCA_VECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))
_NATURAL_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, eq=False)
class Prior:
    """`x ~ N(mean, colour (x) spectrum)` over images of one size, in preprocessed units.

    mean (c,) and colour (c, c), symmetric positive definite; power `p` and `f0 > 0` (cycles per longer side) shape the
    spectrum; size (H, W) in pixels. The spectrum is scaled so that the mean pixel variance of channel i is `colour[i, i]`.
    All methods take (..., c, H, W) of any device and floating dtype, and are linear and differentiable.
    """

    mean: Tensor
    colour: Tensor
    power: float
    f0: float
    size: tuple[int, int]

    def __post_init__(self) -> None:
        channels = self.mean.numel()
        if self.mean.ndim != 1 or self.colour.shape != (channels, channels):
            shapes = f"{tuple(self.mean.shape)} and {tuple(self.colour.shape)}"
            raise OptionError(f"a prior needs a mean (c,) and a colour covariance (c, c), but got {shapes}")
        if not self.f0 > 0 or not self.power >= 0 or min(self.size) < 1:
            given = f"f0={self.f0}, power={self.power}, size={self.size}"
            raise OptionError(f"a prior needs f0 > 0, power >= 0 and a size of at least 1 x 1, but got {given}")
        if not torch.equal(self.colour, self.colour.mT) or not bool(torch.linalg.eigvalsh(self.colour.double())[0] > 0):
            raise OptionError(
                f"the colour covariance must be symmetric positive definite, but is {self.colour.tolist()}"
            )

    @classmethod
    def natural(
        cls, mean: Sequence[float], std: Sequence[float], size: tuple[int, int], power: float = 2.0, f0: float = 1.0
    ) -> Prior:
        """The default for an encoder whose preprocessing is `(rgb - mean) / std`, rgb in [0, 1].

        The mean picture is zero in preprocessed units, the training mean colour. Three channels take the correlations of
        ImageNet's published RGB components, one channel the variance of their luminance, any other number the identity.
        """
        if len(mean) != len(std) or not len(mean):
            raise OptionError(f"mean and std need one number a channel, but have {len(mean)} and {len(std)}")
        scale = torch.tensor(std, dtype=torch.float64, device="cpu")
        if len(std) == 3:
            colour = natural_colour() / torch.outer(scale, scale)
        elif len(std) == 1:
            grey = torch.tensor((0.299, 0.587, 0.114), dtype=torch.float64, device="cpu")
            colour = (grey @ natural_colour() @ grey / scale**2).reshape(1, 1)
        else:
            colour = torch.eye(len(std), dtype=torch.float64, device="cpu")
        return cls(torch.zeros(len(std), dtype=torch.float64, device="cpu"), colour, power, f0, size)

    def mu(self, like: Tensor) -> Tensor:
        """The mean picture (c, H, W), on the device and in the dtype of `like`."""
        return self.mean.to(like)[:, None, None].expand(-1, *self.size)

    def covariance(self, x: Tensor) -> Tensor:
        """`C x`."""
        return self._filter(self._mix(self.colour, x), 1.0)

    def root(self, z: Tensor) -> Tensor:
        """`R z` with `R R^T = C`: white noise becomes a zero-mean sample of the prior; z and result (..., c, H, W)."""
        return self.synthesis(self._coefficients(z))

    def root_transpose(self, x: Tensor) -> Tensor:
        """`R^T x`, the adjoint of `root`."""
        return self._waves(self.analysis(x))

    def synthesis(self, coefficients: Tensor) -> Tensor:
        """`S y` with `S S^T = C` too, from white DCT coefficients y (..., c, H, W): half the work of `root`."""
        return self._mix(self._colour_root, self._waves(self._gain(coefficients, 0.5) * coefficients))

    def analysis(self, x: Tensor) -> Tensor:
        """`S^T x`, the adjoint of `synthesis`."""
        return self._gain(x, 0.5) * self._coefficients(self._mix(self._colour_root.mT, x))

    @cached_property
    @torch.inference_mode(False)  # as of `_dct`
    def _colour_root(self) -> Tensor:
        return torch.linalg.cholesky(self.colour)

    def _mix(self, matrix: Tensor, x: Tensor) -> Tensor:
        return torch.einsum("ij,...jhw->...ihw", matrix.to(x), x)

    def _filter(self, x: Tensor, exponent: float) -> Tensor:
        return self._waves(self._gain(x, exponent) * self._coefficients(x))

    def _coefficients(self, x: Tensor) -> Tensor:
        rows, columns = self._dcts(x)
        return rows @ x @ columns.mT

    def _waves(self, coefficients: Tensor) -> Tensor:
        rows, columns = self._dcts(coefficients)
        return rows.mT @ coefficients @ columns

    def _dcts(self, like: Tensor) -> tuple[Tensor, Tensor]:
        rows, columns = (_dct(side, like.dtype, like.device) for side in self.size)
        return rows, columns

    def _gain(self, like: Tensor, exponent: float) -> Tensor:
        return _gain(self.size, self.power, self.f0, exponent, like.dtype, like.device)


def natural_colour() -> Tensor:
    """Covariance (3, 3) of RGB in [0, 1], float64: ImageNet's published components at the usual channel variances."""
    vectors = torch.tensor(_PCA_VECTORS, dtype=torch.float64, device="cpu")
    covariance = vectors @ torch.diag(torch.tensor(_PCA_VALUES, dtype=torch.float64, device="cpu")) @ vectors.mT
    scale = torch.tensor(_NATURAL_STD, dtype=torch.float64, device="cpu") / covariance.diagonal().sqrt()
    covariance = scale[:, None] * covariance * scale
    return (covariance + covariance.mT) / 2


def fit_prior(images: Tensor) -> Prior:
    """The prior of a set of images (N, C, H, W) in preprocessed units.

    Mean and colour covariance are those of the pixels; `p` and `f0` maximise the likelihood of the images' DCT energies
    (Whittle's form: minus twice the log likelihood is `sum_k e_k / s_k + log s_k`, its overall scale profiled out). The constant
    coefficient is left out, because the mean colour was taken from the same images.
    """
    if images.ndim != 4 or images.shape[0] < 1 or min(images.shape[2:]) < 4:
        raise OptionError(
            f"fit_prior needs images (N, C, H, W) of at least 4 x 4 pixels, but got {tuple(images.shape)}"
        )
    pixels = images.detach().to("cpu", torch.float64)
    size = (pixels.shape[2], pixels.shape[3])
    mean = pixels.mean((0, 2, 3))
    centred = pixels - mean[:, None, None]
    colour = torch.einsum("nihw,njhw->ij", centred, centred) / (centred.numel() / len(mean))
    colour = (colour + colour.mT) / 2
    variance = float(colour.diagonal().mean())
    if not variance > 0:
        raise OptionError(
            "fit_prior needs images that differ from one constant colour; these do not, or are not finite"
        )
    # Grey pictures in three channels have a singular covariance; a part in a million keeps it invertible.
    colour = colour + 1e-6 * variance * torch.eye(len(mean), dtype=torch.float64, device="cpu")

    rows, columns = (_dct(side, torch.float64, torch.device("cpu")) for side in size)
    energy = (rows @ centred @ columns.mT).square().mean((0, 1)).flatten()[1:].numpy()
    squared = _squared_frequency(size).flatten()[1:].numpy()

    def deviance(parameters: np.ndarray) -> float:
        power, log_f0 = parameters
        log_s = -power / 2 * np.log(math.exp(2 * log_f0) + squared)
        return float(np.log(np.mean(energy * np.exp(-log_s))) + np.mean(log_s))

    from scipy.optimize import minimize  # loading it takes a third of a second, and the built-in priors do without

    best = minimize(deviance, (2.0, 0.0), method="L-BFGS-B", bounds=((0.0, 8.0), (math.log(1e-2), math.log(max(size)))))
    return Prior(mean, colour, float(best.x[0]), math.exp(float(best.x[1])), size)


@lru_cache(maxsize=32)
@torch.inference_mode(False)  # a cached inference tensor could not take part in a later backward pass
def _dct(side: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Orthonormal DCT-II matrix (side, side), rows are frequencies."""
    n = torch.arange(side, dtype=torch.float64, device="cpu")
    matrix = torch.cos(math.pi / side * n[:, None] * (n + 0.5)) * math.sqrt(2 / side)
    matrix[0] /= math.sqrt(2)
    return matrix.to(device, dtype)


def _squared_frequency(size: tuple[int, int]) -> Tensor:
    """`|f|^2` (H, W) of the DCT coefficients: coefficient k of n pixels has k / 2n cycles a pixel."""
    longer = max(size)
    vertical, horizontal = (torch.arange(n, dtype=torch.float64, device="cpu") * longer / (2 * n) for n in size)
    return vertical[:, None] ** 2 + horizontal**2


@lru_cache(maxsize=32)
@torch.inference_mode(False)
def _gain(
    size: tuple[int, int], power: float, f0: float, exponent: float, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Spectrum (H, W) of unit mean (so of unit mean pixel variance), to the power `exponent`."""
    spectrum = (f0**2 + _squared_frequency(size)) ** (-power / 2)
    return (spectrum / spectrum.mean()).pow(exponent).to(device, dtype)
