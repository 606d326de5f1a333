"""The command `bigvocab`, and `python -m bigvocab`."""

from __future__ import annotations

from bigvocab import interrupts


def main() -> None:
    """Run the command; Ctrl-C is heeded before anything slow is imported."""
    interrupts.heed()
    from bigvocab.cli import main as run

    run()


if __name__ == "__main__":
    main()
