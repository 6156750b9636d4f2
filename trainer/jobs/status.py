"""How a run ends, for whoever started it: the exit statuses of `train`, of its ranks and of their launcher."""

DONE = 0

FAILED = 1
"""A rank failed or was killed: begun again, the run goes on from its newest checkpoint."""

BAD_INPUT = 2
"""Refused before the first step; one line says what was given, the rule and the mend."""

DIVERGED = 3
"""The loss is no number, or has been worse than no knowledge for some steps: begun again, it would be so again."""

STOPPED = 75
"""Asked to stop before its end (SIGTERM, Ctrl-C, `smi -r`): saved, to be gone on with. EX_TEMPFAIL of sysexits.h."""

HUNG = 124
"""No rank came on for longer than `--hang-timeout`. As timeout(1) has it."""

INTERRUPTED = 130
"""Ctrl-C twice: nothing was saved. 128 and the signal's number, as shells have it."""
