"""`python -m trainer.jobs.torchrun OPTIONS -m trainer ARGUMENTS`: torchrun, that ends as the ranks do.

It takes torchrun's options and starts the ranks of one node with torch's own agent. What differs is the end: SIGTERM is
handed to the ranks, which all save; what failed is one line, where torchrun prints its own traceback; and the exit
status is that of the ranks (`trainer.jobs.status`), where torchrun has 1 for every end but a good one, and 0 on the
nodes that were not told to stop. `--max-restarts` begins again at the newest checkpoint what failed or stood still,
and not what was stopped or refused.
"""

import sys
import uuid
from collections.abc import Sequence
from itertools import pairwise

from torch.distributed.run import config_from_args, parse_args

from hardware.errors import shown
from trainer.jobs.launch import Launcher
from trainer.jobs.status import BAD_INPUT

_PROGRAM = ("-m", "trainer")


def run_node(words: Sequence[str]) -> int:
    """Start the ranks of this node, and return their exit status.

    Args:
        words: torchrun's options, `-m trainer`, and the arguments of `train`.
    """
    end = next((place for place, pair in enumerate(pairwise(words)) if pair == _PROGRAM), None)
    if end is None:
        print(f"torchrun: {shown(' '.join(words), 200)} is not OPTIONS {' '.join(_PROGRAM)} ARGUMENTS", file=sys.stderr)
        return BAD_INPUT
    options = parse_args([*words[:end], *_PROGRAM])  # apart: it would take --nproc of `train` for an option of its own
    if options.standalone or (options.nnodes in ("1", "1:1") and not options.rdzv_endpoint):
        options.rdzv_backend, options.rdzv_endpoint, options.rdzv_id = "c10d", "localhost:0", uuid.uuid4().hex
        options.local_addr = options.local_addr or "localhost"
    config, program, arguments = config_from_args(options)
    assert isinstance(program, str)  # a callable is what only --run-path gives
    given = [*arguments, *words[end + len(_PROGRAM) :]]
    again = [*given, "--resume", "auto"]  # of options given twice, the last counts
    return Launcher().run(config, program, given, again=again, restarts=options.max_restarts)


if __name__ == "__main__":
    sys.exit(run_node(sys.argv[1:]))
