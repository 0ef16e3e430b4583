"""The equations of ATTEMPT in plain loops over float64 numbers, written from the paper, not from the package.

Nothing here imports torch or `attempt_cli`: it is what the package is measured against. One row at a time, one number
at a time; slow, and easy to read beside the paper.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass
class Parameters:
    """All that ATTEMPT trains.

    Args:
        targets: one prompt a task, [n, m, d].
        down: W_down, [r, d].
        up: W_up, [d, r].
        gain: the LayerNorm's weight, [d].
        bias: the LayerNorm's bias, [d].
    """

    targets: Array
    down: Array
    up: Array
    gain: Array
    bias: Array

    def items(self) -> list[tuple[str, Array]]:
        return list(vars(self).items())


def pool(rows: Array) -> Array:
    """The maximum of each dimension over the rows, [l, d] to [d]."""
    pooled = np.empty(rows.shape[1])
    for k in range(rows.shape[1]):
        pooled[k] = max(float(row[k]) for row in rows)
    return pooled


def query(x_hat: Array, p: Parameters) -> Array:
    """h = LayerNorm(W_up · SiLU(W_down · x̂)), [d]."""
    r, d = p.down.shape
    hidden = []
    for i in range(r):
        z = sum(p.down[i, k] * x_hat[k] for k in range(d))
        hidden.append(z / (1.0 + math.exp(-z)))  # SiLU(z) = z · sigmoid(z)
    up = [sum(p.up[k, i] * hidden[i] for i in range(r)) for k in range(d)]
    mean = sum(up) / d
    variance = sum((u - mean) ** 2 for u in up) / d
    return np.array([p.gain[k] * (up[k] - mean) / math.sqrt(variance + 1e-5) + p.bias[k] for k in range(d)])


def attention(x_hat: Array, sources: Array, target: Array, p: Parameters, temperature: float) -> Array:
    """Equation 3: a_j = exp(p̂_j · h / T) / Σ_k exp(p̂_k · h / T), j over the t sources and then the target, [t + 1]."""
    h = query(x_hat, p)
    prompts = [*sources, target]
    exponentials = [
        math.exp(float(sum(a * b for a, b in zip(pool(prompt), h, strict=True))) / temperature) for prompt in prompts
    ]
    return np.array([e / sum(exponentials) for e in exponentials])


def mix(weights: Array, sources: Array, target: Array) -> Array:
    """Equation 4: P_target + Σ_{j=1..t+1} a_j P_j, [m, d]; the target is the last of the t + 1."""
    m, d = target.shape
    prompts = [*sources, target]
    mixture = np.empty((m, d))
    for i in range(m):
        for k in range(d):
            mixture[i, k] = target[i, k] + sum(
                weight * prompt[i, k] for weight, prompt in zip(weights, prompts, strict=True)
            )
    return mixture


def instance_prompts(
    inputs: Sequence[Array], task_ids: Sequence[int], sources: Array, p: Parameters, temperature: float
) -> tuple[Array, Array]:
    """The prompts and weights of a batch of rows, each an unpadded [l, d]: [b, m, d] and [b, t + 1]."""
    prompts, weights = [], []
    for row, task in zip(inputs, task_ids, strict=True):
        a = attention(pool(row), sources, p.targets[task], p, temperature)
        prompts.append(mix(a, sources, p.targets[task]))
        weights.append(a)
    return np.stack(prompts), np.stack(weights)


@dataclass
class Variant:
    """One of the paper's variants; the defaults are equations 3 and 4.

    Args:
        token: every row of a prompt has its own weights (equation 5).
        with_target: the target is in the softmax and in the mixture; without it, it is in neither.
    """

    token: bool = False
    with_target: bool = True


@dataclass
class LearnedTemperature(Parameters):
    """Trained parameters with log T, [1], among them."""

    log_temperature: Array


def softmax_scores(h: Array, keys: Sequence[Array], temperature: float) -> list[float]:
    exponentials = [math.exp(float(sum(a * b for a, b in zip(key, h, strict=True))) / temperature) for key in keys]
    return [e / sum(exponentials) for e in exponentials]


def variant_prompts(
    inputs: Sequence[Array],
    task_ids: Sequence[int],
    sources: Array,
    p: Parameters,
    temperature: float,
    variant: Variant,
) -> tuple[Array, Array]:
    """The prompts of a batch, [b, m, d], and the weights as they are reported, [b, t + 1]: means over the m rows.

    Equation 5 has for row l of the prompt: a_jl = softmax_j(p_jl · h / T), P_instance,l = P_target,l + Σ_j a_jl p_jl.
    """
    if isinstance(p, LearnedTemperature):
        temperature = math.exp(p.log_temperature[0])
    m, d = p.targets.shape[1:]
    prompts, reported = np.zeros((len(inputs), m, d)), np.zeros((len(inputs), len(sources) + 1))
    for i, (row, task) in enumerate(zip(inputs, task_ids, strict=True)):
        h = query(pool(row), p)
        mixed = [*sources, p.targets[task]] if variant.with_target else [*sources]
        for place in range(m):
            keys = [prompt[place] if variant.token else pool(prompt) for prompt in mixed]
            for j, weight in enumerate(softmax_scores(h, keys, temperature)):
                reported[i, j] += weight / m
                for k in range(d):
                    prompts[i, place, k] += weight * mixed[j][place, k]
            if variant.with_target:
                prompts[i, place] += p.targets[task][place]
    return prompts, reported


def numeric_gradients(loss: Callable[[Parameters], float], p: Parameters, step: float = 1e-5) -> dict[str, Array]:
    """Fourth-order central differences of a loss in every trained number: errors of about 1e-11 at this step."""
    gradients = {}
    for name, values in p.items():
        gradient = np.empty_like(values)
        for at in np.ndindex(*values.shape):
            kept = values[at]
            losses = []
            for offset in (-2, -1, 1, 2):
                values[at] = kept + offset * step
                losses.append(loss(p))
            values[at] = kept
            gradient[at] = (losses[0] - 8 * losses[1] + 8 * losses[2] - losses[3]) / (12 * step)
        gradients[name] = gradient
    return gradients
