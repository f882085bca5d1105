"""Showing what was measured: tables, plots, sheets and the report's page."""
