"""RMS norms in one kernel each way, on a GPU: the library's are six, and eight back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class FrozenNorm(torch.autograd.Function):
    """RMSNorm with a frozen weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        result, root = rms_norm(flat, weight, eps)
        ctx.save_for_backward(flat, weight, root)
        return result.view(x.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, weight, root = ctx.saved_tensors
        gradient = gradients[0]
        return norm_backward(gradient.reshape(x.shape), x, weight, root).view(gradient.shape), None, None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Returns the RMSNorm of [k, d], and the reciprocals of the roots, [k, 1], fp32."""
    if x.is_cuda:
        fused: tuple[Tensor, Tensor] = torch.ops.aten._fused_rms_norm(x, [x.shape[-1]], weight, eps)
        return fused
    exact = x.float()
    root = torch.linalg.vecdot(exact, exact).div_(x.shape[-1]).add_(eps).rsqrt_().unsqueeze(-1)
    scaled = exact * root if exact is x else exact.mul_(root)
    return scaled.to(x.dtype) * weight, root


def norm_backward(gradient: Tensor, x: Tensor, weight: Tensor, root: Tensor) -> Tensor:
    """Returns the gradient of RMSNorm's input, [k, d]: root · (g·w - x̂ · mean(g·w·x̂)), x̂ = x · root."""
    if x.is_cuda:
        wanted = [True, False]  # of x, not of the weight
        of_x: Tensor = torch.ops.aten._fused_rms_norm_backward(gradient, x, [x.shape[-1]], root, weight, wanted)[0]
        return of_x
    exact = (gradient * weight).float()
    scaled = x * root  # fp32, as the root is
    share = torch.linalg.vecdot(exact, scaled).div_(-x.shape[-1]).unsqueeze(-1)
    return exact.addcmul_(scaled, share).mul_(root).to(x.dtype)


def fuse_norms(model: nn.Module) -> None:
    """Lets a model's RMS norms run in one kernel each way, as long as nothing trains or compiles them.

    Each kind of norm is tried: one with another formula (Gemma's) stays the library's.
    """
    fitting: dict[tuple[type, torch.dtype], bool] = {}
    for module in model.modules():
        weight, eps = getattr(module, "weight", None), getattr(module, "variance_epsilon", None)
        if not (isinstance(weight, Tensor) and weight.dim() == 1 and isinstance(eps, float)):
            continue
        kind = (type(module), weight.dtype)
        if kind not in fitting:
            fitting[kind] = _same(module, weight, eps)
        if fitting[kind]:
            module.forward = _fused(module, module.forward)


def _same(module: nn.Module, weight: Tensor, eps: float) -> bool:
    x = torch.randn(8, len(weight), generator=torch.Generator().manual_seed(0)).to(weight.device, weight.dtype)
    with torch.no_grad():
        wanted, found = module(x).float(), rms_norm(x, weight, eps)[0].float()
    return bool((wanted - found).norm() <= 4 * torch.finfo(weight.dtype).eps * wanted.norm())


def _fused(module: Any, loaded: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        weight = module.weight
        kept = x.dtype == weight.dtype and x.device == weight.device and not weight.requires_grad
        if not kept or torch.compiler.is_compiling():
            return loaded(x)
        result: Tensor = FrozenNorm.apply(x, weight, module.variance_epsilon)  # type: ignore[no-untyped-call]
        return result

    return forward
