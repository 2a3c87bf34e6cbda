"""The loss of each task, one number a slide, and what outputs of a network mean."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def losses(task: str, outputs: Tensor, targets: Tensor) -> Tensor:
    """Loss of each slide of a batch.

    Parameters
    ----------
    task
        ``classification`` (cross-entropy), ``multilabel`` (binary cross-entropy, mean over all labels, in
        which one that is not known counts 0), ``regression`` (squared error) or ``survival`` (:func:`cox`).
    outputs
        Of the network, shape (B, O).
    targets
        As :meth:`wsi_ats.tasks.targets.Target.encode` and ``normalise`` give them, shape (B, T); float64
        keeps times apart that differ by little.

    Returns
    -------
    Tensor, shape (B,)
        Float32 or better.

    Examples
    --------
    >>> losses("multilabel", torch.zeros(1, 2), torch.tensor([[1.0, torch.nan]]))  # log(2) / 2
    tensor([0.3466])
    """
    outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
    if task == "classification":
        return F.cross_entropy(outputs, targets[:, 0].long(), reduction="none")
    if task == "survival":
        return cox(outputs[:, 0], targets[:, 0], targets[:, 1] > 0)
    targets = targets.to(outputs.dtype)
    if task == "regression":
        return (outputs - targets).square().mean(1)
    known = targets.isfinite()
    each = F.binary_cross_entropy_with_logits(outputs, targets.where(known, 0), reduction="none")
    return each.where(known, 0).mean(1)


def cox(risk: Tensor, time: Tensor, event: Tensor) -> Tensor:
    """Shares of slides in the negative logarithm of Cox's partial likelihood.

    Each event is held against all slides of the batch that were still at risk at its time. Ties are treated
    as by Efron (1977, doi:10.1080/01621459.1977.10480613); events of one time have equal shares but for their
    own risk, so that nothing depends on the order of slides. Only differences of risks in a batch matter.

    Parameters
    ----------
    risk
        Log-hazards, shape (B,).
    time
        Of the event, or of the last news, shape (B,).
    event
        Whether the event was seen, bool, shape (B,).

    Returns
    -------
    Tensor, shape (B,)
        0 for slides without event; sums to the negative log-likelihood.

    Examples
    --------
    >>> cox(torch.zeros(2), torch.tensor([1.0, 2.0]), torch.tensor([True, True]))  # of two, then of one
    tensor([0.6931, 0.0000])
    """
    at_risk = time[None, :] >= time[:, None]
    tied = (time[None, :] == time[:, None]) & event[None, :]
    at_risk, tied = at_risk.to(risk.dtype), tied.to(risk.dtype)
    # Of m events at one time, the k-th (k = 0...) meets all of them as if a share k / m of each had gone.
    number = tied.sum(1).clamp(min=1)
    gone = tied.tril(-1).sum(1) / number
    among = (risk + (at_risk - gone[:, None] * tied).log()).logsumexp(1)
    shares = tied @ among / number - risk
    return shares.where(event, 0)


def activate(task: str, outputs: Tensor) -> Tensor:
    """Scores (..., C) of outputs (..., O).

    Parameters
    ----------
    task
        ``classification`` gives probabilities that sum to 1, ``multilabel`` one for each label; outputs of
        ``regression`` (in units of its scale) and ``survival`` (log-hazards) are scores as they are.
    outputs
        Of the network.
    """
    if task == "classification":
        return torch.softmax(outputs, -1)
    return torch.sigmoid(outputs) if task == "multilabel" else outputs


def constant_outputs(task: str, targets: Tensor, outputs: int) -> Tensor:
    """Outputs (O,) of a network that knows how common labels are, and nothing of the slides.

    Parameters
    ----------
    task
        See :func:`losses`.
    targets
        Of all slides, shape (N, T).
    outputs
        Their number O.

    Examples
    --------
    >>> constant_outputs("classification", torch.tensor([[0.0], [0.0], [0.0], [1.0]]), 2).softmax(0)
    tensor([0.7500, 0.2500])
    """
    if task == "classification":
        counts = torch.bincount(targets[:, 0].long(), minlength=outputs).float()
        return counts.clamp(min=torch.finfo(counts.dtype).tiny).div(counts.sum()).log()
    if task == "multilabel":
        common = targets.nanmean(0).float().nan_to_num(0.5)
        return torch.logit(common, eps=1e-6)
    return torch.zeros(outputs)  # values are normalised, and of risks only differences matter
