"""Training with combinatorial layers on small data: what the estimators of their gradients are worth. `python -m benchmarks.learning`"""
