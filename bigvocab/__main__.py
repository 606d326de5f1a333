"""`python -m bigvocab` is the command `bigvocab`."""

from bigvocab.cli import main

if __name__ == "__main__":
    main()
