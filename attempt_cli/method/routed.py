"""Mixtures of prompts of which a router picks one for each input: SMoP and PT-MoE.

SMoP: Choi et al., EMNLP 2023, sparse mixture of prompts. PT-MoE: Li, Su and Collier, arXiv 2505.09519, whose prompts
are products of a factor of their own and a factor that they share.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from attempt_cli.method.module import BuildInputs, PromptModule
from attempt_cli.method.param_groups import trained_param_groups


class RoutedPrompts(PromptModule):
    """Gives every row the prompt that its task's router picks for the input, P = w_i P_i.

    The router reads the mean x̄ of the input's embeddings: l = W x̄ + b, in training l' = l ∘ (1 + ε) with
    ε ~ N(0, σ²) for each row and prompt; w = softmax(l') where it is largest, 0 elsewhere. So the picked prompt i
    counts with its probability, and that is what the router learns from. Out of training there is no noise. PT-MoE's
    prompts are P_i = A_i B, where all share B. (SMoP is the case without B, and its router has no bias.) σ is 1 by
    default: SMoP's code has that, and what PT-MoE takes was not found.

    With α > 0 the loss gets α·k·Σ_i f_i p̄_i, where f_i is the share of rows that pick prompt i and p̄_i the mean of its
    probability: the load-balancing loss of SMoP's code, over the rows of a pass, where its paper prefers the noise.
    Both papers leave W's start open (SMoP's code starts it orthogonal); here it is N(0, 1/d), so that scores of inputs
    in RMS units start apart, but below 1.

    Args:
        experts: initial P_i, [n, k, m, d], or with `shared` A_i, [n, k, m, r]; trained.
        shared: initial B, [n, r, d]; trained.
        bias: whether the router has b.
        noise: σ.
        balance: α.
        seed: of the noise, with each step's number.
        generator: draws W; the global generator without one.

    Raises:
        ValueError: sizes do not fit.
    """

    def __init__(
        self,
        experts: Tensor,
        shared: Tensor | None = None,
        *,
        bias: bool = False,
        noise: float = 0.0,
        balance: float = 0.0,
        seed: int = 0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if experts.dim() != 4 or 0 in experts.shape:
            raise ValueError(f"prompts are [n, k, m, d] or their factors [n, k, m, r], not {list(experts.shape)}")
        if shared is not None and (shared.dim() != 3 or shared.shape[:2] != (experts.shape[0], experts.shape[3])):
            raise ValueError(f"factors {list(experts.shape)} do not fit the shared {list(shared.shape)}")
        tasks, count = experts.shape[:2]
        width = (experts if shared is None else shared).shape[-1]
        self.experts = nn.Parameter(experts.detach().clone().float())
        self.shared = None if shared is None else nn.Parameter(shared.detach().clone().float())
        router = torch.empty(tasks, count, width).normal_(std=width**-0.5, generator=generator)
        self.router = nn.Parameter(router)  # W, [n, k, d]
        self.router_bias = nn.Parameter(torch.zeros(tasks, count)) if bias else None
        self.noise, self.balance, self.seed = noise, balance, seed
        self.differs_in_steps = noise > 0 or balance > 0
        self._draws: torch.Generator | None = None  # the noise of the step that is being computed
        self._penalty: Tensor | None = None

    @property
    def length(self) -> int:
        """m, the number of tokens of each prompt."""
        return self.experts.shape[2]

    @property
    def reads_input(self) -> bool:
        """Always: the router does."""
        return True

    @property
    def target_prompts(self) -> Tensor:
        """The mean of each task's prompts, [n, m, d]: what rows get between them, not what any row gets."""
        mean = self.experts.mean(dim=1)
        return mean if self.shared is None else mean @ self.shared

    def pool(self, embeddings: Tensor, mask: Tensor) -> Tensor:
        """Returns x̄, the mean of each input's embeddings over its real tokens, [b, d]."""
        real = mask[..., None].to(torch.float32)
        return (embeddings.float() * real).sum(dim=1) / real.sum(dim=1)

    def param_groups(self) -> dict[str, list[nn.Parameter]]:
        """Returns the trained tensors by learning rate: prompts under `prompts`, all else under `attention`."""
        prompts, others = ([self.experts], [self.router]) if self.shared is None else ([], [self.experts, self.router])
        others += [one for one in (self.shared, self.router_bias) if one is not None]
        return trained_param_groups(prompts, others)

    def forward(self, task_ids: Tensor, pooled_input: Tensor | None = None) -> tuple[Tensor, None]:
        """Returns the prompts of the rows, [b, m, d], and None: no sources are mixed.

        Args:
            task_ids: the task of each row, [b].
            pooled_input: x̄, [b, d].

        Raises:
            ValueError: there is no pooled input.
        """
        if pooled_input is None:
            raise ValueError("a router needs the pooled input")
        scores = torch.einsum("bd,bkd->bk", pooled_input, self.router[task_ids])  # l
        if self.router_bias is not None:
            scores = scores + self.router_bias[task_ids]
        if self._draws is not None and self.noise:
            # drawn on the CPU, so that every device trains with the same numbers
            drawn = torch.randn(scores.shape, generator=self._draws)
            if scores.is_cuda:  # pinned, nobody waits for the copy
                drawn = drawn.pin_memory()
            scores = scores * (1 + self.noise * drawn.to(scores.device, scores.dtype, non_blocking=True))
        probabilities = scores.softmax(dim=-1)  # [b, k]
        best, picked = probabilities.max(dim=-1)  # [b]
        if self._draws is not None and self.balance:
            share = nn.functional.one_hot(picked, scores.shape[1]).to(scores.dtype).mean(dim=0)  # f, without gradient
            self._penalty = self.balance * scores.shape[1] * (share * probabilities.mean(dim=0)).sum()
        prompts = best[:, None, None] * self.experts[task_ids, picked]
        return (prompts if self.shared is None else prompts @ self.shared[task_ids]), None

    @contextmanager
    def in_step(self, step: int, total: int) -> Iterator[None]:
        """Draws noise inside, the same for the same step: a resumed training goes on with the same bits."""
        self._draws = torch.Generator("cpu").manual_seed((self.seed * 1_000_003 + step) % 2**63)
        try:
            yield
        finally:
            self._draws = self._penalty = None

    def penalty(self) -> Tensor | None:
        """Returns the load-balancing loss of the last pass of a step."""
        return self._penalty

    def kept_parts(self, number: int) -> dict[str, Tensor]:
        """Returns all tensors of a task."""
        return {name: tensor[number] for name, tensor in self.named_parameters()}

    @classmethod
    def from_parts(cls, prompt: Tensor, parts: Mapping[str, Tensor]) -> RoutedPrompts:
        """Makes the module of one task from its tensors; the prompt, a mean of them, says nothing more."""
        state = {name: part[None] for name, part in parts.items()}
        module = cls(state["experts"], state.get("shared"), bias="router_bias" in state)
        module.load_state_dict(state)
        return module


