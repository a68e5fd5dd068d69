"""Timings and memory of the package against peers: `python -m benchmarks [NAME] [--json FILE] [--quick]`.

A suite is a module of this folder that defines `rows(quick) -> Iterator[Row]`; it joins by being there. What suites share is in `timing`
and `report`; other people's methods, written anew, are in `peers`.
"""
