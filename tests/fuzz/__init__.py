"""Random programs on fastconv, compared with PyTorch and with exact arithmetic: ``make fuzz``.

Case i of seed s depends on (s, i) alone, so a run may start anywhere and each failure has a command that repeats it.
"""
