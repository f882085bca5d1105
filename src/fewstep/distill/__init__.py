"""What the paper adds: stages as regression problems.

Reading order: problem, pretrain, match, halve, plan.
"""
