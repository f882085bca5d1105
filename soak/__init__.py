"""Soak test: disturb commands at random moments, finish them, and compare what they made."""
