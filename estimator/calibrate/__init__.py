"""How a stack is learned from measured runs, and how wrong it is."""
