"""Where the console command `zoo-prune` begins."""

from jobs.leaving import leave_on_signals


def main() -> None:
    """Run the command; signals end it quietly from here on."""
    leave_on_signals()
    from jobs.zoo_prune import main as run_command  # only now: importing takes a while

    run_command()
