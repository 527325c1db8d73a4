"""The parts of a frozen model: layers with their final values (layers.py), and the graph that calls them (graph.py)."""
