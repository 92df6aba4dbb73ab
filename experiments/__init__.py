"""Experiments that compare model families and methods, centrally and federated."""
