"""The command ``fastconv``. ``main`` starts it, and each subcommand has a module of its name."""
