"""The mixture of source prompts and target prompt that an input is read with (equations 1, 2, 4 and 5)."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from attempt_cli.method.attention import PromptAttention
from attempt_cli.method.module import PromptModule
from attempt_cli.method.param_groups import trained_param_groups
from attempt_cli.method.pooling import pool_prompts

Level = Literal["instance", "token"]


def constant_weights(sources: int) -> Tensor:
    """Returns the weights of the paper's "no attention": 1/t for each of t sources and 0 for the target, [t + 1].

    Raises:
        ValueError: there is no source.
    """
    if sources < 1:
        raise ValueError("constant weights need at least one source")
    return torch.tensor([1 / sources] * sources + [0.0])


class PromptMixture(PromptModule):
    """Gives every row its prompt, which is placed before the input or after it; holds all trained tensors.

    Without sources it is prompt tuning (equation 1): the row's target prompt itself. With sources it is ATTEMPT
    (equation 4): P_instance = P_target + Σ_{j=1..t+1} a_j P_j, where the target is one of the t + 1 and is added once
    more. Prompts, sources and pooled inputs are all in the same unit.

    Its settings are the paper's variants: `level="token"` weighs each of the m rows separately (equation 5);
    `with_target=False` is Σ_{j≤t} a_j P_j, a softmax over the sources alone ("no target"), and the target prompts are
    neither used nor trained; `fixed_weights` replaces a by given numbers ("no attention" with `constant_weights`, or
    weights that a user forces); `attention` may have a learned temperature; one source is t = 1.

    Args:
        target_prompts: initial values, one per task, [n, m, d]; trained.
        source_prompts: [t, m, d]; frozen.
        attention: G; trained. Sources need it or fixed weights.
        level: the unit that has a weight: a prompt ("instance") or each row of a prompt ("token").
        with_target: whether the target prompt takes part.
        fixed_weights: a, the same for every row of every batch, [t + 1], the target's last.
        prior: what is added to each task's scores before the softmax, [n, t + 1]; trained.
        source_norm: scales every source to this norm (of all its entries); None leaves them as they are.

    Raises:
        ValueError: shapes do not agree, sources have no weights or weights no sources, or a setting has no effect (a
            level without attention, a weight for a target that takes no part, nothing left to mix).
    """

    target_prompts: nn.Parameter
    source_prompts: Tensor | None
    source_keys: Tensor | None
    fixed_weights: Tensor | None
    prior: nn.Parameter | None

    def __init__(
        self,
        target_prompts: Tensor,
        source_prompts: Tensor | None = None,
        attention: PromptAttention | None = None,
        *,
        level: Level = "instance",
        with_target: bool = True,
        fixed_weights: Tensor | None = None,
        prior: Tensor | None = None,
        source_norm: float | None = None,
    ) -> None:
        super().__init__()
        _check_shapes(target_prompts, source_prompts, attention, fixed_weights)
        scored = (len(target_prompts), 1 + (0 if source_prompts is None else len(source_prompts)))
        if prior is not None and (attention is None or prior.shape != scored):
            raise ValueError(f"a prior is added to the attention's scores, {list(scored)}")
        _check_settings(source_prompts, attention, level, with_target, fixed_weights)
        self.level = level
        self.with_target = with_target
        # prompts and G stay in fp32; the mixture is cast once, when it is joined to X
        self.target_prompts = nn.Parameter(target_prompts.detach().clone().float(), requires_grad=with_target)
        self.attention = attention
        frozen = None if source_prompts is None else source_prompts.detach().clone().float()
        if frozen is not None and source_norm is not None:
            frozen = scaled_to(frozen, source_norm)
        self.source_norm = source_norm
        self.prior = None if prior is None else nn.Parameter(prior.detach().clone().float())
        # the sources never change, so neither do their keys; at the token level the sources are their own keys
        keys = None if frozen is None or attention is None or level == "token" else pool_prompts(frozen)
        fixed = None if fixed_weights is None else fixed_weights.detach().clone().float()
        for name, tensor in (("source_prompts", frozen), ("source_keys", keys), ("fixed_weights", fixed)):
            self.register_buffer(name, tensor, persistent=False)

    def param_groups(self) -> dict[str, list[nn.Parameter]]:
        """Returns the trained tensors by learning rate: target prompts under `prompts`, the rest under `attention`."""
        attention = [] if self.attention is None else list(self.attention.parameters())
        attention += [] if self.prior is None else [self.prior]
        return trained_param_groups([self.target_prompts], attention)

    def forward(self, task_ids: Tensor, pooled_input: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Returns the prompts of a batch whose rows may belong to several tasks.

        Args:
            task_ids: the target prompt of each row, [b].
            pooled_input: x̂, [b, d]; an attention module needs it.

        Returns:
            P_instance, [b, m, d], and the weights a, [b, t + 1] (None without sources). At the token level they are
            means over the m rows.

        Raises:
            ValueError: there is an attention module but no pooled input.
        """
        if self.source_prompts is None:
            return self.target_prompts[task_ids], None
        targets = self.target_prompts[task_ids] if self.with_target else None  # [b, m, d]
        weights = self._weights(task_ids, targets, pooled_input)  # [b, t + 1], at the token level [b, t + 1, m]
        # Σ_j a_j P_j over the sources is one matrix product (at the token level one for each of the m rows);
        # no [b, t, m, d] tensor is made
        equation = "bt,tmd->bmd" if weights.dim() == 2 else "btm,tmd->bmd"
        prompts = torch.einsum(equation, weights[:, :-1], self.source_prompts)
        if targets is not None:
            prompts = (1 + weights[:, -1]).view(len(targets), -1, 1) * targets + prompts  # eq. 4
        return prompts, weights if weights.dim() == 2 else weights.mean(dim=2)

    def _weights(self, task_ids: Tensor, targets: Tensor | None, pooled_input: Tensor | None) -> Tensor:
        """Returns the weights of the mixture, [b, t + 1] or [b, t + 1, m]."""
        if self.fixed_weights is not None:
            return self.fixed_weights.expand(len(task_ids), -1)
        if pooled_input is None or self.attention is None or self.source_prompts is None:
            raise ValueError("a mixture of sources needs the pooled input")
        weights: Tensor
        prior = None if self.prior is None else self.prior[task_ids]
        if self.source_keys is None:  # eq. 5
            weights = self.attention(pooled_input, self.source_prompts, targets, prior)
            return weights
        if targets is None:
            target_keys = None
        elif len(self.target_prompts) <= len(targets):  # pool the fewer: the tasks or the batch's rows
            target_keys = pool_prompts(self.target_prompts)[task_ids]
        else:
            target_keys = pool_prompts(targets)
        weights = self.attention(pooled_input, self.source_keys, target_keys, prior)  # eq. 3
        return weights


