"""The command `bigvocab`, and `python -m bigvocab`."""

from __future__ import annotations

from bigvocab.command import signals


def main() -> None:
    """Run the command; Ctrl-C is heeded before anything slow is imported."""
    signals.heed()
    from bigvocab.command.cli import main as run

    run()


if __name__ == "__main__":
    main()
