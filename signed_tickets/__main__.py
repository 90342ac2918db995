"""`python -m signed_tickets` is the console script `tickets`, also for `accelerate launch -m signed_tickets`."""

from harness.cli.tickets import main

if __name__ == "__main__":
    main()
