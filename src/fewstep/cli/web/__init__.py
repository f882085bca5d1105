"""The page of `fewstep play`: models, settings, drawing, code and layout, a file each."""
