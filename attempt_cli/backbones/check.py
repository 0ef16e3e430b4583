"""Checks at loading that our scores are the model's own, and that prompts get a gradient."""

from __future__ import annotations

from dataclasses import dataclass
from inspect import signature

import torch
from torch import Tensor

from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.backbones.decoder_only import DecoderOnlyBackbone, windows_of
from attempt_cli.backbones.encoder_decoder import EncoderDecoderBackbone
from attempt_cli.backbones.rows import EncodedRow
from attempt_cli.errors import AttemptError, first_line


@torch.enable_grad()
def check_scores(backbone: FrozenBackbone) -> None:
    """Checks on a few rows that our scores are the model's own log-likelihoods, and that prompts get a gradient.

    Words of several tokens, as targets in a padded batch and as label words in one pass, are compared with plain
    forward passes; where the config names a window, also on a row that is longer. Some architectures scale or cap their
    logits after the head, look ahead, or read masks and positions in their own way. An architecture whose scores differ
    is refused: no answer is better than a wrong one.

    Raises:
        AttemptError: the scores differ, or a prompt gets no gradient.
    """
    check_gradients(backbone)
    words = [backbone.target_tokens(text, end=True) for text in ("five six", "seven")]
    inputs = [row.input_ids for row in backbone.encode(["one two three", "four five"], None, 8)]
    short = len(inputs)
    longest = _row_beyond_windows(backbone, max(map(len, words)))
    if longest:
        text = "one two three four five six seven eight nine ten " * longest
        inputs.append(backbone.encode([text], None, longest)[0].input_ids)
    with torch.no_grad():
        truth = _plain_scores(backbone, inputs, words)
    if isinstance(backbone, DecoderOnlyBackbone):
        if "position_ids" not in signature(backbone.model.base_model.forward).parameters:
            raise _foreign(backbone, "does not follow our masks and positions")  # MPT drops them without a word
        for layers in (True, False):
            try:
                backbone.use_own_attention(True, layers=layers)
            except _FOREIGN_ARCHITECTURE:
                break
            if _problem(backbone, truth) is None and _reads_once(backbone, truth, short):
                return
        backbone.use_own_attention(False)
    if isinstance(backbone, EncoderDecoderBackbone):
        backbone.use_own_layers(True)
        if _problem(backbone, truth) is None:
            return
        backbone.use_own_layers(False)
    problem = _problem(backbone, truth)
    if problem is not None:
        raise _foreign(backbone, problem)


def check_gradients(backbone: FrozenBackbone) -> None:
    """Checks that gradients pass through quantised products: some of their kernels have no backward pass.

    The residual stream would still bring a prompt a gradient, and a training would look like one. One module of each
    kind is asked: it is linear, so that gradient · x is what x changes.

    Raises:
        AttemptError: a gradient does not pass, or is wrong.
    """
    kinds = {
        type(module): module
        for module in backbone.model.modules()
        if isinstance(getattr(module, "in_features", None), int) and _is_quantised(module)
    }
    for kind, module in kinds.items():
        x = torch.randn(4, module.in_features, generator=torch.Generator().manual_seed(0))
        where = next((one.device for one in (*module.parameters(), *module.buffers())), backbone.device)
        x = x.to(where, backbone.dtype).requires_grad_()
        try:
            (gradient,) = torch.autograd.grad(module(x).float().sum(), x)
            with torch.no_grad():
                change = (module(x).float() - module(torch.zeros_like(x)).float()).sum(1)
            passes = bool(((gradient * x).float().sum(1) - change).norm() <= 0.1 * change.norm() + 1e-6)
        except (RuntimeError, NotImplementedError, TypeError):  # a kernel without a backward pass
            passes = False
        if not passes:
            raise AttemptError(
                f"the weights of {backbone.name} are quantised ({kind.__name__}), and no gradient passes through them",
                "Prompts cannot be trained on it: use the checkpoint that it was made from.",
            )


