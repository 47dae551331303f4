"""What a run would compute, and what that takes: the `forecast` of each kind of task, added up before it begins."""
