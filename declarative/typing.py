"""Names for the shapes that run through the package (checked at run time in the tests, by beartype).

b: batch, m: numbers in one decision variable, p: equality constraints, q: inequality constraints, k = p + q.
"""

from jaxtyping import Bool, Float, Int
from torch import Tensor

Values = Float[Tensor, " b"]  # one number a sample: an objective, a residual
Variables = Float[Tensor, "b m"]  # the decision variable, flat
EqualityMultipliers = Float[Tensor, "b p"]
InequalityMultipliers = Float[Tensor, "b q"]
InequalityMask = Bool[Tensor, "b q"]
Rows = Float[Tensor, "b k"]  # one number for each constraint
Hessians = Float[Tensor, "b m m"]
Jacobians = Float[Tensor, "b k m"]
Directions = Float[Tensor, "c n"]  # vectors that the batch shares
Products = Float[Tensor, "b c m"]  # one result for each of them
SampleMask = Bool[Tensor, " b"]
Counts = Int[Tensor, " b"]
Output = Tensor | tuple[Tensor, ...]  # y as the user sees it
Found = tuple[Variables, EqualityMultipliers | None, InequalityMultipliers | None]  # (y, ν, μ); None: the solver does not know them
