"""Foundation encoders of tiles by name: what is known of each, as data, without torch.

- ``encoder``: the record; ``table``: one record for each known encoder, with the pages its facts come from.

:func:`wsi_ats.nn.backbone.create_backbone` builds their networks, and :class:`wsi_ats.settings.Settings`
takes the size and resolution of tiles from them.
"""

from wsi_ats.encoders.encoder import Encoder
from wsi_ats.encoders.table import ENCODERS, find_encoder, nearest_name

__all__ = ["ENCODERS", "Encoder", "find_encoder", "nearest_name"]
