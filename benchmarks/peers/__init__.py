"""Other ways to compute the same thing, written anew from their formulas, so that one run compares like with like."""
