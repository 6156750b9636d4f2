"""Hypothesis profiles: `ci` repeats exactly, `dev` explores, `thorough` digs; and how wide a terminal tests see."""

import os

from hypothesis import settings

settings.register_profile("ci", derandomize=True, deadline=None, max_examples=100)
settings.register_profile("dev", deadline=None, max_examples=100)
settings.register_profile("thorough", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev"))

os.environ["COLUMNS"] = "132"  # parallel runs of pytest set 80, plain ones nothing