def prompt_norms(prompts: Tensor) -> Tensor:
    """Returns the norm over all entries of each prompt, [t], of [t, m, d]."""
    norms: Tensor = torch.linalg.vector_norm(prompts, dim=(1, 2))
    return norms.clamp(min=1e-12)


def scaled_to(prompts: Tensor, norm: float) -> Tensor:
    """Returns prompts that all have the same norm, [t, m, d]."""
    return prompts * (norm / prompt_norms(prompts))[:, None, None]


def _check_shapes(
    target_prompts: Tensor,
    source_prompts: Tensor | None,
    attention: PromptAttention | None,
    fixed_weights: Tensor | None,
) -> None:
    """Raises ValueError if tensors do not fit each other."""
    if target_prompts.dim() != 3:
        raise ValueError(f"target prompts are [n, m, d], not {list(target_prompts.shape)}")
    if source_prompts is not None and source_prompts.shape[1:] != target_prompts.shape[1:]:
        raise ValueError(
            f"sources [t, m, d] {list(source_prompts.shape)} and targets [n, m, d] {list(target_prompts.shape)} "
            "differ in length m or width d"
        )
    if attention is not None and attention.width != target_prompts.shape[2]:
        raise ValueError(
            f"the attention module is for width {attention.width}, the prompts have width {target_prompts.shape[2]}"
        )
    if attention is not None and target_prompts.shape[1] == 0:
        raise ValueError("prompts that are attended to have at least one row; these have length m = 0")
    if source_prompts is not None and fixed_weights is not None:
        needed = len(source_prompts) + 1
        if fixed_weights.shape != (needed,) or not fixed_weights.isfinite().all():
            raise ValueError(
                f"fixed weights are {needed} finite numbers, one per source and the target's last, "
                f"not {fixed_weights.tolist()}"
            )


def _check_settings(
    source_prompts: Tensor | None,
    attention: PromptAttention | None,
    level: Level,
    with_target: bool,
    fixed_weights: Tensor | None,
) -> None:
    """Raises ValueError if settings contradict each other."""
    if attention is not None and fixed_weights is not None:
        raise ValueError("weights are fixed or come from the attention module, not both")
    if (source_prompts is None) != (attention is None and fixed_weights is None):
        raise ValueError("source prompts and the attention module (or fixed weights) come together")
    if level not in get_args(Level):
        raise ValueError(f"the level is {level!r}; it is one of {', '.join(get_args(Level))}")
    if level == "token" and attention is None:
        raise ValueError("the token level is the attention module's; here there is none")
    if not with_target and (source_prompts is None or len(source_prompts) == 0):
        raise ValueError("without the target there is at least one source to mix")
    if not with_target and fixed_weights is not None and fixed_weights[-1] != 0:
        raise ValueError(f"the target takes no part, and its fixed weight is {fixed_weights[-1].item():g}; it is 0")
