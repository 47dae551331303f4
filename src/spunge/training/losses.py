"""Pure functions of tensors: every loss, and every way to combine two gradients, with its paper and formula.

Shapes: B sequences, N counted tokens, V tokens of the vocabulary, D width. Logits are [N, V] and labels [N], already
aligned and one sequence behind another: `logits[n]` predicts `labels[n]`. What does not count (pads, prompts) is not
there, so that it costs nothing. Half-precision logits are widened to float32. Every loss is a mean: over tokens, or
over sequences where it says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


class _TokenLogProbs(torch.autograd.Function):
    """log p(label), with onehot(label) − p made beside it: the only tensor of the logits' size that backward waits for.

    Autograd's own way holds log p, fills its gradient with zeros and makes that of the logits from both.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        wide, index = _wide(logits), labels.unsqueeze(-1)
        log_probs = wide.log_softmax(-1)
        answer = log_probs.gather(-1, index).squeeze(-1)
        if ctx.needs_input_grad[0]:
            gradient = log_probs.exp_().neg_()
            ctx.save_for_backward(gradient.scatter_add_(-1, index, torch.ones_like(index, dtype=gradient.dtype)))
            ctx.dtype = logits.dtype
        return answer

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (gradient,) = ctx.saved_tensors
        return (gradient * upstream.unsqueeze(-1)).to(ctx.dtype), None


