"""Lets `python -m spunge` do what the console script does."""

from spunge.cli.commands import main

if __name__ == "__main__":
    main()
