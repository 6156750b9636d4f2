"""What a training step needs, how long it takes and what it costs: the calls of Python's door, and what they give."""

from estimator import calibrate as calibrate_room
from estimator import search as search_room
from estimator.api.calibrate import calibrate, calibrate_timings, write_run_record
from estimator.api.compare import compare
from estimator.api.configuration import Configuration, read_configuration
from estimator.api.estimate import estimate, search
from estimator.api.flavors import Estimates
from estimator.api.pages import html_page, plot
from estimator.api.plans import evaluate_plans
from estimator.api.runs import RunsRead, read_runs
from estimator.api.trace import trace
from estimator.predict.evaluate import PlanEstimate
from estimator.predict.interval import Range
from estimator.search.difference import Difference
from estimator.search.planner import Estimate
from estimator.stack.stack import Stack, load_stack
from estimator.work.plan import Plan, parse_plan
from estimator.work.shape import Shape, load_shape, shape_from_config
from estimator.work.workload import Workload, num_steps

__all__ = [
    "Configuration",
    "Difference",
    "Estimate",
    "Estimates",
    "Plan",
    "PlanEstimate",
    "Range",
    "RunsRead",
    "Shape",
    "Stack",
    "Workload",
    "calibrate",
    "calibrate_timings",
    "compare",
    "estimate",
    "evaluate_plans",
    "html_page",
    "load_shape",
    "load_stack",
    "num_steps",
    "parse_plan",
    "plot",
    "read_configuration",
    "read_runs",
    "search",
    "shape_from_config",
    "trace",
    "write_run_record",
]

# two calls bear the names of rooms; they keep the rooms' attributes, so that estimator.search.planner stays the module
calibrate.__dict__ = vars(calibrate_room)
search.__dict__ = vars(search_room)
