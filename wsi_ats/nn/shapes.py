"""Tensor types with named axes, for the signatures of the estimator; its tests check shapes against them.

K candidate cells, m drawn tiles, r drawn regions, D features and O outputs.
"""

from typing import Annotated

from torch import Tensor

Scalar = Annotated[Tensor, ""]
OfCells = Annotated[Tensor, "K"]
OfTiles = Annotated[Tensor, "m"]
OfRegions = Annotated[Tensor, "r"]
Feature = Annotated[Tensor, "D"]
Outputs = Annotated[Tensor, "O"]
CellFeatures = Annotated[Tensor, "K D"]
TileFeatures = Annotated[Tensor, "m D"]
TileOutputs = Annotated[Tensor, "m O"]