def _is_quantised(module: torch.nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    plain = isinstance(weight, Tensor) and type(weight) in (Tensor, torch.nn.Parameter) and weight.is_floating_point()
    return not (plain and type(module) is torch.nn.Linear)


def _foreign(backbone: FrozenBackbone, problem: str) -> AttemptError:
    return AttemptError(
        f"the architecture {backbone.model.config.model_type} {problem}", "Use a backbone of the T5 or Llama families."
    )


def _row_beyond_windows(backbone: FrozenBackbone, word: int) -> int:
    """Returns how many input tokens are more than the model's windows hold; 0 if it has none that a row can exceed."""
    windows = [window for window in windows_of(backbone.model.config) if window <= LONGEST_CHECKED]
    positions = backbone.max_positions or 2 * LONGEST_CHECKED
    return min(max(windows) + 16, positions - word - 1) if windows else 0


# Tokens. Behind longer windows label words are scored one by one, which is the plain way: no row needs to prove it.
LONGEST_CHECKED = 600


@dataclass(frozen=True)
class _Truth:
    """What the model's own forward passes say.

    Args:
        inputs: tokens of each of r rows.
        words: tokens of each of c words.
        scores: log p of every word behind every row, [r, c], float32.
        logit: the largest absolute logit of a word's token.
    """

    inputs: list[list[int]]
    words: list[list[int]]
    scores: Tensor
    logit: float

    def with_targets(self, targets: Tensor) -> Tensor:
        """Returns the scores of the first rows, with ours at each row's target: the words in turn."""
        ours = self.scores[: len(targets)].clone()
        rows = torch.arange(len(targets), device=ours.device)
        ours[rows, rows % len(self.words)] = targets.detach().float()
        return ours

    def agrees(self, backbone: FrozenBackbone, ours: Tensor, rows: slice | int) -> bool:
        """Tells whether our scores of all words, [.., c], are those of the rows, as far as the dtype can tell.

        What counts is how far apart different rows score: in a model whose weights are near zero all is alike, and a
        difference of a fixed size would hide any mistake.
        """
        spread = float((self.scores.amax(0) - self.scores.amin(0)).max())
        # fp32 differs in the order of sums alone; in bf16 the plain pass rounds every logit, and int8 every activation
        exact = backbone.dtype == torch.float32 and backbone.quantization != "int8"
        relative, steps, kind = (2e-3, 100.0, torch.float32) if exact else (0.02, 1.0, torch.bfloat16)
        rounding = steps * torch.finfo(kind).eps * self.logit * max(map(len, self.words))
        bound = relative * spread + rounding + 1e-4
        return bool((ours.float() - self.scores[rows]).abs().max() <= bound)


def _problem(backbone: FrozenBackbone, truth: _Truth) -> str | None:
    """Compares our scores with the plain ones, and takes a prompt's gradient; returns None if nothing is wrong.

    A row's first token, as its prompt, changes nothing in its score.
    """
    rows = [EncodedRow(ids, truth.words[i % len(truth.words)]) for i, ids in enumerate(truth.inputs)]
    behind = backbone.collate([EncodedRow(row.input_ids[1:] or row.input_ids, row.target_ids) for row in rows])
    whole = backbone.collate(rows)
    try:
        prompts = backbone.embed(whole.input_ids[:, :1]).detach().requires_grad_()
        targets = backbone.target_log_likelihood(behind, backbone.embed(behind.input_ids), prompts)
        (gradient,) = torch.autograd.grad(targets.sum(), prompts)
        with torch.no_grad():
            labels = backbone.label_log_likelihoods(whole, backbone.embed(whole.input_ids), None, truth.words)
    except _FOREIGN_ARCHITECTURE as error:
        return f"does not take our masks and positions: {first_line(error)}"
    if not truth.agrees(backbone, truth.with_targets(targets), slice(None)):
        return "changes its logits after the output layer, or looks ahead"
    if not truth.agrees(backbone, labels, slice(None)):
        return "does not follow our masks and positions"
    return None if bool(gradient.isfinite().all()) and bool(gradient.any()) else "gives a prompt no gradient"


def _reads_once(backbone: FrozenBackbone, truth: _Truth, short: int) -> bool:
    """Tells whether scores stay the same when a row's last token, as a prompt, reads the keys and values of the rest.

    Args:
        short: the number of rows that no window cuts; a row that is longer is not read in parts.
    """
    inputs = truth.inputs[:short]
    rest = [EncodedRow(ids[:-1] or ids, truth.words[i % len(truth.words)]) for i, ids in enumerate(inputs)]
    try:
        batch = backbone.collate(rest)
        embeddings = backbone.embed(batch.input_ids)
        past = backbone.read(rest)
        ends = torch.tensor([ids[-1:] for ids in inputs], device=backbone.device)
        prompts = backbone.embed(ends).detach().requires_grad_()
        targets = backbone.target_log_likelihood(batch, embeddings, prompts, past)
        (gradient,) = torch.autograd.grad(targets.sum(), prompts)
        with torch.no_grad():
            labels = backbone.label_log_likelihoods(batch, embeddings, prompts, truth.words, past)
    except (*_FOREIGN_ARCHITECTURE, AttemptError):  # the latter: a window shorter than these rows
        return False
    agree = all(truth.agrees(backbone, ours, slice(short)) for ours in (truth.with_targets(targets), labels))
    return agree and bool(gradient.isfinite().all())


_FOREIGN_ARCHITECTURE = (TypeError, ValueError, IndexError, AttributeError, RuntimeError, AssertionError, KeyError)


def _plain_scores(backbone: FrozenBackbone, inputs: list[list[int]], words: list[list[int]]) -> _Truth:
    """Scores all words behind each row by forward passes without a mask, as the library computes them."""
    longest = max(map(len, words))
    targets = torch.tensor([word + [backbone.pad_id] * (longest - len(word)) for word in words], device=backbone.device)
    real = torch.tensor([[step < len(word) for step in range(longest)] for word in words], device=backbone.device)
    scores, logit = [], 0.0
    for ids in inputs:
        row = torch.tensor([ids], device=backbone.device).expand(len(words), -1)
        if backbone.architecture == "encoder-decoder":
            logits = backbone.model(input_ids=row, labels=targets).logits
        else:
            logits = backbone.model(input_ids=torch.cat([row, targets], dim=1)).logits[:, len(ids) - 1 : -1]
        own = logits.gather(2, targets[..., None])[..., 0]
        scores.append(((own.float() - logits.float().logsumexp(-1)) * real).sum(1))
        logit = max(logit, float((own * real).abs().max()))
    return _Truth(inputs, words, torch.stack(scores), logit)
