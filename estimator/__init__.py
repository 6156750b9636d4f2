"""What a training step needs and how long it takes."""

from estimator.evaluate import PlanEstimate, Range
from estimator.plan import Plan, parse_plan
from estimator.planner import Estimate, search
from estimator.shape import Shape, load_shape, shape_from_config
from estimator.stack import Stack, load_stack
from estimator.workload import Workload, num_steps

__all__ = [
    "Estimate",
    "Plan",
    "PlanEstimate",
    "Range",
    "Shape",
    "Stack",
    "Workload",
    "load_shape",
    "load_stack",
    "num_steps",
    "parse_plan",
    "search",
    "shape_from_config",
]
