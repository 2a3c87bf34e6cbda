"""Names of weights in published files, turned into those of timm."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

# transformers' ViT and DINOv2, the latter with registers or without; one rule applies to a name.
_TRANSFORMERS = (
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^layernorm\.", "norm."),
    (r"^encoder\.layer\.(\d+)\.(?:layernorm_before|norm1)\.", r"blocks.\1.norm1."),
    (r"^encoder\.layer\.(\d+)\.(?:layernorm_after|norm2)\.", r"blocks.\1.norm2."),
    (r"^encoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)\.", r"blocks.\1.attn.\2."),
    (r"^encoder\.layer\.(\d+)\.attention\.output\.dense\.", r"blocks.\1.attn.proj."),
    (r"^encoder\.layer\.(\d+)\.layer_scale(\d)\.lambda1$", r"blocks.\1.ls\2.gamma"),
    (r"^encoder\.layer\.(\d+)\.(?:intermediate\.dense|mlp\.weights_in|mlp\.fc1)\.", r"blocks.\1.mlp.fc1."),
    (r"^encoder\.layer\.(\d+)\.(?:output\.dense|mlp\.weights_out|mlp\.fc2)\.", r"blocks.\1.mlp.fc2."),
)
# Used in training only, or by the classifier of transformers, which is not part of the published features.
_TRANSFORMERS_UNUSED = ("embeddings.mask_token", "pooler.")

# CONCH's image encoder: version 1 has text beside it, version 1.5 has images alone.
_CONCH = (
    (r"^(?:visual\.)?trunk\.", ""),
    (r"^(?:visual\.)?attn_pool_contrast\.", "pool."),
    (r"^(?:visual\.)?ln_contrast\.", "pool.norm."),
)
_CONCH_UNUSED = ("text", "logit_scale", "visual.proj_", "visual.attn_pool_caption.", "visual.ln_caption.")

State = dict[str, Tensor]


def timm_names(state: Mapping[str, Tensor], keys: str) -> State:
    """Return weights under timm's names; those that have them already are unchanged.

    Parameters
    ----------
    state
        Weights by name, as published.
    keys
        Their names: ``timm``, ``transformers`` or ``conch``; see :data:`wsi_ats.encoders.encoder.KEYS`.

    Examples
    --------
    >>> published = {"layernorm.weight": torch.ones(1), "pooler.dense.bias": torch.ones(1)}
    >>> list(timm_names(published, "transformers"))
    ['norm.weight']
    """
    return _RENAME[keys](state)


def _unchanged(state: Mapping[str, Tensor]) -> State:
    return dict(state)


def _of_transformers(state: Mapping[str, Tensor]) -> State:
    found = _renamed(state, _TRANSFORMERS, _TRANSFORMERS_UNUSED)
    _join(found, ".attn.", ("query", "key", "value"), "qkv")
    if "reg_token" in found and "embeddings.position_embeddings" in state:
        # timm adds no position to registers, nor, then, to the class token: its position is part of it.
        position = found["pos_embed"]
        found |= {"cls_token": found["cls_token"] + position[:, :1], "pos_embed": position[:, 1:]}
    return found


def _of_conch(state: Mapping[str, Tensor]) -> State:
    found = _renamed(state, _CONCH, _CONCH_UNUSED)
    if "pool.to_kv.weight" in found:  # the second version has its own attention, without constants
        found["pool.attn.q_proj_weight"] = found.pop("pool.to_q.weight")
        key, value = found.pop("pool.to_kv.weight").chunk(2)
        found |= {"pool.attn.k_proj_weight": key, "pool.attn.v_proj_weight": value}
        found["pool.attn.out_proj.weight"] = found.pop("pool.to_out.weight")
    return found


_RENAME: dict[str, Callable[[Mapping[str, Tensor]], State]] = {
    "timm": _unchanged,
    "transformers": _of_transformers,
    "conch": _of_conch,
}


def _renamed(
    state: Mapping[str, Tensor], rules: tuple[tuple[str, str], ...], unused: tuple[str, ...]
) -> State:
    return {_new(name, rules): value for name, value in state.items() if not name.startswith(unused)}


def _new(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        name, count = re.subn(pattern, replacement, name)
        if count:
            break
    return name


def _join(state: State, place: str, parts: tuple[str, ...], whole: str) -> None:
    """Replace several matrices or vectors of a layer by one."""
    for name in [each for each in state if f"{place}{parts[0]}." in each]:
        others = [name.replace(f"{place}{parts[0]}.", f"{place}{part}.") for part in parts]
        joined = torch.cat([state.pop(each) for each in others])
        state[name.replace(f"{place}{parts[0]}.", f"{place}{whole}.")] = joined
