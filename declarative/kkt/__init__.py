"""KKT systems: the linear solves behind a step of a solver and behind a derivative."""
