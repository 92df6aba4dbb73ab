"""Problems: tabular rows of which several things are to be predicted, as one YAML file says it."""

from experiments.problems.problem import Problem, load_problem, shipped_problems

__all__ = ["Problem", "load_problem", "shipped_problems"]
