"""Studies: a recipe says what to do, a run does it in a folder, an evaluation measures it."""
