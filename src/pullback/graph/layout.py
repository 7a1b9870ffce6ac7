"""Which tensors of a tape are feature maps in (N, C, H, W) order, told from the operations around them and not from shapes."""

from __future__ import annotations

from pullback.graph.tape import Tape

# Operations that read and return (N, C, H, W) by definition.
_CHANNELS_FIRST = {
    "convolution", "cudnn_convolution", "mkldnn_convolution", "native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm",
    "native_batch_norm_legit_no_training", "native_group_norm", "max_pool2d_with_indices", "mkldnn_max_pool2d", "avg_pool2d",
    "adaptive_avg_pool2d", "adaptive_max_pool2d", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle",
    "upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d", "upsample_nearest_exact2d",
}  # fmt: skip
_NATURAL = (0, 1, 2, 3)


def channels_first(tape: Tape) -> set[int]:
    """Tensors with four axes that are (N, C, H, W): made by or read by a spatial operation, or derived from such a one.

    Axis orders are followed through permutations (ConvNeXt works in NHWC inside its blocks) and through operations that
    keep the shape; a reshape of space ends the trail, which starts again where a convolution or pooling reads the result.
    """
    order: dict[int, tuple[int, ...]] = {tape.input.tensor: _NATURAL}
    for i in tape.live:
        op = tape.ops[i]
        four = [t for t in op.outputs if len(tape.shapes[t]) == 4]
        if op.name in _CHANNELS_FIRST:
            order.update({t: _NATURAL for t in (*four, op.inputs[0]) if len(tape.shapes[t]) == 4})
        elif op.name in ("mean", "amax", "sum") and _pools_space(op.args) and len(tape.shapes[op.inputs[0]]) == 4:
            order.setdefault(op.inputs[0], _NATURAL)
            order.update(dict.fromkeys(four, order[op.inputs[0]]))
        elif op.name in ("permute", "transpose", "t"):
            known = order.get(op.inputs[0])
            if known and four:
                order[four[0]] = _permuted(op.name, op.args, known)
        elif op.name in ("view", "reshape", "unsafe_view"):
            # Instance norm regroups images and channels, (1, N * C, H, W), and leaves space alone.
            if (
                four
                and order.get(op.inputs[0]) == _NATURAL
                and tape.shapes[four[0]][2:] == tape.shapes[op.inputs[0]][2:]
            ):
                order[four[0]] = _NATURAL
        else:
            known = next((order[t] for t in op.inputs if t in order and len(tape.shapes[t]) == 4), None)
            if known:
                order.update({t: known for t in four if t not in order})
    images = tape.shapes[tape.input.tensor][0]
    return {t for t, axes in order.items() if axes == _NATURAL and tape.shapes[t][0] == images}


def _pools_space(args: tuple[object, ...]) -> bool:
    dims = args[1] if len(args) > 1 else None
    return isinstance(dims, list | tuple) and sorted(d % 4 for d in dims) == [2, 3]


def _permuted(name: str, args: tuple[object, ...], known: tuple[int, ...]) -> tuple[int, ...]:
    if name == "permute":
        return tuple(known[int(d) % 4] for d in args[1])  # type: ignore[attr-defined]
    axes = list(known)
    a, b = (int(d) % 4 for d in args[1:3])  # type: ignore[call-overload]
    axes[a], axes[b] = axes[b], axes[a]
    return tuple(axes)
