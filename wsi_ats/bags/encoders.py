"""Names of encoders: one name for what each tool calls differently."""

from __future__ import annotations

import re

# Names of TRIDENT and CLAM (folders ``features_<name>``), and of STAMP (attribute ``extractor``, folder
# ``<name>-<hash>``), where they differ from ours; compared without punctuation.
_NAMES = {
    "univ1": "uni",
    "mahmooduni": "uni",
    "univ2": "uni2",
    "mahmooduni2": "uni2",
    "conchv1": "conch",
    "mahmoodconch": "conch",
    "conchv15": "conch1.5",
    "conch15": "conch1.5",
    "mahmoodconch15": "conch1.5",
    "provgigapath": "gigapath",
    "phikonv2": "phikon2",
    "virchowv2": "virchow2",
    "hoptimus0": "h-optimus-0",
    "hoptimus1": "h-optimus-1",
    "chiefctranspath": "ctranspath-chief",
}


def encoder_name(name: str) -> str:
    """Return one name for an encoder that tools call differently.

    Parameters
    ----------
    name
        Any tool's name of an encoder; other names are returned as they are, in lower case.

    Examples
    --------
    >>> encoder_name("uni_v1"), encoder_name("mahmood-uni"), encoder_name("resnet50_trunc")
    ('uni', 'uni', 'resnet50_trunc')
    """
    lower = name.strip().lower()
    return _NAMES.get(re.sub(r"[^a-z0-9]", "", lower), lower)


def encoder_of_folder(folder: str) -> str:
    """Return the encoder that a folder's name tells, or an empty text.

    Parameters
    ----------
    folder
        Name of a folder of features, without the folders above it.

    Examples
    --------
    >>> encoder_of_folder("features_conch_v15"), encoder_of_folder("mahmood-uni2-1a2b3c4d")
    ('conch1.5', 'uni2')
    >>> encoder_of_folder("my files")
    ''
    """
    if folder.startswith("features_"):
        return encoder_name(folder.removeprefix("features_"))
    hashed = re.fullmatch(r"(.+)-[0-9a-f]{8}", folder)
    return encoder_name(hashed[1]) if hashed else ""
