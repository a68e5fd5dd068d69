"""What is known about H, A and B: tags, which say what to form, and operators, which multiply and solve with few numbers."""

from declarative.structure.banded import BandedOperator
from declarative.structure.base import Operator, RowsOperator
from declarative.structure.blocks import BlockDiagonalOperator
from declarative.structure.constraints import Constant, ScaledIdentityInput, Sparse
from declarative.structure.elementary import DenseOperator, DiagonalOperator, InverseDiagonalOperator
from declarative.structure.low_rank import LowRankUpdateOperator
from declarative.structure.sparse import SparseOperator, SparsePattern
from declarative.structure.tags import Banded, BlockDiagonal, Dense, Diagonal, LowRankUpdate, ScaledIdentity, Tag

__all__ = [
    "Banded",
    "BandedOperator",
    "BlockDiagonal",
    "BlockDiagonalOperator",
    "Constant",
    "Dense",
    "DenseOperator",
    "Diagonal",
    "DiagonalOperator",
    "InverseDiagonalOperator",
    "LowRankUpdate",
    "LowRankUpdateOperator",
    "Operator",
    "RowsOperator",
    "ScaledIdentity",
    "ScaledIdentityInput",
    "Sparse",
    "SparseOperator",
    "SparsePattern",
    "Tag",
]
