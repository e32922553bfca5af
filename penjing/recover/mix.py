"""Mixing of samples within a batch: mixup and CutMix."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from penjing.batches import Batch
from penjing.errors import RecoverError
from penjing.recover.config import RecoverConfig


def mixable(
    batch: Batch, number: int, config: RecoverConfig, *, labels: bool, asks: bool
) -> tuple[Tensor, Tensor | None]:
    """The inputs of a batch and its labels ``[N]`` as `mix` takes them.

    Args:
        batch: The batch.
        number: Its number.
        config: Options of the run.
        labels: Whether any loss reads the labels; otherwise None stands for them.
        asks: Whether there is a teacher that answers to what is mixed.

    Raises:
        RecoverError: inputs or labels that cannot be mixed, or answers that were given for other inputs.
    """
    x, target = batch.inputs, batch.target if labels else None
    hard = isinstance(target, Tensor) and target.numel() == batch.size and not target.is_floating_point()
    if not (isinstance(x, Tensor) and x.is_floating_point() and (target is None or hard)):
        raise RecoverError(
            "mixup and CutMix need one input tensor of real numbers, and one label per sample or none",
            remedy="Set mixup and cutmix to 0 for this model",
        )
    if config.cutmix and x.dim() != 4:
        raise RecoverError("CutMix needs images [N, C, H, W]", remedy="Set cutmix to 0, or use mixup")
    if batch.teacher_logits is not None and not asks:
        raise RecoverError(
            "the data's teacher_logits are for the images as they are, not for mixed ones",
            remedy="Pass the original network as the teacher, or set mixup and cutmix to 0",
        )
    if target is None:
        return x, None
    if bool((target == config.ignore_index).any()):
        raise RecoverError(
            f"batch {number} has the label {config.ignore_index}, which is ignored; mixup and CutMix need a "
            "class for every sample",
            remedy="Leave such samples out, use losses without labels, or set mixup and cutmix to 0",
        )
    return x, target.reshape(-1)


def mix(
    x: Tensor,
    target_N: Tensor | None,
    num_classes: int,
    generator: torch.Generator,
    *,
    mixup: float = 0.0,
    cutmix: float = 0.0,
) -> tuple[Tensor, Tensor | None]:
    """Blend each sample with another of its batch.

    Mixup (Zhang et al. 2018) takes ``λ x_i + (1 - λ) x_j``; CutMix (Yun et al. 2019) pastes a rectangle of
    x_j whose area is ``1 - λ``; the targets are blended alike. λ is drawn from Beta(α, α), once for the
    batch; where both are on, either is taken with equal chance.

    Args:
        x: Inputs ``[N, …]``; CutMix needs ``x_NCHW``.
        target_N: Class indices; None mixes inputs alone.
        num_classes: Classes in all.
        generator: The only source of chance; on the CPU.
        mixup: α of mixup; 0 is off.
        cutmix: α of CutMix; 0 is off.

    Returns:
        The blended inputs and class probabilities ``[N, num_classes]``, None without labels.
    """
    hot_NK = None if target_N is None else F.one_hot(target_N.long(), num_classes).to(torch.float32)
    cut = cutmix > 0 and x.dim() == 4 and (mixup <= 0 or float(torch.rand((), generator=generator)) < 0.5)
    if not cut and mixup <= 0:
        return x, hot_NK
    share = _beta(cutmix if cut else mixup, generator)
    other = torch.randperm(len(x), generator=generator).to(x.device)
    if cut:
        top, left, bottom, right = _box(x.shape[2], x.shape[3], share, generator)
        x = x.clone()
        x[:, :, top:bottom, left:right] = x[other, :, top:bottom, left:right]
        share = 1 - (bottom - top) * (right - left) / (x.shape[2] * x.shape[3])
    else:
        x = torch.lerp(x[other], x, share)
    return x, None if hot_NK is None else torch.lerp(hot_NK[other], hot_NK, share)


def _beta(alpha: float, generator: torch.Generator) -> float:
    a, b = torch._standard_gamma(torch.full((2,), alpha, dtype=torch.float64), generator=generator).tolist()
    return a / (a + b) if a + b > 0 else 1.0


def _box(height: int, width: int, share: float, generator: torch.Generator) -> tuple[int, int, int, int]:
    """A rectangle of about ``1 - share`` of the image, cut off at the borders."""
    side = (1 - share) ** 0.5
    half_h, half_w = int(height * side) // 2, int(width * side) // 2
    y = int(torch.randint(height, (), generator=generator))
    x = int(torch.randint(width, (), generator=generator))
    return max(y - half_h, 0), max(x - half_w, 0), min(y + half_h, height), min(x + half_w, width)
