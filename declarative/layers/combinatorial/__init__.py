"""Combinatorial solvers as layers: the identity method with projections, and what it is compared with."""

from declarative.layers.combinatorial.baselines import BlackboxSolver, FenchelYoungLoss, ImplicitMLE, PerturbedSolver, StraightThrough
from declarative.layers.combinatorial.graphs import ShortestPath, SpanningTree
from declarative.layers.combinatorial.identity import IdentitySolver
from declarative.layers.combinatorial.identity_top_k import IdentityTopK
from declarative.layers.combinatorial.noise import Gumbel, GumbelK, Noise, Normal
from declarative.layers.combinatorial.solvers import Assignment, Combinatorial, Function, Ranking
from declarative.layers.combinatorial.top_k import TopK

__all__ = [
    "Assignment",
    "BlackboxSolver",
    "Combinatorial",
    "FenchelYoungLoss",
    "Function",
    "Gumbel",
    "GumbelK",
    "IdentitySolver",
    "IdentityTopK",
    "ImplicitMLE",
    "Noise",
    "Normal",
    "PerturbedSolver",
    "Ranking",
    "ShortestPath",
    "SpanningTree",
    "StraightThrough",
    "TopK",
]
