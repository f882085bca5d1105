"""What the paper adds: stages as regression problems.

Reading order: problem, pretrain, trajectory, match, halve, plan.
"""
