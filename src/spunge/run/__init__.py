"""The run: the flow from split to evaluation as tasks, where they are done, kept and noted."""
