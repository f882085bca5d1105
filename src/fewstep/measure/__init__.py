"""Measuring models: cells, the database that keeps them, and the way to noise and back."""
