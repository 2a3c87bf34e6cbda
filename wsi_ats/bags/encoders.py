"""Names of encoders: one name for what each tool calls differently."""

from __future__ import annotations

import re

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


def encoder_of_folder(folder: str) -> str:
    """Return the encoder that a folder's name tells, or an empty text.

    Parameters
    ----------
    folder
        Name of a folder of features, without the folders above it.

    Examples
    --------
    >>> encoder_of_folder("features_conch_v15"), encoder_of_folder("mahmood-uni2-1a2b3c4d")
    ('conch_v1.5', 'uni2-h')
    >>> encoder_of_folder("my files")
    ''
    """
    if folder.startswith("features_"):
        return encoder_name(folder.removeprefix("features_"))
    hashed = re.fullmatch(r"(.+)-[0-9a-f]{8}", folder)
    return encoder_name(hashed[1]) if hashed else ""