def token_log_probs(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns log p(label) of every token, [N]."""
    return _TokenLogProbs.apply(logits, labels)  # pyright: ignore[reportReturnType]


def sequence_log_probs(logits: Tensor, labels: Tensor, lengths: Sequence[int]) -> Tensor:
    """Returns the log-probability of every sequence's counted part, [B]: a sum, not divided by its length.

    Args:
        logits: [N, V].
        labels: [N].
        lengths: How many of the tokens belong to each sequence, B numbers that add up to N.
    """
    return torch.stack([tokens.sum() for tokens in token_log_probs(logits, labels).split(list(lengths))])


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The negative log-likelihood of the labels."""
    return -token_log_probs(logits, labels).mean()


def kl_to_base(logits: Tensor, base_logits: Tensor) -> Tensor:
    """KL(base ‖ model) of the next-token distributions."""
    base = _wide(base_logits).log_softmax(-1)
    ratio = base - _wide(logits).log_softmax(-1)
    return (base.exp_() * ratio).sum(-1).mean()  # in place: one tensor of the logits' size less


def npo(log_probs: Tensor, base_log_probs: Tensor, *, beta: float) -> Tensor:
    """Negative preference optimisation, a mean over sequences (Zhang et al. 2024, arXiv 2404.05868, equation 3).

    −(2/β) · log σ(−β · (log p − log p_base)); as β goes to 0 its gradient becomes that of gradient ascent.

    Args:
        log_probs: [B], of the sequences under the model.
        base_log_probs: [B], of the same sequences under the base model.
        beta: The inverse temperature β.
    """
    return -(2 / beta) * F.logsigmoid(-beta * (log_probs - base_log_probs)).mean()


def simnpo(logits: Tensor, labels: Tensor, lengths: Sequence[int], *, beta: float, delta: float) -> Tensor:
    """Simple NPO, a mean over sequences (Fan et al. 2024, arXiv 2410.07163).

    −(2/β) · log σ(β · (NLL / length − δ)): normalised by length, and free of a reference model. The paper's margin γ
    is β · δ here.
    """
    nll = -sequence_log_probs(logits, labels, lengths) / torch.tensor(lengths, device=logits.device)
    return -(2 / beta) * F.logsigmoid(beta * (nll - delta)).mean()


def dpo(
    log_probs: Tensor,
    base_log_probs: Tensor,
    alternative_log_probs: Tensor,
    base_alternative_log_probs: Tensor,
    *,
    beta: float,
) -> Tensor:
    """Direct preference of the alternative over the original, a mean over sequences.

    −(2/β) · log σ(β · [(log p − log p_base)(alternative) − (log p − log p_base)(original)])
    (Rafailov et al. 2023, arXiv 2305.18290, equation 7, with the factor that makes it comparable to NPO).
    """
    preferred = alternative_log_probs - base_alternative_log_probs
    rejected = log_probs - base_log_probs
    return -(2 / beta) * F.logsigmoid(beta * (preferred - rejected)).mean()


def undial(logits: Tensor, base_logits: Tensor, labels: Tensor, *, beta: float) -> Tensor:
    """Self-distillation on lowered logits (Dong et al. 2024, arXiv 2402.10052).

    Cross-entropy against softmax(base logits − β · onehot(label)).
    """
    target = (_wide(base_logits) - beta * _onehot(labels, logits)).softmax(-1)
    return -(target * _wide(logits).log_softmax(-1)).sum(-1).mean()


def ce_u(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy unlearning (Yang 2025, arXiv 2503.01224).

    Cross-entropy against the model's own distribution with the label's logit at −∞; the target is detached.
    """
    wide = _wide(logits)
    target = wide.detach().masked_fill(_onehot(labels, logits).bool(), -torch.inf).softmax(-1)
    return -(target * wide.log_softmax(-1)).sum(-1).mean()


def wga(logits: Tensor, labels: Tensor, *, beta: float) -> Tensor:
    """Weighted gradient ascent (Wang et al. 2025, arXiv 2502.19301).

    −mean(p^β · NLL): tokens that are already unlikely hardly push any more. The weights are detached.
    """
    log_probs = token_log_probs(logits, labels)
    return (log_probs.detach().exp() ** beta * log_probs).mean()


def satimp(logits: Tensor, labels: Tensor, *, beta1: float, beta2: float) -> Tensor:
    """Saturation and importance weighting (Yang et al. 2025, arXiv 2505.11953).

    −mean(p^β1 · (1 − p)^β2 · NLL). The weights are detached.
    """
    log_probs = token_log_probs(logits, labels)
    probs = log_probs.detach().exp()
    return (probs**beta1 * (1 - probs) ** beta2 * log_probs).mean()


def rerouting(states: Tensor, base_states: Tensor, mask: Tensor) -> Tensor:
    """Circuit breaking on the forget set (Zou et al. 2024, arXiv 2406.04313, algorithm 1).

    Mean of ReLU(cos(h, h_base)) over the tokens in `mask` [B, T], T positions, pads among them; states are
    [..., B, T, D].
    """
    cosine = F.cosine_similarity(_wide(states), _wide(base_states), dim=-1)
    return (cosine.relu() * mask).sum((-1, -2)).mean() / mask.sum().clamp(min=1)


def state_distance(states: Tensor, base_states: Tensor, mask: Tensor) -> Tensor:
    """Circuit breaking on the retain set (same algorithm): mean of ‖h − h_base‖₂ over the tokens in `mask`."""
    # The gradient of the norm at exactly zero, where training starts, is taken as zero rather than NaN.
    squared = (_wide(states) - _wide(base_states)).square().sum(-1)
    moved = squared > 0
    distance = torch.where(moved, squared.where(moved, 1).sqrt(), 0)
    return (distance * mask).sum((-1, -2)).mean() / mask.sum().clamp(min=1)


def pcgrad(forget: Tensor, retain: Tensor) -> Tensor:
    """Retain first: where the gradients conflict, forget loses its part along retain.

    (Yu et al. 2020, arXiv 2001.06782; one-sided and a parameter at a time as in arXiv 2604.14808.)
    """
    dot = (forget * retain).sum()
    projection = dot.clamp(max=0) / retain.square().sum().clamp(min=torch.finfo(retain.dtype).tiny)
    return retain + forget - projection * retain


def sago(forget: Tensor, retain: Tensor) -> Tensor:
    """Sign-aligned gradients: no entry of the result points against retain (Xiao et al. 2026, arXiv 2604.14808).

    The forget gradient where the signs agree (or one of the two is zero), the retain gradient where they differ.
    """
    return torch.where(forget.sign() * retain.sign() >= 0, forget, retain)


def _onehot(labels: Tensor, logits: Tensor) -> Tensor:
    return torch.zeros_like(_wide(logits)).scatter_(-1, labels.unsqueeze(-1), 1)


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
