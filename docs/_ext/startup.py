"""The kernels that execute the pages run this file first (PYTHONSTARTUP). It leaves no name behind."""

import labels

labels.draw_both()
del labels
