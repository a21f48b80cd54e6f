"""Gradient inversion: what a gradient gives away of the samples that it was made of.

Zhao, Mopuri, Bilen 2020 (iDLG, arXiv:2001.02610): of cross-entropy on one sample, the gradient of
the last layer's bias is p − onehot(y), whose only negative entry is y's.

Exact linear leak (Phong et al. 2018; Geiping et al. 2020, proposition on fully connected layers): a
layer W x + b that sees one sample has dL/dW_i = (dL/db_i) x, so x = (dL/dW_i) / (dL/db_i).

Geiping, Bauermeister, Dröge, Moeller 2020 (arXiv:2003.14053), eq. 4, by Adam on signs:

    x* = argmin_x  1 − <∇L(x), g> / (‖∇L(x)‖ ‖g‖) + α TV(x)

What is recovered is scored by PSNR and SSIM (Wang et al. 2004), after it was matched to the
originals, since a batch has no order.

Shapes: B samples, C channels, H x W pixels.

Differs from the papers: the picture starts from the caller's guess, and pixels stay in its range.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from fedsim.errors import ConfigError

Gradients = Callable[[Tensor], list[Tensor]]
"""Inputs `[B, ...]` -> the gradients that a client would send, differentiable in the inputs."""

_SSIM_SIGMA, _SSIM_K1, _SSIM_K2 = 1.5, 0.01, 0.03


@dataclass(frozen=True, kw_only=True)
class Quality:
    """How near recovered pictures are to the originals.

    Attributes:
        order_B: Which recovered picture was matched to each original.
        psnr_B: Peak signal-to-noise ratio in dB; inf if equal.
        ssim_B: Structural similarity, 1 if equal.
    """

    order_B: np.ndarray
    psnr_B: np.ndarray
    ssim_B: np.ndarray


def idlg_label(bias_gradient_K: Tensor) -> int:
    """Return the label of one sample from the gradient of the last layer's bias.

    With noise on it, it is the smallest entry, and a guess.
    """
    return int(bias_gradient_K.argmin())


def linear_leak(weight_gradient_OI: Tensor, bias_gradient_O: Tensor) -> Tensor:
    """Return the input `[I]` that a linear layer saw, from its gradients for one sample.

    The row with the largest bias gradient is taken, which loses least to rounding.

    Raises:
        ConfigError: All bias gradients are zero, so nothing has leaked.
    """
    row = int(bias_gradient_O.abs().argmax())
    if not bias_gradient_O[row]:
        raise ConfigError("the layer's bias gradient is zero: nothing to divide by")
    return weight_gradient_OI[row] / bias_gradient_O[row]


def invert(
    gradients: Gradients,
    target: list[Tensor],
    start: Tensor,
    *,
    steps: int = 400,
    lr: float = 0.1,
    tv_weight: float = 1e-4,
    pixels: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """Return the inputs whose gradient points most nearly where `target` does.

    Args:
        gradients: Of the model under attack, with the labels known (`idlg_label`).
        target: The gradients that the client sent.
        start: The first guess `[B, C, H, W]`.
        steps: Of Adam on the signs of the gradient.
        lr: Of the first steps; it falls tenfold after 3/8, 5/8 and 7/8 of them.
        tv_weight: α.
        pixels: Smallest and largest value of a pixel.
    """
    x = start.detach().clone().requires_grad_()
    optimizer = torch.optim.Adam([x], lr=lr)
    milestones = [steps * part // 8 for part in (3, 5, 7)]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.1)
    best, smallest = x.detach().clone(), float("inf")
    for _ in range(steps):
        cost = cosine_distance(gradients(x), target) + tv_weight * total_variation(x)
        if float(cost.detach()) < smallest:
            best, smallest = x.detach().clone(), float(cost.detach())
        (grad,) = torch.autograd.grad(cost, x)
        x.grad = grad.sign()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            x.clamp_(*pixels)
    return best


def cosine_distance(one: list[Tensor], other: list[Tensor]) -> Tensor:
    """Return 1 − the cosine of two gradients, each a list of tensors; 1 if either is zero."""
    product = torch.stack([(a * b).sum() for a, b in zip(one, other, strict=True)]).sum()
    squares = [torch.stack([a.square().sum() for a in side]).sum() for side in (one, other)]
    tiny = torch.finfo(product.dtype).tiny
    return 1 - product / (squares[0] * squares[1]).clamp(min=tiny).sqrt()


def total_variation(x: Tensor) -> Tensor:
    """Return the mean absolute difference of neighbouring pixels of `[B, C, H, W]`."""
    return (x.diff(dim=-1)).abs().mean() + (x.diff(dim=-2)).abs().mean()


def quality(original_BCHW: np.ndarray, recovered_BCHW: np.ndarray, *, span: float = 1.0) -> Quality:
    """Match recovered pictures to the originals (least total squared error), and score them.

    Args:
        original_BCHW: Pictures.
        recovered_BCHW: In any order; clipped to the range of the originals, as a viewer would.
        span: Largest minus smallest value that a pixel can have.
    """
    original, recovered = np.asarray(original_BCHW, float), np.asarray(recovered_BCHW, float)
    if original.shape != recovered.shape or original.ndim != 4:
        raise ConfigError(
            f"pictures are {list(original.shape)} and {list(recovered.shape)}; "
            "expected [B, C, H, W] of both"
        )
    recovered = np.nan_to_num(recovered).clip(original.min(), original.max())
    error_BB = ((original[:, None] - recovered[None]) ** 2).mean(axis=(2, 3, 4))
    rows, order_B = linear_sum_assignment(error_BB)
    with np.errstate(divide="ignore"):
        psnr_B = 10 * np.log10(span**2 / error_BB[rows, order_B])
    ssim_B = [ssim(a, b, span=span) for a, b in zip(original, recovered[order_B], strict=True)]
    return Quality(order_B=order_B, psnr_B=psnr_B, ssim_B=np.array(ssim_B))


def ssim(one_CHW: np.ndarray, other_CHW: np.ndarray, *, span: float = 1.0) -> float:
    """Return the mean structural similarity, in windows of a Gaussian of 1.5 pixels."""

    def smooth(a: np.ndarray) -> np.ndarray:
        smoothed: np.ndarray = gaussian_filter(a, (0, _SSIM_SIGMA, _SSIM_SIGMA), truncate=3.5)
        return smoothed

    c1, c2 = (_SSIM_K1 * span) ** 2, (_SSIM_K2 * span) ** 2
    a, b = smooth(one_CHW), smooth(other_CHW)
    var_a, var_b = smooth(one_CHW**2) - a**2, smooth(other_CHW**2) - b**2
    cov = smooth(one_CHW * other_CHW) - a * b
    index = (2 * a * b + c1) * (2 * cov + c2) / ((a**2 + b**2 + c1) * (var_a + var_b + c2))
    return float(index.mean())


def picture(rows: Mapping[str, np.ndarray], captions: Mapping[str, list[str]]) -> bytes:
    """Return a PNG with one row of pictures for each name: originals, recovered, recovered with DP.

    Args:
        rows: Name -> pictures `[B, C, H, W]`, of 1 or 3 channels, in one range and order.
        captions: Name -> one line below each picture; a name may be missing.
    """
    import io

    from matplotlib.figure import Figure

    count = max(len(pictures) for pictures in rows.values())
    low, high = (f(p.min() if f is min else p.max() for p in rows.values()) for f in (min, max))
    figure = Figure(figsize=(1.4 * count + 1.6, 1.7 * len(rows)), layout="constrained")
    axes_RB = figure.subplots(len(rows), count, squeeze=False)
    for axes_B, (name, pictures) in zip(axes_RB, rows.items(), strict=True):
        for i, axes in enumerate(axes_B):
            axes.set_xticks([])
            axes.set_yticks([])
            if i < len(pictures):
                shown = np.moveaxis(pictures[i], 0, -1)
                shown = (shown - low) / max(high - low, 1e-12)
                axes.imshow(
                    shown[..., 0] if shown.shape[-1] == 1 else shown, cmap="gray_r", vmin=0, vmax=1
                )
                axes.set_xlabel(captions.get(name, [""] * count)[i], fontsize=8)
        axes_B[0].set_ylabel(name, fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