def build_smop(inputs: BuildInputs) -> RoutedPrompts:
    """Builds SMoP: k short prompts that have m tokens together, each from other words."""
    settings = inputs.settings
    tasks, _, width = inputs.initial.shape
    count, length = _short_prompts(inputs)
    experts = inputs.initial[:, : count * length].reshape(tasks, count, length, width)
    return RoutedPrompts(
        experts,
        noise=settings["noise"],
        balance=settings["balance"],
        seed=inputs.config.seed,
        generator=inputs.generator,
    )


def smop_parameters(inputs: BuildInputs) -> int:
    """Counts k·m/k·d for the prompts and k·d for the router."""
    count, length = _short_prompts(inputs)
    return count * (length + 1) * inputs.initial.shape[2]


def _short_prompts(inputs: BuildInputs) -> tuple[int, int]:
    count: int = inputs.settings["prompts"]
    return count, inputs.initial.shape[1] // count


def build_pt_moe(inputs: BuildInputs) -> RoutedPrompts:
    """Builds PT-MoE: N prompts A_i B of m tokens.

    As in the paper, factors start from the singular value decomposition U Σ V of words' embeddings, cut at R:
    A_i = U √Σ, B = √Σ V. The words are those that a plain prompt starts from (the paper: of the task's text), and the
    same for every i, since B is shared; the router's choices set the A_i apart.
    """
    settings, rank = inputs.settings, _rank(inputs)
    u, s, v = torch.linalg.svd(inputs.initial.float(), full_matrices=False)
    root = s[:, :rank].sqrt()
    factors = (u[..., :rank] * root[:, None])[:, None].repeat(1, settings["experts"], 1, 1)  # [n, N, m, R]
    return RoutedPrompts(
        factors,
        root[..., None] * v[:, :rank],
        bias=True,
        noise=settings["noise"],
        balance=settings["balance"],
        seed=inputs.config.seed,
        generator=inputs.generator,
    )


def pt_moe_parameters(inputs: BuildInputs) -> int:
    """Counts N·m·R + R·d for the factors and N·d + N for the router."""
    _, length, width = inputs.initial.shape
    experts, rank = inputs.settings["experts"], _rank(inputs)
    count: int = experts * length * rank + rank * width + experts * (width + 1)
    return count


def _rank(inputs: BuildInputs) -> int:
    """R as it was given, else nine tenths of m (36 of 40 tokens); no more than m and d allow."""
    _, length, width = inputs.initial.shape
    return min(inputs.settings["rank"] or max(1, 9 * length // 10), length, width)
