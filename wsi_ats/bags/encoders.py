"""Names of encoders: one name for what each tool calls differently."""

from __future__ import annotations

import re
from pathlib import Path

from wsi_ats.encoders import ENCODERS

# Names of TRIDENT and CLAM (folders ``features_<name>``), and of STAMP (attribute ``extractor``, folder
# ``<name>-<hash>``), that differ from ours by more than punctuation.
_NAMES = {
    "univ1": "uni",
    "univ2": "uni2-h",
    "uni2": "uni2-h",
    "conch": "conch_v1",
    "conch15": "conch_v1.5",
    "gigapath": "prov-gigapath",
    "virchowv2": "virchow2",
    "midnight12k": "midnight",
    "chiefctranspath": "ctranspath-chief",
}


def encoder_name(name: str) -> str:
    """Return our name for an encoder that tools call differently.

    Parameters
    ----------
    name
        Any tool's name of an encoder. A name that is not in :data:`wsi_ats.encoders.ENCODERS` is returned as
        it is: capitals count in ``hf-hub:Owner/Model``.

    Examples
    --------
    >>> encoder_name("uni_v1"), encoder_name("mahmood-uni2"), encoder_name("resnet50_trunc")
    ('uni', 'uni2-h', 'resnet50_trunc')
    """
    key = _plain(name.strip().lower().removeprefix("mahmood-"))
    ours = {_plain(known): known for known in ENCODERS}
    return _NAMES.get(key) or ours.get(key, name.strip())


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name)


def encoder_of_folder(folder: Path) -> str:
    """Return the encoder that a folder of features names, or an empty text.

    Parameters
    ----------
    folder
        The folder. In TRIDENT's and STAMP's layouts any name is an encoder. Elsewhere it must be a known one:
        ``features_train`` names none.

    Examples
    --------
    >>> encoder_of_folder(Path("features_conch_v15")), encoder_of_folder(Path("mahmood-uni2-1a2b3c4d"))
    ('conch_v1.5', 'uni2-h')
    >>> encoder_of_folder(Path("20x_256px_0px_overlap/features_my_net"))
    'my_net'
    >>> encoder_of_folder(Path("features_train"))
    ''
    """
    if folder.name.startswith("features_"):
        name = encoder_name(folder.name.removeprefix("features_"))
        trusted = name in ENCODERS or re.fullmatch(r"[\d.]+x_\d+px_\d+px_overlap", folder.parent.name)
        return name if trusted else ""
    hashed = re.fullmatch(r"(.+)-[0-9a-f]{8}", folder.name)
    return encoder_name(hashed[1]) if hashed else ""
