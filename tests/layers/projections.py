"""What the tests of projections share."""

import torch

from declarative.layers import (
    L1BallProjection,
    L1SphereProjection,
    L2BallProjection,
    L2SphereProjection,
    LInfBallProjection,
    LInfSphereProjection,
    SimplexProjection,
)

F64 = torch.float64
BALLS = (L1BallProjection, L2BallProjection, LInfBallProjection)
SPHERES = (L1SphereProjection, L2SphereProjection, LInfSphereProjection)
SIZED = (SimplexProjection, *BALLS, *SPHERES)
NORMS = {L1BallProjection: 1, L2BallProjection: 2, LInfBallProjection: torch.inf, L1SphereProjection: 1, L2SphereProjection: 2, LInfSphereProjection: torch.inf}


def normal(*shape, seed=0, dtype=F64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)
