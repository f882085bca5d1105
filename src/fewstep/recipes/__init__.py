"""Studies: a recipe says what to make and to measure, and a run does it in a folder."""
