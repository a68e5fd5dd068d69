"""Exceptions and warnings that a caller can catch by type.

Bad arguments are plain ``ValueError`` and ``TypeError``; what goes wrong *numerically* has a type of its own.
"""


class SolverError(RuntimeError):
    """No acceptable solution was found for some samples, and the solver's ``on_failure`` is ``"raise"``."""


class StructureError(ValueError):
    """What a node declares about its derivatives (a tag, a hook) does not fit or does not hold."""


class SingularOperatorError(StructureError):
    """An operator that was to be inverted is singular."""


class IrregularPointError(RuntimeError):
    """The solution has no (unique) derivative at some samples, and ``irregular`` is ``"raise"``."""


class CapturedTensorError(ValueError):
    """The statement uses a tensor that requires grad but was neither passed as an input nor registered."""


def lost_gradient(node: str, what: str) -> CapturedTensorError:
    """The error about a tensor that the statement uses behind the engine's back."""
    return CapturedTensorError(
        f"the statement of {node} uses {what}, which requires grad but was neither passed as an input nor registered "
        "on the node: its gradient would be lost. Pass it as an input (node(x, w), in_dims=(0, None) if the batch shares it), assign it to the node "
        "as a torch.nn.Parameter, a buffer or a submodule, or use its .detach() if no gradient is wanted"
    )


TRANSFORMED = "a tensor that a torch.func transform differentiates or maps"


class SolverWarning(UserWarning):
    """No acceptable solution was found for some samples, and the solver's ``on_failure`` is ``"warn"``."""


def name_samples(indices: list[int], total: int) -> str:
    """``"3 of 32 samples (4, 7, 9)"``: how messages name the members of a batch."""
    shown = ", ".join(str(i) for i in indices[:8]) + (", …" if len(indices) > 8 else "")
    return f"{len(indices)} of {total} sample{'s' if total != 1 else ''} ({shown})"
