"""The version of fewstep, also where only its source is there."""

__version__ = "0.1.0"
