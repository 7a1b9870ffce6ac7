"""Whose picture is it? Transplants, whole swaps, and an encoder that was never trained (specification, section 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pullback.encoders import Encoder
from pullback.encoders.twin import twin
from pullback.errors import EncoderError
from pullback.measures import correlation

SIDE = 0.3  # of the image's: 9 % of its area
UNTOUCHED = 0.01  # share of the parameters up to which those that stay trained (layer scales, slopes) count for nothing


@dataclass(frozen=True, eq=False)
class Patch:
    """Where a patch of the donor was pasted, (H, W) bool, and the image (C, H, W) with it."""

    inside: Tensor
    pasted: Tensor

    @property
    def area(self) -> float:
        return float(self.inside.double().mean())


def paste(image: Tensor, donor: Tensor, seed: int) -> Patch:
    """The image with a patch of the donor, both (C, H, W), 30 % of each side, taken from where it is put; place by the seed."""
    generator = torch.Generator().manual_seed(seed)
    inside = torch.zeros(image.shape[1:], dtype=torch.bool, device=image.device)
    slices = []
    for length in image.shape[1:]:
        side = max(1, round(SIDE * length))
        first = int(torch.randint(length - side + 1, (), generator=generator, device="cpu"))
        slices.append(slice(first, first + side))
    inside[slices[0], slices[1]] = True
    return Patch(inside, torch.where(inside, donor, image))


@dataclass(frozen=True, eq=False)
class Guest:
    """The other image (C, H, W) of a pair, and the image with a patch of it."""

    donor: Tensor
    patch: Patch


@dataclass(frozen=True)
class Transplant:
    """correlation of the picture's change with the true change inside the patch; energy: share of the change's inside it."""

    correlation: float
    energy: float


def transplant(change: Tensor, image: Tensor, patch: Patch) -> Transplant | None:
    """Does the patch appear? change (C, H, W): the picture of the pasted image's features minus that of the image's own.
    None where the patch is what was there before, up to one shade: then there is nothing to appear.

    A method that draws the patch scores correlation 1 and energy 1; one that does not look at the features changes nothing
    and scores 0 and the patch's share of the area, as a change without a place does.
    """
    wanted = (patch.pasted - image)[:, patch.inside]
    if float(wanted.std()) <= 1e-6 * float(wanted.abs().max()):
        return None
    total = float(change.double().square().sum())
    if total == 0:
        return Transplant(0.0, patch.area)
    within = change[:, patch.inside]
    found = correlation(within, wanted)
    return Transplant(0.0 if found != found else found, float(within.double().square().sum()) / total)


def random_encoder(encoder: Encoder, images: Sequence[Tensor], seed: int) -> Encoder:
    """The same architecture and stages with random weights: He et al. (2015), biases 0, norms 1 and 0.

    Statistics of batch norms are estimated anew on the preprocessed images (C, H, W). Parameters of other layers stay; raises
    EncoderError where they are more than a hundredth of all (weight_norm, parameters outside convolutions and linear layers),
    since the network would be half a trained one, and where the images are too few for the statistics.
    """
    module = twin(encoder.module)
    generator = torch.Generator().manual_seed(seed)
    norms = []
    redrawn: list[Tensor] = []
    with torch.no_grad():
        for layer in module.modules():
            weight, bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
            if isinstance(layer, nn.modules.conv._ConvNd | nn.Linear):
                if "weight" not in layer._parameters:
                    continue  # computed from others, as weight_norm does
                drawn = torch.empty(layer.weight.shape, dtype=torch.float32, device="cpu")
                nn.init.kaiming_normal_(drawn, nonlinearity="relu", generator=generator)
                layer.weight = nn.Parameter(drawn.to(layer.weight), requires_grad=False)  # the old one is the user's
                redrawn.append(layer.weight)
            elif isinstance(layer, nn.modules.batchnorm._BatchNorm | nn.GroupNorm | nn.LayerNorm):
                if isinstance(weight, Tensor):
                    layer.weight = nn.Parameter(torch.ones_like(weight), requires_grad=False)
                    redrawn.append(layer.weight)
            else:
                continue
            if isinstance(bias, Tensor):
                layer.bias = nn.Parameter(torch.zeros_like(bias), requires_grad=False)
                redrawn.append(layer.bias)
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                norms.append(layer)
        _refuse_trained(module, redrawn)
        _estimate(module, norms, torch.stack(list(images)).to(encoder.device, encoder.dtype))
    names = [stage.name for stage in encoder.stages]

    def split(stages: list[str] | None) -> Encoder:
        return Encoder.from_module(
            module,
            stages=stages,
            name=f"{encoder.name} with random weights",
            preprocessing=encoder.preprocessing,
            input_shape=encoder.input_shape,
        )

    # Stages that were found by themselves are found again, also where no module has their names.
    found = split(None)
    return found if [stage.name for stage in found.stages] == names else split(names)


def _refuse_trained(module: nn.Module, redrawn: Sequence[Tensor]) -> None:
    """Raise EncoderError where too many parameters are not among those redrawn."""
    done = {id(p) for p in redrawn}
    sizes = {name: p.numel() for name, p in module.named_parameters() if id(p) not in done}
    share = sum(sizes.values()) / max(1, sum(p.numel() for p in module.parameters()))
    if share > UNTOUCHED:
        raise EncoderError(
            f"{share:.0%} of the network's weights cannot be drawn anew, the largest of them {max(sizes, key=sizes.__getitem__)!r}:"
            " expected plain weights of convolutions, linear layers and norms (remove weight_norm and the like first)"
        )


def _estimate(module: nn.Module, norms: Sequence[nn.modules.batchnorm._BatchNorm], batch: Tensor) -> None:
    """Running statistics of the batch, with all else in eval mode. Raises EncoderError where a norm sees one value a channel."""
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = 1.0
        norm.train()
    if norms:
        try:
            module(batch)
        except ValueError as error:  # of a batch norm with a single value
            raise EncoderError(
                f"the batch norms of a random network cannot be estimated on {len(batch)} image(s): {error}; give more images"
            ) from error
    module.eval()
