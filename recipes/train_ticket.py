"""Train a ticket: a logged signed mask on a fresh initialisation, with the full schedule and without interpolation.

Figure     the final trainings of the paper (section 4)
Networks   that of the ticket. Network, data set and schedule come from the ticket's run
Time       the final epochs of the recipe that found the ticket
Hardware   that of the recipe that found the ticket
Launch     python recipes/train_ticket.py --ticket RUN_ID --kind signed_mask --init-seed 2 --sgd-seed 1
           python recipes/train_ticket.py --ticket RUN_ID --initialisation kaiming_normal --signs pruned
           python recipes/train_ticket.py --ticket RUN_ID --data cifar10
"""

from harness.cli.commands import use_ticket

if __name__ == "__main__":
    use_ticket(__doc__)
