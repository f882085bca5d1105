"""The mathematics of guided distillation. Imports torch and nothing else.

Reading order: angle, grid, cond, denoiser, samplers, seed, sample.
"""
