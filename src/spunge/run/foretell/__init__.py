"""What a run would compute and what that takes, said before it begins."""
