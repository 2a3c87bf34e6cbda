"""What is known of each encoder; every entry names the pages that its facts come from.

No test loads published weights, which need a licence or a download. Tests compare the networks with the
published numbers of weights. Resolutions are those that TRIDENT and slide2vec advise. ``tile`` is the side of
the input, because tiles are not resized after reading.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import replace
from types import MappingProxyType

from wsi_ats.encoders.encoder import Colour, Encoder

_TRIDENT = (
    "https://github.com/mahmoodlab/TRIDENT/blob/main/README.md",
    "https://github.com/mahmoodlab/TRIDENT/blob/main/trident/patch_encoder_models/load.py",
)
_SLIDE2VEC = "https://github.com/clemsgrs/slide2vec/blob/main/docs/models.rst"
_LAZYSLIDE = (
    "https://github.com/rendeirolab/LazySlide/blob/main/src/lazyslide/models/model_registry.json"  # numbers
)
_PEERS = (*_TRIDENT, _SLIDE2VEC, _LAZYSLIDE)
_KAIKO_LICENCE = "https://github.com/kaiko-ai/towards_large_pathology_fms"
_LUNIT = "https://github.com/lunit-io/benchmark-ssl-pathology"

_HALF: Colour = (0.5, 0.5, 0.5)
_SWIGLU = {"mlp_layer": "SwiGLUPacked", "act_layer": "silu"}
_MANY = (0.5, 0.25, 1.0, 2.0)
_NO_DERIVATIVES = "CC-BY-NC-ND-4.0"

_UNI = Encoder(
    name="uni",
    hub="MahmoodLab/uni",
    file="pytorch_model.bin",
    architecture="vit_large_patch16_224",
    arguments={"init_values": 1e-5},
    width=1024,
    patch=16,
    parameters="303.4M",
    licence=_NO_DERIVATIVES,
    gated=True,
    paper="10.1038/s41591-024-02857-3",
    sources=("https://github.com/mahmoodlab/UNI", *_PEERS),
)
_UNI2 = replace(
    _UNI,
    name="uni2-h",
    hub="MahmoodLab/UNI2-h",
    architecture="vit_giant_patch14_224",
    arguments={
        "depth": 24,
        "num_heads": 24,
        "embed_dim": 1536,
        "init_values": 1e-5,
        "mlp_ratio": 2.66667 * 2,
        "no_embed_class": True,
        "reg_tokens": 8,
        **_SWIGLU,
    },
    width=1536,
    patch=14,
    prefix=9,
    parameters="681.4M",
)
_VIRCHOW = Encoder(
    name="virchow",
    hub="paige-ai/Virchow",
    file="pytorch_model.bin",
    architecture="vit_huge_patch14_224",
    arguments={"init_values": 1e-5, "mlp_ratio": 5.3375, **_SWIGLU},
    width=2560,
    patch=14,
    pooling="class+mean",
    parameters="631.2M",
    licence="Apache-2.0",
    gated=True,
    paper="10.1038/s41591-024-03141-0",
    sources=("https://huggingface.co/paige-ai/Virchow", *_PEERS),
)
_VIRCHOW2 = replace(
    _VIRCHOW,
    name="virchow2",
    hub="paige-ai/Virchow2",
    arguments={**_VIRCHOW.arguments, "reg_tokens": 4},
    mpp=_MANY,
    prefix=5,
    licence=_NO_DERIVATIVES,
    paper="arXiv:2408.00738",
    sources=("https://huggingface.co/paige-ai/Virchow2", *_PEERS),
)
_GIGAPATH = Encoder(
    name="prov-gigapath",
    hub="prov-gigapath/prov-gigapath",
    file="pytorch_model.bin",
    architecture="vit_giant_patch14_dinov2",
    arguments={"patch_size": 16, "mlp_ratio": 5.33334},
    width=1536,
    patch=16,
    parameters="1.13B",
    licence="Apache-2.0, research",
    gated=True,
    paper="10.1038/s41586-024-07441-w",
    sources=("https://github.com/prov-gigapath/prov-gigapath", *_PEERS),
    note="The tile encoder alone.",
)
_H_OPTIMUS = Encoder(
    name="h-optimus-0",
    hub="bioptimus/H-optimus-0",
    file="pytorch_model.bin",
    architecture="vit_giant_patch14_reg4_dinov2",
    arguments={"init_values": 1e-5},
    width=1536,
    patch=14,
    mean=(0.707223, 0.578729, 0.703617),
    std=(0.211883, 0.230117, 0.177517),
    prefix=5,
    parameters="1.13B",
    licence="Apache-2.0",
    gated=True,
    paper="",
    sources=("https://huggingface.co/bioptimus/H-optimus-0/blob/main/config.json", *_PEERS),
)
_H_OPTIMUS_1 = replace(
    _H_OPTIMUS,
    name="h-optimus-1",
    hub="bioptimus/H-optimus-1",
    licence=_NO_DERIVATIVES,
    sources=("https://huggingface.co/bioptimus/H-optimus-1", *_PEERS),
)
_H0_MINI = replace(
    _H_OPTIMUS_1,
    name="h0-mini",
    hub="bioptimus/H0-mini",
    architecture="vit_base_patch14_reg4_dinov2",
    arguments={"init_values": 1e-5, "mlp_ratio": 5.33334, **_SWIGLU},
    pooling="class+mean",
    parameters="85.7M",
    paper="arXiv:2501.16239",
    sources=("https://huggingface.co/bioptimus/H0-mini", *_PEERS),
    note="No page states the architecture; it follows from the published number of weights.",
)
_PHIKON = Encoder(
    name="phikon",
    hub="owkin/phikon",
    file="pytorch_model.bin",
    architecture="vit_base_patch16_224",
    width=768,
    patch=16,
    keys="transformers",
    parameters="85.8M",
    licence="Owkin non-commercial",
    gated=False,
    paper="10.1101/2023.07.21.23292757",
    sources=("https://github.com/owkin/HistoSSLscaling", *_PEERS),
)
_PHIKON2 = replace(
    _PHIKON,
    name="phikon-v2",
    hub="owkin/phikon-v2",
    file="model.safetensors",
    architecture="vit_large_patch16_224",
    arguments={"init_values": 1.0},
    width=1024,
    parameters="303.4M",
    paper="arXiv:2409.09173",
    sources=("https://huggingface.co/owkin/phikon-v2", *_PEERS),
)
_CONCH = Encoder(
    name="conch_v1",
    hub="MahmoodLab/conch",
    file="pytorch_model.bin",
    architecture="vit_base_patch16_224",
    width=512,
    patch=16,
    tile=448,
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
    pooling="attention",
    keys="conch",
    licence=_NO_DERIVATIVES,
    gated=True,
    paper="10.1038/s41591-024-02856-4",
    sources=(
        "https://github.com/mahmoodlab/CONCH/blob/main/conch/open_clip_custom/vision_tower.py",
        "https://github.com/mahmoodlab/CONCH/blob/main/conch/open_clip_custom/model_configs/conch_ViT-B-16.json",
        *_PEERS,
    ),
    note="The image encoder without its projection to text; the published number of weights includes text.",
)
_CONCH15 = replace(
    _CONCH,
    name="conch_v1.5",
    hub="MahmoodLab/conchv1_5",
    file="pytorch_model_vision.bin",
    architecture="vit_large_patch16_224",
    arguments={"init_values": 1.0},
    width=768,
    mean=_UNI.mean,
    std=_UNI.std,
    pool_bias=False,
    paper="arXiv:2411.19666",
    sources=("https://huggingface.co/MahmoodLab/conchv1_5", *_PEERS),
    note="The tile encoder of TITAN; no page gives its number of weights.",
)
_CTRANSPATH = Encoder(
    name="ctranspath",
    hub="1aurent/swin_tiny_patch4_window7_224.CTransPath",
    file="model.safetensors",
    architecture="swin_tiny_patch4_window7_224",
    arguments={"embed_layer": "ConvStem"},
    width=768,
    patch=32,
    mpp=(),
    pooling="mean",
    prefix=0,
    parameters="27.5M",
    licence="GPL-3.0",
    gated=False,
    paper="10.1016/j.media.2022.102559",
    sources=("https://github.com/Xiyue-Wang/TransPath", *_PEERS),
    note="No page gives the resolution; set tile.mpp. The hub has a copy by 1aurent.",
)
_HIBOU = Encoder(
    name="hibou-b",
    hub="histai/hibou-b",
    file="model.safetensors",
    architecture="vit_base_patch14_reg4_dinov2",
    arguments={"init_values": 1.0, "mlp_ratio": 5.33334, **_SWIGLU},
    width=768,
    patch=14,
    mean=(0.7068, 0.5755, 0.722),
    std=(0.195, 0.2316, 0.1816),
    prefix=5,
    keys="transformers",
    parameters="85.7M",
    licence="Apache-2.0",
    gated=True,
    paper="arXiv:2406.05074",
    sources=("https://huggingface.co/histai/hibou-b/blob/main/config.json", *_PEERS),
)
_HIBOU_L = replace(
    _HIBOU,
    name="hibou-l",
    hub="histai/hibou-L",
    architecture="vit_large_patch14_reg4_dinov2",
    # transformers rounds two thirds of 4096 up to 2736, a multiple of 8; timm's layer holds twice as many.
    arguments={"init_values": 1.0, "mlp_ratio": 5472 / 1024, **_SWIGLU},
    width=1024,
    parameters="303.7M",
    sources=("https://huggingface.co/histai/hibou-L", *_PEERS),
)
_MIDNIGHT = Encoder(
    name="midnight",
    hub="kaiko-ai/midnight",
    file="model.safetensors",
    architecture="vit_giant_patch14_dinov2",
    arguments={"init_values": 1.0},
    width=3072,
    patch=14,
    mpp=_MANY,
    mean=_HALF,
    std=_HALF,
    pooling="class+mean",
    keys="transformers",
    parameters="1.14B",
    licence="MIT",
    gated=False,
    paper="arXiv:2504.05186",
    sources=("https://huggingface.co/kaiko-ai/midnight", *_PEERS),
)


def _kaiko(name: str, architecture: str, hub: str, width: int, patch: int, prefix: int = 1) -> Encoder:
    return Encoder(
        name=name,
        hub=f"1aurent/{hub}.kaiko_ai_towards_large_pathology_fms",
        file="model.safetensors",
        architecture=architecture,
        width=width,
        patch=patch,
        mean=_HALF,
        std=_HALF,
        prefix=prefix,
        licence="Kaiko non-commercial",
        gated=False,
        paper="arXiv:2404.15217",
        sources=(f"https://huggingface.co/1aurent/{hub}.kaiko_ai_towards_large_pathology_fms", *_TRIDENT),
        note=f"Converted by 1aurent; the original is {_KAIKO_LICENCE}.",
    )


def _lunit(name: str, architecture: str, patch: int, parameters: str | None = None) -> Encoder:
    return Encoder(
        name=name,
        hub=f"1aurent/{architecture}.lunit_dino",
        file="model.safetensors",
        architecture=architecture,
        width=384,
        patch=patch,
        mean=(0.70322989, 0.53606487, 0.66096631),
        std=(0.21716536, 0.26081574, 0.20723464),
        parameters=parameters,
        licence="Lunit non-commercial",
        gated=False,
        paper="arXiv:2212.04690",
        sources=(
            f"https://huggingface.co/1aurent/{architecture}.lunit_dino",
            _LUNIT,
            "https://github.com/kaiko-ai/eva/blob/main/src/eva/vision/models/networks/backbones/pathology/lunit.py",
            _SLIDE2VEC,
        ),
        note=f"Converted by 1aurent; the original is {_LUNIT}.",
    )


_GPFM = Encoder(
    name="gpfm",
    hub="majiabo/GPFM",
    file="GPFM.pth",
    architecture="vit_large_patch14_dinov2",
    arguments={"init_values": 1e-5},
    width=1024,
    patch=14,
    parameters="303M",
    licence=None,
    gated=False,
    paper="arXiv:2407.18449",
    sources=(
        "https://github.com/birkhoffkiki/GPFM",
        "https://github.com/clemsgrs/slide2vec/blob/main/slide2vec/encoders/models/gpfm.py",
        "https://github.com/rendeirolab/LazySlide/blob/main/src/lazyslide/models/vision/gpfm.py",
    ),
    note="Pages disagree on the licence: MIT, or CC-BY-NC-ND-4.0.",
)

ENCODERS = MappingProxyType(
    {
        each.name: each
        for each in (
            *(_UNI, _UNI2, _VIRCHOW, _VIRCHOW2, _GIGAPATH, _H_OPTIMUS, _H_OPTIMUS_1, _H0_MINI),
            *(_PHIKON, _PHIKON2, _CONCH, _CONCH15, _CTRANSPATH, _HIBOU, _HIBOU_L, _MIDNIGHT),
            _kaiko("kaiko-vits8", "vit_small_patch8_224", "vit_small_patch8_224", 384, 8),
            _kaiko("kaiko-vits16", "vit_small_patch16_224", "vit_small_patch16_224", 384, 16),
            _kaiko("kaiko-vitb8", "vit_base_patch8_224", "vit_base_patch8_224", 768, 8),
            _kaiko("kaiko-vitb16", "vit_base_patch16_224", "vit_base_patch16_224", 768, 16),
            _kaiko(
                "kaiko-vitl14", "vit_large_patch14_reg4_dinov2", "vit_large_patch14_reg4_224", 1024, 14, 5
            ),
            _lunit("lunit-vits8", "vit_small_patch8_224", 8, "21.7M"),
            _lunit("lunit-vits16", "vit_small_patch16_224", 16),
            _GPFM,
        )
    }
)
"""All known encoders by name."""


def find_encoder(name: str) -> Encoder | None:
    """Return the encoder of a name, or ``None`` for any other network.

    Examples
    --------
    >>> find_encoder("virchow2").pooling, find_encoder("resnet18")
    ('class+mean', None)
    """
    return ENCODERS.get(name)


def nearest_name(name: str, others: Iterable[str] = ()) -> str:
    """Return the known name nearest to a mistyped one, with a question around it; empty if none is near.

    Parameters
    ----------
    name
        The mistyped name.
    others
        Names besides those of :data:`ENCODERS`.

    Examples
    --------
    >>> nearest_name("h-optimus0")
    '; did you mean h-optimus-0?'
    """
    found = difflib.get_close_matches(name.lower(), [*ENCODERS, *others], 1)
    return f"; did you mean {found[0]}?" if found else ""
