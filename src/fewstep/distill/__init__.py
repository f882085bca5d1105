"""What the paper adds: stages of distillation as regression problems.

Reading order: problem, pretrain, trajectory, guidance, steps, any_steps, plan, chains.
"""
