"""Clocks: how a model's angles are related to the timesteps of its network."""
