"""What a training step needs and how long it takes."""

from estimator.predict.evaluate import PlanEstimate
from estimator.predict.interval import Range
from estimator.search.planner import Estimate, search
from estimator.stack.stack import Stack, load_stack
from estimator.work.plan import Plan, parse_plan
from estimator.work.shape import Shape, load_shape, shape_from_config
from estimator.work.workload import Workload, num_steps

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
