"""What freeze() builds: layers that hold their final values (layers.py), and the graph that calls them (graph.py)."""
