"""One search over all flavors, which several tests look at."""

from functools import cache

from estimator import Estimates, estimate


@cache
def every_flavor() -> Estimates:
    """Return the answer to `estimate --flavor all`: some seconds, once a process."""
    return estimate(flavor="all")
